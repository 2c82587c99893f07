"""Every path of the four files is whole as it stands: nobody expands what a shell would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from certplane.agent.settings import load_settings as load_agent
from certplane.broker.settings import load_settings as load_broker
from certplane.ctl.settings import load_settings as load_ctl
from certplane.errors import ConfigurationError

EXAMPLES = Path(__file__).parent / "examples"
CTL = {
    "broker": {"url": "https://broker.example:8443", "server_ca_bundle": "/etc/certplane/ca.pem"},
    "identity": {"cert": "/etc/certplane/me.crt", "key": "/etc/certplane/me.key"},
}
_LOAD = {"agent.yml": load_agent, "broker.yml": load_broker, "ctl.yml": load_ctl}


READ = {
    "identity.issuer_ca_bundle",
    "identity.step_ca.root_ca_bundle",
    "broker.server_ca_bundle",
    "server.tls.cert",
    "server.tls.key",
    "server.mtls.agent_ca_bundle",
    "policy.path",
    "secrets.vault.token_file",
}


def document(name: str) -> Any:
    return CTL if name == "ctl.yml" else yaml.safe_load((EXAMPLES / name).read_text())


def paths(node: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value that is a path."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from paths(value, (*way, key))
    elif isinstance(node, str) and node.startswith("/") and way[-1] not in {"mount_path", "reload_command"}:
        yield way


CASES = [
    pytest.param(name, way, id=f"{name}: {'.'.join(map(str, way))}") for name in _LOAD for way in paths(document(name))
]


def problems(folder: Path, name: str, way: tuple[Any, ...], value: str) -> str:
    changed = yaml.safe_load(yaml.safe_dump(document(name)))
    section = changed
    for step in way[:-1]:
        section = section[step]
    section[way[-1]] = value
    (folder / name).write_text(yaml.safe_dump(changed))
    try:
        _LOAD[name](folder / name)
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("name", "way"), CASES)
@pytest.mark.parametrize("value", ["~/x/file", "${STATE_DIRECTORY}/file", "/srv/$HOME/file"])
def test_what_a_shell_would_expand(tmp_path: Path, name: str, way: tuple[Any, ...], value: str) -> None:
    """It is refused in each of them, with the remedy."""
    assert "only a shell expands; write the whole path" in problems(tmp_path, name, way, value)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_relative_paths(tmp_path: Path, name: str, way: tuple[Any, ...]) -> None:
    """In ctl.yml they begin at the file's own folder; elsewhere the public format's files that are only read have them."""
    found = problems(tmp_path, name, way, "folder/file")
    is_taken = name == "ctl.yml" or ".".join(map(str, way)) in READ
    assert ("write the whole path" in found) == (not is_taken)


def test_there_are_cases_of_all_files() -> None:
    """The table isn't empty because an example is."""
    assert {case.values[0] for case in CASES} == {*_LOAD}
    assert len(CASES) > 25
