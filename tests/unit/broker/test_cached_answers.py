"""What a broker remembers between calls changes no answer: held to one that remembers nothing, over random histories.

At every call of a history a second broker is made over a copy of the database as it is then, with nothing in memory but
what a start reads, and asked the same: it is the plain form. Both must answer alike, octet for octet, or refuse alike,
and leave the same audit events.
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import cache
from typing import Any

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certplane.broker.events import AuditTrail
from certplane.broker.identity.activation import FirstUse
from certplane.broker.identity.admission import AdmissionControl
from certplane.broker.identity.allowances import Allowances
from certplane.broker.identity.authentication import Admission, Authenticator, Peer
from certplane.broker.model import DenyEntry, Grant, IdentityKind, Profile
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.services.certificates import CertificateServicer
from certplane.broker.services.interceptors.edge import Edge
from certplane.broker.services.trust import TrustInForce
from certplane.fleet_report.model import RenewalCause
from certplane.pki.csr import build_csr
from certplane.runtime.remembered import Remembered
from certplane.v1 import certificate_pb2 as pb
from tests.fakes.clock import ManualClock
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.ca import Leaf, PrivateCa
from tests.support.edge import GENEROUS, trust_of
from tests.support.issuance import NAMES, World, csr, key, kill_all, running

METHOD = "/certplane.v1.CertificateService/IssueCertificate"
HOSTS = ("web1.test", "web2.test")
START = ManualClock().now()


@cache
def cas() -> tuple[PrivateCa, PrivateCa, Leaf]:
    """The internal CA, another one, and the broker's own pair."""
    ca, other = PrivateCa("internal", now=START), PrivateCa("other", now=START)
    return ca, other, ca.issue_server(["localhost"])


@cache
def leaf(host: str, number: int) -> Leaf:
    """The identity certificate of a host: its first, the one after it, or one that soon ends."""
    begin = START - timedelta(hours=2) + timedelta(minutes=number)
    return cas()[0].issue([host], not_before=begin, not_after=START + timedelta(days=2 if number == 2 else 400))


class Context:
    """The context of one call, as far as the edge asks it."""

    def __init__(self, host: str, number: int, address: str, *, reused: bool) -> None:
        self.refused: tuple[object, ...] = ()
        self._address = address
        certificate = leaf(host, number)
        self._auth = {
            "x509_pem_cert": [certificate.certificate_pem],
            "x509_pem_cert_chain": [certificate.chain_pem],
            "ssl_tls_version": [b"TLSv1.3"],
            "ssl_session_reused": [b"true" if reused else b"false"],
        }

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("user-agent", "test/1"), ("x-request-id", "req-1"))

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth

    def peer(self) -> str:
        return f"ipv4:{self._address}:5000"

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, _metadata: object) -> None:
        pass

    def code(self) -> None:
        return None

    async def abort(self, code: object, details: str, _metadata: object) -> None:
        self.refused = (code, details)
        raise grpc.aio.AbortError


@dataclass
class Broker:
    """One process: the edge and all behind it, over a world."""

    world: World
    edge: Edge
    servicer: CertificateServicer
    serve: Any

    @classmethod
    async def over(cls, world: World, trust: TrustInForce) -> Broker:
        world.trusts = trust.trusts  # type: ignore[method-assign]
        await world.plans.refresh()
        authority = world.authority()
        await authority.start()
        running.append(authority)
        trail = AuditTrail(world.clock)
        edge = Edge(
            admission=AdmissionControl(
                authenticator=Authenticator(
                    trust=trust,
                    policy=world.policies,
                    deny_list=world.stores.deny_list,
                    min_tls_version="1.2",
                    provisioners=("JWK",),
                    clock=world.clock,
                ),
                first_use=FirstUse(ledger=world.stores.identities, clock=world.clock, trail=trail),
                allowances=Allowances(GENEROUS, world.clock),
                clock=world.clock,
            ),
            denials=world.denials,
            meter=world.meter,
            clock=world.clock,
            trail=trail,
        )
        servicer = CertificateServicer(authority, world.clock, world.plans)
        handler: Any = grpc.unary_unary_rpc_method_handler(
            servicer.IssueCertificate,
            request_deserializer=pb.IssueCertificateRequest.FromString,
            response_serializer=pb.IssueCertificateResponse.SerializeToString,
        )
        return cls(world, edge, servicer, edge._wrap(METHOD, handler))

    @property
    def authenticator(self) -> Authenticator:
        return self.edge._admission.authenticator

    async def call(self, request: bytes, context: Context) -> tuple[object, list[dict[str, Any]], list[Any]]:
        """What a call is told, the audit events that it leaves, and since when certificates are with their holders."""
        before = len(self.world.database.events)
        calling = asyncio.ensure_future(self.serve.unary_unary(request, context))
        for _ in range(100):
            await asyncio.wait({calling}, timeout=0)
            if calling.done():
                break
            self.world.clock.advance(timedelta())
            await asyncio.sleep(0)
        try:
            answer = await calling
            told: object = self.serve.response_serializer(answer)
            if answer.source != pb.CERTIFICATE_SOURCE_CACHE:
                told = (answer.source, answer.order.state)  # an order of its own: other ids
        except grpc.aio.AbortError:
            told = context.refused
        events = [event.record() for event in self.world.database.events[before:]]
        for event in events:
            del event["event_id"]
        if isinstance(told, tuple) and len(told) == 2 and isinstance(told[0], int):
            return told, [{"event_type": event["event_type"]} for event in events], []
        return told, events, [record.deliver_time for record in self.world.database.certificates.values()]

    def forget_often(self) -> None:
        """Have room for one of everything."""
        small: Remembered[Any, Any] = Remembered(entries=1, octets=1 << 20, of_one_owner=1)
        self.authenticator._kept = small
        self.servicer._answers = Remembered(entries=1, octets=1 << 20, of_one_owner=1)
        self.world.stores.certificates._kept = Remembered(  # type: ignore[attr-defined]
            entries=1, octets=1 << 20, of_one_owner=1
        )


CALL = st.tuples(
    st.just("call"),
    st.sampled_from(HOSTS),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from(["one", "one", "two"]),
    st.sampled_from(["seen", "seen", "anew", "bent"]),
    st.sampled_from(["192.0.2.7", "192.0.2.7", "192.0.2.8"]),
    st.sampled_from(["shop", "shop", "shop", "mail"]),
    st.sampled_from([False, False, False, False, True]),
)
CHANGE = st.one_of(
    st.tuples(st.sampled_from(["deny", "allow"]), st.sampled_from(HOSTS)),
    st.tuples(st.sampled_from(["deny-serial", "allow-serial"]), st.sampled_from(HOSTS)),
    st.tuples(st.just("policy"), st.sampled_from(["same", "other-hash", "other-names", "no-shop", "no-web2", "none"])),
    st.tuples(st.just("trust"), st.sampled_from(["same", "other", "both"])),
    st.tuples(st.just("time"), st.sampled_from([1, 3, 40, 90])),
    st.tuples(st.sampled_from(["revoke", "undo-delivery", "block", "take-key", "contest", "forget"])),
    st.tuples(st.just("move"), st.sampled_from([-1, 10])),
)


def policy_of(kind: str) -> FakePolicy | None:
    """A policy as a reload puts it in force: always another object."""
    shop = Profile("shop", "mixed", NAMES, hash="shop-hash")
    if kind == "other-hash":
        shop = replace(shop, hash="other")
    elif kind == "other-names":
        shop = replace(shop, dns_names=("other.test",))
    profiles = [shop, Profile("mail", "multi_san", ("mail.test",), hash="mail-hash")]
    granted = ("mail",) if kind == "no-shop" else ("shop", "mail")
    hosts = HOSTS[:1] if kind == "no-web2" else HOSTS
    if kind == "none":
        return None
    return FakePolicy.of([Grant(host, IdentityKind.HOST, host, granted) for host in hosts], profiles)


ROWS = {
    "revoke": "UPDATE certificates SET revoke_time = 1, revocation_reason = 'superseded'",
    "undo-delivery": "UPDATE certificates SET deliver_time = NULL",
    "block": "UPDATE keys SET block_time = 1",
    "take-key": "UPDATE keys SET identity = 'web9.test'",
}
"""What other programs do to the rows, past this broker's memory and before any change feed tells."""


async def change(warm: Broker, trust: TrustInForce, kind: str, *rest: Any) -> None:
    """Something that an answer may depend on."""
    world = warm.world
    now = world.clock.now()
    if kind in ROWS:
        world.database.connection.execute(ROWS[kind])
    elif kind == "policy":
        world.policies.policy = policy_of(rest[0])  # type: ignore[assignment] # or none
    elif kind == "trust":
        ca, other, server = cas()
        bundle = {"same": (ca,), "other": (other,), "both": (ca, other)}[rest[0]]
        trust.replace(trust_of(server, *bundle), now)
    elif kind == "time":
        world.clock.advance(timedelta(days=rest[0]))
    elif kind == "contest":
        world.contest()
    elif kind == "forget":
        warm.forget_often()
    else:
        await change_stored(world, kind, *rest)


async def change_stored(world: World, kind: str, *rest: Any) -> None:
    """As this broker does it, or as its change feed tells it at once."""
    stores, now = world.stores, world.clock.now()
    if kind == "move":
        plans = [
            RenewalPlan(record.certificate_id, record.identity, now + timedelta(days=rest[0]), RenewalCause.OPERATOR)
            for record in world.database.certificates.values()
        ]
        await world.plans.set_plans(plans)
    else:
        verb, _, by = kind.partition("-")
        certificate = leaf(rest[0], 0)
        entry = DenyEntry(name=rest[0], create_time=now)
        if by:
            entry = DenyEntry(issuer=certificate.issuer, serial_number=certificate.serial_number, create_time=now)
        await (stores.deny_list.deny(entry, []) if verb == "deny" else stores.deny_list.allow(entry, []))


async def play(history: list[tuple[Any, ...]]) -> int:
    """Play a history; returns how many answers came from the cache."""
    clock = ManualClock()
    world = World(clock, policies=FakePolicySource(policy_of("same")))
    ca, _, server = cas()
    trust = TrustInForce(trust_of(server, ca), clock.now())
    warm = await Broker.over(world, trust)
    cached = 0
    try:
        for host in HOSTS:  # so that histories are of certificates that there are
            request = pb.IssueCertificateRequest(profile="shop", csr_pem=csr("one" if host == HOSTS[0] else "two"))
            for _ in range(2):
                await warm.call(request.SerializeToString(), Context(host, 0, "192.0.2.7", reused=False))
        for kind, *rest in history:
            if kind != "call":
                await change(warm, trust, kind, *rest)
                continue
            host, number, key_name, how, address, profile, reused = rest
            text = csr(key_name) if how == "seen" else build_csr(key(key_name), sans=NAMES)
            if how == "bent":
                text = text.replace("A", "B", 1).replace("C", "D", 1)
            request = pb.IssueCertificateRequest(profile=profile, csr_pem=text)
            data = request.SerializeToString()
            plain = await Broker.over(world.fork(), trust)
            # Which paths were found tells whom a refusal of a denied certificate is about; it has its own tests.
            plain.authenticator._verifier = warm.authenticator._verifier
            expected = await plain.call(data, Context(host, number, address, reused=reused))
            got = await warm.call(data, Context(host, number, address, reused=reused))
            assert got == expected, (kind, *rest)
            cached += isinstance(got[0], bytes)
    finally:
        await kill_all()
    return cached


_SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@_SETTINGS
@given(st.lists(st.one_of(CALL, CALL, CHANGE), max_size=10))
def test_answers_as_one_that_remembers_nothing(history: list[tuple[Any, ...]]) -> None:
    """Whatever was asked and changed before, by this broker or past it."""
    asyncio.run(play(history))


def test_a_host_that_asks_again_is_answered_from_what_is_remembered() -> None:
    """Else the histories would show nothing: the same call again and again comes from the cache, each time alike."""
    ask = ("call", HOSTS[0], 0, "one", "seen", "192.0.2.7", "shop", False)
    assert asyncio.run(play([ask, ask, ("time", 1), ask])) == 3


def test_each_change_alone_is_seen_by_the_next_call() -> None:
    """Between two calls that are the same."""
    ask = [
        ("call", host, 0, key, "anew", "192.0.2.7", "shop", False)
        for host, key in zip(HOSTS, ("one", "two"), strict=True)
    ]
    changes: list[tuple[Any, ...]] = [
        *((kind, HOSTS[0]) for kind in ("deny", "allow", "deny-serial", "allow-serial")),
        *(("policy", kind) for kind in ("same", "other-hash", "other-names", "no-shop", "no-web2", "none")),
        *(("trust", kind) for kind in ("same", "other", "both")),
        *(("time", days) for days in (1, 3, 40, 90)),
        *((kind,) for kind in ("revoke", "undo-delivery", "block", "take-key", "contest", "forget")),
        *(("move", days) for days in (-1, 10)),
        ("call", HOSTS[0], 0, "one", "seen", "192.0.2.8", "shop", False),  # from another address
        ("call", HOSTS[0], 0, "one", "seen", "192.0.2.7", "shop", True),  # over a resumed session
    ]
    for each in changes:
        asyncio.run(play([*ask, each, *ask, ("policy", "same"), *ask]))
    soon_ends = ("call", HOSTS[0], 2, "one", "seen", "192.0.2.7", "shop", False)
    asyncio.run(play([soon_ends, soon_ends, ("time", 3), soon_ends]))


def test_histories_change_all_that_admitting_rests_on() -> None:
    """A rule of another input needs a change here, and a place in `Authenticator.stands` or in the peer."""
    inputs = inspect.signature(Authenticator.__init__).parameters.keys() - {"self"}
    constant = {"min_tls_version", "provisioners"}  # of one broker's life
    assert inputs == constant | {"trust", "policy", "deny_list", "clock"}
    assert [field.name for field in fields(Admission)] == ["caller", "bundle", "policy", "not_before", "not_after"]
    # All of a peer is compared.
    assert all(field.compare for field in fields(Peer))
