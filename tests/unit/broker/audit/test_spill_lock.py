"""The lock beside the spill file, and what a start concludes from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from certplane.broker.audit import SpillLock, spill_lock
from certplane.broker.sharing import succeed
from certplane.errors import OperationError
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryDatabase, MemoryStores


class Locks:
    """Starts of brokers; each has the lock of a spill file until it is killed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, spill: Path) -> SpillLock:
        lock = SpillLock(spill)
        self._stack.callback(lock.close)
        return lock


@pytest.fixture
def locks() -> Iterator[Locks]:
    with ExitStack() as stack:
        yield Locks(stack)


@pytest.fixture
def spill(tmp_path: Path) -> Path:
    return tmp_path / "spill.jsonl"


def test_two_brokers_with_one_spill_file(locks: Locks, spill: Path) -> None:
    """The second one is refused, with the first one's process and what to do; it may come when that one has gone."""
    first, second = locks.start(spill), locks.start(spill)
    assert first.take() == ""
    with pytest.raises(OperationError, match=r"spill\.jsonl: another broker \(process \d+\) has this spill") as caught:
        second.take()
    assert caught.value.remedy == "stop it first, or give each broker an audit.spill_path of its own"
    first.close()
    assert second.take() == ""


def test_the_next_one_learns_who_it_was(locks: Locks, spill: Path) -> None:
    """Also when a start in between was cut off before it said who it is."""
    first = locks.start(spill)
    first.take()
    first.name("broker-1")
    first.close()
    for _ in range(2):
        cut_off = locks.start(spill)
        assert cut_off.take() == "broker-1"
        cut_off.close()
    third = locks.start(spill)
    third.take()
    third.name("broker-3")
    third.close()
    assert locks.start(spill).take() == "broker-3"


def test_a_copied_folder_is_nobody_s_end(locks: Locks, spill: Path) -> None:
    """Who lays out a second broker by copying the first one's folder doesn't end the first one's lease."""
    first = locks.start(spill)
    first.take()
    first.name("broker-1")
    folder = spill.parent / "copy"
    folder.mkdir()
    shutil.copy2(f"{spill}.lock", folder)
    assert locks.start(folder / spill.name).take() == ""


def test_another_boot_or_machine(locks: Locks, spill: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may lie on a file server, whose locks another machine may have lost: its lease ends by itself."""
    first = locks.start(spill)
    first.take()
    first.name("broker-1")
    first.close()
    other = spill.with_name("boot_id")
    other.write_text("another boot\n")
    monkeypatch.setattr(spill_lock, "_BOOT", other)
    assert locks.start(spill).take() == ""


def test_no_boot(locks: Locks, spill: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a container hides it: two brokers are still told apart, and no lease is ended."""
    monkeypatch.setattr(spill_lock, "_BOOT", spill.with_name("absent"))
    first = locks.start(spill)
    first.take()
    first.name("broker-1")
    with pytest.raises(OperationError):
        locks.start(spill).take()
    first.close()
    assert locks.start(spill).take() == ""


@pytest.mark.parametrize(
    "content", ["", "7", "7\n", "7\nnonsense\n", "seven\n\x00\x00", "7\nbroker-1", "7\nbroker-1 elsewhere 0:0\n"]
)
def test_what_is_not_ours_to_read_is_no_broker(locks: Locks, spill: Path, content: str) -> None:
    """A file that a power cut has torn, or that somebody has edited."""
    spill.with_name(f"{spill.name}.lock").write_text(content)
    assert locks.start(spill).take() == ""


def test_no_folder_for_it(locks: Locks, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that may never spill starts all the same, and says what it does without."""
    lock = locks.start(tmp_path / "absent" / "spill.jsonl")
    assert lock.take() == ""
    lock.name("broker-1")
    assert "the spill file can't be locked, so that another broker that has it isn't noticed" in caplog.text
    assert "spill.jsonl.lock doesn't exist" in caplog.text


async def test_a_start_ends_the_lease_of_the_one_that_was_killed(
    locks: Locks, spill: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And leaves its own id, for the start after it."""
    caplog.set_level("INFO")
    killed, members = locks.start(spill), MemoryStores.over(MemoryDatabase(ManualClock())).members
    ended: list[str] = []

    async def end(broker_id: str) -> bool:
        ended.append(broker_id)
        return True

    killed.take()
    killed.name("killed")
    killed.close()
    members.end = end  # type: ignore[method-assign]  # what the rows say is the contract suite's
    lock = locks.start(spill)
    await succeed(lock, members)
    assert ended == ["killed"]
    assert "the broker that ran here before was killed" in caplog.text
    lock.close()
    assert locks.start(spill).take() == members.broker_id
