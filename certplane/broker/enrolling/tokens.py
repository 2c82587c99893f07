"""One-time tokens: with one, a new machine gets its first identity certificate at the identity CA.

A token is a bearer secret for one name. So only a name that policy has gets one, not one that is shut out or that two
holders contest; and it is audited, durable, before anybody has it. Neither the token nor the key is in a log or an
audit event; an event has the token's id (`jti`), which the CA remembers to refuse a second use.

The claims are those of `step ca token` for a JWK provisioner of step-ca.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from certplane.broker.enrolling.provisioner_key import HOW_TO_MAKE, ProvisionerKey, ProvisionerKeyError
from certplane.broker.enrolling.settings import LEAST_LIFETIME, BootstrapSettings
from certplane.broker.events import AuditDecision, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.model import Caller, Grant, IdentityKind
from certplane.broker.ports import AuditLog, DenyList, IdentityLedger, PolicySource, SecretSource
from certplane.config.durations import format_duration
from certplane.config.values import canonical_identity_name
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_ID_OCTETS: Final = 32
"""As `step ca token` has them: nobody meets one twice."""
_CONFIGURE: Final = "have the broker's administrator configure `bootstrap` in broker.yml, or use `step ca token`"


class NoTokenError(Exception):
    """What is asked for can't get a token; `field` is the request's, the text says why, and what to do."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


@dataclass(frozen=True, slots=True)
class IdentityCa:
    """The identity CA as new machines must know it, and what signs for it.

    `root_fingerprint` is the SHA-256 of the root's DER, 64 lower-case hexadecimal digits; `key_secret` the name of the
    secret with the provisioner's key, read anew for each token.
    """

    url: str
    root_fingerprint: str
    provisioner: str
    key_secret: str
    max_lifetime: timedelta

    @classmethod
    def of(cls, settings: BootstrapSettings, root_fingerprint: str) -> IdentityCa:
        """As configured."""
        return cls(
            settings.ca_url.rstrip("/"),
            root_fingerprint,
            settings.provisioner,
            settings.key_secret,
            settings.max_lifetime,
        )


@dataclass(frozen=True, slots=True)
class BootstrapToken:
    """A token and what its holder must know; `token` is empty where none was wanted."""

    token: str
    expire_time: datetime
    ca: IdentityCa
    grant: Grant


class BootstrapTokens:
    """Makes tokens. `ca` is None where broker.yml has no section for it."""

    def __init__(
        self,
        ca: IdentityCa | None,
        keys: SecretSource,
        *,
        policy: PolicySource,
        deny_list: DenyList,
        identities: IdentityLedger,
        audit: AuditLog,
        clock: Clock,
        trail: AuditTrail,
    ) -> None:
        self._ca = ca
        self._keys = keys
        self._policy = policy
        self._deny_list = deny_list
        self._identities = identities
        self._audit = audit
        self._clock = clock
        self._trail = trail

    async def create(
        self, caller: Caller, request_id: str, name: str, lifetime: timedelta | None, *, dry_run: bool = False
    ) -> BootstrapToken:
        """A token for the identity of this name, audited.

        Args:
            caller: Who asks.
            request_id: Of the call.
            name: The identity's name, or a host's label.
            lifetime: For how long; None for as long as is allowed.
            dry_run: Check all of it, the key too, and make none.

        Raises:
            NoTokenError: it can't get one.
            RefusalError: BOOTSTRAP_NOT_CONFIGURED; AUDIT_UNAVAILABLE; STORE_UNAVAILABLE; POLICY_UNAVAILABLE.
        """
        if self._ca is None:
            raise RefusalError(Reason.BOOTSTRAP_NOT_CONFIGURED, f"this broker makes no tokens: {_CONFIGURE}")
        grant = self._grant(name)
        self._check_standing(grant)
        span = _lifetime(lifetime, self._ca.max_lifetime)
        key = await self._key(self._ca.key_secret)
        now = self._clock.now()
        made = BootstrapToken("", now + span, self._ca, grant)
        if dry_run:
            return made
        token_id = secrets.token_hex(_ID_OCTETS)
        token = key.sign(token_claims(self._ca, grant.name, token_id, now, span))
        event = self._trail.of_caller(caller, request_id).event(
            AuditEventType.BOOTSTRAP_TOKEN_CREATED,
            severity=AuditSeverity.WARNING,
            decision=AuditDecision.ALLOW,
            reason=f"for the {grant.kind} {grant.name}, of the provisioner {self._ca.provisioner} of {self._ca.url}, "
            f"for {format_duration(span)}, with the id {token_id}",
        )
        await self._audit.append([event])
        return BootstrapToken(token, made.expire_time, self._ca, grant)

    def _grant(self, name: str) -> Grant:
        policy = self._policy.current
        grant = policy.find_host(name)
        if grant is None:
            try:
                grant = policy.find_grant(canonical_identity_name(name))
            except ValueError as error:
                raise NoTokenError("identity", f"isn't an identity's name: {error}") from error
        if grant is None:
            raise NoTokenError("identity", "isn't in the policy: add the host to policy.yml, and reload that, first")
        if grant.kind is IdentityKind.OPERATOR:
            raise NoTokenError("identity", "is an operator's: tokens are for hosts and services (`step ca token`)")
        return grant

    def _check_standing(self, grant: Grant) -> None:
        if self._deny_list.denied(grant.name, "", "") is not None:
            remedy = f"let it in again first: certplane-broker identity allow --name {grant.name}"
            raise NoTokenError("identity", f"is denied, so that no machine of this name can call; {remedy}")
        known = self._identities.known(grant.name) if grant.kind is IdentityKind.HOST else None
        if known is not None and known.contest is not None:
            remedy = f"decide first: certplanectl host replace {grant.name}, or certplane-broker identity allow"
            raise NoTokenError("identity", f"is contested by two holders; {remedy}")

    async def _key(self, secret: str) -> ProvisionerKey:
        try:
            return ProvisionerKey(await self._keys.read(secret))
        except ProvisionerKeyError as error:
            message = f"the key of `bootstrap.key_secret` {error}; {HOW_TO_MAKE}"
            raise RefusalError(Reason.BOOTSTRAP_NOT_CONFIGURED, message) from error
        except RefusalError as error:
            message = f"the key of `bootstrap.key_secret` can't be read: {error.refusal.message}"
            raise RefusalError(
                Reason.BOOTSTRAP_NOT_CONFIGURED, message, retry_after=error.refusal.retry_after
            ) from error


def token_claims(ca: IdentityCa, name: str, token_id: str, now: datetime, lifetime: timedelta) -> dict[str, Any]:
    """What a token says (step-ca's `authority/provisioner/jwk.go`): once, for this name, at this CA.

    Times are whole seconds, rounded down: the CA may be a little behind.
    """
    start = int(now.timestamp())
    return {
        "aud": f"{ca.url}/1.0/sign",
        "exp": int((now + lifetime).timestamp()),
        "iat": start,
        "iss": ca.provisioner,
        "jti": token_id,
        "nbf": start,
        "sans": [name],
        "sha": ca.root_fingerprint,
        "sub": name,
    }


def _lifetime(wanted: timedelta | None, most: timedelta) -> timedelta:
    if wanted is None:
        return most
    if not LEAST_LIFETIME <= wanted <= most:
        limits = f"{format_duration(LEAST_LIFETIME)} to {format_duration(most)}"
        raise NoTokenError("lifetime", f"must be from {limits} (`bootstrap.max_lifetime` of broker.yml)")
    return wanted
