"""A YAML file is taken as it stands: texts, lists and keys with their lines; what is wrong is told as a person needs it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from certplane.config import document
from certplane.config.document import MAX_BYTES, Document, MappingNode, ScalarNode, SequenceNode
from certplane.errors import ConfigurationError


def _problems(content: str | bytes) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        Document.parse(content.encode() if isinstance(content, str) else content, "x.yml")
    return [str(problem) for problem in caught.value.problems]


def test_nodes_know_their_place() -> None:
    """Every value has its text, its line and its path from the top."""
    parsed = Document.parse(b"a:\n  b: 1.20\n  c:\n  - yes\n  - 'no'\n", "x.yml")
    a = parsed.root.entries["a"].value
    assert isinstance(a, MappingNode)
    assert a.entries["b"].value == ScalarNode(2, "a.b", "1.20", plain=True)
    c = a.entries["c"].value
    assert isinstance(c, SequenceNode)
    assert c.items == (ScalarNode(4, "a.c[0]", "yes", plain=True), ScalarNode(5, "a.c[1]", "no", plain=False))
    assert parsed.source.lines == {"a": 1, "a.b": 2, "a.c": 3, "a.c[0]": 4, "a.c[1]": 5}


@pytest.mark.parametrize("content", [b"", b"\n# comment\n", b"---\n", b"~", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_keys(content: bytes) -> None:
    """A file without content is one without keys: what is required will be missed by name."""
    assert Document.parse(content, "x.yml").root.entries == {}


def test_hash_is_of_the_bytes(tmp_path: Path) -> None:
    """The hash that is logged is that of `sha256sum`."""
    path = tmp_path / "x.yml"
    path.write_bytes(b"a: 1 # comment\n")
    assert Document.read(path).source.sha256 == hashlib.sha256(b"a: 1 # comment\n").hexdigest()


LAUGHS = "k0: &k0 [x, x]\n"


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param("a: 1\na: 2\n", ["x.yml:2: a: is written twice, first in line 1; keep one of the two"], id="duplicate"),
        pytest.param(
            "s:\n  a: 1\n  b: 2\n  'a': 3\n", ["x.yml:4: s.a: is written twice, first in line 2; keep one of the two"],
            id="duplicate-below",
        ),
        pytest.param(
            "a: *x\n", ['x.yml:1: a: is an alias of nothing (*x); a text that begins with * needs quotes: "*x"; else write &x above'],
            id="alias-of-nothing",
        ),
        pytest.param("a: &x [*x]\n", ["x.yml:1: a[0]: is an alias of a value that contains it (*x); write the value out"], id="alias-of-itself"),
        pytest.param(
            "a: &x 1\nb: &x 2\n", ["x.yml:2: b: has an anchor that is there already (&x); name it differently"], id="anchor-twice"
        ),
        pytest.param(
            "a: &x 1\nb:\n  <<: *x\n",
            ["x.yml:3: b: merges (<<) something that is not keys with values; merge an alias of such"], id="merge-of-a-text",
        ),
        pytest.param("&x a: 1\n", ["x.yml:1: has a key with an anchor or a tag; remove it"], id="anchor-on-a-key"),
        pytest.param("a: !!python/object:os.system x\n", ["x.yml:1: a: has a tag (tag:yaml.org,2002:python/object:os.system); remove it, or quote a text that begins with !"], id="tag"),
        pytest.param("a: !!str 1\n", ["x.yml:1: a: has a tag (tag:yaml.org,2002:str); remove it, or quote a text that begins with !"], id="harmless-tag"),
        pytest.param("!x a: 1\n", ["x.yml:1: has a key with an anchor or a tag; remove it"], id="tag-on-a-key"),
        pytest.param("a: 1\n---\nb: 2\n", ["x.yml:2: a second document begins here; keep one document a file"], id="two-documents"),
        pytest.param("- a\n- b\n", ["x.yml:1: must be keys with values; write `key: value`"], id="list"),
        pytest.param("just text\n", ["x.yml:1: must be keys with values; write `key: value`"], id="text"),
        pytest.param("[a, b]: 1\n", ["x.yml:1: has a key that is not a text; write it as `key: value`"], id="list-as-key"),
    ],
)  # fmt: skip
def test_refuses(content: str, lines: list[str]) -> None:
    """Each thing that would hide what is configured is named with its line, all of a file at once."""
    assert _problems(content) == lines


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        pytest.param("a: [1\nb: 2\n", "x.yml:2: is not YAML: ", id="unclosed"),
        pytest.param("a: b: c\n", "x.yml:1: is not YAML: mapping values are not allowed", id="two-colons"),
        pytest.param("a:\n\t- b\n", "x.yml:2: is not YAML: ", id="tab"),
        pytest.param('a: "b\n', "is not YAML: ", id="unclosed-quote"),
        pytest.param("a: @b\n", "x.yml:1: is not YAML: ", id="reserved-character"),
        pytest.param("a: \x00\n", "is not YAML: ", id="nul"),
        pytest.param("a: \x07\n", "is not YAML: ", id="bell"),
        pytest.param(b"a: 1\nb: \xff\n", "x.yml:2: is not UTF-8; save it as UTF-8", id="latin-1"),
        pytest.param("a: 1\n".encode("utf-16"), "x.yml:1: is not UTF-8", id="utf-16"),
        pytest.param(b"a" * (MAX_BYTES + 1), f"x.yml: is larger than {MAX_BYTES} bytes", id="too-large"),
        pytest.param("a: " + "[" * 100 + "]" * 100, "is nested deeper than 20 levels", id="deep-list"),
        pytest.param("a: " + "{b: " * 100 + "}" * 100, "is nested deeper than 20 levels", id="deep-mapping"),
        pytest.param("? " * 100 + "a", "is nested deeper than 20 levels", id="deep-keys"),
    ],
)
def test_refuses_what_cannot_be_read(content: str | bytes, phrase: str) -> None:
    """What can't be parsed is one line with the place."""
    (line,) = _problems(content)
    assert phrase in line
    assert line.isprintable()


def test_keeps_what_was_found_before_the_syntax_error() -> None:
    """A file that breaks off still tells what was wrong before that."""
    first, second = _problems("a: 1\na: 2\nb: [\n")
    assert first.startswith("x.yml:2: a: is written twice")
    assert "is not YAML" in second


@pytest.mark.parametrize("example", ["agent.yml", "broker.yml", "policy.yml"])
def test_both_parsers_read_alike(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libyaml the same file is the same document."""
    content = (Path(__file__).parent / "examples" / example).read_bytes()
    with_libyaml = Document.parse(content, example)
    monkeypatch.setattr(document, "_Loader", yaml.SafeLoader)
    assert Document.parse(content, example) == with_libyaml


SHARED = """\
base: &base
  challenge: dns-01
  names: &names [a, b]
one:
  <<: *base
  credentials: x
two:
  <<: [*base, {challenge: never, more: 1}]
  names: *names
three: *base
"""


def test_what_is_shared_is_as_if_written_out() -> None:
    """Anchors, aliases and merge keys give the values that they name, with keys of their own."""
    written = Document.parse(
        b"base: {challenge: dns-01, names: [a, b]}\none: {credentials: x, challenge: dns-01, names: [a, b]}\n"
        b"two: {names: [a, b], challenge: dns-01, more: 1}\nthree: {challenge: dns-01, names: [a, b]}\n",
        "x.yml",
    )
    assert _plain(Document.parse(SHARED.encode(), "x.yml").root) == _plain(written.root)


def test_a_shared_value_is_told_where_it_is_written() -> None:
    """A problem with a value that an alias names is one of the line where a person can mend it."""
    source = Document.parse(SHARED.encode(), "x.yml").source
    assert source.problem("one.challenge", "m").line == 2
    assert source.problem("two.names[1]", "m").line == 3
    assert source.problem("one.credentials", "m").line == 6
    assert source.problem("three", "m").line == 10


def test_what_is_written_wins_over_what_is_merged() -> None:
    """A key that stands in the mapping itself is the one that counts, wherever the merge key stands."""
    for text in ("a: &a {x: 1}\nb: {<<: *a, x: 2}\n", "a: &a {x: 1}\nb: {x: 2, <<: *a}\n"):
        assert _plain(Document.parse(text.encode(), "x.yml").root)["b"] == {"x": "2"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LAUGHS + "".join(f"k{n}: &k{n} [*k{n - 1}, *k{n - 1}]\n" for n in range(1, 30)), id="lists"),
        pytest.param(LAUGHS + "".join(f"k{n}: &k{n} {{a: *k{n - 1}, b: *k{n - 1}}}\n" for n in range(1, 30)), id="mappings"),
        pytest.param(
            "k0: &k0 {x: 1}\n" + "".join(f"k{n}: &k{n} {{<<: *k{n - 1}, a{n}: *k{n - 1}}}\n" for n in range(1, 30)), id="merges"
        ),
        pytest.param(f"a: &a [{'x, ' * 1000}]\nb: [{'*a, ' * 1000}]\n", id="wide"),
    ],
)  # fmt: skip
def test_a_billion_laughs_end_early(text: str) -> None:
    """What aliases make is counted, so that a small file stays a small document."""
    (line,) = _problems(text)
    assert f"over {document.MAX_COPIES} values by aliases" in line or "nested deeper than 20 levels" in line


def _plain(node: object) -> Any:
    match node:
        case MappingNode():
            return {name: _plain(entry.value) for name, entry in node.entries.items()}
        case SequenceNode():
            return [_plain(item) for item in node.items]
        case ScalarNode():
            return node.text
    raise TypeError(node)


CASES = Path(__file__).parents[2] / "cases/J2"

STAR = 'is not YAML: a name that begins with * needs quotes: "*.example.com"'


@pytest.mark.parametrize("loader", [document._Loader, yaml.SafeLoader])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param((CASES / "unquoted-wildcard.yml").read_text(), [f"x.yml:5: {STAR}"], id="J2-unquoted-wildcard"),
        pytest.param("a:\n- *.example.com\n", [f"x.yml:2: {STAR}"], id="wildcard-in-a-list"),
        pytest.param("a: *.example.com\n", [f"x.yml:1: {STAR}"], id="wildcard-as-a-value"),
        pytest.param("*.example.com: x\n", [f"x.yml:1: {STAR}"], id="wildcard-as-a-key"),
        pytest.param(
            "a: [*.example.com]\n# *.no.example\nb: ['*.fine.example']\nc:\n- *.two.example\n",
            [f"x.yml:1: {STAR}", 'x.yml:5: is not YAML: a name that begins with * needs quotes: "*.two.example"'],
            id="several-wildcards",
        ),
        pytest.param("a: *\n", ['x.yml:1: is not YAML: a text that begins with * needs quotes; write "*..."'], id="star"),
        pytest.param("a: &.x\n", ['x.yml:1: is not YAML: a text that begins with & needs quotes; write "&..."'], id="ampersand"),
        pytest.param("a: !<x\n", ['x.yml:1: is not YAML: a text that begins with ! needs quotes; write "!..."'], id="exclamation"),
        pytest.param("a: %x\n", ['x.yml:1: is not YAML: a text that begins with % needs quotes; write "%..."'], id="percent"),
        pytest.param("a: @x\n", ['x.yml:1: is not YAML: a text that begins with @ needs quotes; write "@..."'], id="at"),
        pytest.param("a: `x`\n", ['x.yml:1: is not YAML: a text that begins with ` needs quotes; write "`..."'], id="backtick"),
        pytest.param(
            (CASES / "typographic-quotes.yml").read_text(),
            ["x.yml:5: profiles.web.dns_names[0]: is in typographic quotes (\u201c), which are no quotes to YAML; write \" or '"],
            id="J2-typographic-quotes",
        ),
        *(
            pytest.param(
                f"a: {pair[0]}x{pair[1]}\n",
                [f"x.yml:1: a: is in typographic quotes ({pair[0]}), which are no quotes to YAML; write \" or '"],
                id=f"quotes-{ord(pair[0]):x}",
            )
            for pair in ("\u201c\u201d", "\u2018\u2019", "\u201e\u201c", "\u00ab\u00bb", "\u201a\u2018", "\u2039\u203a")
        ),
        pytest.param(
            "\u201ca\u201d: x\n",
            ["x.yml:1: is in typographic quotes (\u201c), which are no quotes to YAML; write \" or '"], id="quotes-around-a-key",
        ),
        pytest.param("a:\n\t- b\n", ["x.yml:2: is not YAML: a tab stands where only spaces may; indent with spaces"], id="tab"),
        pytest.param("\ta: b\n", ["x.yml:1: is not YAML: a tab stands where only spaces may; indent with spaces"], id="tab-first"),
        pytest.param(
            "a:\n- b\n-c\n",
            ["x.yml:3: is not YAML: a list's item lacks the space after its `-`; write `- ` in front of it"], id="glued-dash",
        ),
        pytest.param(
            "a: 1\nb:2\nc: 3\n", ["x.yml:2: is not YAML: a key lacks the space after its colon; write `key: value`"], id="glued-colon"
        ),
        pytest.param("a\uff1a1\n", ["x.yml:1: holds fullwidth colon \uff1a (U+FF1A); write `:`, or put the text in quotes"], id="wide-colon"),
        pytest.param(
            "a\uff1a\n  b: 1\n", ["x.yml:1: holds fullwidth colon \uff1a (U+FF1A); write `:`, or put the text in quotes"], id="wide-colon-above"
        ),
        pytest.param(
            "a: 1\nb: b\u00a0c\n",
            [
                ("x.yml:2: b: holds no-break space (U+00A0), which can't be seen; type it anew; "
                'where it is meant, write "\\u00a0" in double quotes')
            ],
            id="no-break-space",
        ),
        pytest.param(
            'a: "b\u200b"\n',
            [
                ("x.yml:1: a: holds zero width space (U+200B), which can't be seen; type it anew; "
                'where it is meant, write "\\u200b" in double quotes')
            ],
            id="zero-width-in-quotes",
        ),
        pytest.param(
            "a:\n  - b\n  \u2013 c\nd: 1\n",
            ["x.yml:3: is not YAML: en dash \u2013 (U+2013) stands here; type it anew, in plain ASCII"], id="en-dash-in-a-list",
        ),
        pytest.param(
            "a:\n  \u2013 b\n",
            ["x.yml:2: a: begins with en dash \u2013 (U+2013) instead of a hyphen; write `- ` in front of a list's items"],
            id="en-dash-for-a-list",
        ),
        pytest.param("a: 'x\nb: 1\n", ["x.yml:1: is not YAML: a quote is opened here and never closed; close it with '"], id="open-quote"),
    ],
)  # fmt: skip
def test_names_the_mistakes_that_everybody_makes(
    content: str, lines: list[str], loader: type[yaml.SafeLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person meant to write is told with file, line and remedy, whichever parser reads it."""
    monkeypatch.setattr(document, "_Loader", loader)
    assert _problems(content) == lines


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("a: it\u2019s \u201cfine\u201d here\n", id="typographic-quotes-inside"),
        pytest.param('a: "\u201cx\u201d"\n', id="typographic-quotes-in-quotes"),
        pytest.param("# \u201cx\u201d \u00a0\u200b\na: 1\n", id="comments"),
        pytest.param('a: "\\u200b"\n', id="escape"),
        pytest.param("a: b\u00fccher/\u6f22\u5b57\n", id="letters"),
        pytest.param("a: x*y, b&c d!e 50% @home\n", id="signs-inside"),
        pytest.param("a: '*.example.com'\nb: \"*.example.com\"\n", id="quoted-wildcards"),
    ],
)  # fmt: skip
def test_bears_what_is_meant(content: str) -> None:
    """Characters that do no harm where they stand are no mistakes."""
    Document.parse(content.encode(), "x.yml")


def test_a_hostile_key_is_one_short_line() -> None:
    """Keys are repeated escaped and cut."""
    (line,) = _problems('"a\\nb": 1\n"a\\nb": 2\n')
    assert line.startswith("x.yml:2: a\\nb: is written twice")
    (line,) = _problems(f"? {'k' * 900}\n: 1\n? {'k' * 900}\n: 2\n")
    assert len(line) < 300


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    """A file that isn't there is one line too."""
    with pytest.raises(ConfigurationError, match=r"agent\.yml: does not exist; create it, or correct the path"):
        Document.read(tmp_path / "agent.yml")


def test_problem_lines_fall_back_to_what_stands_above() -> None:
    """A key that isn't there is reported where its section begins."""
    source = Document.parse(b"a:\n  b:\n  - c: 1\n", "x.yml").source
    assert source.problem("a.b[0].d", "m").line == 3
    assert source.problem("a.x.y", "m").line == 1
    assert source.problem("z", "m").line is None


YAML_LIKE = st.text(st.sampled_from("ab:- \n[]{}&*!<>|'\"#?,\t%@~0\\")) | st.text() | st.binary()


@given(YAML_LIKE)
def test_never_raises_anything_else(content: str | bytes) -> None:
    """Any bytes end in a document or a ConfigurationError of printable lines."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    try:
        Document.parse(data, "x.yml")
    except ConfigurationError as error:
        lines = [str(problem) for problem in error.problems]
    else:
        lines = []
    assert all(line.isprintable() for line in lines)
    with contextlib.suppress(ConfigurationError):
        assert Document.parse(data, "x.yml") == Document.parse(data, "x.yml")


def test_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes alone don't bound memory: those that aliases add count as well as those that are written."""
    monkeypatch.setattr(document, "MAX_NODES", 40)
    assert len(Document.parse(b"a: [" + b"x, " * 30 + b"]", "x.yml").root.entries) == 1
    for content in (b"a: [" + b"x, " * 45 + b"]", b"a: &a [" + b"x, " * 20 + b"]\nb: *a\nc: *a\n"):
        with pytest.raises(ConfigurationError, match="has over 40 values"):
            Document.parse(content, "x.yml")


def test_a_long_key_above_many_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value keeps its path, so that one key of a megabyte above ten thousand values would take ten gigabytes."""
    monkeypatch.setattr(document, "MAX_PATHS", 10_000)
    long = b"k" * 400
    assert len(Document.parse(long + b": [" + b"x, " * 20 + b"]", "x.yml").root.entries) == 1
    for content in (
        long + b": [" + b"x, " * 30 + b"]",
        b"a: &a [" + b"x, " * 30 + b"]\n" + long + b": *a\n",
        b"a: &a {" + b"".join(b"x%d: y, " % number for number in range(30)) + b"}\n" + long + b": {<<: *a}\n",
    ):
        with pytest.raises(ConfigurationError, match="has too many values below long keys"):
            Document.parse(content, "x.yml")


def test_nodes_are_nothing_to_the_garbage_collector() -> None:
    """A large policy makes a million of them, and a collection that goes through them holds every thread."""
    root = Document.parse(b"a: {b: [c, &x {d: e}], f: *x}", "x.yml").root
    found: list[object] = [root]
    for node in found:
        assert not gc.is_tracked(node)
        if isinstance(node, SequenceNode):
            found += node.items
        elif isinstance(node, MappingNode):
            found += [entry.value for entry in node.entries.values()]
    assert len(found) == 8
