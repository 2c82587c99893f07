"""A command or a first start as root leaves nothing behind that the service can't use."""

import asyncio
import os
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.audit import SpillFile, SpillLock
from certplane.broker.control import ControlServer, ReloadRequest, ReloadResult
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.store.files import StateLock, open_writer
from certplane.config.files import denied_remedy

SERVICE = 12345

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files for others")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A service's state folder."""
    os.chown(tmp_path, SERVICE, SERVICE)
    return tmp_path


async def nothing(_: ReloadRequest) -> ReloadResult:
    return ReloadResult(ok=True, lines=())


async def listen(folder: Path) -> None:
    async with ControlServer(folder / "broker-control" / "x.sock", nothing):
        pass


def lock(spill: Path) -> None:
    with closing(SpillLock(spill)) as spill_lock:
        spill_lock.take()


MADE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "database": ("broker.db", lambda at: open_writer(at / "broker.db", timedelta(seconds=1), exclusive=True).close()),
    "lock": ("broker.db.lock", lambda at: StateLock(at / "broker.db").release()),
    "spill-lock": ("spill.jsonl.lock", lambda at: lock(at / "spill.jsonl")),
    "account-key": ("account.key", lambda at: AccountKey.load_or_create(at / "account.key")),
    "spill": ("spill.jsonl", lambda at: [SpillFile(at / "spill.jsonl").append(["{}"]) for _ in range(2)]),
    "control": ("broker-control", lambda at: asyncio.run(listen(at))),
}


@pytest.mark.parametrize("case", MADE)
def test_is_the_services(folder: Path, case: str) -> None:
    """What root makes in a folder of the service belongs to the service, and to nobody else."""
    name, make = MADE[case]
    make(folder)
    status = (folder / name).stat()
    assert (status.st_uid, status.st_gid) == (SERVICE, SERVICE)
    assert not status.st_mode & 0o077


def test_a_lock_that_is_there_keeps_its_owner(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file that somebody put there may be another's by a second name: root gives none away that it didn't make."""
    target = tmp_path_factory.mktemp("elsewhere") / "shadow"
    target.write_text("")
    (folder / "broker.db.lock").hardlink_to(target)
    StateLock(folder / "broker.db").release()
    assert target.stat().st_uid == 0


@pytest.mark.parametrize(
    ("owner", "me", "phrase"),
    [
        pytest.param(SERVICE, 54321, f"sudo -u #{SERVICE}", id="a-services"),
        pytest.param(0, 54321, "belongs to root: give uid 54321 the right", id="roots"),
        pytest.param(54321, 54321, "otherwise", id="ones-own"),
        pytest.param(0, 0, "otherwise", id="as-root"),
    ],
)
def test_remedy_of_what_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, me: int, phrase: str
) -> None:
    """Who may not use a service's file is told to be the service, and the service what is closed to it."""
    file = tmp_path / "broker.db"
    file.write_text("")
    os.chown(file, owner, owner)
    monkeypatch.setattr(os, "geteuid", lambda: me)
    assert phrase in denied_remedy(file, "otherwise")
