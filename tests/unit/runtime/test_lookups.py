"""Lookups of names: nobody waits for one that hangs but who asked for it, and for no longer than that."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from certplane.runtime.lookups import loop_with_lookups
from tests.support.waiting import HANG, no_hang

try:
    import uvloop
except ImportError:
    LOOPS: list[type[asyncio.AbstractEventLoop]] = [asyncio.SelectorEventLoop]
else:
    LOOPS = [asyncio.SelectorEventLoop, uvloop.Loop]

_FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))]

_PROGRAM = """
import asyncio, importlib, socket, time
from certplane.runtime.lookups import loop_with_lookups
module, name = {loop!r}.split()
loop = getattr(importlib.import_module(module), name)
socket.getaddrinfo = lambda *_: time.sleep(3600)

async def main():
    lookup = asyncio.ensure_future(asyncio.get_running_loop().getaddrinfo("ca.test", 443))
    await asyncio.sleep(0.1)
    lookup.cancel()
    await asyncio.wait([lookup])
    assert lookup.cancelled()

with asyncio.Runner(loop_factory=loop_with_lookups(loop)) as runner:
    runner.run(main())
print("ended")
"""


class Resolver:
    """Answers for all names but those that hang until it is released."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, *_: object) -> Any:
        self.asked.append(host)
        if host.startswith("hanging"):
            self.release.wait()
        if host.startswith("unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return _FOUND


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """In the place of the machine's."""
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.release.set()


def _run(loop: type[asyncio.AbstractEventLoop], main: Callable[[asyncio.AbstractEventLoop], Any]) -> None:
    async def running() -> None:
        async with no_hang():
            await main(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=loop_with_lookups(loop)) as runner:
        runner.run(running())


@pytest.mark.parametrize("loop", LOOPS)
def test_lookup_that_hangs_holds_up_no_other(resolver: Resolver, loop: type[asyncio.AbstractEventLoop]) -> None:
    """A hundred names that nobody answers for leave an answered one as quick as ever; errors are the resolver's."""

    async def main(running: asyncio.AbstractEventLoop) -> None:
        hanging = [asyncio.ensure_future(running.getaddrinfo(f"hanging{n}.test", 443)) for n in range(100)]
        assert await running.getaddrinfo("ca.test", 443) == _FOUND
        with pytest.raises(socket.gaierror):
            await running.getaddrinfo("unknown.test", 443)
        assert not any(each.done() for each in hanging)
        resolver.release.set()
        assert await asyncio.gather(*hanging) == [_FOUND] * 100

    _run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_name_is_looked_up_once_at_a_time(resolver: Resolver, loop: type[asyncio.AbstractEventLoop]) -> None:
    """Who gives up and asks again makes no second thread; a later question is asked anew."""

    async def main(running: asyncio.AbstractEventLoop) -> None:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await running.getaddrinfo("hanging.test", 443)
        assert resolver.asked == ["hanging.test"]
        waiting = asyncio.ensure_future(running.getaddrinfo("hanging.test", 443))
        await asyncio.sleep(0)
        resolver.release.set()
        assert await waiting == _FOUND
        await running.getaddrinfo("hanging.test", 443)
        assert resolver.asked == ["hanging.test"] * 2

    _run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_program_ends_while_a_lookup_hangs(loop: type[asyncio.AbstractEventLoop]) -> None:
    """Neither the loop's end nor Python's waits for the resolver."""
    program = _PROGRAM.format(loop=f"{loop.__module__} {loop.__name__}")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["ca..test", f"{64 * 'x'}.test", ".test"], ids=["empty", "long", "first"])
def test_what_is_no_host_name_has_no_address(loop: type[asyncio.AbstractEventLoop], name: str) -> None:
    """What Python can't even ask the resolver for is told as the resolver tells of an unknown name: an OSError."""

    async def main(running: asyncio.AbstractEventLoop) -> None:
        with pytest.raises(socket.gaierror):
            await running.getaddrinfo(name, 443)

    _run(loop, main)
