"""Who is calling: design, fixed decision 2, decided anew on every call and, in streams, before every message.

The TLS handshake has verified the client's certificate against the bundle *of that moment*. A connection lives on for
hours, through expiry, revocation, and a CA that was taken out of the bundle, so nothing of the handshake is believed
but what only it can know: which certificate the peer holds the key of, the TLS version, and whether the session was
resumed (a resumed one skipped the verification, so it proves nothing and is refused).

What is remembered of a certificate are facts (`certplane.pki.identity.IdentityVerifier`), and of a decision what it
rested on (`Admission`): while a peer is the same in all that its connection says, and bundle and policy are still the
same objects, the time and the deny-list are all that can have changed, and all that is checked (`stands`). Open calls
keep theirs; for new ones the last of each certificate is kept, and none of another bundle or policy than the last one
was decided under: a policy may take 100 MB, and hosts that don't call again would keep each of them alive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from certplane.broker.identity.buckets import TokenBuckets
from certplane.broker.identity.standing import shut_out
from certplane.broker.model import Caller, Grant
from certplane.broker.ports import DenyList, Policy, PolicySource
from certplane.errors import Reason, RefusalError, Violation
from certplane.pki.identity import PROVISIONER_OID, IdentityCertificate, IdentityVerifier, PresentedLeaf
from certplane.pki.trust_bundle import TrustBundle
from certplane.runtime.clock import Clock
from certplane.runtime.remembered import Remembered

_REMEMBERED_PATHS: Final = 20_000
"""Twice the connections that one broker is meant for; an entry is a few hundred bytes."""

_KEPT: Final = 4096
"""Admissions of those that called last; with what they presented some 16 MB at most. Streams keep their own."""
_KEPT_OCTETS: Final = 16 << 20
_KEPT_OF_ONE: Final = 16
"""Certificates of one identity: it has one, and a new one beside it while that takes over."""
_CALLER_OCTETS: Final = 1024
"""A caller and what is around it, about."""

_SEARCHES: Final = 10
"""Searches for a path that one certificate may cause at once: it has one path, and that is remembered."""

_TLS_VERSIONS: Final = {"TLSv1.2": (1, 2), "TLSv1.3": (1, 3)}
_MIN_VERSIONS: Final = {"1.2": (1, 2), "1.3": (1, 3)}


class AuthenticationError(RefusalError):
    """The peer isn't let in.

    `certificate` is what its verified certificate says, None when none was verified; `serial_number` is of either.
    """

    def __init__(
        self, reason: Reason, message: str, certificate: IdentityCertificate | None = None, serial_number: str = ""
    ) -> None:
        super().__init__(reason, message)
        self.certificate = certificate
        self.serial_number = certificate.serial_number if certificate is not None else serial_number


class BundleSource(Protocol):
    """Where the CA bundle in force is found."""

    @property
    def bundle(self) -> TrustBundle:
        """The bundle in force now."""
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """What the connection says of the other side; the same for every call on it."""

    leaf_pem: bytes
    chain_pem: bytes
    """What was presented beside the leaf."""
    tls_version: str
    session_reused: bool
    source_ip: str = ""
    user_agent: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """A caller, and what letting it in rested on: bundle, policy, and the time in which its path is valid."""

    caller: Caller
    bundle: TrustBundle
    policy: Policy
    not_before: datetime
    not_after: datetime


class Authenticator:
    """Decides who a peer is. For one thread: the event loop's."""

    def __init__(
        self,
        *,
        trust: BundleSource,
        policy: PolicySource,
        deny_list: DenyList,
        min_tls_version: str,
        provisioners: Collection[str],
        clock: Clock,
    ) -> None:
        """Take what decides.

        Args:
            trust: The CA bundle in force.
            policy: The policy in force.
            deny_list: Who was denied.
            min_tls_version: `1.2` or `1.3`.
            provisioners: Kinds of step-ca provisioners whose certificates are identities, compared without case; the
                empty string in it lets in certificates that don't say.
            clock: The time.
        """
        self._trust = trust
        self._policy = policy
        self._deny_list = deny_list
        self._min_tls_version = _MIN_VERSIONS[min_tls_version]
        self._min_tls_text = min_tls_version
        self._provisioners = frozenset(kind.casefold() for kind in provisioners)
        self._clock = clock
        self._provisioner_names = frozenset(kind for kind in provisioners if kind)
        self._verifier = IdentityVerifier(_REMEMBERED_PATHS)
        self._kept: Remembered[bytes, tuple[Peer, Admission]] = Remembered(
            entries=_KEPT, octets=_KEPT_OCTETS, of_one_owner=_KEPT_OF_ONE
        )
        self._kept_bundle: TrustBundle | None = None
        self._kept_policy: Policy | None = None
        self._searches = TokenBuckets(rate=1, burst=_SEARCHES, monotonic=clock.monotonic)

    def stands(self, admission: Admission) -> bool:
        """Whether nothing that `admission` rested on has changed: authenticating again would come to the same."""
        caller = admission.caller
        return (
            admission.bundle is self._trust.bundle
            and admission.policy is self._policy.current
            and admission.not_before <= self._clock.now() <= admission.not_after
            and self._deny_list.denied(caller.name, caller.issuer, caller.serial_number) is None
        )

    def admit(self, peer: Peer) -> Admission:
        """The caller with what that rests on, or why there is none: as decided for an equal peer if that stands.

        Raises:
            AuthenticationError: IDENTITY_UNKNOWN, IDENTITY_EXPIRED or IDENTITY_REVOKED.
            RefusalError: POLICY_UNAVAILABLE.
        """
        kept = self._kept.get(peer.leaf_pem)
        if kept is not None and kept[0] == peer and self.stands(kept[1]):
            return kept[1]
        self._drop_outdated()
        admission = self._decide(peer)
        octets = len(peer.leaf_pem) + len(peer.chain_pem) + _CALLER_OCTETS
        self._kept.put(peer.leaf_pem, (peer, admission), octets, admission.caller.name)
        return admission

    def _drop_outdated(self) -> None:
        """Keep nothing of another bundle or policy than those in force, whatever is decided of this peer by them."""
        bundle, policy = self._trust.bundle, None
        with contextlib.suppress(RefusalError):  # there is none: nothing is decided by it either
            policy = self._policy.current
        if bundle is not self._kept_bundle or policy is not self._kept_policy:
            self._kept.clear()
            self._kept_bundle, self._kept_policy = bundle, policy

    def _decide(self, peer: Peer) -> Admission:
        if not peer.leaf_pem:
            raise AuthenticationError(Reason.IDENTITY_UNKNOWN, "no client certificate was presented")
        if peer.session_reused:
            raise AuthenticationError(
                Reason.IDENTITY_UNKNOWN, "the TLS session was resumed; turn session resumption off in the client"
            )
        if _TLS_VERSIONS.get(peer.tls_version, (0, 0)) < self._min_tls_version:
            raise AuthenticationError(
                Reason.IDENTITY_UNKNOWN, f"the connection's TLS is older than {self._min_tls_text}; use a newer one"
            )
        bundle = self._trust.bundle
        try:
            path = self._verifier.verify(
                peer.leaf_pem, peer.chain_pem, bundle, self._clock.now(), permit=self._permit_search
            )
        except AuthenticationError:
            raise
        except RefusalError as error:
            if error.refusal.reason is Reason.RATE_LIMITED:
                raise
            raise AuthenticationError(error.refusal.reason, error.refusal.message) from error
        certificate, policy = path.identity, self._policy.current
        grant = self._grant(certificate, policy)
        denied = self._deny_list.denied(grant.name, certificate.issuer, certificate.serial_number)
        if denied is not None:
            raise AuthenticationError(Reason.IDENTITY_REVOKED, shut_out().message, certificate)
        provisioner = certificate.provisioner_kind
        if certificate.provisioner_name:
            provisioner = f"{provisioner}/{certificate.provisioner_name}"
        caller = Caller(
            name=grant.name,
            kind=grant.kind,
            label=grant.label,
            profiles=grant.profiles,
            roles=grant.roles,
            serial_number=certificate.serial_number,
            issuer=certificate.issuer,
            provisioner=provisioner,
            not_after=certificate.not_after,
            source_ip=peer.source_ip,
            user_agent=peer.user_agent,
            not_before=certificate.not_before,
            anchor=path.anchor,
        )
        return Admission(caller, bundle, policy, path.not_before, path.not_after)

    def _permit_search(self, presented: PresentedLeaf) -> None:
        """Whether a path may be searched: not for a certificate on the deny-list, and not all the time.

        What the leaf says of its issuer is believed here, since it is only used against it.
        """
        if self._deny_list.denied("", presented.issuer, presented.serial_number) is not None:
            raise AuthenticationError(
                Reason.IDENTITY_REVOKED, shut_out().message, serial_number=presented.serial_number
            )
        wait = self._searches.take(presented.sha256)
        if wait is not None:
            violation = Violation("path_searches_per_certificate", f"{_SEARCHES} at once, then one a second")
            message = "this client certificate keeps coming with another chain; always present the same one"
            raise RefusalError(Reason.RATE_LIMITED, message, retry_after=wait, violations=[violation])

    def _grant(self, certificate: IdentityCertificate, policy: Policy) -> Grant:
        if certificate.provisioner_kind.casefold() not in self._provisioners:
            raise AuthenticationError(Reason.IDENTITY_UNKNOWN, self._wrong_provisioner(certificate), certificate)
        grants = [grant for grant in map(policy.find_grant, certificate.names) if grant is not None]
        if len(grants) != 1 or certificate.common_name not in ("", grants[0].name):
            # One text for all three: it must not tell which names the policy knows.
            raise AuthenticationError(
                Reason.IDENTITY_UNKNOWN,
                "the client certificate is not one known identity: exactly one of its subjectAltNames must be known, "
                "and the common name empty or the same",
                certificate,
            )
        return grants[0]

    def _wrong_provisioner(self, certificate: IdentityCertificate) -> str:
        accepted = " or ".join(sorted(self._provisioner_names)) or "no"
        if not certificate.provisioner_kind:
            return (
                "the client certificate doesn't say which provisioner of the internal CA issued it (step-ca's "
                f"extension {PROVISIONER_OID.dotted_string}), and the broker takes those of {accepted} provisioners "
                "only; enroll with step-ca, or set server.mtls.allow_missing_provisioner: true in broker.yml"
            )
        return (
            f"the client certificate was issued by a provisioner of the kind {certificate.provisioner_kind}, and the "
            f"broker takes those of {accepted} provisioners only; enroll with a token of one of these, or add "
            f"{certificate.provisioner_kind} to server.mtls.provisioners in broker.yml"
        )
