"""Zones, their servers, and which server's answer counts."""

from __future__ import annotations

from datetime import timedelta

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.dns_messages import NoDnsAnswerError, name_of
from certplane.broker.issuers.dns.lookup import DnsLookup, NameServer
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns import SandboxDnsServer
from tests.fakes.clock import ManualClock
from tests.support.scripted_dns import ScriptedDns


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
    """An error on the way up ends the walk: the zone above may be another's."""
    for faults in sandbox_dns.faults.values():
        faults.servfail, faults.below = True, "sub.certplane.test"
    with pytest.raises(NoDnsAnswerError, match="can't be looked up"):
        await zone_of(sandbox_dns, "a.sub.certplane.test")


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


async def test_configured_servers_need_no_resolver(sandbox_dns: SandboxDnsServer) -> None:
    """With split DNS the configured servers tell the zone too, and are all that is asked."""
    made = DnsLookup(servers=[HostPort("127.0.0.2", sandbox_dns.endpoint.port)])
    assert str(await made.zone_of(name_of("a.sub.certplane.test"), soon())) == "sub.certplane.test."
    assert {question.address for question in sandbox_dns.questions} == {"127.0.0.2"}
    assert made.resolvers == ()


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
        address, _answer = await made.ask_server(server, name_of("certplane.test"), dns.rdatatype.SOA, soon())
        assert address == "127.0.0.2"
    assert {question.address for question in sandbox_dns.questions} == {"127.0.0.2"}
