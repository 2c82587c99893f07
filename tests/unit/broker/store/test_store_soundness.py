"""Damage is found by whoever looks for it, beside the work, and not by a start."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.cli import main
from certplane.broker.store import files, soundness
from certplane.errors import OperationError, Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.broker_files import BrokerFiles
from tests.support.stores import StoreHarness, StorePlace
from tests.support.waiting import no_hang, until

PAGE = 4096
_MORE = (iter([number]) for number in itertools.count(1000))


async def fill(place: StorePlace) -> None:
    """More pages of events than there are of anything else: the page in the middle of the file is one of them."""
    async with place.open(ManualClock()) as stores:
        store = StoreHarness(place, ManualClock(), stores)
        await stores.audit.append([store.event(reason="x" * 4000) for _ in range(100)])


async def append(place: StorePlace, stores: Any) -> None:
    """One event more, after those of `fill`."""
    await stores.audit.append([StoreHarness(place, ManualClock(), stores, next(_MORE)).event()])


def spoil(path: Path) -> None:
    """Overwrite a page in the middle, as a disk would that lost it."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // PAGE // 2 * PAGE)
        file.write(b"\xff" * PAGE)


@contextlib.contextmanager
def opened(place: StorePlace) -> Iterator[None]:
    """A broker has the database open, on a thread of its own: a command has the main one."""
    ready, ending = threading.Event(), threading.Event()

    async def hold() -> None:
        async with place.open(ManualClock()):
            ready.set()
            await asyncio.to_thread(ending.wait)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(asyncio.run, hold())
        while not (ready.wait(0.01) or held.done()):
            pass
        try:
            yield
        finally:
            ending.set()
            held.result()


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    return StorePlace("sqlite", tmp_path / "broker.db")


async def test_a_large_database_is_not_read_by_a_start(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large it is; what is broken is told by the look beside the work, and the writer goes on."""
    await fill(place)
    spoil(place.path)
    with pytest.raises(OperationError, match="corrupt"):
        async with place.open(ManualClock()):
            pass
    monkeypatch.setattr(files, "QUICK_AT_START", 0)
    async with place.open(ManualClock()) as stores:
        assert await stores.soundness.damage()
        await append(place, stores)
        assert stores.ready()


async def test_a_sound_database(place: StorePlace) -> None:
    """Nothing is found, time and again, with rows that nobody has copied into the file yet."""
    await fill(place)
    async with place.open(ManualClock()) as stores:
        for _ in range(2):
            assert await stores.soundness.damage() == []
            await append(place, stores)


async def test_a_look_ends_with_the_store(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that would read for hours is interrupted, and nothing of it is taken for damage."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(connection: sqlite3.Connection, _sql: str) -> list[str]:
        loop.call_soon_threadsafe(begun.set)
        connection.execute("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n")
        raise AssertionError("unreachable")

    monkeypatch.setattr(files, "QUICK_AT_START", 0)
    monkeypatch.setattr(soundness, "_findings", endless)
    async with no_hang():
        async with place.open(ManualClock()) as stores:
            look = asyncio.create_task(stores.soundness.damage())
            await begun.wait()
        assert await look == []


async def test_reading_ahead_is_bounded_and_ends_with_the_store(
    place: StorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece, then a pause, in which the store can be closed."""
    await fill(place)
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(soundness, "_PIECE", PAGE)
    monkeypatch.setattr(soundness, "_PAUSE", 0.001)
    monkeypatch.setattr(os, "posix_fadvise", lambda _file, at, size, advice: asked.append((at, size, advice)))
    async with place.open(ManualClock()) as stores:
        assert await stores.soundness.damage() == []
        pages = place.path.stat().st_size // PAGE
        assert asked == [(number * PAGE, PAGE, os.POSIX_FADV_WILLNEED) for number in range(pages)]
        asked.clear()
        monkeypatch.setattr(soundness, "_PAUSE", 3600.0)
        look = asyncio.create_task(stores.soundness.damage())
        await until(lambda: bool(asked))
    assert await look == []
    assert len(asked) == 1


async def test_what_can_not_be_told_is_no_damage(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that can't be opened for want of descriptors, say."""

    def fail(_path: Path) -> Any:
        raise sqlite3.OperationalError("unable to open database file")

    async with place.open(ManualClock()) as stores:
        monkeypatch.setattr(soundness.sqlite, "connect_to_read", fail)
        with pytest.raises(RefusalError) as caught:
            await stores.soundness.damage()
    assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE


@pytest.mark.parametrize("full", [[], ["--full"]], ids=["quick", "full"])
@pytest.mark.parametrize("running", [False, True], ids=["stopped", "beside a broker"])
def test_store_check(tmp_path: Path, capsys: pytest.CaptureFixture[str], full: list[str], *, running: bool) -> None:
    """It says what it finds, changes nothing, and its status tells a script."""
    broker = BrokerFiles(tmp_path)
    place = StorePlace("sqlite", broker.directory / "broker.db")
    command = ["-c", str(broker.config), "store", "check", *full]

    def look() -> int:
        with opened(place) if running else contextlib.nullcontext():
            return main(command)

    asyncio.run(fill(place))
    assert look() == 0
    assert json.loads(capsys.readouterr().out)["result"] == "whole"
    spoil(place.path)
    before = place.path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "QUICK_AT_START", 0)
        assert look() == 1
    said = capsys.readouterr()
    assert {json.loads(line)["result"] for line in said.out.splitlines()} == {"damaged"}
    assert "docs/operations.md" in said.err
    assert place.path.read_bytes() == before


def test_store_check_finds_references_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that a broken program or a hand at the file has left."""
    broker = BrokerFiles(tmp_path)
    place = StorePlace("sqlite", broker.directory / "broker.db")
    asyncio.run(fill(place))
    place.execute(
        "INSERT INTO renewal_plans (certificate_id, host, renew_time, cause, reason, explanation_url, check_failures,"
        " renewal_request_id) VALUES ('gone', 'web1', 0, 'lifetime', '', '', 0, '')"
    )
    assert main(["-c", str(broker.config), "store", "check"]) == 1
    assert "of renewal_plans refers to a row of certificates" in json.loads(capsys.readouterr().out)["what"]


def test_store_check_without_a_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None is made."""
    broker = BrokerFiles(tmp_path)
    assert main(["-c", str(broker.config), "store", "check"]) == 2
    assert "there is no such database" in capsys.readouterr().err
    assert not (broker.directory / "broker.db").exists()


@pytest.mark.parametrize("command", [["store", "check"], ["check", "--offline"]], ids=" ".join)
@pytest.mark.parametrize("closed", ["folder", "file"])
def test_store_check_without_rights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str], closed: str
) -> None:
    """Who may not read it is told what to do, beside all else that is wrong, and no script takes it for damage."""
    broker = BrokerFiles(tmp_path)
    folder = tmp_path / "state"
    folder.mkdir()
    broker.settings["store"]["path"] = str(folder / "broker.db")
    broker.settings["issuer"]["acme"]["account_key"] = str(folder / "account.key")
    broker.write()
    asyncio.run(fill(StorePlace("sqlite", folder / "broker.db")))
    look, connect = Path.stat, sqlite3.connect

    def stat(path: Path, **options: Any) -> os.stat_result:
        if closed == "folder" and path.parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **options)

    def refuse(database: str, **options: Any) -> sqlite3.Connection:
        there = closed == "folder" or str(folder) not in database
        return connect(database if there else f"file:{tmp_path}/none?mode=ro", **options)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    assert main(["-c", str(broker.config), *command]) == 2
    told = capsys.readouterr().err.splitlines()
    (line,) = [line for line in told if "store.path" in line]
    assert "; " in line, "no remedy"
    assert "Permission denied: " not in line


@pytest.mark.parametrize("full", [[], ["--full"]], ids=["quick", "full"])
async def test_a_damaged_table_is_named(place: StorePlace, monkeypatch: pytest.MonkeyPatch, full: list[str]) -> None:
    """Where SQLite gives up in the middle, and tells no table, and beside a broker too; the others are looked at."""
    await fill(place)
    place.execute("INSERT INTO keys VALUES ('k', 'web1.example', 0, NULL, NULL, NULL)")
    for table in ("audit_events", "keys"):
        ((root,),) = place.query(f"SELECT rootpage FROM sqlite_schema WHERE name = '{table}'")  # noqa: S608 - ours
        with place.path.open("r+b") as file:
            file.seek((root - 1) * PAGE)
            file.write(b"\xff" * PAGE)
    told = "\n".join(files.look_through(place.path, full=bool(full)))
    assert "audit_events" in told
    assert "keys" in told
    monkeypatch.setattr(files, "QUICK_AT_START", 0)
    async with place.open(ManualClock()) as stores:
        assert "keys" in "\n".join(await stores.soundness.damage())
