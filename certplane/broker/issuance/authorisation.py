"""What is asked before anything is done, in this order: the CSR, policy, the key, the certificate to be replaced.

A decision that is asked again is asked whole, as things are at that moment: whether the identity is shut out, whether
its CA is still trusted, whether it is contested, policy, the key. Of an order before anything is asked of the CA and
before it is finalised, whoever asked and however long ago, also after a restart; of a certificate before it is handed
out. A refusal here makes no order.

Permission comes before existence: another's certificate and an unknown one get the same answer, and so do a profile
that isn't the caller's and one that doesn't exist (`certplane.broker.policy.decision`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from certplane.broker.identity.standing import check_standing, check_uncontested
from certplane.broker.issuance.commands import IssueCommand
from certplane.broker.issuance.context import IssuancePorts, known_profile
from certplane.broker.issuance.events import CallEvents
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuance.verified_csrs import VerifiedCsrs
from certplane.broker.model import Caller, CertificateRecord, IdentityKind, Order, Profile
from certplane.broker.policy.decision import decide, decide_again
from certplane.broker.ports import Policy
from certplane.errors import Reason, RefusalError
from certplane.pki.csr import CertificateRequest


@dataclass(frozen=True, slots=True)
class AuthorisedRequest:
    """A request that everything allows; `policy` is the snapshot that said so."""

    policy: Policy
    profile: Profile
    request: CertificateRequest
    replaces_certificate_id: str
    replaced: CertificateRecord | None = None


class CallAuthorisation:
    """Asks about calls: new requests, and hand-outs of what there is."""

    def __init__(self, ports: IssuancePorts, settings: IssuanceSettings) -> None:
        self._ports = ports
        self._account_keys_sha256 = settings.account_keys_sha256
        self._requests = VerifiedCsrs(settings.csr_cache_size)

    async def authorise(self, caller: Caller, command: IssueCommand, events: CallEvents) -> AuthorisedRequest:
        """Whether `caller` may have what it asks for; `events` learns what is found on the way.

        Whose key it is is asked here only if a certificate is to be replaced; else `check_key` is the next question.

        Raises:
            RefusalError: CSR_INVALID, KEY_WEAK, IDENTITY_UNKNOWN, PROFILE_NOT_ALLOWED, NAMES_NOT_ALLOWED, KEY_REUSED,
                CERTIFICATE_NOT_FOUND, POLICY_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        policy = self._ports.policies.current
        profile = known_profile(policy, caller.name, command.profile)
        try:
            # Whose profile it is comes later; here it only spares validating names that policy has.
            known = profile.dns_names if profile else ()
            request = self._requests.parse(command.csr_pem, known=known, owner=caller.name)
        except RefusalError:
            events.learn_unreadable_csr(command.csr_pem)
            raise
        events.learn_csr(request)
        events.learn_policy(policy, profile)
        profile = decide(policy, caller.name, command.profile, request)
        if request.public_key_sha256 in self._account_keys_sha256:
            # RFC 8555 11.1: the account key must not be certified. Whose key it is stays unsaid.
            raise _key_reused()
        replaced = None
        if command.replaces_certificate_id:
            await self.check_key(caller, request)
            replaced = await self._replaced(caller, command)
        return AuthorisedRequest(policy, profile, request, command.replaces_certificate_id, replaced)

    async def check_key(self, caller: Caller, request: CertificateRequest) -> None:
        """Whether the key may be the caller's: asked before an order is made or joined.

        The cache has no answer for a key that may not (`CertificateStore.find_cached`), so that an answer from there
        needs one read: worth a tenth of such a call.

        Raises:
            RefusalError: KEY_REUSED or STORE_UNAVAILABLE.
        """
        use = await self._ports.keys.key_use(request.public_key_sha256)
        if use is not None and (use.blocked or use.identity != caller.name):
            raise _key_reused()

    async def check_new_key(self, caller: Caller, request: CertificateRequest) -> None:
        """As `check_key`, and whether there may be a new certificate of it: asked before an order is made.

        Raises:
            RefusalError: KEY_REUSED or STORE_UNAVAILABLE.
        """
        use = await self._ports.keys.key_use(request.public_key_sha256)
        if use is not None and (use.blocked or use.spent or use.identity != caller.name):
            raise _key_reused()

    def check_uncontested(self, caller: Caller) -> None:
        """Whether `caller` may have a new order; what it has already, it may have in any case.

        Raises:
            RefusalError: IDENTITY_CONTESTED.
        """
        if caller.kind is IdentityKind.HOST:
            check_uncontested(self._ports.identities, caller.name)

    async def ask_again(self, caller: Caller, record: CertificateRecord) -> Policy:
        """Whether `caller` may have the stored certificate under the policy of this moment, which is returned.

        A profile that was edited, but still has these names, takes nothing back. What a contested identity has got
        already it may have again; one that is revoked is shown as such, but for one of a blocked key that nobody was
        given: its holder would put it in use.

        Raises:
            RefusalError: IDENTITY_REVOKED, IDENTITY_UNKNOWN, IDENTITY_CONTESTED, PROFILE_NOT_ALLOWED,
                NAMES_NOT_ALLOWED, KEY_REUSED (blocked), POLICY_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        known = record.revoke_time is not None and record.deliver_time is not None
        use = None if known else await self._ports.keys.key_use(record.public_key_sha256)
        if use is not None and use.blocked:
            raise _key_reused()
        return self.ask_at_hand_out(caller, record)

    def ask_at_hand_out(self, caller: Caller, record: CertificateRecord, decided: Policy | None = None) -> Policy:
        """As `ask_again` for a certificate whose key was looked at just now: without waiting for anything.

        `decided` is the policy that has allowed it already: only another one is asked.
        """
        certificate = (caller.issuer, caller.serial_number)
        check_standing(self._ports.deny_list, self._ports.trust, caller.name, certificate, caller.anchor)
        if record.deliver_time is None:
            self.check_uncontested(caller)
        policy = self._ports.policies.current
        if policy is not decided:
            decide_again(policy, caller.name, record.profile, record.dns_names)
        return policy

    async def own_certificate(self, caller: Caller, certificate_id: str) -> CertificateRecord:
        """The certificate, if it is the caller's.

        Raises:
            RefusalError: CERTIFICATE_NOT_FOUND, another's too.
        """
        record = await self._ports.certificates.get_certificate(certificate_id)
        if record is None or record.identity != caller.name:
            raise certificate_not_found()
        return record

    async def _replaced(self, caller: Caller, command: IssueCommand) -> CertificateRecord:
        replaced = await self.own_certificate(caller, command.replaces_certificate_id)
        if replaced.profile != command.profile:
            raise certificate_not_found()
        return replaced


class OrderAuthorisation:
    """Asks again about orders under way."""

    def __init__(self, ports: IssuancePorts, account_keys_sha256: Collection[str] = frozenset()) -> None:
        self._ports = ports
        self._account_keys_sha256 = account_keys_sha256

    def stands(self, order: Order) -> bool:
        """Whether the identity that asked is neither shut out nor of a CA that was removed: from memory."""
        try:
            self._check_standing(order)
        except RefusalError:
            return False
        return True

    def _check_standing(self, order: Order) -> None:
        certificate = (order.identity_issuer, order.identity_serial)
        check_standing(self._ports.deny_list, self._ports.trust, order.identity, certificate, order.identity_anchor)

    async def ask_again(self, order: Order) -> Profile:
        """Whether the order may go on, under the policy of this moment.

        Raises:
            RefusalError: IDENTITY_REVOKED, IDENTITY_UNKNOWN (its CA isn't trusted any more, too), IDENTITY_CONTESTED,
                PROFILE_NOT_ALLOWED (the profile is gone, not the identity's any more, or edited), NAMES_NOT_ALLOWED,
                KEY_REUSED (blocked or spent meanwhile), ISSUER_REJECTED (not this broker's issuer any more),
                POLICY_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        self._check_standing(order)
        policy = self._ports.policies.current
        profile = decide_again(policy, order.identity, order.profile, order.dns_names)
        grant = policy.find_grant(order.identity)
        if grant is not None and grant.kind is IdentityKind.HOST:
            # Which of the two holders has the order's key nobody knows.
            check_uncontested(self._ports.identities, order.identity)
        if profile.hash != order.profile_hash:
            raise RefusalError(
                Reason.PROFILE_NOT_ALLOWED, "the profile was changed while the order was under way; ask again"
            )
        if order.issuer not in self._ports.issuers_of(profile):
            raise RefusalError(
                Reason.ISSUER_REJECTED,
                "the broker no longer uses this issuer for the profile; ask again",
                retry_after=timedelta(),
            )
        use = await self._ports.keys.key_use(order.public_key_sha256)
        if use is not None and (use.blocked or use.spent or use.identity != order.identity):
            raise _key_reused()
        if order.public_key_sha256 in self._account_keys_sha256:
            raise _key_reused()
        self._check_standing(order)  # it may have been shut out while the key was looked up
        return profile


def certificate_not_found() -> RefusalError:
    """The one answer for a certificate that is unknown, another's, or of another profile."""
    return RefusalError(Reason.CERTIFICATE_NOT_FOUND, "you have no such certificate")


def _key_reused() -> RefusalError:
    return RefusalError(Reason.KEY_REUSED, "this key can't be used; make a new one")
