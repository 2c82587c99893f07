"""Zones, their servers, and which server's answer counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.dns_messages import NoDnsAnswerError, name_of
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.name_servers import Kept, NameServer
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns import SandboxDnsServer
from tests.fakes.clock import ManualClock
from tests.support.scripted_dns import Reply, ScriptedDns
from tests.support.waiting import until


def soon() -> Deadline:
    return Deadline.after(timedelta(seconds=10), SystemClock())


def lookup_at(port: int, **settings: object) -> DnsLookup:
    """One server as resolver and as every name server."""
    return DnsLookup(resolvers=[HostPort("127.0.0.1", port)], port=port, **settings)  # type: ignore[arg-type] # kwargs


async def zone_of(server: SandboxDnsServer, name: str) -> str:
    return (await lookup_at(server.endpoint.port).zone_of(name_of(name), soon())).to_text(omit_final_dot=True)


async def test_nearest_zone_upwards(sandbox_dns: SandboxDnsServer) -> None:
    """A name's zone is the first one upwards with an SOA, whether names between exist or not (NXDOMAIN goes on)."""
    assert await zone_of(sandbox_dns, "a.b.sub.certplane.test") == "sub.certplane.test"
    assert await zone_of(sandbox_dns, "sub.certplane.test") == "sub.certplane.test"
    assert await zone_of(sandbox_dns, "a.b.certplane.test") == "certplane.test"


async def test_alias_is_no_zone(sandbox_dns: SandboxDnsServer) -> None:
    """A name that answers with a CNAME is skipped although the answer holds the target's SOA."""
    await sandbox_dns.endpoint.add("www.certplane.test", "CNAME", "example.test.")
    assert await zone_of(sandbox_dns, "www.certplane.test") == "certplane.test"


async def test_servfail_is_not_taken_for_an_answer(sandbox_dns: SandboxDnsServer) -> None:
    """A zone above a name whose SOA can't be had counts only if its servers say so: else it may be another's."""
    for faults in sandbox_dns.faults.values():
        faults.servfail, faults.below = True, "sub.certplane.test"
    with pytest.raises(NoDnsAnswerError, match=r"SOA of a.sub.certplane.test can't be looked up"):
        await zone_of(sandbox_dns, "a.sub.certplane.test")


class Broken:
    """A resolver that fails at some questions, and one server for all zones that answers well.

    `fails` are the names and types that questions with RD can't be answered for.
    """

    def __init__(self, facts: dict[tuple[str, str], str], fails: set[tuple[str, str]], *, silent: bool = False) -> None:
        self.facts, self.fails, self.silent = facts, fails, silent

    def __call__(self, query: bytes, _: bool) -> bytes | None:
        asked = dns.message.from_wire(query)
        question, answer = asked.question[0], dns.message.make_response(asked)
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        if asked.flags & dns.flags.RD and (name, kind) in self.fails:
            answer.set_rcode(2)
            return None if self.silent else answer.to_wire()
        if asked.flags & dns.flags.RD:
            answer.flags |= dns.flags.RA
        else:
            answer.flags |= dns.flags.AA
        if (name, kind) in self.facts:
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", kind, self.facts[name, kind]))
        elif not asked.flags & dns.flags.RD and (cut := self.facts.get((name, "cut"))):
            answer.flags &= ~dns.flags.AA
            answer.authority.append(dns.rrset.from_text(cut, 60, "IN", "NS", "ns.parent.test."))
        elif not asked.flags & dns.flags.RD and (apex := self.facts.get((name, "zone"))):
            answer.authority.append(dns.rrset.from_text(apex, 60, "IN", "SOA", SOA))
        return answer.to_wire()


SOA = "ns.parent.test. host.parent.test. 1 2 3 4 5"
PARENT = {
    ("parent.test.", "SOA"): SOA,
    ("parent.test.", "NS"): "ns.parent.test.",
    ("ns.parent.test.", "A"): "127.0.0.1",
}
WWW = ("www.parent.test.", "SOA")


@pytest.mark.parametrize(
    ("facts", "fails", "zone"),
    [
        pytest.param({}, {WWW}, "parent.test.", id="of-the-name"),
        pytest.param({}, {WWW, ("a.www.parent.test.", "SOA")}, "parent.test.", id="of-two-names"),
        pytest.param({("a.www.parent.test.", "cut"): "www.parent.test."}, {WWW}, "www.parent.test.", id="delegated"),
        pytest.param({("a.www.parent.test.", "zone"): "www.parent.test."}, {WWW}, "www.parent.test.", id="same-server"),
    ],
)
async def test_soa_that_cannot_be_looked_up(
    facts: dict[tuple[str, str], str], fails: set[tuple[str, str]], zone: str
) -> None:
    """A name whose SOA a resolver fails at is passed over; the servers of the zone above say which zone it is in."""
    with ScriptedDns(Broken(PARENT | facts, fails)) as server:
        assert str(await lookup_at(server.port).zone_of(name_of("a.www.parent.test"), soon())) == zone


async def test_passing_over_is_bounded() -> None:
    """A resolver that fails at everything is told, after a few names, with the first of them."""
    names = ["a.b.c.d.e.parent.test.", "b.c.d.e.parent.test.", "c.d.e.parent.test.", "d.e.parent.test."]
    with ScriptedDns(Broken(PARENT, {(name, "SOA") for name in names})) as server:
        with pytest.raises(NoDnsAnswerError, match=r"SOA of a\.b\.c\.d\.e\.parent\.test can't be looked up"):
            await lookup_at(server.port).zone_of(name_of("a.b.c.d.e.parent.test"), soon())
        assert len(server.queries) == len(names)


@pytest.mark.parametrize("silent", [False, True], ids=["servfail", "silence"])
@pytest.mark.parametrize("kind", ["A", "AAAA"])
async def test_one_kind_of_address_is_enough(kind: str, silent: bool) -> None:
    """A name server whose AAAA (or A) can't be looked up is asked by its other addresses."""
    other, address = ("AAAA", "::1") if kind == "A" else ("A", "127.0.0.1")
    facts = {fact: value for fact, value in PARENT.items() if fact[0] != "ns.parent.test."}
    facts |= {("ns.parent.test.", other): address}
    broken = Broken(facts, {("ns.parent.test.", kind)}, silent=silent)
    deadline = Deadline.after(timedelta(seconds=1.5), SystemClock())
    with ScriptedDns(broken) as server:
        [found] = await lookup_at(server.port).servers_of(name_of("parent.test"), deadline)
    assert found.addresses == (address,)
    assert f"{kind} of ns.parent.test can't be looked up" in found.trouble


async def test_server_without_address_is_looked_up_again() -> None:
    """A server whose addresses can't be had now is there with the reason, and isn't left out for a minute."""
    broken = Broken(PARENT, {("ns.parent.test.", "A")})
    with ScriptedDns(broken) as server:
        made = lookup_at(server.port)
        [missing] = await made.servers_of(name_of("parent.test"), soon())
        assert missing.addresses == ()
        with pytest.raises(NoDnsAnswerError, match=r"can't be asked \(A of ns.parent.test can't be looked up"):
            await made.name_servers.ask(missing, name_of("parent.test"), dns.rdatatype.SOA, soon())
        broken.fails.clear()
        [found] = await made.servers_of(name_of("parent.test"), soon())
    assert found.addresses == ("127.0.0.1",)


def picky(rcode: int | None, *, opt: bool = False) -> Reply:
    """A server that takes EDNS for an error, or is silent to it, and answers well to those without."""

    def reply(query: bytes, _: bool) -> bytes | None:
        asked = dns.message.from_wire(query)
        answer = dns.message.make_response(asked)
        if asked.edns >= 0:
            if not opt:
                answer.use_edns(False)
            if rcode is not None:
                answer.set_rcode(rcode)
            return None if rcode is None else answer.to_wire()
        answer.flags |= dns.flags.AA
        return answer.to_wire()

    return reply


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(picky(1), id="FORMERR"),
        pytest.param(picky(4), id="NOTIMP"),
        pytest.param(picky(16, opt=True), id="BADVERS"),
        pytest.param(picky(2), id="SERVFAIL"),
        pytest.param(picky(5), id="REFUSED"),
        pytest.param(picky(None), id="silence"),
    ],
)
async def test_server_that_knows_no_edns(reply: Reply) -> None:
    """It is asked again without (RFC 6891 7)."""
    with ScriptedDns(reply) as server:
        made = DnsLookup(servers=[HostPort("127.0.0.1", server.port)])
        answer = await made.look(name_of("noedns.test"), dns.rdatatype.TXT, soon())
    assert (answer.rcode, answer.edns, len(server.queries)) == (0, False, 2)


async def test_servfail_with_edns_is_the_answer() -> None:
    """A server that answers with EDNS means its error: it isn't asked twice."""
    with ScriptedDns(picky(2, opt=True)) as server:
        made = DnsLookup(servers=[HostPort("127.0.0.1", server.port)])
        with pytest.raises(NoDnsAnswerError, match="answers SERVFAIL"):
            await made.look(name_of("broken.test"), dns.rdatatype.TXT, soon())
    assert len(server.queries) == 1


async def test_resolvers_by_name(sandbox_dns: SandboxDnsServer) -> None:
    """Resolvers may be host names where that is allowed; one without an address doesn't keep the others from use."""
    port = sandbox_dns.endpoint.port
    named = [HostPort("nowhere.invalid", port), HostPort("localhost", port)]
    made = DnsLookup(resolvers=named, port=port, named_resolvers=True)
    assert str(await made.zone_of(name_of("a.sub.certplane.test"), soon())) == "sub.certplane.test."
    gone = DnsLookup(resolvers=named[:1], named_resolvers=True)
    with pytest.raises(NoDnsAnswerError, match=r"nowhere\.invalid has no address"):
        await gone.zone_of(name_of("a.sub.certplane.test"), soon())


async def test_name_in_no_zone(sandbox_dns: SandboxDnsServer) -> None:
    """A name for which the whole way up there is nothing is a person's job."""

    def nothing(query: bytes, _: bool) -> bytes:
        answer = dns.message.make_response(dns.message.from_wire(query))
        answer.set_rcode(3)
        return answer.to_wire()

    with ScriptedDns(nothing) as server, pytest.raises(RefusalError) as caught:
        await lookup_at(server.port).zone_of(name_of("a.nowhere.test"), soon())
    assert caught.value.refusal.reason is Reason.DNS_REJECTED


async def test_answers_are_kept_for_a_minute(sandbox_dns: SandboxDnsServer) -> None:
    """The zone and its servers are asked for once, and again when they may have changed."""
    clock = ManualClock()
    made = lookup_at(sandbox_dns.endpoint.port, clock=clock)
    for _ in range(3):
        await made.locate(name_of("_acme-challenge.www.certplane.test"), soon())

    def asked(kind: str) -> int:
        return sum(question.record_type == kind for question in sandbox_dns.questions)

    assert asked("NS") == 1
    clock.advance(timedelta(seconds=61))
    await made.locate(name_of("_acme-challenge.www.certplane.test"), soon())
    assert asked("NS") == 2


async def test_orders_that_begin_together_ask_once(sandbox_dns: SandboxDnsServer) -> None:
    """Fifty names of a zone: its SOA, NS set and addresses are asked for once; of each name, whether it is a zone."""
    made = lookup_at(sandbox_dns.endpoint.port)
    names = [name_of(f"_acme-challenge.h{number}.certplane.test") for number in range(50)]
    found = await asyncio.gather(*(made.locate(name, soon()) for name in names))
    assert {str(zone) for zone, _ in found} == {"certplane.test."}
    asked = Counter((question.name.rstrip("."), question.record_type) for question in sandbox_dns.questions)
    wanted = [
        ("certplane.test", "SOA"),
        ("certplane.test", "NS"),
        ("ns1.certplane.test", "A"),
        ("h7.certplane.test", "SOA"),
    ]
    assert [asked[one] for one in wanted] == [1, 1, 1, 1]


class Finding:
    """Something to be found out, which takes until `end`."""

    def __init__(self) -> None:
        self.asked = 0
        self.end = asyncio.Event()
        self.trouble: Exception | None = None

    async def __call__(self) -> str:
        self.asked += 1
        await self.end.wait()
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble
        return "found"


async def test_what_somebody_else_is_finding_is_waited_for() -> None:
    """It is asked for once, and kept for a minute."""
    clock, finding = ManualClock(), Finding()
    kept = Kept[str](clock)
    waiting = [asyncio.ensure_future(kept.get(name_of("a.test"), finding, soon())) for _ in range(3)]
    await asyncio.sleep(0)
    finding.end.set()
    assert await asyncio.gather(*waiting, kept.get(name_of("a.test"), finding, soon())) == ["found"] * 4
    assert finding.asked == 1
    clock.advance(timedelta(seconds=60))
    assert await kept.get(name_of("a.test"), finding, soon()) == "found"
    assert finding.asked == 2


@pytest.mark.parametrize("stop", [pytest.param(True, id="cancelled"), pytest.param(False, id="failed")])
async def test_who_asks_for_others_and_fails_fails_alone(stop: bool) -> None:
    """The others find it out themselves."""
    finding = Finding()
    kept = Kept[str](ManualClock())
    first = asyncio.ensure_future(kept.get(name_of("a.test"), finding, soon()))
    await until(lambda: finding.asked == 1, what="the first one's question")
    others = [asyncio.ensure_future(kept.get(name_of("a.test"), finding, soon())) for _ in range(2)]
    await asyncio.sleep(0)
    if stop:
        first.cancel()
    else:
        finding.trouble = NoDnsAnswerError("its own")
        finding.end.set()
    await asyncio.wait([first])
    finding.end.set()
    assert await asyncio.gather(*others) == ["found", "found"]
    with pytest.raises(asyncio.CancelledError if stop else NoDnsAnswerError):
        await first


async def test_nobody_waits_for_another_beyond_the_own_time() -> None:
    """Who has less time than who asks ends in time; the question goes on."""
    finding = Finding()
    kept = Kept[str](SystemClock())
    first = asyncio.ensure_future(kept.get(name_of("a.test"), finding, soon()))
    await until(lambda: finding.asked == 1, what="the first one's question")
    with pytest.raises(NoDnsAnswerError, match=r"a\.test can't be looked up: the time is up"):
        await kept.get(name_of("a.test"), finding, Deadline.after(timedelta(milliseconds=20), SystemClock()))
    finding.end.set()
    assert await first == "found"


async def test_configured_servers_need_no_resolver(sandbox_dns: SandboxDnsServer) -> None:
    """With split DNS the configured servers tell the zone too, and are all that is asked."""
    made = DnsLookup(servers=[HostPort("127.0.0.2", sandbox_dns.endpoint.port)])
    assert str(await made.zone_of(name_of("a.sub.certplane.test"), soon())) == "sub.certplane.test."
    assert {question.address for question in sandbox_dns.questions} == {"127.0.0.2"}
    assert (bool(made.resolvers), await made.resolvers.servers()) == (False, [])


class Cut:
    """A parent zone that refers to a zone below it, as one server that plays resolver and both zones' servers.

    `recursive` are the names that were asked for with RD, as of a resolver.
    """

    def __init__(self) -> None:
        self.recursive: list[str] = []
        self.referred = 0

    def __call__(self, query: bytes, _: bool) -> bytes:
        asked = dns.message.from_wire(query)
        question, answer = asked.question[0], dns.message.make_response(asked)
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        if asked.flags & dns.flags.RD:
            self.recursive.append(name)
            answer.flags |= dns.flags.RA
            soa = "ns.parent.test. host.parent.test. 1 2 3 4 5"
            facts = {("parent.test.", "SOA"): soa, ("ns.parent.test.", "A"): "127.0.0.1"}
            facts |= {(zone, "NS"): "ns.parent.test." for zone in ("parent.test.", "_acme-challenge.www.parent.test.")}
            if fact := facts.get((name, kind)):
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", kind, fact))
        elif not self.referred:
            self.referred += 1
            answer.authority.append(dns.rrset.from_text(name, 60, "IN", "NS", "ns.parent.test."))
        else:
            answer.flags |= dns.flags.AA
        return answer.to_wire()


async def test_zone_cut_at_the_challenge_name() -> None:
    """The name's own servers say that it is a zone of its own; no resolver hears of it before it is known to exist."""
    cut = Cut()
    name = "_acme-challenge.www.parent.test."
    with ScriptedDns(cut) as server:
        zone, servers = await lookup_at(server.port).locate(name_of(name), soon())
    assert (str(zone), [one.name for one in servers], cut.referred) == (name, ["ns.parent.test"], 1)
    assert cut.recursive.index(name) > cut.recursive.index("parent.test.")  # its NS set, once it was referred to
    assert cut.recursive.count(name) == 1


async def test_one_reachable_address_is_enough(sandbox_dns: SandboxDnsServer) -> None:
    """The first address that answers speaks for its server, and is asked first from then on."""
    server = NameServer("ns.test", ("127.0.0.77", "127.0.0.2", "127.0.0.1"), sandbox_dns.endpoint.port)
    made = DnsLookup(servers=[HostPort("127.0.0.1", 1)])
    for _ in range(2):
        address, _answer = await made.name_servers.ask(server, name_of("certplane.test"), dns.rdatatype.SOA, soon())
        assert address == "127.0.0.2"
    assert {question.address for question in sandbox_dns.questions} == {"127.0.0.2"}
