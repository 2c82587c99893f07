"""What `check` finds of a certificate's files before an activation does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from certplane.errors import CertplaneError
from tests.support.agent_world import AgentWorld


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may pass, but for what a test closes."""
    folder = Path(tempfile.mkdtemp(prefix="certplane-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def problem(folder: Path, **certificate: Any) -> str:
    """What is wrong with one certificate's outputs; empty if nothing is."""
    world = AgentWorld(folder, [{"name": "web", **certificate}])
    try:
        world.host.check_outputs(world.host.settings.certificates[0])
    except CertplaneError as error:
        return str(error)
    finally:
        world.close()
    return ""


def test_nothing_is_wrong_with_plain_outputs(folder: Path) -> None:
    """A certificate without owners and passwords needs nothing."""
    assert problem(folder) == ""
    assert problem(folder, group="0", key_mode="0640") == ""


@pytest.mark.parametrize(
    ("certificate", "found"),
    [
        pytest.param({"owner": "certplane-nobody"}, "no user certplane-nobody", id="user"),
        pytest.param({"files": {"key": {"group": "certplane-nobodies"}}}, "no group certplane-nobodies", id="group"),
        pytest.param(
            {"pkcs12": {"path": "/x/web.p12", "password_file": "/nowhere/password"}}, "does not exist", id="password"
        ),
    ],
)
def test_what_is_missing_is_found(folder: Path, certificate: dict[str, Any], found: str) -> None:
    """Users, groups and passwords that an activation would miss."""
    assert found in problem(folder, **certificate)


def test_empty_password_is_found(folder: Path) -> None:
    """A password of no characters guards nothing."""
    password = folder / "password"
    password.write_bytes(b"\n")
    password.chmod(0o600)
    assert "is empty" in problem(folder, pkcs12={"path": "/x/web.p12", "password_file": str(password)})


def test_closed_state_dir_is_found(folder: Path) -> None:
    """A service that is to read through a link must pass every folder; with copies it needn't."""
    (folder / "state").mkdir(mode=0o700)
    assert "services can't follow the links" in problem(folder, group="0")
    assert f"chmod o+x {folder / 'state'}" in problem(folder, group="0")
    assert problem(folder, group="0", install="copy") == ""
    assert problem(folder) == ""
