"""The figures of the code, as a table: `scripts/check --figures [COMMIT ...]`.

What each line counts is its entry in `FIGURES`. Generated stubs are left out. Without a commit, the working tree.
"""

import ast
import io
import subprocess
import sys
import tarfile
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_LONG = 400
_DENSE = 20
_CODEC = 3

Modules = Mapping[str, str]
"""Path below the repository -> source."""


def modules_of(commit: str) -> Modules:
    """The hand-written modules of a commit; those of the working tree if it is empty."""
    if commit:
        archive = subprocess.run(["git", "-C", _ROOT, "archive", commit, "certplane"], check=True, capture_output=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            files = {each.name: tar.extractfile(each) for each in tar if each.name.endswith(".py")}
            found = {name: file.read().decode() for name, file in files.items() if file}
    else:
        found = {str(path.relative_to(_ROOT)): path.read_text() for path in (_ROOT / "certplane").rglob("*.py")}
    return {name: text for name, text in sorted(found.items()) if not name.startswith("certplane/v1/")}


def without_sandbox(modules: Modules) -> Modules:
    """What is installed."""
    return {name: text for name, text in modules.items() if not name.startswith("certplane/sandbox/")}


def lines(modules: Modules) -> int:
    """All lines, with comments, docstrings and empty ones."""
    return sum(len(text.splitlines()) for text in modules.values())


def type_checking_modules(modules: Modules) -> int:
    """Modules with a block of imports for the type checker alone."""
    return sum("if TYPE_CHECKING:" in text for text in modules.values())


def all_lines(modules: Modules) -> int:
    """Lines that assignments to `__all__` take in modules that are no package's face."""
    return sum(
        (statement.end_lineno or 0) - statement.lineno + 1
        for name, text in modules.items()
        if not name.endswith("__init__.py")
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    )


def codec_fields(modules: Modules) -> int:
    """Fields that are carried over by hand, in functions that do it with three or more.

    Such a field is an argument, a dictionary's entry or an assignment whose name is also that of the attribute or
    member it comes from: `name=row.name`, `"name": status.name`, `name=str(document["name"])`.
    """
    found = 0
    for text in modules.values():
        for function in _functions(text):
            carried = sum(_is_carried(name, value) for name, value in _named_values(function))
            found += carried if carried >= _CODEC else 0
    return found


def _functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _named_values(function: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(function):
        match node:
            case ast.keyword(arg=str(name), value=value):
                yield name, value
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant):
                        yield str(key.value), value
            case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value=name))], value=value):
                yield str(name), value


def _is_carried(name: str, value: ast.expr) -> bool:
    for node in ast.walk(value):
        match node:
            case ast.Attribute(attr=attribute) if attribute == name:
                return True
            case ast.Subscript(slice=ast.Constant(value=member)) if member == name:
                return True
    return False


def comments_per_100_dense_lines(modules: Modules) -> float:
    """Comments for 100 lines of code in functions with 20 lines of code or more, pragmas left out."""
    code = comments = 0
    for text in modules.values():
        noted, full = _lines_by_kind(text)
        for function in _functions(text):
            body = range(function.body[0].lineno, (function.end_lineno or 0) + 1)
            if len(full.intersection(body)) >= _DENSE:
                code += len(full.intersection(body))
                comments += len(noted.intersection(body))
    return round(100 * comments / code, 1)


def _lines_by_kind(text: str) -> tuple[set[int], set[int]]:
    """The numbers of lines with a comment, and of those with code; docstrings are neither."""
    noted, full = set(), set()
    begins_statement = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        match token.type:
            case tokenize.COMMENT:
                if not token.string.startswith(("# noqa", "# type:", "# fmt:", "# pragma")):
                    noted.add(token.start[0])
            case tokenize.NL | tokenize.INDENT | tokenize.DEDENT | tokenize.ENCODING | tokenize.ENDMARKER:
                pass
            case tokenize.NEWLINE:
                begins_statement = True
            case _:
                if not (begins_statement and token.type == tokenize.STRING):
                    full.update(range(token.start[0], token.end[0] + 1))
                begins_statement = False
    return noted, full


def long_modules(modules: Modules) -> int:
    """Modules past 400 lines."""
    return sum(len(text.splitlines()) > _LONG for text in modules.values())


FIGURES: tuple[tuple[str, Callable[[Modules], float]], ...] = (
    ("lines, sandbox apart", lambda modules: lines(without_sandbox(modules))),
    ("lines with the sandbox", lines),
    ("modules", len),
    ("modules with `if TYPE_CHECKING`", type_checking_modules),
    ("lines of `__all__` outside package faces", all_lines),
    ("fields carried over by hand, sandbox apart", lambda modules: codec_fields(without_sandbox(modules))),
    ("comments per 100 code lines in dense bodies", comments_per_100_dense_lines),
    ("modules past 400 lines", long_modules),
)


def main(commits: list[str]) -> None:
    """Print a column for each commit."""
    columns = {commit or "here": modules_of(commit) for commit in commits or [""]}
    print(f"{'':44}" + "".join(f"{name:>10.10}" for name in columns))
    for title, figure in FIGURES:
        print(f"{title:44}" + "".join(f"{figure(modules):>10,}" for modules in columns.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
