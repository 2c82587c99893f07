"""Finding the real parts: where they are looked for, and which are of use."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from certplane.sandbox import cli, parts
from certplane.sandbox.errors import PartMissingError


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with nothing: an empty cache, an empty PATH, a Python with nothing beside it."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "python"))
    (tmp_path / "path").mkdir()
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(tmp_path / "path"), "HOME": str(tmp_path)}


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def built(tmp_path: Path, folder: str, program: str, content: bytes = b"x") -> Path:
    return put(tmp_path / "cache" / "certplane" / "parts" / folder / "bin" / program, content)


def test_says_what_is_left_out(environment: dict[str, str]) -> None:
    """A part that is nowhere is left out with a reason that names the program and the remedy."""
    found = parts.find("step-ca", environment)
    assert isinstance(found, parts.LeftOut)
    expected = "no step-ca on this machine; scripts/setup builds it with Go (see scripts/versions.env)"
    assert found.reason == expected


def test_the_newest_built_version_comes_first(environment: dict[str, str], tmp_path: Path) -> None:
    """Of several versions in the parts folder the newest is taken, by number and not by spelling, before PATH."""
    for version in ("v2.9.0", "v2.10.1", "v2.4.0"):
        built(tmp_path, f"pebble-{version}", "pebble")
    put(tmp_path / "path" / "pebble")
    found = parts.find("pebble", environment)
    assert isinstance(found, parts.Part)
    assert found.version == "2.10.1"


def test_the_machines_root_is_the_one_that_was_set_up_last(environment: dict[str, str], tmp_path: Path) -> None:
    """Its version ends in a checksum of what is in it, which is no order: another checkout's may be the higher one."""
    for seconds, version in ((2, "12.111"), (1, "12.999")):
        folder = built(tmp_path, f"debian-{version}", "certplane-test-root").parents[1]
        os.utime(folder, (seconds, seconds))
    found = parts.find("debian", environment)
    assert isinstance(found, parts.Part)
    assert found.version == "12.111"


def test_a_part_isnt_taken_for_one_with_a_longer_name(environment: dict[str, str], tmp_path: Path) -> None:
    """The folder of step-ca isn't a version of step."""
    built(tmp_path, "step-ca-v0.30.2", "step")
    assert isinstance(parts.find("step", environment), parts.LeftOut)


def test_looks_beside_python_and_on_the_path(environment: dict[str, str], tmp_path: Path) -> None:
    """What pip put beside Python is found, and what is on PATH."""
    on_path = put(tmp_path / "path" / "pebble")
    found = parts.find("pebble", environment)
    assert isinstance(found, parts.Part)
    assert found.path == on_path
    beside = put(tmp_path / "python" / "pebble")
    found = parts.find("pebble", environment)
    assert isinstance(found, parts.Part)
    assert found.path == beside


def test_the_environment_may_choose(environment: dict[str, str], tmp_path: Path) -> None:
    """A path in the environment wins over everything; an empty one switches the part off."""
    built(tmp_path, "pebble-v2.10.1", "pebble")
    chosen = put(tmp_path / "mine" / "pebble")
    found = parts.find("pebble", {**environment, "CERTPLANE_PART_PEBBLE": str(chosen)})
    assert isinstance(found, parts.Part)
    assert found.path == chosen
    off = parts.find("pebble", {**environment, "CERTPLANE_PART_PEBBLE": ""})
    assert isinstance(off, parts.LeftOut)
    assert off.reason == "switched off by the environment"


def test_a_chosen_path_that_isnt_a_program(environment: dict[str, str], tmp_path: Path) -> None:
    """A wrong path isn't made good by a part that is elsewhere."""
    built(tmp_path, "step-ca-v0.30.2", "step-ca")
    found = parts.find("step-ca", {**environment, "CERTPLANE_PART_STEP_CA": str(tmp_path / "nothing")})
    assert isinstance(found, parts.LeftOut)
    assert found.reason == f"{tmp_path / 'nothing'} isn't a program"


def test_too_old_is_left_out(environment: dict[str, str], tmp_path: Path) -> None:
    """A version below the minimum is of no use, and the reason says which would be."""
    path = built(tmp_path, "pebble-v2.3.1", "pebble")
    found = parts.find("pebble", environment)
    assert isinstance(found, parts.LeftOut)
    assert found.reason == f"{path} has version 2.3.1; at least 2.4 is needed"


def test_reads_a_go_programs_version_from_itself(environment: dict[str, str], tmp_path: Path) -> None:
    """A Go program outside the parts folder tells its module's version, as `go version -m` would."""
    put(tmp_path / "path" / "pebble", b"\x7fELF\0mod\tgithub.com/letsencrypt/pebble/v2\tv2.8.0\th1:x=\n\0")
    found = parts.find("pebble", environment)
    assert isinstance(found, parts.Part)
    assert found.version == "2.8.0"


@pytest.mark.parametrize(
    ("content", "capabilities"),
    [
        pytest.param(b"/dir /nonce-plz", set(), id="2.4"),
        pytest.param(
            b"/draft-ietf-acme-ari-03/renewalInfo/ /set-renewal-info/ Loaded profile %q with",
            {parts.PEBBLE_ARI, parts.PEBBLE_SET_RENEWAL_INFO, parts.PEBBLE_PROFILES},
            id="2.10",
        ),
    ],
)
def test_tells_pebbles_apart(
    environment: dict[str, str], tmp_path: Path, content: bytes, capabilities: set[str]
) -> None:
    """What a Pebble serves is told from the paths that it contains, not from a version it may not have."""
    put(tmp_path / "path" / "pebble", content)
    found = parts.find("pebble", environment)
    assert isinstance(found, parts.Part)
    assert found.capabilities == capabilities
    assert found.can(parts.PEBBLE_ARI) == (parts.PEBBLE_ARI in capabilities)


def test_requiring_a_left_out_part_is_an_error(environment: dict[str, str]) -> None:
    """`require` raises with the part's name and the reason."""
    with pytest.raises(PartMissingError, match="bind is left out") as error:
        parts.require("bind", {**environment, "CERTPLANE_PART_BIND": ""})
    assert error.value.part == "bind"


def test_a_part_nobody_knows_is_misuse() -> None:
    """A typing error in a test isn't taken for a left-out part."""
    with pytest.raises(KeyError):
        parts.find("peble")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("v2.10.1", (2, 10, 1)),
        ("2.4.0+ds1-2+b4", (2, 4, 0)),
        ("15", (15,)),
        ("ca-v0.30.2", ()),
        ("", ()),
    ],
)
def test_versions_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    """Only leading numbers count."""
    assert parts.version_tuple(text) == numbers


@pytest.mark.parametrize(("value", "required"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_when_all_parts_are_required(value: str, required: bool) -> None:
    """CI sets the switch; 0 and empty are off."""
    assert parts.all_required({"CERTPLANE_REQUIRE_PARTS": value}) is required
    assert not parts.all_required({})


def test_the_command_prints_every_part(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`parts --json` has an entry for each part, found or not; the exit status fails only where all are required."""
    built(tmp_path, "step-ca-v0.30.2", "step-ca")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CERTPLANE_REQUIRE_PARTS", raising=False)
    monkeypatch.setenv("CERTPLANE_PART_PEBBLE", "")
    assert cli.main(["parts", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(listed) == {kind.name for kind in parts.KINDS}
    assert (listed["step-ca"]["version"], listed["step-ca"]["found"]) == ("0.30.2", True)
    assert listed["pebble"]["reason"] == "switched off by the environment"
    monkeypatch.setenv("CERTPLANE_REQUIRE_PARTS", "1")
    assert cli.main(["parts"]) == 1
    assert "left out" in capsys.readouterr().out
