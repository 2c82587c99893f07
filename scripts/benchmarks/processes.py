"""What a program takes of the machine, its child processes too: processor time, resident and private memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: resident, and what nobody shares (USS)."""

    resident: int
    private: int

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.resident + other.resident, self.private + other.private)


def processor_seconds(pid: int) -> float:
    """What a process and all that it started have used of the processors so far, user and system.

    Children that have ended count from when they were waited for. One that ends while this is read may be missed once.
    """
    used = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used += times.user + times.system + times.children_user + times.children_system
    return used


def memory(pid: int, *, children: bool = True) -> Memory:
    """Of a process, with those that it started."""
    found = Memory(0, 0)
    for process in _tree(pid) if children else [psutil.Process(pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            full = process.memory_full_info()
            found += Memory(full.rss, full.uss)
    return found


def _tree(pid: int) -> Iterator[psutil.Process]:
    process = psutil.Process(pid)
    yield process
    with contextlib.suppress(psutil.NoSuchProcess):
        yield from process.children(recursive=True)
