"""Messages count rightly: `1 certificate`, `2 certificates`. Numbers stand before nouns by `text.counted` alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_COUNTED = (
    "accounts|activations|addresses|attempts|brokers|calls|cases|certificates|chains|changes|checkpoints|commands|"
    "connections|days|entries|errors|events|files|findings|finalisations|folders|grants|hooks|hosts|hours|identities|"
    "incidents|issuers|items|labels|limits|lines|members|messages|minutes|names|notifications|octets|operators|orders|"
    "outputs|pages|parts|places|probes|problems|processes|profiles|programs|provisioners|reports|requests|rings|roles|"
    "rollouts|rows|servers|services|sessions|sets|steps|streams|tables|times|tokens|tries|troubles|values|versions|"
    "watchers|windows|zones"
)
_NOUN = re.compile(
    rf" (?:(?!(?:of|in|to|at|by|for|from|and|no|or|has|gets|takes|gives|changes|runs|names|though) )[a-z-]+ ){{0,2}}?({_COUNTED})\b"
)
_LOGGED = re.compile(rf"%d (?:[a-z-]+ ){{0,2}}?({_COUNTED})\b")
_PLURAL = re.compile(r"^(?:_?[A-Z][A-Z_]+(?:\.days)?|_?[a-z]+\.[A-Z_]+|(?:self\.)?_?(?:most|max|limit|at_most)\w*)$")
"""Bounds that are never 1."""
_ABOVE_ONE = {
    "agent/link/diagnosis.py": "one error is told as it is",
    "agent/link/messages.py": "more than the protocol allows",
    "agent/status.py": "times are shown from two on",
    "broker/issuing/connection.py": "more than the most",
    "broker/incidents/watch.py": "the bound of a day",
    "broker/members/comparison.py": "brokers of one name are two or more",
    "broker/notify/delivery.py": "the days that are tried",
    "broker/policy/entries.py": "more than the most",
    "broker/policy/same_names.py": "identities with the same names are two or more",
    "broker/rollouts/spec.py": "rings of one name are two or more",
    "agent/install/outputs.py": "larger than any key",
    "broker/enrolling/provisioner_key.py": "of a curve",
    "fleet_report/fields.py": "the bound of a field",
    "config/broker_urls.py": "more than the most",
    "ctl/connection.py": "one error is told as it is",
    "ctl/show/host.py": "times are shown from two on",
    "ctl/show/orders.py": "times are shown from two on",
    "ctl/show/summary.py": "times are shown from two on",
    "ctl/watch/summary.py": "times are shown from two on",
    "pki/csr.py": "more than the most",
    "pki/identity.py": "more than the most",
    "runtime/json_state.py": "more than the most",
}
"""Where a number stands before a plural and can't be 1, and why."""

_NAMES = re.compile(
    r"(?:name|path|place|where|why|what|server|program|who|url|zone|address|_id|version|accepted)$|join\(|Path\("
)
"""Values that are no numbers: `{zone} has no name servers`."""


def uncounted(code: str) -> Iterator[tuple[int, str]]:
    """Line and text of each number that stands before a plural noun."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            for value, after in zip(node.values, node.values[1:], strict=False):
                if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                    continue
                source, text = ast.unparse(value.value), str(after.value)
                if _NOUN.match(text) and not _PLURAL.match(source) and not _NAMES.search(source):
                    yield node.lineno, f"{{{source}}}{text}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _LOGGED.search(node.value):
            yield node.lineno, node.value


@pytest.mark.parametrize("program", ["agent", "broker", "ctl", "*"])
def test_numbers_are_counted(program: str) -> None:
    """No message says `1 hosts`: what isn't counted by `text.counted` is listed here with why it is never 1."""
    rest = program == "*"
    found = {}
    for path in sorted((ROOT / "certplane").glob("**/*.py" if rest else f"{program}/**/*.py")):
        name = str(path.relative_to(ROOT / "certplane"))
        if name.startswith("v1/") or (rest and path.parts[len(ROOT.parts) + 1] in {"agent", "broker", "ctl"}):
            continue
        if said := list(uncounted(path.read_text(encoding="utf-8"))):
            found[name] = said
    assert {name: said for name, said in found.items() if name not in _ABOVE_ONE} == {}


def test_exceptions_are_still_needed() -> None:
    """A file that counts all its numbers is no exception any more."""
    for name in _ABOVE_ONE:
        assert list(uncounted((ROOT / "certplane" / name).read_text(encoding="utf-8"))), name


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        pytest.param('f"{len(hosts)} hosts failed"', True, id="f-string"),
        pytest.param('f"of {figures.count} open orders"', True, id="with-an-adjective"),
        pytest.param('log.error("gave up %d events", n)', True, id="log"),
        pytest.param("f\"{counted(n, 'host')} failed\"", False, id="counted"),
        pytest.param('f"at most {MOST_HOSTS} hosts"', False, id="bound"),
        pytest.param('f"{zone} has no name servers"', False, id="no-number"),
    ],
)
def test_the_search_finds_what_it_must(code: str, seen: bool) -> None:
    """It sees a number before a plural, and nothing else."""
    assert bool(list(uncounted(code))) is seen
