"""CNAMEs of challenge names are followed to names that the configuration lists, and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.delegation import Delegations, Place
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.routes import Route, Routes
from certplane.broker.issuers.dns.settings import Follow, Mode
from certplane.config.values import HostPort
from certplane.errors import Reason, Refusal, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns import SandboxDnsServer
from tests.support.scripted_dns import ScriptedDns
from tests.unit.broker.issuers.dns.test_solver import ScriptedProvider

NAME = "_acme-challenge.www.certplane.test"


def refused(query: bytes, _: bool) -> bytes:
    """What a firewall's own server says of names that aren't its."""
    answer = dns.message.make_response(dns.message.from_wire(query))
    answer.set_rcode(dns.rcode.REFUSED)
    return answer.to_wire()


async def nothing(_: object) -> None:
    """A provider that isn't asked."""


def delegations(
    server: SandboxDnsServer,
    allowed: Sequence[str],
    mode: Mode = Mode.AUTHORITATIVE,
    *,
    resolver: bool = True,
    follow: Follow = Follow.AUTO,
) -> Delegations:
    """With the server as the resolver, or as configured authoritative servers."""
    address = [HostPort("127.0.0.1", server.endpoint.port)]
    lookup = DnsLookup(resolvers=address, port=server.endpoint.port) if resolver else DnsLookup(servers=address)
    check = PropagationCheck(lookup, mode=mode)
    return Delegations(allowed, Routes(Route(ScriptedProvider(nothing), lookup, check, follow=follow)))


async def follow(made: Delegations, seconds: float = 10) -> tuple[str, ...]:
    return await made.follow(NAME, Deadline.after(timedelta(seconds=seconds), SystemClock()))


async def refusal_of(made: Delegations, seconds: float = 10) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await follow(made, seconds)
    return caught.value.refusal


async def alias(server: SandboxDnsServer, *names: str) -> None:
    """Each name is an alias of the next."""
    for name, target in itertools.pairwise(names):
        await server.endpoint.add(name, "CNAME", f"{target}.")


@pytest.mark.parametrize("resolver", [True, False], ids=["found-servers", "configured-servers"])
async def test_name_that_is_no_alias(sandbox_dns: SandboxDnsServer, resolver: bool) -> None:
    """Most names: the record stands at the challenge name itself."""
    assert await follow(delegations(sandbox_dns, ["example.test"], resolver=resolver)) == (NAME,)
    assert await follow(delegations(sandbox_dns, [], resolver=resolver)) == (NAME,)


@pytest.mark.parametrize(
    "allowed",
    [pytest.param("acme.example.test", id="below"), pytest.param("www.acme.example.test", id="at")],
)
async def test_followed_across_zones(sandbox_dns: SandboxDnsServer, allowed: str) -> None:
    """The chain goes on in the target's zone, at its servers, to the end."""
    chain = (NAME, "step.other.test", "www.acme.example.test")
    await alias(sandbox_dns, *chain)
    assert await follow(delegations(sandbox_dns, [allowed])) == chain


@pytest.mark.parametrize(
    "allowed",
    [
        pytest.param([], id="nothing-listed"),
        pytest.param(["other.test"], id="another-listed"),
        pytest.param(["cme.example.test"], id="no-label-boundary"),
        pytest.param(["deep.www.acme.example.test"], id="only-below"),
    ],
)
async def test_target_that_is_not_listed(sandbox_dns: SandboxDnsServer, allowed: list[str]) -> None:
    """Whoever can set a CNAME doesn't choose where the broker writes; the message has chain and key."""
    await alias(sandbox_dns, NAME, "www.acme.example.test")
    refusal = await refusal_of(delegations(sandbox_dns, allowed))
    assert refusal.reason is Reason.DNS_REJECTED
    assert f"{NAME} -> www.acme.example.test" in refusal.message
    assert "add acme.example.test (or www.acme.example.test) to dns.delegations" in refusal.message


@pytest.mark.parametrize(
    "loop",
    [pytest.param([NAME, NAME], id="itself"), pytest.param([NAME, "a.other.test", "b.other.test", "a.other.test"])],
)
async def test_loop(sandbox_dns: SandboxDnsServer, loop: list[str]) -> None:
    """A loop ends, and is shown."""
    await alias(sandbox_dns, *loop)
    refusal = await refusal_of(delegations(sandbox_dns, ["other.test"]))
    assert (refusal.reason, "is a loop of CNAMEs" in refusal.message) == (Reason.DNS_REJECTED, True)


@pytest.mark.parametrize(("aliases", "followed"), [(8, True), (9, False)])
async def test_long_chains(sandbox_dns: SandboxDnsServer, aliases: int, followed: bool) -> None:
    """Eight CNAMEs are followed, nine aren't."""
    chain = [NAME, *(f"n{number}.other.test" for number in range(aliases))]
    await alias(sandbox_dns, *chain)
    made = delegations(sandbox_dns, ["other.test"])
    if followed:
        assert await follow(made) == tuple(chain)
        return
    refusal = await refusal_of(made)
    assert (refusal.reason, "more than 8 CNAMEs" in refusal.message) == (Reason.DNS_REJECTED, True)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("x\\027\\010y.acme.example.test.", id="control-characters"),
        pytest.param("--config.acme.example.test.", id="an-option-of-a-program"),
    ],
)
async def test_target_that_is_no_name(sandbox_dns: SandboxDnsServer, target: str) -> None:
    """A target that no host has for its name becomes neither a record, nor an argument, nor part of a message."""
    await sandbox_dns.endpoint.add(NAME, "CNAME", target)
    refusal = await refusal_of(delegations(sandbox_dns, ["example.test"]))
    assert refusal.reason is Reason.DNS_REJECTED
    assert refusal.message.isprintable()


async def test_servers_that_cannot_be_asked(sandbox_dns: SandboxDnsServer) -> None:
    """Where names may be delegated a doubt is waited out; where none may, it holds nothing up."""
    for faults in sandbox_dns.faults.values():
        faults.servfail, faults.below = True, NAME
    refusal = await refusal_of(delegations(sandbox_dns, ["example.test"]))
    assert refusal.reason is Reason.DNS_UNAVAILABLE
    assert "ns1.certplane.test (127.0.0.1) answers SERVFAIL" in refusal.message
    assert await follow(delegations(sandbox_dns, [])) == (NAME,)


@pytest.mark.parametrize("mode", [Mode.RECURSIVE, Mode.WAIT])
async def test_networks_without_dns_to_the_outside(sandbox_dns: SandboxDnsServer, mode: Mode) -> None:
    """Nothing is asked where nothing may be followed; else a resolver tells when the servers are out of reach."""
    assert await follow(delegations(sandbox_dns, [], mode)) == (NAME,)
    assert not sandbox_dns.questions
    await alias(sandbox_dns, NAME, "www.acme.example.test")
    resolver = [HostPort("127.0.0.1", sandbox_dns.endpoint.port)]
    with ScriptedDns(refused) as outside:
        lookup = DnsLookup(resolvers=resolver, port=outside.port)
        check = PropagationCheck(lookup, mode=mode)
        made = Delegations(["example.test"], Routes(Route(ScriptedProvider(nothing), lookup, check)))
        assert (await follow(made))[-1] == "www.acme.example.test"


WILD = "_acme-challenge.app.wild.certplane.test"
BALANCER = "lb.example.test"


async def place(made: Delegations, name: str = WILD) -> Place:
    return await made.place(name, Deadline.after(timedelta(seconds=10), SystemClock()))


WILDCARDS = [
    pytest.param([("*.wild.certplane.test", BALANCER)], [], (WILD,), id="one-level-above"),
    pytest.param([("*.certplane.test", BALANCER)], [], (WILD,), id="two-levels-above"),
    pytest.param([("*.app.wild.certplane.test", BALANCER)], [], (WILD,), id="beside"),
    pytest.param([("*.wild.certplane.test", BALANCER)], ["acme.other.test"], (WILD,), id="beside-delegations"),
    pytest.param([("*.wild.certplane.test", BALANCER)], [BALANCER], (WILD, BALANCER), id="into-a-delegation"),
    pytest.param([("*.wild.certplane.test", "a.wild.certplane.test")], [], (WILD,), id="loop"),
    pytest.param([("*.wild.certplane.test", "x\\027y.test")], [], (WILD,), id="target-that-is-no-name"),
    pytest.param([("*.wild.certplane.test", "lb.nowhere.invalid")], [], (WILD,), id="target-in-no-zone"),
    pytest.param(
        [("*.wild.certplane.test", "lb.certplane.test"), ("lb.certplane.test", "x.other.test")],
        [],
        (WILD,),
        id="target-that-is-an-alias",
    ),
    pytest.param(
        [(WILD, "www.acme.example.test"), ("*.acme.example.test", "lb.other.test")],
        ["acme.example.test"],
        (WILD, "www.acme.example.test"),
        id="second-link",
    ),
    pytest.param(
        [(WILD, "www.acme.example.test"), ("*.acme.example.test", "all.other.test")],
        ["acme.example.test", "other.test"],
        (WILD, "www.acme.example.test", "all.other.test"),
        id="second-link-into-a-delegation",
    ),
]


@pytest.mark.parametrize("resolver", [True, False], ids=["found-servers", "configured-servers"])
@pytest.mark.parametrize(("aliases", "allowed", "chain"), WILDCARDS)
async def test_wildcard(
    sandbox_dns: SandboxDnsServer,
    aliases: list[tuple[str, str]],
    allowed: list[str],
    chain: tuple[str, ...],
    resolver: bool,
) -> None:
    """A wildcard's CNAME that leads to no listed name is not followed: a record at the name itself hides it."""
    for name, target in aliases:
        await alias(sandbox_dns, name, target)
    found = await place(delegations(sandbox_dns, allowed, resolver=resolver))
    assert found.chain == chain
    assert bool(found.wildcard) == (chain[-1] not in {BALANCER, "all.other.test"})


async def test_written_alias_below_a_wildcard(sandbox_dns: SandboxDnsServer) -> None:
    """A CNAME that was written for the challenge name is told from the wildcard's, and refused as ever."""
    await alias(sandbox_dns, "*.wild.certplane.test", BALANCER)
    await alias(sandbox_dns, WILD, BALANCER)
    with pytest.raises(RefusalError, match=r"leads to no name of dns\.delegations"):
        await place(delegations(sandbox_dns, []))


async def test_second_link_of_a_wildcard_that_is_not_listed(sandbox_dns: SandboxDnsServer) -> None:
    """The record isn't written before a wildcard either, if that name isn't the broker's to write."""
    await alias(sandbox_dns, WILD, "www.acme.example.test")
    await alias(sandbox_dns, "*.acme.example.test", "lb.other.test")
    with pytest.raises(RefusalError, match=r"leads to no name of dns\.delegations"):
        await place(delegations(sandbox_dns, ["another.test"]))


async def test_target_that_cannot_be_asked(sandbox_dns: SandboxDnsServer) -> None:
    """A load balancer whose zone fails holds nothing up; a target in a listed zone that fails is waited for."""
    await alias(sandbox_dns, "*.wild.certplane.test", BALANCER)
    for faults in sandbox_dns.faults.values():
        faults.servfail, faults.below = True, "example.test"
    assert (await place(delegations(sandbox_dns, ["other.test"]))).chain == (WILD,)
    with pytest.raises(RefusalError) as caught:
        await place(delegations(sandbox_dns, ["example.test"]))
    assert caught.value.refusal.reason is Reason.DNS_UNAVAILABLE


@pytest.mark.parametrize(
    ("setting", "target", "chain"),
    [
        pytest.param(Follow.NEVER, BALANCER, (WILD,), id="never"),
        pytest.param(Follow.ALWAYS, BALANCER, None, id="always-and-not-listed"),
        pytest.param(Follow.ALWAYS, "x.other.test", (WILD, "x.other.test"), id="always-and-listed"),
    ],
)
async def test_setting(
    sandbox_dns: SandboxDnsServer, setting: Follow, target: str, chain: tuple[str, ...] | None
) -> None:
    """A zone may say that no CNAME is followed, or that each is and must be listed."""
    await alias(sandbox_dns, "*.wild.certplane.test", target)
    made = delegations(sandbox_dns, ["other.test"], follow=setting)
    if chain is None:
        with pytest.raises(RefusalError, match=r"leads to no name of dns\.delegations"):
            await place(made)
    else:
        assert (await place(made)).chain == chain


class Weighted:
    """A wildcard whose targets change from one question to the next, as a weighted load balancer's do."""

    def __init__(self, targets: Sequence[str], *, dname: bool = False) -> None:
        self.targets, self.dname = itertools.cycle(targets), dname

    def __call__(self, query: bytes, _: bool) -> bytes:
        asked = dns.message.from_wire(query)
        answer = dns.message.make_response(asked)
        answer.flags |= dns.flags.AA
        name = asked.question[0].name.to_text()
        if ".wild." in name:
            target = next(self.targets).format(name.partition(".")[0])
            if self.dname:
                answer.answer.append(dns.rrset.from_text("wild.certplane.test.", 60, "IN", "DNAME", "other.test."))
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", target))
        return answer.to_wire()


@pytest.mark.parametrize(
    ("reply", "wildcard"),
    [
        pytest.param(Weighted(["a.lb.test.", "b.lb.test.", "c.lb.test.", "d.lb.test."]), True, id="weighted"),
        pytest.param(Weighted(["a.lb.test.", "b.lb.test.", "a.lb.test."]), True, id="two-targets"),
        pytest.param(Weighted(["{}.app.other.test."], dname=True), False, id="dname"),
    ],
)
async def test_targets_that_differ(reply: Weighted, wildcard: bool) -> None:
    """Targets that change are a wildcard's; those that a DNAME makes are none, since nothing can stand below one."""
    with ScriptedDns(reply) as server:
        lookup = DnsLookup(servers=[HostPort("127.0.0.1", server.port)])
        made = Delegations([], Routes(Route(ScriptedProvider(nothing), lookup, PropagationCheck(lookup))))
        if wildcard:
            assert (await place(made)).chain == (WILD,)
        else:
            with pytest.raises(RefusalError, match=r"leads to no name of dns\.delegations"):
                await place(made)


async def test_wildcard_by_a_resolver_alone(sandbox_dns: SandboxDnsServer) -> None:
    """Where the servers are out of reach a resolver tells a wildcard too."""
    await alias(sandbox_dns, "*.wild.certplane.test", BALANCER)
    with ScriptedDns(refused) as outside:
        lookup = DnsLookup(resolvers=[HostPort("127.0.0.1", sandbox_dns.endpoint.port)], port=outside.port)
        check = PropagationCheck(lookup, mode=Mode.RECURSIVE)
        made = Delegations(["other.test"], Routes(Route(ScriptedProvider(nothing), lookup, check)))
        assert (await place(made)).chain == (WILD,)


async def test_resolver_that_knows_no_zones() -> None:
    """A resolver that answers without SOA records, as a laboratory's does, tells CNAMEs all the same."""

    def reply(query: bytes, _: bool) -> bytes:
        asked = dns.message.from_wire(query)
        answer = dns.message.make_response(asked)
        name = asked.question[0].name.to_text()
        if name == f"{NAME}." and asked.question[0].rdtype == dns.rdatatype.CNAME:
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", "www.acme.example.test."))
        return answer.to_wire()

    with ScriptedDns(reply) as server:
        lookup = DnsLookup(resolvers=[HostPort("127.0.0.1", server.port)], port=server.port)
        check = PropagationCheck(lookup, mode=Mode.RECURSIVE)
        made = Delegations(["example.test"], Routes(Route(ScriptedProvider(nothing), lookup, check)))
        assert await follow(made) == (NAME, "www.acme.example.test")
