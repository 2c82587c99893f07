"""A YAML file is taken as it stands: texts, lists and keys with their lines, and none of YAML's conveniences."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

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


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param("a: 1\na: 2\n", ["x.yml:2: a: is written twice, first in line 1; keep one of the two"], id="duplicate"),
        pytest.param(
            "s:\n  a: 1\n  b: 2\n  'a': 3\n", ["x.yml:4: s.a: is written twice, first in line 2; keep one of the two"],
            id="duplicate-below",
        ),
        pytest.param("a: &x 1\n", ["x.yml:1: a: has an anchor (&x); write values out where they are used"], id="anchor"),
        pytest.param(
            "a: &x 1\nb: *x\n",
            ["x.yml:1: a: has an anchor (&x); write values out where they are used", "x.yml:2: b: is an alias (*x); write the value out"],
            id="alias",
        ),
        pytest.param(
            "a: &x {k: 1}\nb:\n  <<: *x\n",
            [
                "x.yml:1: a: has an anchor (&x); write values out where they are used",
                "x.yml:3: b: has a merge key (<<); write the values out",
                "x.yml:3: b.<<: is an alias (*x); write the value out",
            ],
            id="merge-key",
        ),
        pytest.param("a: !!python/object:os.system x\n", ["x.yml:1: a: has a tag (tag:yaml.org,2002:python/object:os.system); remove it"], id="tag"),
        pytest.param("a: !!str 1\n", ["x.yml:1: a: has a tag (tag:yaml.org,2002:str); remove it"], id="harmless-tag"),
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


def test_a_billion_laughs_cost_nothing() -> None:
    """Aliases are refused where they stand, never expanded."""
    text = LAUGHS + "".join(f"{chr(100 + n)}: &{chr(100 + n)} [*{chr(99 + n)}, *{chr(99 + n)}]\n" for n in range(20))
    assert any("is an alias" in line for line in _problems(text))


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
