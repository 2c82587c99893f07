"""Name lookups that neither a stop nor another name waits for: loops that ask the resolver on daemon threads.

The resolver can't be told to give up. asyncio asks it on its default executor and uvloop on a pool of four threads:
names that nobody answers for would hold up all others there, and the program's end as long as the resolver likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from typing_extensions import override


def loop_with_lookups(loop: type[asyncio.AbstractEventLoop]) -> Callable[[], asyncio.AbstractEventLoop]:
    """A factory of loops of the type `loop` whose `getaddrinfo` is that of `_Lookups`."""
    return type("Loop", (_Lookups, loop), {})


def service_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of a service's event loop: uvloop's where that is installed, with lookups as above."""
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        loop: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
    else:
        loop = uvloop.Loop
    # Not within the `except`: its exception would be the one that everything meanwhile sees as being handled.
    return loop_with_lookups(loop)


class _Lookups(asyncio.AbstractEventLoop):
    """Looks each name up once at a time, on a daemon thread of its own, however many ask and whoever still waits.

    So there are no more threads than names, and those are of the configuration.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lookups: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    @override
    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        asked = (host, port, family, type, proto, flags)
        if (found := self._lookups.get(asked)) is None:
            found = self.create_future()
            name = f"lookup of {host!r}"
            threading.Thread(target=self._look_up, args=(asked, found), name=name, daemon=True).start()
            self._lookups[asked] = found
        return await asyncio.shield(found)

    def _look_up(self, asked: tuple[Any, ...], found: asyncio.Future[Any]) -> None:
        try:
            tell = partial(found.set_result, socket.getaddrinfo(*asked))
        except UnicodeError:  # an empty label, or one too long: to those who wait it is a name without an address
            tell = partial(found.set_exception, socket.gaierror(socket.EAI_NONAME, "Not a host name"))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait get it
            tell = partial(found.set_exception, error)

        def end() -> None:
            del self._lookups[asked]
            tell()
            found.exception()  # if nobody waits any more, there is nobody to hear of it

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.call_soon_threadsafe(end)
