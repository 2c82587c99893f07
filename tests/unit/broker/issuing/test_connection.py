"""Frames on a socket pair, and what of them isn't a message."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from certplane.broker.issuing import messages as m
from certplane.broker.issuing.child import Child, ChildEndedError
from certplane.broker.issuing.connection import MOST_OCTETS, Connection, TooLargeError, connect
from certplane.broker.model import Profile
from tests.support.waiting import HANG, until

SOON = timedelta(seconds=5)
OPENED: list[Connection] = []


class End:
    """One end, and what came of it."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.lost: list[str] = []

    async def open(self, own: socket.socket, take: Callable[[bytes], None] | None = None) -> Connection:
        connection = await connect(own, take or self.taken.append, self.lost.append)
        OPENED.append(connection)
        return connection


@pytest.fixture
async def pair() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    yield near, far
    for own in (near, far):
        if own.fileno() >= 0:
            own.close()


@pytest.fixture(autouse=True)
async def _closing() -> AsyncIterator[None]:
    yield
    for connection in OPENED:
        connection.close()
    OPENED.clear()
    await asyncio.sleep(0)  # for the loop to close them
    await asyncio.sleep(0)


async def child_at(own: socket.socket) -> Child:
    """The broker's half on a socket that a test writes to."""
    child = Child(lambda _: None)
    child._connection = await connect(own, child._take, child._lost)
    OPENED.append(child._connection)
    return child


async def test_messages_come_whole_however_they_are_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    """Octet by octet, and many at once."""
    end, sent = End(), [b"", b"a", b"b" * 70_000, b"c"]
    connection = await end.open(pair[0])
    octets = b"".join(len(each).to_bytes(4, "big") + each for each in sent)
    for number in range(12):
        connection.data_received(octets[number : number + 1])
    connection.data_received(octets[12:])
    connection.data_received(octets)
    assert end.taken == sent * 2
    connection.close()
    await until(lambda: bool(end.lost), what="the end")
    assert end.lost == [""]


async def test_an_announcement_beyond_the_bound_ends_the_connection(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Nothing of it is kept."""
    end = End()
    await end.open(pair[0])
    pair[1].sendall((MOST_OCTETS + 1).to_bytes(4, "big"))
    await until(lambda: bool(end.lost), what="the end")
    assert str(MOST_OCTETS + 1) in end.lost[0]
    assert end.taken == []


async def test_what_is_too_large_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    """The sender hears of it, and the connection stands."""
    near, far = End(), End()
    connection = await near.open(pair[0])
    await far.open(pair[1])
    with pytest.raises(TooLargeError):
        connection.send(bytes(MOST_OCTETS + 1))
    connection.send(b"small")
    await until(lambda: far.taken == [b"small"], what="the message")


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\xc1", id="no MessagePack"),
        pytest.param(m.encode({"type": "Exec", "command": "id"}), id="no message"),
        pytest.param(m.encode({"type": "Returned", "number": "x", "value": 1}), id="a field of another type"),
        pytest.param(m.encode({"type": "Told", "number": 1}), id="a field that is missing"),
        pytest.param(b"\x91" * 100_000, id="nested without end"),
        pytest.param(b"\x82\xa4type\xa4Told\xa4text\xa1\xff", id="no UTF-8"),
    ],
)
async def test_garbage_of_a_child_ends_its_calls(pair: tuple[socket.socket, socket.socket], garbage: bytes) -> None:
    """The connection ends, and with it the calls; nothing of what was sent is in the reason."""
    child = await child_at(pair[0])
    waiting = asyncio.create_task(child.ask(m.GetOrder(SOON, issuer="ca", url="https://ca.test/1")))
    await until(lambda: child.calls == 1, what="the call")
    pair[1].sendall(len(garbage).to_bytes(4, "big") + garbage)
    with pytest.raises(ChildEndedError, match="no message"):
        async with asyncio.timeout(HANG):
            await waiting
    assert child.calls == 0


async def test_a_result_of_another_type_is_garbage(pair: tuple[socket.socket, socket.socket]) -> None:
    """Each call's result is decoded as what it declares."""
    child = await child_at(pair[0])
    waiting = asyncio.create_task(child.ask(m.GetOrder(SOON, issuer="ca", url="https://ca.test/1")))
    await until(lambda: child.calls == 1, what="the call")
    answer = m.encode(m.Returned(1, m.msgspec.Raw(m.encode("a text"))))
    pair[1].sendall(len(answer).to_bytes(4, "big") + answer)
    with pytest.raises(ChildEndedError):
        async with asyncio.timeout(HANG):
            await waiting


async def test_an_answer_that_nobody_waits_for_is_passed_over(pair: tuple[socket.socket, socket.socket]) -> None:
    """It was cancelled, which is told, or never asked."""
    child, told = await child_at(pair[0]), End()
    await told.open(pair[1])
    waiting = asyncio.create_task(child.ask(m.GetOrder(SOON, issuer="ca", url="https://ca.test/1")))
    await until(lambda: len(told.taken) == 1, what="the call")
    waiting.cancel()
    await until(lambda: len(told.taken) == 2, what="the cancellation")
    assert m.decode_to_child(told.taken[1]) == m.Cancel(1)
    child._take(m.encode(m.Broke(1, "late")))
    child._take(m.encode(m.Told(7, "never asked")))
    assert not child.ended.is_set()


async def test_lines_about_a_connection_that_closes_make_no_more_lines(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A transport logs each write that it can't do; such a line is another write, and so on."""
    connection = await End().open(pair[0])
    connection.close()
    sent: list[bool] = []

    class Sender(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            sent.append(connection.send(b"a line"))

    logger, sender = logging.getLogger("asyncio"), Sender()
    logger.addHandler(sender)
    try:
        for _ in range(10):
            logger.warning("of a call")
    finally:
        logger.removeHandler(sender)
    assert sent == [False] * 10


async def test_what_a_child_does_not_read_is_bounded(pair: tuple[socket.socket, socket.socket]) -> None:
    """Calls are refused, until it reads again or is killed: they are repeated, the broker's memory isn't."""
    child = await child_at(pair[0])
    call = m.CreateOrder(SOON, issuer="a", csr_der=bytes(1024 * 1024), profile=Profile("a", "", (), ""), replaces="")
    calls = [asyncio.create_task(child.ask(call)) for _ in range(100)]
    await until(lambda: any(task.done() for task in calls), what="a refusal")
    assert child._connection is not None
    assert child._connection.waiting < 10 * 1024 * 1024
    assert "doesn't read" in str(calls[-1].exception())
    pair[1].close()
    await until(child.ended.is_set, what="the end")
    await asyncio.wait(calls)
