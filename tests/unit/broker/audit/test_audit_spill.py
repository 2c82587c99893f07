"""The spill file and the fallback that writes it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.audit import SpillFallback, SpillFile, import_spill
from certplane.broker.events import AuditEvent, AuditEventType
from certplane.errors import Reason, RefusalError
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock


def record(number: int) -> str:
    event = AuditEvent(f"event-{number}", ManualClock().now(), AuditEventType.CERTIFICATE_DENIED, reason="zwölf\n")
    return json.dumps(event.record())


class FakeImport:
    """`AuditImport` that keeps what it gets, once, and can be away."""

    def __init__(self) -> None:
        self.records: dict[str, str] = {}
        self.away = False

    async def import_records(self, records: Sequence[str]) -> int:
        if self.away:
            raise RefusalError(Reason.STORE_UNAVAILABLE, "away")
        new = {json.loads(one)["event_id"]: one for one in records}
        count = len(new.keys() - self.records.keys())
        self.records = {**new, **self.records}
        return count


@pytest.fixture
def spill_path(tmp_path: Path) -> Path:
    return tmp_path / "spill.jsonl"


def tear(path: Path, part: str) -> None:
    with path.open("a") as file:
        file.write(part)


def files_beside(path: Path) -> list[str]:
    return [file.name for file in path.parent.iterdir()]


@pytest.fixture
def anyone_s_umask() -> Any:
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.mark.usefixtures("anyone_s_umask")
def test_the_spill_file_is_private_and_a_line_each(spill_path: Path) -> None:
    """0600 whatever the umask; appended to, one JSON object a line."""
    spill = SpillFile(spill_path)
    spill.append([record(1), record(2)])
    spill.append([record(3)])
    assert stat.S_IMODE(spill_path.stat().st_mode) == 0o600
    assert spill_path.read_text().splitlines() == [record(1), record(2), record(3)]


def link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


def folder(path: Path) -> None:
    path.mkdir()


def open_to_others(path: Path) -> None:
    path.touch(mode=0o600)
    path.chmod(0o644)


def pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("wrong", [link, folder, open_to_others, pipe])
def test_nothing_is_spilled_into_what_is_not_our_own_file(spill_path: Path, wrong: Any) -> None:
    """A link, a folder, a pipe or a file that others may read is refused, and nothing is written through it."""
    wrong(spill_path)
    with pytest.raises(OSError):
        SpillFile(spill_path).append([record(1)])
    assert not spill_path.with_name("elsewhere").exists()
    if spill_path.is_file():
        assert spill_path.read_text() == ""


async def test_an_import_takes_records_back_once(spill_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The gap is logged, the file is kept under another name, and nothing is left to import."""
    SpillFile(spill_path).append([record(number) for number in range(2500)])
    log = FakeImport()
    assert await import_spill(spill_path, log, ManualClock()) == 2500
    assert await import_spill(spill_path, log, ManualClock()) == 0
    assert len(log.records) == 2500
    assert files_beside(spill_path) == ["spill.jsonl.imported-20261123T120000.000000Z"]
    assert "the audit log had a gap: 2500 spilled events found, 2500 imported" in caplog.text


async def test_an_import_that_was_killed_is_finished_and_later_spills_too(spill_path: Path) -> None:
    """What was set aside before a crash comes first, then what was spilled since; records that are in are passed over."""
    log = FakeImport()
    await log.import_records([record(1)])
    SpillFile(spill_path.with_name("spill.jsonl.importing")).append([record(1), record(2)])
    SpillFile(spill_path).append([record(3)])
    clock = ManualClock()
    assert await import_spill(spill_path, log, clock) == 2
    assert set(log.records) == {"event-1", "event-2", "event-3"}
    assert "spill.jsonl" not in files_beside(spill_path)


async def test_an_import_that_can_not_be_made_is_for_the_next_start(
    spill_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start goes on; nothing is lost."""
    SpillFile(spill_path).append([record(1)])
    log = FakeImport()
    log.away = True
    assert await import_spill(spill_path, log, ManualClock()) == 0
    assert "could not import spilled audit events" in caplog.text
    log.away = False
    assert await import_spill(spill_path, log, ManualClock()) == 1


async def test_a_torn_line_spoils_itself_alone(spill_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A crash in the middle of an append costs one event, which is told, and not the one after it."""
    spill = SpillFile(spill_path)
    spill.append([record(1)])
    tear(spill_path, record(2)[:40])
    spill.append([record(3)])
    log = FakeImport()
    assert await import_spill(spill_path, log, ManualClock()) == 2
    assert set(log.records) == {"event-1", "event-3"}
    assert "1 line of" in caplog.text


async def test_a_spill_that_is_a_link_is_not_imported(spill_path: Path) -> None:
    """Nobody gets records into the log by planting a link."""
    SpillFile(spill_path.with_name("elsewhere")).append([record(1)])
    link(spill_path)
    log = FakeImport()
    assert await import_spill(spill_path, log, ManualClock()) == 0
    assert log.records == {}


# The fallback


@pytest.mark.parametrize(("mode", "fail_open"), [("fail_closed", False), ("fail_open", True)])
def test_the_failure_mode_is_the_configuration_s(spill_path: Path, mode: Any, fail_open: bool) -> None:
    """The store asks, the fallback answers; no file is made before it is needed."""
    assert SpillFallback(mode, spill_path).fail_open is fail_open
    assert not spill_path.exists()


def test_rescued_events_are_logged_spilled_and_counted(spill_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each on its own log line, as an object, with the cause."""
    meter = FakeMeter()
    fallback = SpillFallback("fail_open", spill_path, meter=meter)
    fallback.rescue([record(1), record(2)], RuntimeError("disk full"))
    assert (fallback.spilled, fallback.lost) == (2, 0)
    assert meter.total(metrics.EVENTS_RESCUED, to="spill") == 2
    lines = [entry for entry in caplog.records if entry.name == "certplane.audit"]
    assert [getattr(line, "fields", {})["event"]["event_id"] for line in lines] == ["event-1", "event-2"]
    assert {line.levelname for line in lines} == {"ERROR"}
    assert "disk full" in lines[0].getMessage()
    assert len(spill_path.read_text().splitlines()) == 2


def test_events_that_can_not_be_spilled_are_logged_and_told_lost(
    spill_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line is all there is, and the count says so."""
    folder(spill_path)
    meter = FakeMeter()
    fallback = SpillFallback("fail_open", spill_path, meter=meter)
    fallback.rescue([record(1)], RuntimeError("disk full"))
    assert (fallback.spilled, fallback.lost) == (0, 1)
    assert meter.total(metrics.EVENTS_RESCUED, to="log") == 1
    assert "this log is their only copy" in caplog.text


@pytest.mark.parametrize("mirror", [True, False])
def test_durable_events_are_mirrored_only_if_asked_for(
    spill_path: Path, mirror: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """`mirror_to_log` decides."""
    caplog.set_level("INFO", "certplane.audit")
    SpillFallback("fail_closed", spill_path, mirror_to_log=mirror).written([record(1)])
    assert len(caplog.records) == int(mirror)
