"""The life of this host's identity: enroll once, renew before the end, recover after it. The story; ports do the work.

What a crash leaves is finished or repeated, never mixed: the key is on disk before its CSR is sent, a certificate
becomes a complete version with its key before anything points at it, and one rename makes it current. A version that
was staged but not made current is finished at the next start instead of asking for another.

step-ca burns a token before it signs. So when an answer is lost the token is gone, the key stays, and the next
`enroll` sends the same CSR with a new token.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from certplane.errors import OperationError
from certplane.pki.lifetime import renew_time
from certplane.runtime.failpoints import failpoint
from certplane.runtime.finishing import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime, timedelta

    from certplane.agent.model import IssuedCertificate, PendingRequest, Version
    from certplane.agent.ports import IdentityAuthority, PendingKeys, VersionStore
    from certplane.runtime.clock import Clock
    from certplane.runtime.pool import BlockingPool

__all__ = ["FAILPOINTS", "HostIdentity"]

FAILPOINTS = tuple(
    f"{work}.{step}.{edge}"
    for work in ("enroll", "identity")
    for step in ("key", "request", "stage", "activate")
    for edge in ("before", "after")
)
"""Every place where a test may end this module's work: `enroll.*` in `enroll`, `identity.*` in `renew`."""

_KEPT_VERSIONS = 3
_MOST_COMMON_NAME = 64
"""RFC 5280 appendix A.1, ub-common-name; a longer name is in the subjectAltName alone."""

logger = logging.getLogger(__name__)


class HostIdentity:
    """This host's identity, its key and its certificate. One caller at a time, under the agent's state lock.

    Args:
        name: the DNS name or URI that is the identity.
        authority: the internal CA.
        keys: the identity lineage's pending key.
        versions: the identity lineage's versions.
        disk: the pool that the two block on.
        clock: says whether an identity is due or expired.
        renew_before: the configured span before the end; None for the usual rule.
        rekey: whether a renewal makes a new key.
    """

    def __init__(
        self,
        name: str,
        *,
        authority: IdentityAuthority,
        keys: PendingKeys,
        versions: VersionStore,
        disk: BlockingPool,
        clock: Clock,
        renew_before: timedelta | None,
        rekey: bool,
    ) -> None:
        self._name = name
        self._authority = authority
        self._keys = keys
        self._versions = versions
        self._disk = disk
        self._clock = clock
        self._renew_before = renew_before
        self._rekey = rekey

    async def current(self) -> Version | None:
        """The identity in force, after finishing what a crash left; None before enrolment."""
        newest, current = await self._disk.run(self._newest_and_current)
        if newest is None or (current is not None and newest.number <= current.number):
            return current
        logger.info("finishing the interrupted change to identity version %d", newest.number)
        await self._disk.run(self._versions.activate, newest)
        return newest

    def renew_time(self, identity: Version) -> datetime:
        """When `identity` is due."""
        return renew_time(identity.not_before, identity.not_after, self._renew_before, f"{self._name}/identity")

    async def enroll(self, token: Callable[[], str], *, force: bool, report: Callable[[str], None]) -> Version:
        """Get an identity with a one-time token.

        Args:
            token: reads the token; called only once a token is needed.
            force: replace an identity that is there; it stays in force until the new one is in place.
            report: told each step as it begins.

        Raises:
            OperationError: the host is enrolled and `force` is false; or an `EnrollmentError`.
            ConfigurationError: from `token`.
        """
        before = await self._disk.run(self._versions.current)
        current = await self.current()
        if current is not None and not force:
            if before is None:
                report("finished the enrollment that was interrupted")
                return current
            raise self._enrolled_already(current)
        text = token()
        report("making the identity's key")
        pending = await self._begin("enroll", reuse_key=False)
        report("sending the CSR and the token to the internal CA")
        return await self._obtain("enroll", self._authority.enroll(text, pending.csr_pem))

    async def renew(self) -> Version:
        """Get the next identity, by the one in force or, once that is expired, by its key where the CA allows it.

        Raises:
            OperationError: there is no identity; or an `EnrollmentError` that says what to do.
        """
        current = await self.current()
        if current is None:
            raise OperationError(
                "this host has no identity", remedy="get a one-time token and run `certplane-agent enroll`"
            )
        if self._clock.now() >= current.not_after:
            logger.warning("the identity expired at %s; asking the CA to renew it all the same", current.not_after)
            current = await self._renew_same_key(current, self._authority.recover)
            if not self._rekey:
                return current
        if not self._rekey:
            return await self._renew_same_key(current, self._authority.renew)
        pending = await self._begin("identity", reuse_key=False)
        return await self._obtain("identity", self._authority.rekey(current, pending.csr_pem))

    async def _renew_same_key(
        self, current: Version, call: Callable[[Version], Coroutine[Any, Any, IssuedCertificate]]
    ) -> Version:
        left_over = await self._disk.run(self._keys.pending)
        if left_over is not None and left_over.public_key_sha256 != current.public_key_sha256:
            # a re-key that a crash or an outage stopped: its key has no certificate, and this way it gets none
            await self._disk.run(self._keys.abandon)
        pending = await self._begin("identity", reuse_key=True)
        if pending.public_key_sha256 != current.public_key_sha256:
            await self._disk.run(self._keys.abandon)
            raise OperationError(
                f"the identity's key in {current.path} is of another kind than this agent makes, so it isn't kept",
                remedy="get a one-time token and run `certplane-agent enroll --force`",
            )
        return await self._obtain("identity", call(current))

    async def _begin(self, work: str, *, reuse_key: bool) -> PendingRequest:
        failpoint(f"{work}.key.before")
        pending = await self._disk.run(
            self._keys.begin,
            common_name=self._name if len(self._name) <= _MOST_COMMON_NAME else "",
            sans=(self._name,),
            replaces_certificate_id="",
            reuse_key=reuse_key,
        )
        failpoint(f"{work}.key.after")
        return pending

    async def _obtain(self, work: str, request: Coroutine[Any, Any, IssuedCertificate]) -> Version:
        """Send the request and make its answer the identity, to the end: the CA's answer can't be had a second time."""

        async def obtain() -> Version:
            failpoint(f"{work}.request.before")
            issued = await request
            failpoint(f"{work}.request.after")
            return await self._disk.run(self._stage_and_activate, work, issued)

        return await uninterrupted(obtain())

    def _stage_and_activate(self, work: str, issued: IssuedCertificate) -> Version:
        failpoint(f"{work}.stage.before")
        version = self._versions.stage(issued)
        failpoint(f"{work}.stage.after")
        failpoint(f"{work}.activate.before")
        self._versions.activate(version)
        failpoint(f"{work}.activate.after")
        self._versions.prune(_KEPT_VERSIONS)
        return version

    def _newest_and_current(self) -> tuple[Version | None, Version | None]:
        versions = self._versions.versions()
        return (versions[-1] if versions else None), self._versions.current()

    def _enrolled_already(self, current: Version) -> OperationError:
        if self._clock.now() >= current.not_after:
            return OperationError(
                f"this host was enrolled as {self._name} until {_text(current.not_after)}",
                remedy="`certplane-agent run` gets it back if the CA renews expired identities; "
                "else run `certplane-agent enroll --force` with a new token",
            )
        return OperationError(
            f"this host is enrolled as {self._name} until {_text(current.not_after)}",
            remedy="to replace its identity, run `certplane-agent enroll --force` with a new token",
        )


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
