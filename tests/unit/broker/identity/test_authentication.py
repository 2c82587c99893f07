"""Who a peer is: each rule on its own. That they hold on a real connection is tests/integration/test_broker_edge.py's."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509

from certplane.broker.identity.authentication import AuthenticationError, Authenticator, Peer
from certplane.broker.model import DenyEntry, Grant, IdentityKind
from certplane.broker.services.interceptors.peer import peer_of
from certplane.errors import Reason, RefusalError
from certplane.pki.trust_bundle import TrustBundle
from tests.fakes.clock import ManualClock
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.ca import Leaf, PrivateCa
from tests.support.memory_store import MemoryStores

HOST = "web1.example"


class Gate:
    """An authenticator with everything that it asks."""

    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock()
        self.ca = PrivateCa("internal", now=self.clock.now())
        self.bundle = TrustBundle.from_pem(self.ca.root_pem)
        self.policy = FakePolicySource(
            FakePolicy.of(
                [Grant(HOST, IdentityKind.HOST, "web1", ("web",), ("role",)), Grant("b", IdentityKind.HOST, "b")]
            )
        )
        self.stores = MemoryStores.open(self.clock)
        self.authenticator = Authenticator(
            trust=self,
            policy=self.policy,
            deny_list=self.stores.deny_list,
            clock=self.clock,
            **{"min_tls_version": "1.2", "provisioners": ("jwk",), **options},
        )

    def peer(self, leaf: Leaf | None = None, **changes: Any) -> Peer:
        leaf = leaf or self.ca.issue([HOST])
        peer = Peer(leaf.certificate_pem, leaf.chain_pem, "TLSv1.3", session_reused=False, source_ip="192.0.2.1")
        return replace(peer, **changes)

    def reason(self, peer: Peer) -> Reason:
        with pytest.raises(AuthenticationError) as caught:
            self.authenticator.admit(peer)
        return caught.value.refusal.reason


@pytest.fixture
def gate() -> Gate:
    return Gate()


def test_caller_is_what_policy_and_certificate_say(gate: Gate) -> None:
    """Name, kind and grants are policy's; serial, issuer, provisioner and end are the certificate's."""
    leaf = gate.ca.issue([HOST, "other.example"], common_name="WEB1.example")
    caller = gate.authenticator.admit(gate.peer(leaf, user_agent="x/1")).caller
    assert (caller.name, caller.kind, caller.label) == (HOST, IdentityKind.HOST, "web1")
    assert (caller.profiles, caller.roles) == (("web",), ("role",))
    assert (caller.serial_number, caller.issuer) == (leaf.serial_number, leaf.issuer)
    assert (caller.provisioner, caller.not_after) == ("JWK/hosts", leaf.certificate.not_valid_after_utc)
    assert (caller.source_ip, caller.user_agent) == ("192.0.2.1", "x/1")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"leaf_pem": b""}, id="no certificate"),
        pytest.param({"leaf_pem": b"junk"}, id="junk for a certificate"),
        pytest.param({"chain_pem": b""}, id="intermediate not sent"),
        pytest.param({"chain_pem": b"junk"}, id="junk for a chain"),
        pytest.param({"session_reused": True}, id="resumed session"),
        pytest.param({"tls_version": "TLSv1.1"}, id="older TLS"),
        pytest.param({"tls_version": ""}, id="TLS version not said"),
        pytest.param({"tls_version": "TLSv2"}, id="TLS version that doesn't exist"),
    ],
)
def test_connection_that_proves_nothing(gate: Gate, changes: dict[str, Any]) -> None:
    """What the connection must say and doesn't is IDENTITY_UNKNOWN."""
    assert gate.reason(gate.peer(**changes)) is Reason.IDENTITY_UNKNOWN


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"chain_pem": b""}, {}),
        ({"chain_pem": b"junk"}, {}),
        ({"session_reused": True}, {}),
        ({"tls_version": "TLSv1.2"}, {"min_tls_version": "1.3"}),
        ({"tls_version": ""}, {}),
    ],
)
def test_another_connection_of_an_admitted_certificate_proves_itself(
    changes: dict[str, Any], options: dict[str, Any]
) -> None:
    """The same leaf with another chain, TLS version or a resumed session is decided anew, and takes no place."""
    gate = Gate(**options)
    peer = gate.peer()
    admission = gate.authenticator.admit(peer)
    assert gate.authenticator.admit(replace(peer)) is admission
    assert gate.reason(replace(peer, **changes)) is Reason.IDENTITY_UNKNOWN
    assert gate.authenticator.admit(replace(peer)) is admission


def test_what_is_audited_of_a_caller_is_its_own_connections(gate: Gate) -> None:
    """Two hosts behind one certificate, a copy: address and agent are those of each call."""
    leaf = gate.ca.issue([HOST])
    for source_ip, user_agent in [("192.0.2.1", "a/1"), ("192.0.2.2", "a/1"), ("192.0.2.1", "b/2")] * 2:
        caller = gate.authenticator.admit(gate.peer(leaf, source_ip=source_ip, user_agent=user_agent)).caller
        assert (caller.source_ip, caller.user_agent) == (source_ip, user_agent)


def test_minimum_version(gate: Gate) -> None:
    """`1.3` refuses TLS 1.2, `1.2` lets it in."""
    peer = gate.peer(tls_version="TLSv1.2")
    assert gate.authenticator.admit(peer).caller.name == HOST
    strict = Gate(min_tls_version="1.3")
    assert strict.reason(strict.peer(tls_version="TLSv1.2")) is Reason.IDENTITY_UNKNOWN
    assert strict.authenticator.admit(strict.peer()).caller.name == HOST


def test_an_admission_stands_until_something_it_rested_on_changes(gate: Gate) -> None:
    """Time, deny-list, policy and bundle each end it; what is as it was, in a new object, is decided anew."""
    peer = gate.peer()
    admission = gate.authenticator.admit(peer)
    stands = gate.authenticator.stands
    assert stands(admission)

    gate.stores.database.shut_out(DenyEntry(name=HOST))
    assert not stands(admission)
    gate.stores.database.let_in()
    gate.stores.database.shut_out(
        DenyEntry(issuer=admission.caller.issuer, serial_number=admission.caller.serial_number)
    )
    assert not stands(admission)
    gate.stores.database.let_in()

    policy, gate.policy.policy = gate.policy.policy, FakePolicy.of()
    assert not stands(admission)
    gate.policy.policy = policy

    bundle, gate.bundle = gate.bundle, TrustBundle.from_pem(gate.ca.root_pem)
    assert not stands(admission)
    assert stands(gate.authenticator.admit(peer))
    gate.bundle = bundle

    assert stands(admission)
    gate.clock.advance(timedelta(days=2))
    assert not stands(admission)


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("what", ["policy", "bundle"])
def test_what_was_in_force_before_a_reload_is_let_go_at_the_next_call(gate: Gate, what: str, refused: bool) -> None:
    """A policy may take 100 MB: hosts that don't call again keep none alive, nor does a call that is refused now."""
    gate.authenticator.admit(gate.peer(gate.ca.issue(["b"])))  # and never again
    gate.authenticator.admit(gate.peer())

    if what == "policy":
        gate.policy.policy, old = replace(gate.policy.policy), weakref.ref(gate.policy.policy)  # type: ignore[type-var]
    else:
        gate.bundle, old = TrustBundle.from_pem(gate.ca.root_pem), weakref.ref(gate.bundle)  # type: ignore[assignment]
    if refused:
        gate.reason(gate.peer(session_reused=True))
    else:
        gate.authenticator.admit(gate.peer())

    gc.collect()
    assert old() is None


def test_nothing_is_remembered_that_could_change(gate: Gate) -> None:
    """The same certificate is looked at anew: time, bundle, policy and deny-list each decide on the next call."""
    peer = gate.peer()
    assert gate.authenticator.admit(peer).caller.name == HOST

    gate.stores.database.shut_out(DenyEntry(name=HOST))
    assert gate.reason(peer) is Reason.IDENTITY_REVOKED
    gate.stores.database.let_in()

    policy, gate.policy.policy = gate.policy.policy, FakePolicy.of()
    assert gate.reason(peer) is Reason.IDENTITY_UNKNOWN
    gate.policy.policy = policy

    bundle, gate.bundle = gate.bundle, TrustBundle.from_pem(PrivateCa("other", now=gate.clock.now()).root_pem)
    assert gate.reason(peer) is Reason.IDENTITY_UNKNOWN
    gate.bundle = bundle

    assert gate.authenticator.admit(peer).caller.name == HOST
    gate.clock.advance(timedelta(days=2))
    assert gate.reason(peer) is Reason.IDENTITY_EXPIRED


def test_denied_by_serial(gate: Gate) -> None:
    """One certificate can be shut out; the same identity's others are let in."""
    leaf = gate.ca.issue([HOST])
    gate.stores.database.shut_out(DenyEntry(issuer=leaf.issuer, serial_number=leaf.serial_number))
    assert gate.reason(gate.peer(leaf)) is Reason.IDENTITY_REVOKED
    assert gate.authenticator.admit(gate.peer()).caller.name == HOST


def test_unverified_certificate_is_not_quoted(gate: Gate) -> None:
    """What an unverified certificate says isn't put into the error, hence into no audit record."""
    foreign = PrivateCa("other", now=gate.clock.now()).issue([HOST])
    with pytest.raises(AuthenticationError) as caught:
        gate.authenticator.admit(gate.peer(foreign))
    assert caught.value.certificate is None


@pytest.mark.parametrize(
    ("address", "ip"),
    [
        ("ipv4:192.0.2.1:5000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("ipv6:[::1]:5000", "::1"),
        ("unix:", ""),
        ("", ""),
    ],
)
def test_peer_address(address: str, ip: str) -> None:
    """The address is told without port and brackets; what is no address is empty."""
    assert peer_of({}, address).source_ip == ip


def test_peer_of_an_empty_context_counts_as_resumed() -> None:
    """What the connection doesn't say counts against it."""
    peer = peer_of({}, "ipv4:192.0.2.1:5000", "a" * 1000)
    assert (peer.leaf_pem, peer.tls_version, peer.session_reused) == (b"", "", True)
    assert len(peer.user_agent) == 256


def test_intermediate_that_ends_first(gate: Gate) -> None:
    """A remembered path is not believed beyond the end of any certificate in it."""
    peer = gate.peer(gate.ca.issue([HOST], not_after=gate.clock.now() + timedelta(days=3660)))
    assert gate.authenticator.admit(peer).caller.name == HOST
    assert isinstance(gate.ca.intermediate, x509.Certificate)
    gate.clock.advance(timedelta(days=3651))
    assert gate.reason(peer) is Reason.IDENTITY_UNKNOWN


def test_no_path_is_searched_for_a_denied_certificate(gate: Gate) -> None:
    """Who is denied by issuer and serial number is refused before its chain is looked at, whatever that is."""
    leaf = gate.ca.issue([HOST])
    gate.stores.database.shut_out(DenyEntry(issuer=leaf.issuer, serial_number=leaf.serial_number))
    for number in range(100):
        with pytest.raises(AuthenticationError) as caught:
            gate.authenticator.admit(gate.peer(leaf, chain_pem=b"junk %d" % number))
        assert caught.value.refusal.reason is Reason.IDENTITY_REVOKED
        assert caught.value.serial_number == leaf.serial_number
        assert caught.value.certificate is None


def test_paths_are_not_searched_all_the_time(gate: Gate) -> None:
    """One certificate with ever another chain is soon refused unread; others, and what is known, are let in."""
    leaf, other = gate.ca.issue([HOST]), gate.ca.issue(["b"])
    known = gate.peer(leaf)
    gate.authenticator.admit(known)
    reasons = []
    for number in range(20):
        with pytest.raises(RefusalError) as caught:
            gate.authenticator.admit(gate.peer(leaf, chain_pem=b"junk %d" % number))
        reasons.append(caught.value.refusal.reason)
    assert reasons == [Reason.IDENTITY_UNKNOWN] * 9 + [Reason.RATE_LIMITED] * 11
    assert [violation.subject for violation in caught.value.refusal.violations] == ["path_searches_per_certificate"]
    assert caught.value.refusal.retry_after == timedelta(seconds=1)
    assert gate.authenticator.admit(known).caller.name == HOST
    assert gate.authenticator.admit(gate.peer(other)).caller.name == "b"
    gate.clock.advance(timedelta(seconds=1))
    assert gate.reason(gate.peer(leaf, chain_pem=b"junk")) is Reason.IDENTITY_UNKNOWN


@pytest.mark.parametrize(
    ("provisioners", "provisioner", "remedy"),
    [
        pytest.param(("JWK",), ("ACME", "acme"), "add ACME to server.mtls.provisioners", id="another-kind"),
        pytest.param(("JWK", "X5C"), ("ACME", "a"), "takes those of JWK or X5C provisioners only", id="what-is-taken"),
        pytest.param(("JWK",), None, "server.mtls.allow_missing_provisioner: true", id="not-said"),
        pytest.param(("JWK", ""), ("ACME", "acme"), "takes those of JWK provisioners only", id="missing-is-allowed"),
    ],
)
def test_a_wrong_provisioner_is_told_with_a_remedy(
    provisioners: tuple[str, ...], provisioner: tuple[str, str] | None, remedy: str
) -> None:
    """Whoever reads the refusal learns which key of broker.yml it is about."""
    gate = Gate(provisioners=provisioners)
    with pytest.raises(AuthenticationError, match="IDENTITY_UNKNOWN") as caught:
        gate.authenticator.admit(gate.peer(gate.ca.issue([HOST], provisioner=provisioner)))
    assert remedy in caught.value.refusal.message
