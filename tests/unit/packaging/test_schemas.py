"""packaging/schemas: a schema takes whatever the loader takes, and refuses what a schema can tell."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import json_schemas
import pytest
from jsonschema import Draft7Validator

from certplane.broker.policy.document import read_policy
from certplane.config import decoding
from certplane.config.decoding import decode
from certplane.config.document import Document, MappingNode, Node, ScalarNode, SequenceNode, Source
from certplane.errors import ConfigurationError
from tests.unit.agent import test_agent_settings
from tests.unit.broker import test_broker_settings
from tests.unit.broker.notify import test_notification_settings
from tests.unit.broker.policy import test_policy_document, test_policy_labels
from tests.unit.broker.sinks import test_sink_settings
from tests.unit.config import test_public_format
from tests.unit.ctl import test_ctl_settings

_ROOT = Path(__file__).parents[3]
_EXAMPLES = _ROOT / "tests" / "unit" / "config" / "examples"
_PROBLEMS = re.compile(
    r"is not a known key|must be a list|must be keys with values|must be names with values|must be true or false"
    r"|must be a whole number|must be one of|, not (?:a list|keys with values)|is not a duration|needs a unit"
    r"|has no unit for days|must be more than zero|is a relative path|begins with ~|has a variable|must be host:port"
    r"|must be a URL http|must be like 0640|must be like 02:00|must be a word of a-z|must be a SHA-256"
)
"""What a loader says of mistakes that a schema can tell."""

CTL = """\
broker: {url: "https://broker.example:8443", server_ca_bundle: broker-ca.pem}
identity: {cert: operator.crt, key: operator.key}
timeout: 1m
"""
CONTEXTS = """\
context: main
contexts:
  main:
    broker: {urls: ["https://b1.example", "https://b2.example:8443"], server_ca_bundle: ca.pem, proxy: environment}
    identity: {cert: operator.crt, key: operator.key}
    timeout: 10s
"""
GOOD = {
    "agent.yml": [(_EXAMPLES / "agent.yml").read_text(), test_public_format.AGENT],
    "broker.yml": [(_EXAMPLES / "broker.yml").read_text(), test_public_format.BROKER],
    "policy.yml": [(_EXAMPLES / "policy.yml").read_text(), test_public_format.POLICY],
    "ctl.yml": [CTL, CONTEXTS],
    "client.yml": [CTL],
}


def _as_it_is(case: tuple[Any, ...]) -> str:
    return str(case[0])


def _one_name_and_host(case: tuple[Any, ...]) -> str:
    return test_policy_labels.ONE.replace("TYPE", "multi_san").replace("NAMES", case[0]).replace("HOST", case[1])


_REFUSED: list[tuple[str, Any, Callable[[tuple[Any, ...]], str]]] = [
    ("agent.yml", test_agent_settings.test_refuses, _as_it_is),
    ("broker.yml", test_broker_settings.test_refuses, _as_it_is),
    ("broker.yml", test_notification_settings.test_a_mistake_is_told, lambda case: f"{test_notification_settings.BROKER}  {case[0]}"),
    ("broker.yml", test_sink_settings.test_a_mistake_is_told, lambda case: f"{test_sink_settings.BROKER}  {case[0]}"),
    ("policy.yml", test_policy_document.test_refuses, _as_it_is),
    ("policy.yml", test_policy_document.test_refuses_rules, _as_it_is),
    ("policy.yml", test_policy_labels.test_refuses, _one_name_and_host),
    ("ctl.yml", test_ctl_settings.test_what_is_wrong_is_told_with_its_place, _as_it_is),
]  # fmt: skip
"""The loaders' own tests of what they refuse, with how each makes a file of a case."""


@cache
def schema(file: str) -> Draft7Validator:
    written = json.loads((_ROOT / "packaging" / "schemas" / f"{Path(file).stem}.schema.json").read_text())
    Draft7Validator.check_schema(written)
    return Draft7Validator(written)


def value(node: Node) -> Any:
    """What an editor hands a schema: a node by the core schema of YAML 1.2 (10.3.2)."""
    if isinstance(node, MappingNode):
        return {name: value(entry.value) for name, entry in node.entries.items()}
    if isinstance(node, SequenceNode):
        return [value(item) for item in node.items]
    if not node.plain or node.is_null:
        return None if node.is_null else node.text
    kinds: list[tuple[str, typing.Callable[[str], Any]]] = [
        ("true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
        (r"[-+]?[0-9]+", int),
        (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", float),
    ]
    return next((read(node.text) for form, read in kinds if re.fullmatch(form, node.text)), node.text)


def told(file: str, document: Document) -> list[str]:
    """What the schema says against it."""
    return [f"{error.json_path}: {error.message[:200]}" for error in schema(file).iter_errors(value(document.root))]


def problems(file: str, document: Document) -> list[str]:
    """What the loader says against it."""
    try:
        if file == "policy.yml":
            read_policy(document)
        else:
            decode(document, json_schemas.FILES[file])
    except ConfigurationError as error:
        return [f"{problem.key}: {problem.message}" for problem in error.problems]
    return []


def compare(file: str, document: Document) -> str:
    """How schema and loader differ where they must not; empty if they don't."""
    by_schema, by_loader = told(file, document), problems(file, document)
    if by_schema and not by_loader:
        return f"only the schema refuses: {by_schema}"
    plain = [problem for problem in by_loader if _PROBLEMS.search(problem)]
    return f"only the loader refuses: {plain}" if plain and not by_schema else ""


def test_they_are_what_the_settings_say(tmp_path: Path) -> None:
    """Whoever changes a setting or its description generates them anew."""
    json_schemas.main(tmp_path)
    folder = _ROOT / "packaging" / "schemas"
    assert {path.name for path in folder.iterdir()} == {path.name for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        assert (folder / path.name).read_text() == path.read_text(), "run scripts/gen-schemas"


@pytest.mark.parametrize("file", GOOD)
def test_every_key_has_a_description(file: str) -> None:
    """Each row of docs/configuration.md is shown at its key."""
    assert sorted(json_schemas.documented(file)) == sorted(path for path, at in keys(file) if "description" in at)


def keys(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key that has a row, with its schema."""
    rows = json_schemas.documented(file)
    return ((path, at) for path, at in _walk(schema(file).schema, "") if path in rows)


def _walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for way in node.get("anyOf", ()):
        yield from ((below, at) for below, at in _walk(way, path) if below != path)
    for name, below in node.get("properties", {}).items():
        yield from _walk(below, f"{path}.{name}".lstrip("."))
    if isinstance(node.get("items"), dict):
        yield from _walk(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from _walk(node["additionalProperties"], f"{path}.NAME")


@pytest.mark.parametrize("file", GOOD)
def test_patterns_are_javascript_too(file: str) -> None:
    """Editors read them with the flag `u`: no names of groups, no anchors and flags of Python's, no needless escapes."""
    patterns = [at[1]["pattern"] for at in _walk(schema(file).schema, "") if "pattern" in at[1]]
    assert patterns
    for pattern in patterns:
        assert not re.search(r"\(\?(?![:!=])|\\[AZ]|\\[^\\/.$sdu*+?()\[\]{}|^-]", pattern), pattern


@pytest.mark.parametrize(("file", "text"), [(file, text) for file, texts in GOOD.items() for text in texts])
def test_examples_are_taken(file: str, text: str) -> None:
    """Files with every key, and those of the public format."""
    document = Document.parse(text.encode(), file)
    assert problems(file, document) == []
    assert told(file, document) == []


def _documented() -> Iterator[tuple[str, str]]:
    text = (_ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for file in GOOD:
        chapter = text.partition(f"\n## {file}\n")[2].partition("\n## ")[0]
        yield file, chapter.partition("```yaml\n")[2].partition("```")[0]


@pytest.mark.parametrize(("file", "text"), [*_documented()])
def test_documented_examples_are_taken(file: str, text: str) -> None:
    """The first example of each chapter."""
    assert told(file, Document.parse(text.encode(), file)) == []


def _bad() -> Iterator[Any]:
    for file, test, text_of in _REFUSED:
        (marked,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
        for number, case in enumerate([*marked.args[1]]):
            name = getattr(case, "id", None) or number
            text = text_of(getattr(case, "values", case))
            yield pytest.param(file, text, id=f"{test.__module__.rpartition('.')[2]}-{name}")


@pytest.mark.parametrize(("file", "text"), [*_bad()])
def test_bad_cases_of_the_loaders(file: str, text: str) -> None:
    """Each file that the loader's own tests see refused is refused by the schema, where it can tell."""
    try:
        document = Document.parse(text.encode(), file)
    except ConfigurationError:
        return  # it isn't YAML, which editors tell without a schema
    assert problems(file, document)
    assert compare(file, document) == ""


_WRITTEN = (
    "", "~", "null", "''", "x", "'7'", "0", "7", "-1", "1.5", "true", "yes", "off", "[]", "[x]", "[null]", "[0]", "{}", "{x: y}", "{x: }",
    "~/x", "$HOME/x", "/a/x", "/a/../b", "a/x", "/", "10d", "30", "5m", "0s", "720h", "https://x.example", "HTTPS://x.example:8443/",
    "x.example", "x.example:99", "':99'", "'[::1]:99'", "0640", "640", "9999", "warn", "WARNING", "1.2", "'1.2'", "forever", "never",
    "'monday 08:00'", "sat 02:00-04:00", "a@x.example", "'*.x.example'", "cloudflare", "RAW", "ok", "[OK]", "ec-p256",
)  # fmt: skip
"""Values as people may write them, of all kinds."""


def _all_keys(file: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Each key of the settings, sections and members of lists included: where it is, its annotation and its schema."""
    yield from _keys_of(json_schemas.FILES[file], schema(file).schema, "")


def _keys_of(section: Any, at: dict[str, Any], path: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for name, key in decoding._form(section).keys.items():
        yield from _values_of(key.annotation, at["properties"][name], f"{path}.{name}".lstrip("."))


def _values_of(annotation: Any, at: dict[str, Any], path: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    yield path, annotation, at
    kind = json_schemas._kind(annotation)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and typing.get_origin(annotation) is not Annotated:  # else the list's check judges the members
        yield from _values_of(arguments[0], at["items"], f"{path}[]")
    elif origin is Mapping:
        yield from _values_of(arguments[1], at["additionalProperties"], f"{path}.NAME")
    elif decoding._is_section(kind):
        ways = at.get("anyOf", [at])
        (whole,) = [way for way in [at, *ways] if "properties" in way][:1]
        yield from _keys_of(kind, whole, path)


@pytest.mark.parametrize("file", GOOD)
def test_every_key_takes_what_the_loader_takes(file: str) -> None:
    """A value of any kind at any key: the schema refuses none that the loader takes, and tells what it can."""
    nodes = [(text, Document.parse(f"key: {text}".encode(), "").root.entries["key"].value) for text in _WRITTEN]
    differences, count = [], 0
    for path, annotation, at in _all_keys(file):
        optional = not path.endswith(("[]", ".NAME"))
        judge = Draft7Validator(at)
        for text, node in nodes:
            if isinstance(node, ScalarNode) and node.is_null and optional:
                continue  # counts as not written: the section's to judge
            if text == "[]" and path.endswith("dns_names"):
                continue  # the section judges that too
            count += 1
            decoder = decoding.Decoder(Source("", "", {}))
            taken = decoder.value(node, annotation)
            said = [problem.message for problem in decoder._problems]
            valid = judge.is_valid(value(node))
            if value(node) is None:  # nothing, or the word that stands for it: an editor sees the same
                said = []
            elif isinstance(value(node), int):  # with a zero before it or not, likewise
                said = [message for message in said if "whole number" not in message and "0640" not in message]
            if (taken is not None and taken != "" and not valid) or (valid and any(map(_PROBLEMS.search, said))):
                differences.append(f"{path}: {text!r}: {'taken' if valid else 'refused'} by the schema, {said}")
    assert count > 200
    assert differences == [], "\n".join(differences)


def _changed(node: Any) -> Iterator[Any]:
    """The same document without one of its keys, with one that says nothing, and with one more, everywhere."""
    if isinstance(node, dict):
        for name, below in node.items():
            yield {key: each for key, each in node.items() if key != name}
            yield {**node, name: None}
            yield from ({**node, name: each} for each in _changed(below))
        yield {**node, "no_such_key": "x"}
    elif isinstance(node, list):
        for number, below in enumerate(node):
            yield from ([*node[:number], each, *node[number + 1 :]] for each in _changed(below))


@pytest.mark.parametrize(
    ("file", "text"),
    [("agent.yml", test_public_format.AGENT), ("policy.yml", GOOD["policy.yml"][0]), ("ctl.yml", CTL), ("ctl.yml", CONTEXTS),
     ("broker.yml", test_public_format.BROKER)],
)  # fmt: skip
def test_keys_that_lack_or_are_too_many(file: str, text: str) -> None:
    """Each key left out, left empty, or added: the schema takes what the loader takes, and tells what it can."""
    whole = value(Document.parse(text.encode(), file).root)
    differences = [compare(file, Document.parse(json.dumps(changed).encode(), file)) for changed in _changed(whole)]
    assert len(differences) > 15
    assert [difference for difference in differences if difference] == []
