"""Which resolver is asked, how often, and whose word counts."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from datetime import timedelta

import dns.flags
import dns.message
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.dns_messages import NoDnsAnswerError, name_of
from certplane.broker.issuers.dns.resolvers import Resolvers
from certplane.config.values import HostPort
from certplane.runtime.clock import SystemClock
from certplane.sandbox.loopback import free_port
from tests.support.scripted_dns import Reply, ScriptedDns
from tests.support.waiting import HANG

NAME = name_of("www.example.test")


def soon(seconds: float = HANG) -> Deadline:
    return Deadline.after(timedelta(seconds=seconds), SystemClock())


def resolvers_at(*ports: int) -> Resolvers:
    return Resolvers([HostPort("127.0.0.1", port) for port in ports], SystemClock(), key="dns.resolvers")


def answering(rcode: int = 0, *records: tuple[str, str, str]) -> Reply:
    def reply(query: bytes, _: bool) -> bytes:
        answer = dns.message.make_response(dns.message.from_wire(query))
        answer.flags |= dns.flags.RA
        answer.set_rcode(rcode)
        for name, kind, value in records:
            answer.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", kind, value))
        return answer.to_wire()

    return reply


ADDRESS = ("www.example.test", "A", "192.0.2.1")
GOOD = answering(0, ADDRESS)
TWO_OF_A_RING = [("www.example.test", "CNAME", "a.test."), ("a.test", "CNAME", "www.example.test.")]


async def test_follows_aliases_and_tells_what_is_not_there() -> None:
    """The records at the end of the chain; nothing for a name without any; None for a name that isn't there."""
    chain = answering(0, ("www.example.test", "CNAME", "end.test."), ("end.test", "A", "192.0.2.7"))
    with ScriptedDns(chain) as server:
        asked = resolvers_at(server.port)
        answer = await asked.resolve(NAME, dns.rdatatype.A, soon())
        assert answer is not None
        assert str(answer.answer[-1][0]) == "192.0.2.7"
        server.reply = answering()
        answer = await asked.resolve(NAME, dns.rdatatype.A, soon())
        assert answer is not None
        assert list(answer.answer) == []
        server.reply = answering(3)
        assert await asked.resolve(NAME, dns.rdatatype.A, soon()) is None
    assert [dns.message.from_wire(query).edns for query, _ in server.queries] == [-1, -1, -1]
    assert all(flags & dns.flags.RD for flags in server.flags())


NO_WORD = [
    pytest.param(answering(2), "answers SERVFAIL", id="SERVFAIL"),
    pytest.param(answering(5), "answers REFUSED", id="REFUSED"),
    pytest.param(answering(6), "answers YXDOMAIN", id="YXDOMAIN"),
    pytest.param(answering(3, ADDRESS), "answers nonsense (AnswerForNXDOMAIN)", id="records-of-no-name"),
    pytest.param(answering(0, *TWO_OF_A_RING), "answers nonsense (ChainTooLong)", id="aliases-in-a-ring"),
]


@pytest.mark.parametrize(("reply", "said"), NO_WORD)
async def test_resolver_whose_word_does_not_count(reply: Reply, said: str) -> None:
    """The next one is asked; alone it is told with what it said, after one question."""
    with ScriptedDns(reply) as bad, ScriptedDns(GOOD) as good:
        answer = await resolvers_at(bad.port, good.port).resolve(NAME, dns.rdatatype.A, soon())
        assert answer is not None
        assert str(answer.answer[0][0]) == "192.0.2.1"
        with pytest.raises(NoDnsAnswerError) as caught:
            await resolvers_at(bad.port).resolve(NAME, dns.rdatatype.A, soon())
    assert str(caught.value) == f"A of www.example.test can't be looked up (127.0.0.1 {said})"
    assert (len(bad.queries), len(good.queries)) == (2, 1)


async def test_resolver_that_is_being_started_again() -> None:
    """One where nothing listens at the moment is asked again within the time."""
    with ScriptedDns(GOOD) as server:
        port = server.port
    asked = asyncio.ensure_future(resolvers_at(port).resolve(NAME, dns.rdatatype.A, soon()))
    done, _ = await asyncio.wait([asked], timeout=0.3)
    assert not done
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Answering, local_addr=("127.0.0.1", port))
    try:
        answer = await asked
    finally:
        transport.close()
    assert answer is not None
    assert str(answer.answer[0][0]) == "192.0.2.1"


class Answering(asyncio.DatagramProtocol):
    """A server at a port that is chosen."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override] # it is one
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        wire = GOOD(data, False)
        assert wire is not None
        self._transport.sendto(wire, addr)


async def test_end_of_the_time() -> None:
    """What each resolver did last is told."""
    with ScriptedDns(lambda *_: None) as silent, pytest.raises(NoDnsAnswerError) as caught:
        await resolvers_at(free_port(), silent.port).resolve(NAME, dns.rdatatype.CAA, soon(0.5))
    assert str(caught.value).startswith("CAA of www.example.test can't be looked up (127.0.0.1 nothing listens there; ")


async def test_more_questions_than_places() -> None:
    """Hundreds at once are all answered, by a bounded number of sockets."""
    with ScriptedDns(GOOD) as server:
        asked = resolvers_at(server.port)
        answers = await asyncio.gather(*(asked.resolve(NAME, dns.rdatatype.A, soon()) for _ in range(300)))
    assert all(answers)


@pytest.fixture
def resolv_conf(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    real = dns.resolver.Resolver

    def write(text: str) -> None:
        monkeypatch.setattr(dns.resolver, "Resolver", lambda: real(io.StringIO(text)))

    return write


async def test_those_of_the_system(resolv_conf: Callable[[str], None]) -> None:
    """Addresses, IPv6 too, and the options `timeout`, `edns0` and `rotate` are taken from resolv.conf."""
    resolv_conf("nameserver 192.0.2.53\nnameserver 2001:db8::53\noptions timeout:7 edns0 rotate\n")
    asked = Resolvers([], SystemClock(), key="dns.resolvers")
    assert [(one.addresses, one.port) for one in await asked.servers()] == [
        (("192.0.2.53",), 53),
        (("2001:db8::53",), 53),
    ]
    manner = asked._manner
    assert manner is not None
    assert (manner.one_try, manner.edns, manner.rotate) == (timedelta(seconds=7), True, True)
