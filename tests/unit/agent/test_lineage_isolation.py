"""One certificate's setting or state ends no other's renewal, and nothing on disk makes a traceback."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from certplane.agent import cli
from certplane.agent.install.lineage import FileVersionStore
from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.model import Version
from certplane.agent.renewal.status import is_well
from certplane.agent.settings import load_settings
from certplane.errors import CertplaneError
from tests.support.agent_world import AgentWorld
from tests.support.status_json import status_by_name
from tests.support.waiting import HANG, until

CASES = Path(__file__).parents[2] / "cases"


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[list[AgentWorld]]:
    made: list[AgentWorld] = []
    yield made
    for world in made:
        world.close()


def make(worlds: list[AgentWorld], folder: Path, **web: Any) -> AgentWorld:
    """A host with two certificates: `web`, which is odd, and `api`, which isn't."""
    worlds.append(AgentWorld(folder, [{"name": "web", **web}, {"name": "api"}]))
    return worlds[-1]


def pkcs12(folder: Path, password: bytes) -> dict[str, Any]:
    path = folder / "password"
    path.write_bytes(password)
    path.chmod(0o600)
    return {"pkcs12": {"path": str(folder / "tls" / "web.p12"), "password_file": str(path)}}


def blocked(folder: Path) -> dict[str, Any]:
    (folder / "blocked").write_text("a file")
    return {"key": str(folder / "blocked" / "web.key")}


def directory(folder: Path) -> dict[str, Any]:
    (folder / "taken" / "inside").mkdir(parents=True)
    return {"key": str(folder / "taken")}


def fifo(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "pipe")
    return {"key": str(folder / "pipe")}


SETTINGS: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "a password in Latin-1": (
        lambda at: pkcs12(at, (CASES / "A2" / "password-latin1").read_bytes()),
        "pkcs12.password_file",
    ),
    "a random password": (
        lambda at: pkcs12(at, (CASES / "A2" / "password-random-bytes").read_bytes()),
        "pkcs12.password_file",
    ),
    "an empty password": (lambda at: pkcs12(at, b""), "is empty"),
    "a file where a directory is needed": (blocked, "Not a directory"),
    "a directory at the path": (directory, "is a directory"),
    "a pipe at the path": (fifo, "is a FIFO"),
    "nowhere to create": (
        lambda _: {"key": "/proc/certplane/web.key"},
        "/proc can't be written by user" if os.geteuid() else "nothing can be made in /proc",
    ),
    "an owner that isn't there": (lambda _: {"owner": "nobody-of-that-name"}, "no user"),
}


@pytest.mark.parametrize(("settings", "says"), SETTINGS.values(), ids=SETTINGS)
async def test_an_odd_setting_is_its_own_certificates_failure(
    worlds: list[AgentWorld],
    tmp_path: Path,
    settings: Callable[[Path], dict[str, Any]],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is shown with its cause and not even ordered; the other one comes, at the first start and at each after it."""
    world = make(worlds, tmp_path, **settings(tmp_path))
    await world.enroll()
    for _ in range(2):
        statuses = await world.agent().run_once()
        assert is_well(statuses["api"])
        assert is_well(statuses["identity"])
        assert not is_well(statuses["web"])
        assert says in statuses["web"].last_error
    assert world.broker.calls.count("issue") == 1
    report = await shown(tmp_path, capsys)
    assert says in report["web"]["last_error"]
    assert report["web"]["health"] == "FAILING"
    assert report["api"]["health"] == "OK"


async def test_a_setting_that_was_added_later_is_its_own_certificates_failure(
    worlds: list[AgentWorld], tmp_path: Path
) -> None:
    """What can't be shown at the start counts as a failure, though the certificate is in force; mended, it is at once."""
    world = make(worlds, tmp_path)
    await world.enroll()
    assert is_well((await world.agent().run_once())["web"])
    world.configure([{"name": "web", **blocked(tmp_path)}, {"name": "api"}], {})
    statuses = await world.agent().run_once()
    assert "Not a directory" in statuses["web"].last_error
    assert not is_well(statuses["web"])
    assert is_well(statuses["api"])
    world.configure([{"name": "web", "key": str(tmp_path / "other" / "web.key")}, {"name": "api"}], {})
    assert is_well((await world.agent().run_once())["web"])
    assert (tmp_path / "other" / "web.key").exists()
    assert len(await world.versions("web")) == 1


BUGS = {
    "activate": (FileVersionStore, "activate", ValueError("not an absolute path without ..: /srv/../web.key")),
    "recover": (FileVersionStore, "recover", TypeError("function takes exactly 5 arguments")),
    "stage": (FileVersionStore, "stage", KeyError("certificate_id")),
    "begin": (FilePendingKeys, "begin", UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")),
}


@pytest.mark.parametrize(("owner", "method", "error"), BUGS.values(), ids=BUGS)
async def test_a_bug_is_its_own_certificates_failure(
    worlds: list[AgentWorld],
    tmp_path: Path,
    owner: type,
    method: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever is raised where nobody foresaw it: said as a bug, one traceback, and all others go on."""
    world = make(worlds, tmp_path)
    await world.enroll()
    real = getattr(owner, method)

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._directory.name == "web":
            raise error
        return real(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, wrong)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            statuses = await world.agent().run_once()
            assert is_well(statuses["api"])
    if method != "recover":  # of which a certificate that is fine has no need
        assert "a bug of this agent" in statuses["web"].last_error
        assert not is_well(statuses["web"])
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_a_daemon_outlives_its_bugs(
    worlds: list[AgentWorld], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`renew` of the odd one says what it is; the other one is renewed."""
    world = make(worlds, tmp_path)
    await world.enroll()
    real = FileVersionStore.activate

    def wrong(self: FileVersionStore, version: Version) -> None:
        if self._directory.name == "web":
            raise ValueError("odd")
        real(self, version)

    await world.agent().run_once()
    monkeypatch.setattr(FileVersionStore, "activate", wrong)
    outcome = await world.agent().by_hand("renew", "web")
    assert not outcome.ok
    assert "a bug of this agent: ValueError: odd" in outcome.text
    assert (await world.agent().by_hand("renew", "api")).ok


FILES = (
    "link.json",
    "reports/spool",
    "reports/web.json",
    "certificates/web/status.json",
    "certificates/web/directive.json",
    "certificates/web/install.json",
    "certificates/web/versions/2/metadata.json",
    "certificates/web/versions/2/cert.pem",
    "certificates/web/versions/2/privkey.pem",
    "certificates/web/pending/request.json",
    "certificates/web/current",
    "certificates/web/held",
    "identity/status.json",
    "identity/versions/1/metadata.json",
    "identity/current",
)
JUNK: dict[str, str | bytes | None] = {
    "nothing": b"",
    "null": "null",
    "nested deep": '{"format": 1, "x": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "of other types": '{"format": 1, "name": [], "state": {}, "update_time": 7, "epoch": null, "taken": "x", "phase": []}',
    "surrogates and NaN": '{"format": 1, "name": "\\ud800", "state": "\\udfff", "update_time": NaN, "taken": 1e999}',
    "a directory": None,
}


def damage(path: Path, junk: str | bytes | None) -> None:
    """Put `junk` where the file is, or would be; a directory for None."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    path.parent.mkdir(exist_ok=True)
    if junk is None:
        path.mkdir()
        (path / "inside").write_text("x")
    else:
        path.write_bytes(junk.encode() if isinstance(junk, str) else junk)


@pytest.mark.parametrize("name", FILES)
async def test_junk_in_the_state_ends_nobody_elses_renewal(
    worlds: list[AgentWorld], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands in a file of the agent's own: `status` shows the rest, and a run renews it; nothing else is raised."""
    world = make(worlds, tmp_path)
    await world.enroll()
    await world.agent().run_once()
    await world.agent().by_hand("renew", "web")
    for junk in JUNK.values():
        damage(tmp_path / "state" / name, junk)
        report = await shown(tmp_path, capsys)
        assert report["api"]["health"] == "OK"
        newest = (await world.versions("api"))[-1].number
        assert (await world.agent().by_hand("renew", "api")).ok
        assert (await world.versions("api"))[-1].number == newest + 1
    with contextlib.suppress(CertplaneError):  # told at the end, after all others were seen to
        await world.agent().run_once()
    assert is_well(await world.status("api"))


async def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `status --json` says, by certificate."""
    options = cli._parser().parse_args(["status", "--json"])
    assert await cli._run(options, load_settings(folder / "agent.yml")) in {0, 1}  # 1: of one nothing can be told
    return status_by_name(capsys.readouterr().out)


async def test_a_control_socket_that_cannot_be_made_stops_no_renewal(
    worlds: list[AgentWorld], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file where its folder belongs: `renew` can't reach the agent then, which is said, and renewing goes on."""
    world = make(worlds, tmp_path)
    await world.enroll()
    damage(tmp_path / "state" / "control", "null")
    stop = asyncio.Event()
    task = asyncio.create_task(world.agent().run(stop, world.progress))
    await until(lambda: world.broker.issued)
    stop.set()
    await asyncio.wait_for(task, HANG)
    assert "`renew` and `status` can't reach this agent" in caplog.text
