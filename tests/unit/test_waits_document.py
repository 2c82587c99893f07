"""docs/waits.md against the code: no wait is missing, and each constant is what its row says."""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.config.durations import parse_duration
from certplane.runtime.backoff import Backoff

_ROOT = Path(__file__).parents[2]
_DOCUMENT = (_ROOT / "docs" / "waits.md").read_text()
_ROWS = [line for line in _DOCUMENT.splitlines() if line.startswith("| ") and ".py`" in line]
_SETTINGS = {"StreamSettings": "broker/fleet/settings.py", "IssuanceSettings": "broker/issuance/settings.py"}
_NO_WAITS = {
    "runtime/clock.py",  # what all others sleep by
    "broker/issuers/attempts.py",  # sleeps by the REPEAT of whoever calls
    "broker/issuance/waiting.py",  # a caller's wait for an event
    "broker/services/renewal_convert.py",  # a message's field
}


def _named(row: str) -> Iterator[tuple[str, str]]:
    """Module and constant of each that a row names."""
    module = ""
    for quoted in re.findall(r"`([^`]+)`", row):
        if quoted.endswith(".py"):
            module = quoted
        elif re.fullmatch(r"_?[A-Z][A-Z_]{2,}|[A-Z]\w+Settings\.\w+", quoted) and module:
            yield _SETTINGS.get(quoted.partition(".")[0], module), quoted


def _value(module: str, name: str) -> Any:
    found: Any = importlib.import_module("certplane." + module.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        if is_dataclass(found):
            return next(field.default for field in fields(found) if field.name == part)
        found = getattr(found, part)
    return found


def _spans(row: str) -> set[timedelta]:
    found = set()
    for quoted in re.findall(r"`(\d+(?:ms|s|m|h))`", row):
        milliseconds = re.fullmatch(r"(\d+)ms", quoted)
        found.add(timedelta(milliseconds=int(milliseconds[1])) if milliseconds else parse_duration(quoted))
    return found


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.split("|")[1].strip(" *").replace(" ", "-"))
def test_each_constant_is_what_its_row_says(row: str) -> None:
    """The module is there, and the row has the constant's times."""
    for path in re.findall(r"`([\w/]+\.py)`", row):
        assert (_ROOT / "certplane" / path).exists(), path
    for module, name in _named(row):
        value = _value(module, name)
        match value:
            case Backoff():
                expected = {value.first, value.most, value.floor} - {timedelta()}
            case timedelta():
                expected = {value}
            case _:  # a table, which the row explains
                continue
        assert expected <= _spans(row), (name, expected)


def test_no_wait_is_missing() -> None:
    """Each module that sleeps, or draws a wait between tries, has a row."""
    waiting = set()
    for path in (_ROOT / "certplane").rglob("*.py"):
        place = str(path.relative_to(_ROOT / "certplane"))
        if place.startswith(("v1/", "sandbox/")) or place in _NO_WAITS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in {"sleep", "Backoff"}:
                continue
            if [ast.unparse(argument) for argument in node.args] != ["0"]:  # which gives the loop a turn
                waiting.add(place)
    missing = {place for place in waiting if f"`{place}`" not in _DOCUMENT}
    assert not missing
