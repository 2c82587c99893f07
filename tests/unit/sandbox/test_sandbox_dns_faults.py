"""The faults of the sandbox's own DNS server, each on one of its addresses only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import dns.exception
import dns.flags
import dns.rcode
import pytest
import pytest_asyncio

from certplane.sandbox.dns import DnsFaults, SandboxDnsServer
from certplane.sandbox.errors import ServerRefusedError
from tests.fakes.clock import ManualClock

FIRST, SECOND = "127.0.0.1", "127.0.0.2"
NAME = "_acme-challenge.example.test"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest_asyncio.fixture
async def server(clock: ManualClock) -> AsyncIterator[SandboxDnsServer]:
    async with SandboxDnsServer(["example.test"], addresses=[FIRST, SECOND], clock=clock) as running:
        yield running


async def test_has_a_name_server_per_address(server: SandboxDnsServer) -> None:
    """Both are named in the zone, and both serve what was written to the first."""
    answer = await server.endpoint.query("example.test", "NS")
    names = sorted(record.to_text() for rrset in answer.answer for record in rrset)
    assert names == ["ns1.example.test.", "ns2.example.test."]
    await server.endpoint.add(NAME, "TXT", "value")
    assert await server.endpoint.txt(NAME, address=SECOND) == {"value"}


async def test_a_late_server_shows_new_records_later(server: SandboxDnsServer, clock: ManualClock) -> None:
    """Until its time has passed the name doesn't exist there, though the other server has it."""
    server.faults[SECOND].visible_after = timedelta(seconds=30)
    await server.endpoint.add(NAME, "TXT", "value")
    assert await server.endpoint.txt(NAME, address=FIRST) == {"value"}
    assert (await server.endpoint.query(NAME, address=SECOND)).rcode() == dns.rcode.NXDOMAIN
    clock.advance(timedelta(seconds=31))
    assert await server.endpoint.txt(NAME, address=SECOND) == {"value"}


async def test_a_server_that_fails(server: SandboxDnsServer) -> None:
    """SERVFAIL for the names it is said for, and for no others."""
    server.faults[FIRST] = DnsFaults(servfail=True, below=NAME)
    with pytest.raises(ServerRefusedError, match="SERVFAIL"):
        await server.endpoint.txt(NAME)
    assert await server.endpoint.txt("other.example.test") == frozenset()
    assert await server.endpoint.txt(NAME, address=SECOND) == frozenset()


async def test_a_silent_server(server: SandboxDnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer at all, over UDP and TCP."""
    monkeypatch.setattr("certplane.sandbox.dns_endpoint.ANSWER_WITHIN", timedelta(milliseconds=200))
    server.faults[FIRST].drop = True
    with pytest.raises(dns.exception.Timeout):
        await server.endpoint.query(NAME)
    with pytest.raises(EOFError):
        await server.endpoint.query(NAME, tcp=True)


async def test_a_server_that_refuses_updates(server: SandboxDnsServer) -> None:
    """Updates are refused while questions are answered."""
    server.faults[FIRST].refuse_updates = True
    with pytest.raises(ServerRefusedError, match="REFUSED"):
        await server.endpoint.add(NAME, "TXT", "value")
    assert await server.endpoint.txt(NAME) == frozenset()


async def test_a_server_that_truncates(server: SandboxDnsServer) -> None:
    """Over UDP the answer is cut off; a client that asks again by TCP gets it."""
    server.faults[FIRST].truncate = True
    await server.endpoint.add(NAME, "TXT", "value")
    assert await server.endpoint.txt(NAME) == {"value"}
    assert [question.tcp for question in server.questions] == [False, True]


async def test_remembers_what_was_asked(server: SandboxDnsServer) -> None:
    """Questions are kept with the address they came to, so that a test sees which servers were looked at."""
    await server.endpoint.txt(NAME, address=SECOND)
    asked = server.questions[-1]
    assert (asked.address, asked.name, asked.record_type) == (SECOND, NAME, "TXT")


async def test_garbage_gets_a_format_error(server: SandboxDnsServer) -> None:
    """A message that can't be read is answered with FORMERR and its id, or not at all when it has none."""
    import asyncio

    reader, writer = await asyncio.open_connection(FIRST, server.endpoint.port)
    writer.write(b"\x00\x0c" + b"\x12\x34\x01\x00\xff\xff" + b"\0" * 6)
    answer = await reader.readexactly(14)
    assert answer[2:4] == b"\x12\x34"
    assert answer[5] & 0x0F == dns.rcode.FORMERR
    writer.write(b"\x00\x01x")
    assert await reader.read() == b""
    writer.close()
