"""`certplane-broker backup`: a whole, private copy beside the running broker, or none."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from pathlib import Path

import pytest

from certplane.broker.cli import main
from certplane.broker.store import backup
from tests.fakes.clock import ManualClock
from tests.support.broker_files import BrokerFiles
from tests.support.stores import StoreHarness, StorePlace


async def back_up_beside_a_broker(place: StorePlace, command: list[str]) -> tuple[int, str]:
    """The command's status while a broker writes, and the certificate that was written last before it."""
    clock = ManualClock()
    async with place.open(clock) as stores:
        harness = StoreHarness(place, clock, stores)
        record = await harness.issue()
        assert place.path.with_name("broker.db-wal").stat().st_size
        status = main(command)  # beside the store's threads
        await harness.issue()
    return status, record.certificate_id


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    return BrokerFiles(tmp_path)


@pytest.fixture
def place(files: BrokerFiles) -> StorePlace:
    return StorePlace("sqlite", files.directory / "broker.db")


def command(files: BrokerFiles, copy: Path) -> list[str]:
    return ["-c", str(files.config), "backup", str(copy)]


def ids(database: Path) -> list[str]:
    connection = sqlite3.connect(database)
    try:
        return [row[0] for row in connection.execute("SELECT certificate_id FROM certificates")]
    finally:
        connection.close()


def test_beside_a_running_broker(
    files: BrokerFiles, place: StorePlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was committed last is in it, it is one file, and no other user may read it, whatever the umask."""
    copy = tmp_path / "copies" / "broker.db"
    copy.parent.mkdir()
    before = os.umask(0)
    try:
        status, certificate_id = asyncio.run(back_up_beside_a_broker(place, command(files, copy)))
    finally:
        os.umask(before)
    assert status == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"file": str(copy), "sizeBytes": copy.stat().st_size, "database": str(place.path)}
    assert copy.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in copy.parent.iterdir()] == ["broker.db"]
    assert ids(copy) == [certificate_id]
    assert copy.stat().st_nlink == 1


def test_what_is_there_stays(
    files: BrokerFiles, place: StorePlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Yesterday's copy isn't overwritten, nor is one that another backup makes meanwhile."""
    copy = tmp_path / "copy.db"
    copy.write_text("yesterday's")
    assert asyncio.run(back_up_beside_a_broker(place, command(files, copy)))[0] == 1
    assert "there is something already; name a file that isn't there" in capsys.readouterr().err
    copy.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backup, "broken_pages", lambda *_, **__: copy.write_text("another's") and [])
        assert main(command(files, copy)) == 1
    assert copy.read_text() == "another's"
    assert not list(tmp_path.glob(".copy*"))


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        pytest.param("nowhere/copy.db", "nowhere is no folder; make it", id="no folder"),
        pytest.param("/proc/copy.db", "the copy can't be written: /proc/copy.db", id="a folder that takes none"),
    ],
)
def test_where_it_cannot_be_written(
    files: BrokerFiles, place: StorePlace, capsys: pytest.CaptureFixture[str], copy: str, said: str
) -> None:
    """One line says so."""
    assert asyncio.run(back_up_beside_a_broker(place, command(files, files.directory / copy)))[0] == 1
    assert said.lower() in capsys.readouterr().err.lower()


def test_a_damaged_database(
    files: BrokerFiles, place: StorePlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No copy is better than one that nobody can restore."""
    asyncio.run(back_up_beside_a_broker(place, command(files, files.directory / "whole.db")))
    content = bytearray(place.path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    place.path.write_bytes(content)
    assert main(command(files, tmp_path / "copy.db")) == 1
    assert "docs/operations.md" in capsys.readouterr().err
    assert not list(tmp_path.glob("*copy*"))


def test_without_a_database(files: BrokerFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None is made."""
    assert main(command(files, tmp_path / "copy.db")) == 2
    assert "there is no such database" in capsys.readouterr().err
    assert not list(tmp_path.glob("*copy*"))


def test_on_postgresql(files: BrokerFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which program copies that one."""
    files.settings["store"] = {
        "driver": "postgresql",
        "url": "postgresql://certplane@db.example/certplane?sslmode=require",
        "path": str(files.directory / "broker.db"),
    }
    files.write()
    assert main(command(files, tmp_path / "copy.db")) == 1
    said = capsys.readouterr().err
    assert "pg_dump --format=custom" in said
    assert "--dbname=postgresql://certplane@db.example/certplane" in said
