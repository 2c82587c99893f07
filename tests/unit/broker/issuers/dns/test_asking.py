"""One question at one server that may be hostile: what counts as its answer, and what is left behind."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from certplane.broker.issuers.dns.asking import ask
from certplane.broker.issuers.dns.dns_messages import Answer, NoDnsAnswerError, SilentServerError, lacking_txt, name_of
from certplane.sandbox.loopback import free_port
from tests.support.scripted_dns import ScriptedDns
from tests.support.waiting import HANG, until

NAME = name_of("_acme-challenge.www.example.test")
LONG, SHORT = timedelta(seconds=HANG), timedelta(milliseconds=200)


def answer_to(query: bytes, *values: str, name: str = "", ident: int | None = None) -> bytes:
    """With these TXT values."""
    asked = dns.message.from_wire(query)
    made = dns.message.make_response(asked)
    made.flags |= dns.flags.AA
    if name:
        made.question = [dns.rrset.RRset(name_of(name), asked.question[0].rdclass, asked.question[0].rdtype)]
    if values:
        made.answer.append(dns.rrset.from_text(made.question[0].name, 60, "IN", "TXT", *values))
    made.id = asked.id if ident is None else ident
    return made.to_wire(max_size=65535)


class Hostile(asyncio.DatagramProtocol):
    """Sends whatever `play` says to each question, from its own socket or from others.

    Attributes:
        asked: questions, each with who sent it.
    """

    def __init__(self, play: Callable[[Hostile, bytes, tuple[str, int]], None]) -> None:
        self._play = play
        self.asked: list[tuple[bytes, tuple[str, int]]] = []

    def listen(self, transport: asyncio.DatagramTransport) -> None:
        self.transport = transport
        self.port: int = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append((data, addr[:2]))
        self._play(self, data, addr)

    def send(self, wire: bytes, to: tuple[str, int]) -> None:
        self.transport.sendto(wire, to)


@asynccontextmanager
async def hostile(
    play: Callable[[Hostile, bytes, tuple[str, int]], None], address: str = "127.0.0.1"
) -> AsyncIterator[Hostile]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: Hostile(play), local_addr=(address, 0))
    server.listen(transport)
    try:
        yield server
    finally:
        transport.close()


async def ask_it(server: Hostile, timeout: timedelta = LONG, address: str = "127.0.0.1") -> Answer:
    return await ask(NAME, dns.rdatatype.TXT, address, server.port, timeout)


def from_elsewhere(wire: bytes, to: tuple[str, int], address: str, port: int = 0) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((address, port))
        other.sendto(wire, to)


def other_id(query: bytes) -> int:
    return int.from_bytes(query[:2], "big") ^ 1


FORGED = [
    pytest.param(lambda one, query, to: one.send(answer_to(query, "forged", ident=other_id(query)), to), id="id"),
    pytest.param(
        lambda one, query, to: one.send(answer_to(query, "forged", name="other.test"), to), id="another-question"
    ),
    pytest.param(lambda one, query, to: one.send(query, to), id="the-question-itself"),
    pytest.param(lambda one, query, to: from_elsewhere(answer_to(query, "forged"), to, "127.0.0.1"), id="port"),
    pytest.param(
        lambda one, query, to: from_elsewhere(answer_to(query, "forged"), to, "127.0.0.2", one.port), id="address"
    ),
    pytest.param(lambda one, query, to: one.send(answer_to(query, "forged")[:-5], to), id="the-first-part-of-it"),
    pytest.param(lambda one, query, to: one.send(answer_to(query, "forged")[12:], to), id="the-second-part-of-it"),
    pytest.param(lambda one, query, to: one.send(b"", to), id="nothing"),
    pytest.param(lambda one, query, to: one.send(query[:2] + b"\xff" * 60000, to), id="oversize-garbage"),
]


@pytest.mark.parametrize("forge", FORGED)
async def test_what_is_not_the_answer_is_passed_over(
    forge: Callable[[Hostile, bytes, tuple[str, int]], None],
) -> None:
    """The right answer after it is taken, however often the wrong one came; alone it is silence."""

    def play(one: Hostile, query: bytes, to: tuple[str, int]) -> None:
        for _ in range(50):
            forge(one, query, to)
        one.send(answer_to(query, "right"), to)

    async with hostile(play) as server:
        assert (await ask_it(server)).texts == {b"right"}
        assert len(server.asked) == 1
    async with hostile(forge) as server:
        with pytest.raises(SilentServerError):
            await ask_it(server, SHORT)


async def test_long_answer_over_udp() -> None:
    """More than was asked for, in one datagram, is an answer."""
    values = [f"{number:03}" + "x" * 200 for number in range(100)]
    async with hostile(lambda one, query, to: one.send(answer_to(query, *values), to)) as server:
        answer = await ask_it(server)
    assert lacking_txt(answer, NAME, frozenset(values)) == ""


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """No file is open afterwards that wasn't before, and nothing is left with the loop."""
    before = open_files()
    yield
    assert open_files() <= before


async def test_second_answer_finds_nobody() -> None:
    """Answers that come twice, and late ones, are nobody's: the next question isn't answered by them."""
    late: list[tuple[bytes, tuple[str, int]]] = []

    def play(one: Hostile, query: bytes, to: tuple[str, int]) -> None:
        for wire, before in late:
            one.send(wire, before)
        one.send(answer_to(query, f"{len(late)}"), to)
        one.send(answer_to(query, "again"), to)
        late.append((answer_to(query, "late"), to))

    async with hostile(play) as server:
        with nothing_left_open():
            answers = [await ask_it(server) for _ in range(20)]
    assert [answer.texts for answer in answers] == [{str(number).encode()} for number in range(20)]


async def test_ports_and_ids_cannot_be_foreseen() -> None:
    """Each question comes from a port of its own, picked by the kernel, with an id of its own."""
    async with hostile(lambda one, query, to: one.send(answer_to(query), to)) as server:
        for _ in range(100):
            await ask_it(server)
    ports = [address[1] for _, address in server.asked]
    assert len(set(ports)) > 80
    assert len({later - earlier for earlier, later in itertools.pairwise(ports)}) > 80
    assert len({query[:2] for query, _ in server.asked}) > 95


async def test_port_where_nothing_listens() -> None:
    """The kernel's word (ICMP) is taken at once: the time is far longer than the test may take."""
    with nothing_left_open(), pytest.raises(SilentServerError, match="nothing listens there"):
        await ask(NAME, dns.rdatatype.TXT, "127.0.0.1", free_port(), timedelta(hours=1))


async def test_address_without_a_way_there() -> None:
    """It can't be asked, which is told by its kind."""
    with nothing_left_open(), pytest.raises(NoDnsAnswerError, match=r"no readable answer \("):
        await ask(NAME, dns.rdatatype.TXT, "255.255.255.255", 53, LONG)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_ipv6() -> None:
    """As by IPv4."""
    async with hostile(lambda one, query, to: one.send(answer_to(query, "six"), to), "::1") as server:
        assert (await ask_it(server, address="::1")).texts == {b"six"}


async def test_cancelled_question_leaves_nothing() -> None:
    """Who stops waiting closes the socket; so does the end of the time."""
    async with hostile(lambda *_: None) as server:
        with nothing_left_open():
            task = asyncio.ensure_future(ask_it(server))
            await until(lambda: bool(server.asked), what="the question")
            task.cancel()
            await asyncio.wait([task])
            with pytest.raises(SilentServerError):
                await ask_it(server, SHORT)
    assert task.cancelled()


async def test_late_answer_to_the_first_of_two_questions() -> None:
    """A slow server is asked without EDNS beside; what it says to the question with EDNS counts when it comes."""

    def play(one: Hostile, query: bytes, to: tuple[str, int]) -> None:
        if len(one.asked) == 2:
            one.send(answer_to(one.asked[0][0], "slow"), to)

    async with hostile(play) as server:
        answer = await ask_it(server, timedelta(seconds=1))
    assert (answer.texts, answer.edns) == ({b"slow"}, True)
    (first, one), (second, other) = server.asked
    assert (one == other, first[:2] == second[:2], dns.message.from_wire(second).edns) == (True, False, -1)


def cut_off(query: bytes) -> bytes:
    answer = dns.message.from_wire(answer_to(query, "cut"))
    answer.flags |= dns.flags.TC
    return answer.to_wire()


async def test_edns_that_is_refused_over_tcp_only() -> None:
    """A server that cuts the answer off and then doesn't take EDNS over TCP is asked there without."""

    def reply(query: bytes, tcp: bool) -> bytes:
        if not tcp:
            return cut_off(query)
        answer = dns.message.from_wire(answer_to(query, "whole"))
        if answer.edns >= 0:
            answer.answer.clear()
            answer.use_edns(False)
            answer.set_rcode(1)
        content = answer.to_wire()
        return len(content).to_bytes(2, "big") + content

    with ScriptedDns(reply) as server:
        answer = await ask(NAME, dns.rdatatype.TXT, "127.0.0.1", server.port, LONG)
    assert [tcp for _, tcp in server.queries] == [False, True, True]
    assert [str(record) for record in answer.answer[0]] == ['"whole"']


async def test_answer_that_is_cut_off_where_tcp_is_closed() -> None:
    """A firewall that lets UDP through alone is told, at once if it refuses: nobody would look for it."""

    def play(one: Hostile, query: bytes, to: tuple[str, int]) -> None:
        one.send(cut_off(query), to)

    async with hostile(play) as server:
        with pytest.raises(NoDnsAnswerError, match=r"over TCP, and over UDP it is cut off \(ConnectionRefusedError\)"):
            await ask_it(server, timedelta(hours=1))
    with ScriptedDns(lambda query, tcp: None if tcp else cut_off(query)) as server_without_answers:
        port = server_without_answers.port
        with pytest.raises(NoDnsAnswerError, match="over TCP, and over UDP it is cut off"):
            await ask(NAME, dns.rdatatype.TXT, "127.0.0.1", port, timedelta(seconds=1))


async def test_forged_truncation_costs_a_connection_alone() -> None:
    """What TCP says counts, not what was in the datagram."""

    def reply(query: bytes, tcp: bool) -> bytes:
        content = answer_to(query, "right") if tcp else cut_off(query)
        return len(content).to_bytes(2, "big") + content if tcp else content

    with ScriptedDns(reply) as server:
        answer = await ask(NAME, dns.rdatatype.TXT, "127.0.0.1", server.port, LONG)
    assert [str(record) for record in answer.answer[0]] == ['"right"']
