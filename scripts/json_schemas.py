# ruff: noqa: SLF001 - what the loader knows of a section and a value is the source, and it shows that to nobody else
"""JSON Schemas of the configuration files, from the classes that programs load them into; for editors, into packaging/.

A schema never refuses what the loader takes, and refuses what a schema can tell: unknown and missing keys, the kind of
a value, words, spans, bounds. Rules over several keys, and what is read elsewhere, are the loader's and `check`'s.
Descriptions are docs/configuration.md's rows. Draft 7, which editors know best.

Editors read YAML 1.2 (core schema), where `on` is a text and `0640` a number, and hand a schema values, not what is
written: so a text may be a number here, and a boolean one of YAML 1.1's words.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from certplane.agent import settings as agent
from certplane.agent.renewal import window
from certplane.broker.issuers.dns.httpreq import HttpreqMode
from certplane.broker.issuers.dns.providers import DnsProviderName, ProviderSections
from certplane.broker.notify import receivers
from certplane.broker.notify import settings as notify
from certplane.broker.policy import entries
from certplane.broker.policy.placeholders import LABEL
from certplane.broker.secrets import vault_settings
from certplane.broker.settings import BrokerSettings, records, server
from certplane.broker.sinks import settings as sinks
from certplane.caller.settings import ClientSettings
from certplane.config import decoding, durations, tracing, values
from certplane.config.broker_urls import BrokerUrl
from certplane.config.document import ScalarNode, Source
from certplane.ctl.settings import CtlSettings

Schema = dict[str, Any]

FILES: dict[str, type] = {
    "agent.yml": agent.AgentSettings,
    "broker.yml": BrokerSettings,
    "policy.yml": entries.PolicyFile,
    "ctl.yml": CtlSettings,
    "client.yml": ClientSettings,
}
_DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"
_ROW = re.compile(r"^\| `([^`]+)` \| .*? \| (.+) \|$")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")

_TEXT: Schema = {"type": ["string", "number", "boolean"]}
_NOTHING = ("", "~", "null", "Null", "NULL")
"""What an editor takes for null, where the loader may take it for a text."""
_SPAN = rf"(?:{durations._PART})+".replace(r"\d", "[0-9]")
_PLAIN = re.compile(r"[-+]?[0-9]+|[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|true|false", re.ASCII)


def _pattern(pattern: str, kinds: tuple[str, ...] = ("string",)) -> Schema:
    """A text, all of which is so; without names of groups, which Python and JavaScript write differently."""
    return {"type": [*kinds], "pattern": f"^(?:{re.sub(r'[(][?]P<[a-z]+>', '(?:', pattern)})$"}


def _any_case(words: typing.Iterable[str]) -> Schema:
    written = "|".join("".join(f"[{letter.upper()}{letter}]" for letter in word) for word in words)
    return {"anyOf": [{"enum": [*words]}, _pattern(written)]}


def _url(*schemes: str) -> Schema:
    written = "|".join("".join(f"[{letter.upper()}{letter}]" for letter in scheme) for scheme in schemes)
    return _pattern(rf"(?:{written})://[^\s#]+")


_VALUES: Mapping[Any, Schema] = {
    str: _TEXT,
    bool: {"anyOf": [{"type": "boolean"}, {"enum": sorted(decoding._TRUE | decoding._FALSE)}]},
    int: {"type": "integer"},
    timedelta: {**_pattern(rf"0|{_SPAN}", ("string", "integer")), "minimum": 0, "maximum": 0},
    Path: _pattern(r"/(?:(?!\$[A-Za-z_{(])[^\u0000])*"),
    decoding.RelativePath: _pattern(r"(?!~)(?:(?!\$[A-Za-z_{(])[^\u0000])+", ("string", "number", "boolean")),
    decoding.InputPath: _pattern(r"(?!~)(?:(?!\$[A-Za-z_{(])[^\u0000])+", ("string", "number", "boolean")),
    values.LogLevel: _any_case([*values.LogLevel, "warn"]),
    HttpreqMode: {"anyOf": [_any_case([*HttpreqMode]), {"const": ""}]},
    values.HostPort: _pattern(r".+:[0-9]{1,5}"),
    values.ListenAddress: _pattern(r".*:[0-9]{1,5}"),
    values.HttpUrl: _url("http", "https"),
    values.HttpsUrl: _url("https"),
    BrokerUrl: _url("https"),
    tracing.OtlpUrl: _url("http", "https"),
    agent.LineageName: _pattern(agent._LINEAGE_NAME.pattern, ("string", "number", "boolean")),
    agent.Fingerprint: {**_pattern("[0-9A-Fa-fHhSs:=-]{64,}", ("string", "integer")), "minimum": 10**63},
    agent.FileMode: {**_pattern(agent._FILE_MODE.pattern, ("string", "integer")), "minimum": 0, "maximum": 777},
    window.ActivationWindow: _pattern(rf"\s*{window._FORM.pattern}\s*"),
    records.Keep: _pattern(f"forever|{_SPAN}"),
    server.StreamAge: _pattern(f"never|{_SPAN}"),
    notify.WeeklyTime: _pattern(f"never|(?:{'|'.join(notify._DAYS)}) ([01][0-9]|2[0-3]):[0-5][0-9]"),
    entries.Role: _pattern(entries._ROLE.pattern, ("string", "boolean")),
    entries.LabelValue: _pattern(LABEL.pattern, ("string", "number", "boolean")),
    DnsProviderName: {"enum": [spec.name.replace("_", "-") for spec in dataclasses.fields(ProviderSections)]},
}
"""What a schema can tell of a kind of value. One with `parse` that isn't here is any text."""

_RULES: Mapping[Callable[[Any], str | None], Schema] = {
    values._not_empty: {"minLength": 1},
    values._own_path: {"not": {"type": "string", "pattern": r"(?:^|/)\.\.(?:/|$)|^/+$"}},
    tracing._per_cent: {"minimum": 1, "maximum": 100},
    server._per_cent: {"minimum": 0, "maximum": 100},
    server._count: {"minimum": 0},
    records._not_negative: {"minimum": 0},
    entries._not_negative: {"minimum": 0},
    entries._version: {"minimum": 1, "maximum": 1},
    vault_settings._kv_version: {"minimum": 1, "maximum": 2},
    notify._share: {"minimum": 1, "maximum": 99},
    notify._severe: {"not": {"const": "ok"}},
    notify._not_ok: {"items": {"not": {"const": "OK"}}},
    server._provisioner_kinds: {"items": {"enum": sorted(server.PROVISIONER_KINDS.values())}},
    receivers._content_type: {"pattern": "^[^/]+/."},
    receivers._some: {"minItems": 1},
    vault_settings._mount_path: {"minLength": 1},
}
"""What a schema can tell of a check; of one that isn't here, nothing."""
_MORE_THAN_NONE = {values._positive, receivers._briefly, sinks._briefly, sinks._lag}
_SECTIONS: Mapping[type, Schema] = {
    agent.StepCaSettings: {"anyOf": [{"required": ["fingerprint"]}, {"required": ["root_ca_bundle"]}]},
    agent.CertificateSettings: {"properties": {"dns_names": {"minItems": 1}}},
    entries.ProfileEntry: {"properties": {"dns_names": {"minItems": 1}}},
}
"""Rules over several keys that a schema can tell, and people meet."""


class _Writer:
    """Writes the schema of one file; `rows` are what the document says of its keys."""

    def __init__(self, rows: Mapping[str, str]) -> None:
        self._rows = rows

    def section(self, section: Any, path: str) -> Schema:
        """A section whose keys stand below `path`."""
        form = decoding._form(section)
        fields = {spec.name: spec for spec in dataclasses.fields(section)}
        properties, required = {}, []
        for name, key in form.keys.items():
            at = f"{path}{name}"
            schema = self.value(key.annotation, at)
            if key.required and not _may_be_left_out(key.annotation):
                required.append(name)
                if _kind(key.annotation) is str:
                    schema["minLength"] = 1
            else:
                schema = _or_null(schema)
            default = _written(fields[name])
            if default is not None:
                schema["default"] = default
            if at in self._rows:
                schema |= _described(self._rows[at])
            properties[name] = schema
        found = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        if section.__doc__:
            found["description"] = section.__doc__.strip().splitlines()[0]
        for word, more in _SECTIONS.get(section, {}).items():
            if word == "properties":
                for name, rule in more.items():
                    properties[name].update(rule)
            else:
                found[word] = more
        return found

    def value(self, annotation: Any, path: str) -> Schema:
        """A value that stands at `path`."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is Annotated:
            schema = self.value(arguments[0], path)
            for check in arguments[1:]:
                schema = _narrowed(schema, check.rule)
            return _with_remedy(schema, annotation)
        if origin in {types.UnionType, typing.Union}:
            return self.value(_kind(annotation), path)
        if origin is tuple:
            return {"type": "array", "items": self._member(arguments[0], f"{path}[]")}
        if origin is Mapping:
            return {"type": "object", "additionalProperties": self._member(arguments[1], f"{path}.NAME")}
        return self._written_shortly(annotation, path) if decoding._is_section(annotation) else _scalar(annotation)

    def _member(self, annotation: Any, path: str) -> Schema:
        """A value of a list or below a name, where nothing may be a text that is empty."""
        schema = self.value(annotation, path)
        if not decoding._is_section(_kind(annotation)) and any(_takes(annotation, text) for text in _NOTHING):
            return _or_null(schema)
        return schema

    def _written_shortly(self, section: Any, path: str) -> Schema:
        schema = self.section(section, f"{path}.")
        keys = decoding._form(section).keys
        short = [getattr(section, word, None) for word in ("shorthand", "listed")]
        ways = [self.value(keys[key].annotation, f"{path}.{key}") for key in short if key is not None]
        return {"anyOf": [*ways, schema]} if ways else schema


def _scalar(annotation: Any) -> Schema:
    if annotation in _VALUES:
        return _with_remedy(dict(_VALUES[annotation]), annotation)
    if issubclass(annotation, StrEnum) and not hasattr(annotation, "parse"):
        return {"enum": _words([str(each) for each in annotation])}
    return dict(_TEXT)


def _with_remedy(schema: Schema, annotation: Any) -> Schema:
    """What the loader says of a text that is wrong, which editors that know the keyword show instead of a pattern."""
    if "pattern" not in schema:
        return schema
    decoder = decoding.Decoder(Source("", "", {}))
    decoder.value(ScalarNode(0, "", "?", False), annotation)
    return {**schema, "patternErrorMessage": decoder._problems[0].message} if decoder._problems else schema


def _described(row: str) -> Schema:
    """The document's words; a second time for editors that show Markdown only where it says that it is."""
    return {"description": row, "markdownDescription": row} if "`" in row else {"description": row}


def _kind(annotation: Any) -> Any:
    """The kind of value behind `| None` and checks."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin in {types.UnionType, typing.Union}:
        return next(argument for argument in arguments if argument is not types.NoneType)
    return annotation


def _narrowed(schema: Schema, rule: Callable[[Any], str | None]) -> Schema:
    """With what a schema can tell of a check."""
    if rule not in _MORE_THAN_NONE:
        told = dict(_RULES.get(rule, {}))
        if "items" in told:
            told["items"] = {**schema["items"], **told["items"]}
        return {**schema, **told}
    return {**schema, "minimum": 1} if schema["type"] == "integer" else _pattern(f"(?=.*[1-9]){_SPAN}")


def _may_be_left_out(annotation: Any) -> bool:
    """Whether it is a section that says enough with nothing in it."""
    kind = _kind(annotation)
    if not decoding._is_section(kind) or hasattr(kind, "shorthand"):
        return False
    return all(not key.required or _may_be_left_out(key.annotation) for key in decoding._form(kind).keys.values())


def _takes(annotation: Any, text: str) -> bool:
    decoder = decoding.Decoder(Source("", "", {}))
    return decoder.value(ScalarNode(0, "", text, True), annotation) is not None


def _or_null(schema: Schema) -> Schema:
    if "anyOf" in schema and "type" not in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    kinds = schema["type"]
    return {**schema, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}


def _words(words: list[str]) -> list[Any]:
    """Words of a list, and what an editor makes of those that look like numbers and booleans."""
    read = [json.loads(word) for word in words if _PLAIN.fullmatch(word)]
    return [*words, *read]


def _written(field: dataclasses.Field[Any]) -> Any:
    """A default as a file would have it; None where there is none to show."""
    default = field.default
    if isinstance(default, bool) or type(default) is int:
        return default
    if isinstance(default, timedelta):
        return durations.format_duration(default)
    if isinstance(default, tuple):
        return [str(each) for each in default] if all(isinstance(each, str) for each in default) and default else None
    if isinstance(default, (str, Path)) or hasattr(type(default), "parse"):
        return str(default) or None
    return None


def documented(file: str) -> dict[str, str]:
    """What docs/configuration.md says of each key of a file, without its links."""
    chapter = _DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {file}\n")[2].partition("\n## ")[0]
    rows = (found for line in chapter.splitlines() if (found := _ROW.match(line)))
    return {row[1]: _LINK.sub(r"\1", row[2]) for row in rows}


def schema(file: str) -> Schema:
    """The schema of one of the files."""
    written = _Writer(documented(file)).section(FILES[file], "")
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": f"Certplane's {file}"}
    return {**head, **{key: value for key, value in written.items() if key != "description"}}


def main(folder: Path) -> None:
    """Write them all into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        text = json.dumps(schema(file), indent=1) + "\n"
        (folder / f"{Path(file).stem}.schema.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
