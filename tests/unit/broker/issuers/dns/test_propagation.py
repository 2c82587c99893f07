"""Every authoritative server is asked, and believed only when it is authoritative and readable."""

from __future__ import annotations

import asyncio
import random
import struct
from datetime import timedelta
from typing import Any

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.dns_messages import MALFORMED, Answer, alias_in, lacking_txt, name_of
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.settings import Mode
from certplane.broker.model import TxtRecord
from certplane.config.values import HostPort
from certplane.errors import ConfigurationError, Reason, Refusal, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.bind import BindServer
from certplane.sandbox.dns import SandboxDnsServer
from tests.support.scripted_dns import Reply, ScriptedDns
from tests.support.waiting import HANG, until

NAME = "_acme-challenge.certplane.test"
RECORD = TxtRecord("certplane.test", NAME, "wanted")
OTHER = TxtRecord("certplane.test", NAME, "wanted too")
DEEP = TxtRecord("sub.certplane.test", "_acme-challenge.a.b.sub.certplane.test", "deep")
SECOND = "127.0.0.2"


def check_of(server: SandboxDnsServer, **settings: timedelta) -> PropagationCheck:
    """Asks both of the server's addresses, as configured servers."""
    servers = [HostPort(address, server.endpoint.port) for address in server.endpoint.addresses]
    return PropagationCheck(DnsLookup(servers=servers), interval=timedelta(milliseconds=50), **settings)


def looking_up(server: SandboxDnsServer) -> PropagationCheck:
    """Finds the name servers by asking the server as a resolver."""
    port = server.endpoint.port
    lookup = DnsLookup(resolvers=[HostPort("127.0.0.1", port)], port=port)
    return PropagationCheck(lookup, interval=timedelta(milliseconds=50))


def scripted(server: ScriptedDns) -> PropagationCheck:
    lookup = DnsLookup(servers=[HostPort("127.0.0.1", server.port)])
    return PropagationCheck(lookup, interval=timedelta(milliseconds=50))


async def wait(check: PropagationCheck, *records: TxtRecord, timeout: float = HANG) -> None:
    await check.wait(records, Deadline.after(timedelta(seconds=timeout), SystemClock()))


async def refusal_of(check: PropagationCheck, *records: TxtRecord, timeout: float = 1.0) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await wait(check, *records, timeout=timeout)
    return caught.value.refusal


async def publish(server: SandboxDnsServer, *records: TxtRecord) -> None:
    for record in records:
        await server.endpoint.add(record.name, "TXT", record.value)


async def test_visible_everywhere(sandbox_dns: SandboxDnsServer) -> None:
    """All values on all servers: done, after one question to each."""
    await publish(sandbox_dns, RECORD, OTHER)
    sandbox_dns.questions.clear()
    await wait(check_of(sandbox_dns), RECORD, OTHER)
    assert sorted(question.address for question in sandbox_dns.questions) == ["127.0.0.1", SECOND]


async def test_waits_for_the_slowest(sandbox_dns: SandboxDnsServer) -> None:
    """A server that lags behind is waited for."""
    sandbox_dns.faults[SECOND].visible_after = timedelta(milliseconds=400)
    started = SystemClock().monotonic()
    await publish(sandbox_dns, RECORD)
    await wait(check_of(sandbox_dns), RECORD)
    assert SystemClock().monotonic() - started >= 0.4


async def test_names_the_server_that_lacks_it(sandbox_dns: SandboxDnsServer) -> None:
    """One server without the record is enough to go no further, and the message says which."""
    sandbox_dns.faults[SECOND].visible_after = timedelta(hours=1)
    await publish(sandbox_dns, RECORD)
    refusal = await refusal_of(check_of(sandbox_dns), RECORD)
    assert refusal.reason is Reason.DNS_UNAVAILABLE
    assert f"{SECOND}:{sandbox_dns.endpoint.port} ({SECOND}) says that the name doesn't exist" in refusal.message


async def test_one_of_two_values_is_not_enough(sandbox_dns: SandboxDnsServer) -> None:
    """Apex and wildcard must both stand."""
    await publish(sandbox_dns, RECORD)
    refusal = await refusal_of(check_of(sandbox_dns), RECORD, OTHER)
    assert "lacks 1 of 2 values" in refusal.message


QUIET = timedelta(milliseconds=300)
"""As patience with servers that give no answer."""


def not_authoritative(query: bytes, _: bool) -> bytes:
    """A server that was listed for the zone and doesn't have it."""
    return dns.message.make_response(dns.message.from_wire(query)).to_wire()


def refers_upwards(query: bytes, _: bool) -> bytes:
    answer = dns.message.make_response(dns.message.from_wire(query))
    answer.authority.append(dns.rrset.from_text("test.", 60, "IN", "NS", "ns.else.test."))
    return answer.to_wire()


def rcode_of(rcode: int) -> Reply:
    def reply(query: bytes, _: bool) -> bytes:
        answer = dns.message.make_response(dns.message.from_wire(query))
        answer.set_rcode(rcode)
        return answer.to_wire()

    return reply


SILENT = [
    pytest.param(lambda query, _: None, "no answer in", id="silence"),
    pytest.param(rcode_of(2), "answers SERVFAIL", id="SERVFAIL"),
    pytest.param(rcode_of(5), "answers REFUSED", id="REFUSED"),
    pytest.param(rcode_of(1), "answers FORMERR", id="FORMERR"),
    pytest.param(rcode_of(9), "answers NOTAUTH", id="NOTAUTH"),
    pytest.param(not_authoritative, "isn't authoritative", id="not-authoritative"),
    pytest.param(refers_upwards, "isn't authoritative", id="refers-upwards"),
    pytest.param(lambda query, _: b"\xff" * 40, "can't be asked", id="garbage"),
]


@pytest.mark.parametrize(("reply", "said"), SILENT)
async def test_server_that_gives_no_answer(sandbox_dns: SandboxDnsServer, reply: Reply, said: str) -> None:
    """Once all others have the record it is asked again for a moment, then left out and told; no others: an error."""
    await publish(sandbox_dns, RECORD)
    with ScriptedDns(reply) as second:
        broken = HostPort("127.0.0.1", second.port)
        servers = [HostPort("127.0.0.1", sandbox_dns.endpoint.port), broken]
        settings = {"interval": timedelta(milliseconds=50), "patience": QUIET}
        check = PropagationCheck(DnsLookup(servers=servers), **settings)  # type: ignore[arg-type] # kwargs

        async def told() -> bool:  # a busy machine may be late with the answer that counts last
            [line] = await silent_of(check, RECORD)
            assert f"{broken}" in line
            return said in line

        async def refused(asked: PropagationCheck, record: TxtRecord, text: str) -> bool:
            refusal = await refusal_of(asked, record)
            assert refusal.reason is Reason.DNS_UNAVAILABLE
            return text in refusal.message

        alone = PropagationCheck(DnsLookup(servers=[broken]), **settings)  # type: ignore[arg-type] # kwargs
        await until(told, what=said)
        await until(lambda: refused(check, OTHER, "lacks 1 of 1 value"), what="the refusal of all others' lack")
        await until(lambda: refused(alone, RECORD, said), what=f"the refusal with {said}")


async def silent_of(check: PropagationCheck, *records: TxtRecord) -> tuple[str, ...]:
    return await check.wait(records, Deadline.after(timedelta(seconds=20), SystemClock()))


async def test_server_that_comes_back_without_the_record(sandbox_dns: SandboxDnsServer) -> None:
    """A server that is back before patience is out, and lacks the record, is waited for."""
    replies: list[Reply] = [rcode_of(2), rcode_of(2), rcode_of(2)]

    def reply(query: bytes, tcp: bool) -> bytes | None:
        if replies:
            return replies.pop()(query, tcp)
        answer = dns.message.make_response(dns.message.from_wire(query))
        answer.flags |= dns.flags.AA
        return answer.to_wire()

    await publish(sandbox_dns, RECORD)
    with ScriptedDns(reply) as second:
        servers = [HostPort("127.0.0.1", sandbox_dns.endpoint.port), HostPort("127.0.0.1", second.port)]
        check = PropagationCheck(
            DnsLookup(servers=servers), interval=timedelta(milliseconds=50), patience=timedelta(minutes=1)
        )
        refusal = await refusal_of(check, RECORD, timeout=2)
    assert (refusal.reason, "lacks 1 of 1 value" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)


async def test_long_wait_is_told_once(sandbox_dns: SandboxDnsServer) -> None:
    """After a while who waits for the certificate hears, once for each name, which server lacks what."""
    sandbox_dns.faults[SECOND].visible_after = timedelta(seconds=1)
    await publish(sandbox_dns, RECORD)
    told: list[str] = []
    await check_of(sandbox_dns).wait([RECORD], Deadline.after(timedelta(seconds=9), SystemClock()), told.append)
    assert told == []
    sandbox_dns.faults[SECOND].visible_after = timedelta(hours=1)
    check = check_of(sandbox_dns, told_after=timedelta(milliseconds=200))
    with pytest.raises(RefusalError):
        await check.wait([RECORD], Deadline.after(timedelta(seconds=1), SystemClock()), told.append)
    assert [(NAME in line, SECOND in line) for line in told] == [(True, True)]


async def test_patience_is_not_longer_than_the_time(sandbox_dns: SandboxDnsServer) -> None:
    """When the time for looking is up before patience is, a server that gives no answer is no reason to fail."""
    sandbox_dns.faults[SECOND].servfail = True
    await publish(sandbox_dns, RECORD)
    check = check_of(sandbox_dns, timeout=timedelta(seconds=1), patience=timedelta(hours=1))
    [line] = await silent_of(check, RECORD)
    assert line == f"{SECOND}:{sandbox_dns.endpoint.port} ({SECOND}) answers SERVFAIL"


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        pytest.param({}, "it has no address", id="name-without-address"),
        pytest.param({"A": "127.0.0.77"}, "127.0.0.77", id="refused-port"),
        pytest.param({"AAAA": "100::1"}, "100::1", id="ipv6-alone"),
    ],
)
async def test_name_server_out_of_reach(sandbox_dns: SandboxDnsServer, addresses: dict[str, str], said: str) -> None:
    """A server of the NS set whose name has no address, or none that can be reached, is left out and told."""
    target = "ns3.sub.certplane.test"
    await sandbox_dns.endpoint.add("sub.certplane.test", "NS", f"{target}.")
    for kind, address in addresses.items():
        await sandbox_dns.endpoint.add(target, kind, address)
    await publish(sandbox_dns, DEEP)
    lookup = DnsLookup(resolvers=[HostPort("127.0.0.1", sandbox_dns.endpoint.port)], port=sandbox_dns.endpoint.port)
    [line] = await silent_of(PropagationCheck(lookup, interval=timedelta(milliseconds=50), patience=QUIET), DEEP)
    assert (line.startswith(target), said in line) == (True, True)


async def test_wildcard_is_waited_for(sandbox_dns: SandboxDnsServer) -> None:
    """A server that still answers with a wildcard's CNAME lacks the record; it isn't taken for an alias."""
    await sandbox_dns.endpoint.add("*.certplane.test", "CNAME", "lb.example.test.")
    refusal = await refusal_of(check_of(sandbox_dns), RECORD)
    assert refusal.reason is Reason.DNS_UNAVAILABLE
    assert "answers with the CNAME of a wildcard, lb.example.test., and lacks the record" in refusal.message
    await publish(sandbox_dns, RECORD)
    await wait(check_of(sandbox_dns), RECORD)


async def test_wildcard_txt_is_not_the_record(sandbox_dns: SandboxDnsServer) -> None:
    """A stale value at a wildcard answers for every name, until the name has a record of its own."""
    await sandbox_dns.endpoint.add("*.certplane.test", "TXT", "stale")
    refusal = await refusal_of(check_of(sandbox_dns), RECORD)
    assert "lacks 1 of 1 value" in refusal.message
    await publish(sandbox_dns, RECORD)
    await wait(check_of(sandbox_dns), RECORD)


async def test_long_answers_come_over_tcp(sandbox_dns: SandboxDnsServer) -> None:
    """An answer that is cut off is fetched again."""
    for faults in sandbox_dns.faults.values():
        faults.truncate = True
    await publish(sandbox_dns, RECORD)
    await wait(check_of(sandbox_dns), RECORD)
    assert any(question.tcp for question in sandbox_dns.questions)


async def test_alias_is_refused_at_once(sandbox_dns: SandboxDnsServer) -> None:
    """A CNAME at the challenge's name is a person's job, and is said without waiting for the deadline."""
    await sandbox_dns.endpoint.add(NAME, "CNAME", "elsewhere.example.test.")
    started = SystemClock().monotonic()
    refusal = await refusal_of(check_of(sandbox_dns), RECORD, timeout=HANG)
    assert SystemClock().monotonic() - started < HANG / 2
    assert refusal.reason is Reason.DNS_REJECTED
    assert "alias (CNAME) of elsewhere.example.test." in refusal.message


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(DEEP, id="zone-known"),
        pytest.param(TxtRecord("", DEEP.name, DEEP.value), id="zone-found-by-walking"),
    ],
)
async def test_finds_the_servers_of_the_zone(sandbox_dns: SandboxDnsServer, record: TxtRecord) -> None:
    """Without configured servers the zone's NS set is asked, each of it, at its addresses."""
    await publish(sandbox_dns, DEEP)
    await wait(looking_up(sandbox_dns), record)
    asked = {question.address for question in sandbox_dns.questions if question.record_type == "TXT"}
    assert asked == {"127.0.0.1", SECOND}
    assert {q.name.rstrip(".") for q in sandbox_dns.questions if q.record_type == "NS"} == {"sub.certplane.test"}


async def test_found_servers_are_named(sandbox_dns: SandboxDnsServer) -> None:
    """The message has the name server's name and address."""
    await publish(sandbox_dns, DEEP)
    sandbox_dns.faults[SECOND].visible_after = timedelta(hours=1)
    refusal = await refusal_of(looking_up(sandbox_dns), DEEP)
    assert "ns2.sub.certplane.test (127.0.0.2)" in refusal.message


async def test_address_that_does_not_answer_is_tolerated(sandbox_dns: SandboxDnsServer) -> None:
    """A server with a second address that this host can't reach is asked at the first."""
    await sandbox_dns.endpoint.add("ns1.sub.certplane.test", "A", "127.0.0.77")
    await sandbox_dns.endpoint.add("ns1.sub.certplane.test", "AAAA", "100::1")
    await publish(sandbox_dns, DEEP)
    await wait(looking_up(sandbox_dns), DEEP)


async def test_zone_that_does_not_exist(sandbox_dns: SandboxDnsServer) -> None:
    """A zone without name servers in the DNS is a person's job."""
    record = TxtRecord("nowhere.certplane.test", "_acme-challenge.nowhere.certplane.test", "x")
    refusal = await refusal_of(looking_up(sandbox_dns), record, timeout=HANG)
    assert (refusal.reason, "nowhere.certplane.test" in refusal.message) == (Reason.DNS_REJECTED, True)


async def test_resolver_that_is_away_is_temporary(sandbox_dns: SandboxDnsServer) -> None:
    """No answer from the resolver isn't the end."""
    for faults in sandbox_dns.faults.values():
        faults.servfail = True
    refusal = await refusal_of(looking_up(sandbox_dns), DEEP)
    assert (refusal.reason, "can't be looked up" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)


async def test_server_by_name(sandbox_dns: SandboxDnsServer) -> None:
    """A configured server may be a host name; one that has no address is said."""
    port = sandbox_dns.endpoint.port
    await publish(sandbox_dns, RECORD)
    await wait(PropagationCheck(DnsLookup(servers=[HostPort("localhost", port)])), RECORD)
    refusal = await refusal_of(PropagationCheck(DnsLookup(servers=[HostPort("nowhere.invalid", port)])), RECORD)
    assert "nowhere.invalid has no address" in refusal.message


async def test_settles(sandbox_dns: SandboxDnsServer) -> None:
    """After all servers have it there is one more wait, which must fit."""
    await publish(sandbox_dns, RECORD)
    started = SystemClock().monotonic()
    await wait(check_of(sandbox_dns, settle=timedelta(milliseconds=300)), RECORD)
    assert SystemClock().monotonic() - started >= 0.3
    refusal = await refusal_of(check_of(sandbox_dns, settle=timedelta(seconds=30)), RECORD)
    assert refusal.reason is Reason.DNS_UNAVAILABLE


async def test_own_timeout_comes_first(sandbox_dns: SandboxDnsServer) -> None:
    """The configured time limit ends the wait although the caller has more."""
    started = SystemClock().monotonic()
    await refusal_of(check_of(sandbox_dns, timeout=timedelta(milliseconds=300)), RECORD, timeout=HANG)
    assert SystemClock().monotonic() - started < HANG / 2


def answer_to(query: bytes, **flags: bool) -> dns.message.Message:
    """A right answer, or one without AA."""
    answer = dns.message.make_response(dns.message.from_wire(query))
    if flags.get("authoritative", True):
        answer.flags |= dns.flags.AA
    answer.answer.append(dns.rrset.from_text(f"{NAME}.", 60, "IN", "TXT", '"wan" "ted"', '"beside"'))
    return answer


async def test_asks_without_recursion() -> None:
    """RD is off: the server's own data are wanted, not a cache's. Several strings are one value."""
    with ScriptedDns(lambda query, _: answer_to(query).to_wire()) as server:
        await wait(scripted(server), RECORD)
    assert [flags & dns.flags.RD for flags in server.flags()] == [0]


async def test_cache_is_not_believed() -> None:
    """An answer without AA comes from a resolver."""
    with ScriptedDns(lambda query, _: answer_to(query, authoritative=False).to_wire()) as server:
        refusal = await refusal_of(scripted(server), RECORD)
    assert "isn't authoritative" in refusal.message


def framed(content: bytes) -> bytes:
    return struct.pack("!H", len(content)) + content


def cut_off(query: bytes) -> bytes:
    answer = answer_to(query)
    answer.flags |= dns.flags.TC
    answer.answer.clear()
    return answer.to_wire()


NONSENSE = [
    pytest.param(lambda query, _: b"", id="empty"),
    pytest.param(lambda query, _: b"\xff" * 40, id="garbage"),
    pytest.param(lambda query, _: random.Random(1).randbytes(2) + answer_to(query).to_wire()[2:], id="another-id"),
    pytest.param(lambda query, _: answer_to(query).to_wire()[:-3], id="short"),
    pytest.param(lambda query, _: answer_to(query).to_wire() + b"\0" * 9000, id="trailing-junk"),
    pytest.param(lambda query, _: query, id="the-query"),
    pytest.param(lambda query, tcp: None if tcp else cut_off(query), id="tcp-hangs-up"),
    pytest.param(lambda query, tcp: b"\xff\xff12" if tcp else cut_off(query), id="tcp-cut-off"),
    pytest.param(lambda query, tcp: framed(b"\xff" * 60) if tcp else cut_off(query), id="tcp-garbage"),
]


@pytest.mark.parametrize("reply", NONSENSE)
async def test_nonsense_is_no_answer(reply: object) -> None:
    """Whatever a server sends that isn't an answer leaves the record unseen and breaks nothing."""
    with ScriptedDns(reply) as server:  # type: ignore[arg-type] # a table of lambdas
        refusal = await refusal_of(scripted(server), RECORD, timeout=0.3)
    assert refusal.reason is Reason.DNS_UNAVAILABLE
    assert "can't be asked" in refusal.message


@given(st.data())
def test_damaged_answers_raise_nothing_else(data: st.DataObject) -> None:
    """Any damage to a right answer is read, or is one of the errors that are expected."""
    query = dns.message.make_query(f"{NAME}.", "TXT", use_edns=0)
    wire = bytearray(answer_to(query.to_wire()).to_wire())
    for _ in range(data.draw(st.integers(1, 6))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        answer = Answer.of(dns.message.from_wire(bytes(wire)))
    except MALFORMED:
        return
    lacking_txt(answer, name_of(NAME), frozenset({"wanted"}))
    alias_in(answer, name_of(NAME))


async def test_many_names_at_once(sandbox_dns: SandboxDnsServer) -> None:
    """Names are waited for side by side, not one after the other."""
    records = [TxtRecord("certplane.test", f"_acme-challenge.h{number}.certplane.test", "v") for number in range(20)]
    await publish(sandbox_dns, *records)
    sandbox_dns.faults[SECOND].visible_after = timedelta(milliseconds=300)
    await asyncio.wait_for(wait(check_of(sandbox_dns), *records), HANG)


async def test_one_resolver_that_is_away(sandbox_dns: SandboxDnsServer) -> None:
    """In the recursive mode, too, a server that gives no answer is left out once another has the record."""
    sandbox_dns.faults[SECOND].drop = True
    resolvers = [HostPort(address, sandbox_dns.endpoint.port) for address in ("127.0.0.1", SECOND)]
    settings = {"interval": timedelta(milliseconds=50), "patience": QUIET}
    check = PropagationCheck(DnsLookup(resolvers=resolvers), mode=Mode.RECURSIVE, **settings)  # type: ignore[arg-type] # kwargs
    await publish(sandbox_dns, RECORD)
    [line] = await silent_of(check, RECORD)
    assert SECOND in line


def test_resolver_must_be_an_address() -> None:
    """A resolver by name could only be found by itself."""
    with pytest.raises(ConfigurationError, match="resolver"):
        DnsLookup(resolvers=[HostPort("dns.example", 53)])


async def test_referral_is_told(sandbox_dns: SandboxDnsServer) -> None:
    """A server that hands the name on to a zone below says so: the record was written where nobody looks."""

    def refer(query: bytes, _: bool) -> bytes:
        answer = dns.message.make_response(dns.message.from_wire(query))
        answer.authority.append(dns.rrset.from_text("www.certplane.test.", 60, "IN", "NS", "ns.else.test."))
        return answer.to_wire()

    record = TxtRecord("certplane.test", "_acme-challenge.www.certplane.test", "x")
    with ScriptedDns(refer) as server:
        refusal = await refusal_of(scripted(server), record)
    assert "it refers to the servers of www.certplane.test" in refusal.message


async def test_recursive_mode_asks_the_resolvers(sandbox_dns: SandboxDnsServer) -> None:
    """Every resolver must show the values; name servers are left alone."""
    resolvers = [HostPort(address, sandbox_dns.endpoint.port) for address in ("127.0.0.1", SECOND)]
    lookup = DnsLookup(resolvers=resolvers, port=1)
    check = PropagationCheck(lookup, mode=Mode.RECURSIVE, interval=timedelta(milliseconds=50))
    await publish(sandbox_dns, RECORD)
    await wait(check, RECORD)
    asked = {(question.address, question.record_type) for question in sandbox_dns.questions}
    assert asked == {("127.0.0.1", "TXT"), (SECOND, "TXT")}
    sandbox_dns.faults[SECOND].visible_after = timedelta(hours=1)
    refusal = await refusal_of(check, RECORD)
    assert f"({SECOND}) says that the name doesn't exist" in refusal.message


async def test_recursive_mode_takes_a_resolvers_word() -> None:
    """A resolver's answer isn't authoritative, and is asked for with recursion."""
    with ScriptedDns(lambda query, _: answer_to(query, authoritative=False).to_wire()) as server:
        lookup = DnsLookup(resolvers=[HostPort("127.0.0.1", server.port)])
        await wait(PropagationCheck(lookup, mode=Mode.RECURSIVE), RECORD)
    assert [bool(flags & dns.flags.RD) for flags in server.flags()] == [True]


async def test_recursive_mode_without_resolvers() -> None:
    """A configuration that leaves nobody to ask is told with its key."""
    lookup = DnsLookup(servers=[HostPort("127.0.0.1", 1)])
    refusal = await refusal_of(PropagationCheck(lookup, mode=Mode.RECURSIVE), RECORD)
    assert "dns.resolvers" in refusal.message


async def test_wait_mode_asks_nobody() -> None:
    """The settling time passes, and nothing is sent."""
    clock = SystemClock()
    with ScriptedDns(lambda *_: None) as server:
        lookup = DnsLookup(servers=[HostPort("127.0.0.1", server.port)])
        check = PropagationCheck(lookup, mode=Mode.WAIT, settle=timedelta(milliseconds=200))
        started = clock.monotonic()
        await wait(check, RECORD)
        assert clock.monotonic() - started >= 0.2
    assert not server.queries


@pytest.mark.integration
async def test_looks_of_an_order_make_no_messages(
    bind: BindServer, own_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an order asks of a real server again and again is read without dnspython: reading is what a look costs."""
    read: list[bytes] = []
    by_dnspython = dns.message.from_wire

    def counted(wire: bytes, **settings: Any) -> dns.message.Message:
        read.append(wire)
        return by_dnspython(wire, **settings)

    name = f"_acme-challenge.{own_name}"
    lookup = DnsLookup(servers=[HostPort(bind.endpoint.addresses[0], bind.endpoint.port)])
    check = PropagationCheck(lookup, interval=timedelta(milliseconds=50))
    await bind.endpoint.add(f"alias.{own_name}", "CNAME", f"{name}.")
    monkeypatch.setattr(dns.message, "from_wire", counted)
    soon = Deadline.after(timedelta(seconds=HANG), SystemClock())
    for asked, target in ((name, ""), (f"alias.{own_name}", f"{name}.")):
        answer = await lookup.look(name_of(asked), dns.rdatatype.CNAME, soon)
        assert alias_in(answer, name_of(asked)).lower() == target
    assert "doesn't exist" in (await refusal_of(check, TxtRecord(own_name, name, "wanted"))).message
    assert read == []
    monkeypatch.undo()
    await bind.endpoint.add(name, "TXT", "wanted")
    monkeypatch.setattr(dns.message, "from_wire", counted)
    await wait(check, TxtRecord(own_name, name, "wanted"))
    assert read == []
