"""The life of this host's identity: enroll once, renew before the end, recover after it. The story; ports do the work.

What a crash leaves is finished or repeated, never mixed: the key is on disk before its CSR is sent, a certificate
becomes a complete version with its key before anything points at it, and one rename makes it current. An enrollment
that ended between the two is finished by the next one instead of asking for another certificate.

step-ca burns a token before it signs. So when an answer is lost the token is gone, the key stays, and the next
`enroll` sends the same CSR with a new token.

When an identity is due, and that a new one is taken into use, is the agent's plan, as for any certificate
(`certplane.agent.lineage`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any

from cryptography import x509

from certplane.agent.enrollment.answers import san_names
from certplane.agent.model import IssuedCertificate, PendingRequest, Version
from certplane.agent.ports import IdentityAuthority, PendingKeys, VersionStore
from certplane.errors import OperationError
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint
from certplane.runtime.finishing import uninterrupted
from certplane.runtime.pool import BlockingPool

_ENROLL_STEPS = ("key", "request", "stage", "activate")
_RENEW_STEPS = ("key", "request", "stage")
FAILPOINTS = (
    *(f"enroll.{step}.{edge}" for step in _ENROLL_STEPS for edge in ("before", "after")),
    *(f"identity.{step}.{edge}" for step in _RENEW_STEPS for edge in ("before", "after")),
)
"""Every place where a test may end this module's work: `enroll.*` in `enroll`, `identity.*` in `renew`."""

_MOST_COMMON_NAME = 64
"""RFC 5280 appendix A.1, ub-common-name; a longer name is in the subjectAltName alone."""

logger = logging.getLogger(__name__)


class HostIdentity:
    """How this host gets an identity. One caller at a time, under the agent's state lock.

    Args:
        name: the DNS name or URI that is the identity.
        authority: the internal CA.
        keys: the identity lineage's pending key.
        versions: the identity lineage's versions.
        disk: the pool that the two block on.
        clock: says whether an identity is expired.
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
        rekey: bool,
    ) -> None:
        self._name = name
        self._authority = authority
        self._keys = keys
        self._versions = versions
        self._disk = disk
        self._clock = clock
        self._rekey = rekey

    async def enroll(self, token: Callable[[], str], *, force: bool, report: Callable[[str], None]) -> Version:
        """Get an identity with a one-time token, and put it in force.

        Args:
            token: reads the token; called only once a token is needed.
            force: replace an identity that is there; it stays in force until the new one is in place.
            report: told each step as it begins.

        Raises:
            OperationError: the host is enrolled and `force` is false; or an `EnrollmentError`.
            ConfigurationError: from `token`.
        """
        current, versions = await self._disk.run(self._on_disk)
        if current is not None and not force:
            raise self._enrolled_already(current)
        if current is None and versions:
            report("finishing the enrollment that was interrupted")
            return await self._disk.run(self._activate, versions[-1])
        text = token()
        report("making the identity's key")
        pending = await self._begin("enroll", reuse_key=False)

        async def obtain() -> Version:
            version = await self._obtain("enroll", self._authority.enroll(text, pending.csr_pem))
            return await self._disk.run(self._activate, version)

        report("sending the CSR and the token to the internal CA")
        return await uninterrupted(obtain())

    async def renew(self, current: Version) -> Version:
        """Get the next identity, by the one in force or, once that is expired, by its key where the CA allows it.

        The new version is on disk and not yet in force.

        Raises:
            OperationError: an `EnrollmentError` that says what to do; or the disk refuses.
        """
        if self._clock.now() >= current.not_after:
            return await self._recover(current)
        if self._rekey:
            return await self._renew_new_key(current)
        return await self._renew_same_key(current, self._authority.renew)

    async def _recover(self, expired: Version) -> Version:
        logger.warning("the identity expired at %s; asking the CA to renew it all the same", _text(expired.not_after))
        recovered = await self._renew_same_key(expired, self._authority.recover)
        if not self._rekey:
            return recovered
        try:
            return await self._renew_new_key(recovered)  # the old key has had its time
        except OperationError as error:
            logger.warning("the identity is renewed, but keeps its key for now: %s", error)
            return recovered

    async def _renew_new_key(self, current: Version) -> Version:
        pending = await self._begin("identity", reuse_key=False)
        return await uninterrupted(self._obtain("identity", self._authority.rekey(current, pending.csr_pem)))

    async def _renew_same_key(
        self, current: Version, call: Callable[[Version], Coroutine[Any, Any, IssuedCertificate]]
    ) -> Version:
        left_over = await self._disk.run(self._keys.pending)
        if left_over is not None and left_over.public_key_sha256 != current.public_key_sha256:
            # of a re-key that a crash or an outage stopped; this way its key gets no certificate
            await self._disk.run(self._keys.abandon)
        pending = await self._begin("identity", reuse_key=True)
        if pending.public_key_sha256 != current.public_key_sha256:
            await self._disk.run(self._keys.abandon)
            raise OperationError(
                f"the identity's key in {current.path} is of another kind than identity.key_type, so it isn't kept",
                remedy="set identity.key_type to its kind, or run `certplane-agent enroll --force` with a new token",
            )
        return await uninterrupted(self._obtain("identity", call(current)))

    async def _begin(self, work: str, *, reuse_key: bool) -> PendingRequest:
        failpoint(f"{work}.key.before")
        pending = await self._disk.run(self._begin_on_disk, reuse_key)
        failpoint(f"{work}.key.after")
        return pending

    def _begin_on_disk(self, reuse_key: bool) -> PendingRequest:
        left_over = self._keys.pending()
        if left_over is not None and _names_in(left_over) != (self._name,):
            self._keys.abandon()  # made when this host had another name
        return self._keys.begin(
            common_name=self._name if len(self._name) <= _MOST_COMMON_NAME else "",
            sans=(self._name,),
            replaces_certificate_id="",
            reuse_key=reuse_key,
        )

    async def _obtain(self, work: str, request: Coroutine[Any, Any, IssuedCertificate]) -> Version:
        """Send the request and store its answer, which comes only once."""
        failpoint(f"{work}.request.before")
        issued = await request
        failpoint(f"{work}.request.after")
        return await self._disk.run(self._stage, work, issued)

    def _stage(self, work: str, issued: IssuedCertificate) -> Version:
        failpoint(f"{work}.stage.before")
        version = self._versions.stage(issued)
        failpoint(f"{work}.stage.after")
        return version

    def _activate(self, version: Version) -> Version:
        failpoint("enroll.activate.before")
        self._versions.activate(version)
        failpoint("enroll.activate.after")
        return version

    def _on_disk(self) -> tuple[Version | None, Sequence[Version]]:
        """The identity in force, and those that the CA made for this agent, or that it took over."""
        return self._versions.current(), [version for version in self._versions.versions() if version.is_own]

    def _enrolled_already(self, current: Version) -> OperationError:
        message = f"this host is enrolled as {self._name} until {_text(current.not_after)}"
        if self._clock.now() < current.not_after:
            remedy = "to replace its identity, run `certplane-agent enroll --force` with a new token"
        else:
            message = f"this host was enrolled as {self._name} until {_text(current.not_after)}"
            remedy = (
                "`certplane-agent run` gets the identity back if the CA renews expired ones; else run "
                "`certplane-agent enroll --force` with a new token"
            )
        return OperationError(message, remedy=remedy)


def _names_in(pending: PendingRequest) -> tuple[str, ...]:
    return san_names(x509.load_pem_x509_csr(pending.csr_pem.encode()).extensions)


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
