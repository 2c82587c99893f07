"""One connection to a CA: whatever octets come, and however they are cut, an exchange ends as it should."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certplane.broker.issuers.acme_connection import Connection, RawAnswer
from certplane.broker.issuers.acme_errors import AcmeError
from tests.support.waiting import no_hang

HEADERS = [(b"Host", b"ca.test"), (b"Content-Length", b"2")]
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nwh\r\n3\r\nole\r\n0\r\n\r\n"


class Wire(asyncio.Transport):
    """Answers each write with what it is given, a piece at each turn of the loop, and hangs up at the end."""

    def __init__(self, pieces: list[bytes], *, hangs_up: bool = True) -> None:
        super().__init__()
        self.connection = Connection(("ca.test", 443))
        self.connection.connection_made(self)
        self.written: list[bytes] = []
        self._pieces, self._hangs_up, self._closing = pieces, hangs_up, False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        if self._pieces:
            self.connection.data_received(self._pieces.pop(0))
            asyncio.get_running_loop().call_soon(self._deliver)
        elif self._hangs_up:
            self.connection.connection_lost(None)

    def is_closing(self) -> bool:
        return self._closing

    def abort(self) -> None:
        self._closing = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def _cut(octets: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(octets) + 1) for place in places}), len(octets)]
    return [piece for start, end in itertools.pairwise(edges) if (piece := octets[start:end])]


async def _exchange(wire: Wire) -> RawAnswer:
    async with no_hang():
        return await wire.connection.exchange("POST", b"/order", HEADERS, b"{}")


@given(whole=st.sampled_from([WHOLE, CHUNKED]), places=st.lists(st.integers(0, 200), max_size=30))
def test_answer_in_any_pieces(whole: bytes, places: list[int]) -> None:
    """The same answer, and a connection that carries another request."""

    async def run() -> None:
        wire = Wire(_cut(whole, places), hangs_up=False)
        answer = await _exchange(wire)
        assert (answer.status, answer.body, len(wire.written)) == (200, b"whole", 1)
        assert wire.connection.usable

    asyncio.run(run())


@given(
    head=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", WHOLE, CHUNKED[:-5], b"HTTP/1.1 101 Other\r\n\r\n"]),
    rest=st.binary(max_size=200) | st.text("HTP/1.0 23\r\n:;chunkedTransf-Eio", max_size=200).map(str.encode),
    places=st.lists(st.integers(0, 400), max_size=8),
)
@example(head=b"", rest=b"", places=[])
@example(head=WHOLE, rest=WHOLE, places=[])
@example(head=b"HTTP/1.1 103 Hints\r\n\r\n", rest=b"", places=[])
def test_octets_of_any_kind(head: bytes, rest: bytes, places: list[int]) -> None:
    """An answer or a failure that is known, soon, and no connection that has heard more than one answer is kept."""

    async def run() -> None:
        wire = Wire(_cut(head + rest, places))
        try:
            answer = await _exchange(wire)
        except (AcmeError, OSError, h11.ProtocolError):
            assert not wire.connection.usable
            return
        assert 200 <= answer.status < 1000
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not (rest and head == WHOLE and wire.connection.usable)

    asyncio.run(run())


async def test_a_connection_that_was_cut_off_is_not_used_again() -> None:
    """Whoever is cancelled while the answer comes leaves a connection that carries no further request."""
    wire = Wire([WHOLE[:30]], hangs_up=False)
    asking = asyncio.create_task(_exchange(wire))
    for _ in range(5):
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not wire.connection.usable
    with pytest.raises(ConnectionError, match="nobody asked for"):
        await _exchange(wire)
