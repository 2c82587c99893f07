"""What the agent's plan needs from outside, as interfaces. The comments are contracts.

File ports block (they fsync): the app calls them on its one-thread pool, never on the event loop. Only
`CertplaneError`s escape a port.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from certplane.agent.model import (
    Activation,
    ActivationHold,
    DirectedRenewal,
    HookResult,
    IdentityView,
    IssuedCertificate,
    LineageStatus,
    OrderView,
    PendingRequest,
    ServiceView,
    Version,
)
from certplane.fleet_report.model import CertificateStatus, Report


class IdentityAuthority(Protocol):
    """The internal CA (step-ca). Its root is verified by fingerprint, bundle, or both, before anything is sent.

    Raises:
        OperationError: with the CA's own words and a remedy. `EnrollmentError` (its subclass in
            `agent.enrollment.errors`) says whether the token may be burnt.
    """

    async def enroll(self, token: str, csr_pem: str) -> IssuedCertificate:
        """Exchange a one-time token for an identity certificate (POST /sign). Repeated only if nothing was sent."""
        ...

    async def renew(self, current: Version) -> IssuedCertificate:
        """A new certificate for the same key, by mTLS with the current one (POST /renew)."""
        ...

    async def rekey(self, current: Version, csr_pem: str) -> IssuedCertificate:
        """A new certificate for the CSR's key, by mTLS with the current one (POST /rekey)."""
        ...

    async def recover(self, expired: Version) -> IssuedCertificate:
        """A new certificate for an expired identity's key, by a token signed with that key, where the CA allows it."""
        ...

    async def vouch(self, certificate_pem: str, chain_pem: str) -> None:
        """See that a certificate that stands on this host leads to the pinned root, now; nothing of it is sent."""
        ...


class PendingKeys(Protocol):
    """One lineage's key that waits for its certificate. Durable before a method returns; 0600; never overwritten."""

    def pending(self) -> PendingRequest | None:
        """The request under way, also after a crash."""
        ...

    def begin(
        self, *, common_name: str, sans: Sequence[str], replaces_certificate_id: str, reuse_key: bool
    ) -> PendingRequest:
        """Make a key (or take the current version's) and its CSR. The same request again if one is pending."""
        ...

    def record_order(self, order_id: str) -> PendingRequest:
        """Note which order the request became."""
        ...

    def abandon(self) -> None:
        """Drop the pending key: only after the broker refused it for good, or the configuration wants another one."""
        ...


class PendingKeyMaterial(Protocol):
    """The pending key itself, for the version store of the same lineage alone: nobody else asks for key bytes."""

    def private_key_pem(self) -> bytes | None:
        """PKCS#8 PEM of the pending key; None when nothing is pending."""
        ...

    def request_id(self) -> str | None:
        """What tells this pending request from any other of the lineage, also when the key is the same."""
        ...

    def forget(self, request_id: str) -> None:
        """Drop the pending key if it is still this request's: a version holds it now."""
        ...

    def sweep(self) -> None:
        """Remove what a crash left of a key that was being made or dropped; set aside what is damaged for good."""
        ...


class VersionStore(Protocol):
    """One lineage's versions on disk and the configured paths that point at them (design, fixed decision 7)."""

    def current(self) -> Version | None:
        """The version that the configured paths show."""
        ...

    def versions(self) -> Sequence[Version]:
        """All that are complete on disk, oldest first."""
        ...

    def stage(self, issued: IssuedCertificate, hold: ActivationHold | None = None) -> Version:
        """Write the next version from the pending key and `issued`; nothing that services read changes.

        With a `hold` it is held from the moment that it appears.

        The leaf is checked against the pending key first. Once the version is durable the pending key is forgotten, so
        that a request is pending exactly as long as no version answers it. Staging the same certificate again returns
        the same version.

        Raises:
            OperationError: the certificate isn't for the pending key, or the disk refuses.
        """
        ...

    def activate(self, version: Version) -> None:
        """Make the configured paths show `version`: one atomic rename (link mode), or a journalled copy (copy mode).

        Also finishes whatever a crash left and imports files that stand at the paths on first use.

        Raises:
            OperationError: something stands at a path that isn't ours to replace, a directory may be written by
                others, or the disk refuses. The version that was current stays.
        """
        ...

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` versions, never the current one nor the one before it."""
        ...


class StatusFile(Protocol):
    """One lineage's `LineageStatus` on disk."""

    def load(self) -> LineageStatus | None:
        """What was saved last; None if nothing was, or it can't be read (logged: the plan starts over)."""
        ...

    def save(self, status: LineageStatus) -> None:
        """Replace it atomically; durable before it returns."""
        ...


class DirectiveFile(Protocol):
    """The broker's last directive about one lineage's certificate, on disk."""

    def load(self) -> DirectedRenewal | None:
        """What was saved last; None if nothing was, or it can't be read (logged)."""
        ...

    def save(self, directed: DirectedRenewal) -> None:
        """Replace it atomically; durable before it returns."""
        ...


class ActivationFile(Protocol):
    """What the broker said of certificates of one lineage that are held back, on disk."""

    def load(self) -> tuple[Activation, ...]:
        """What was saved last; nothing if nothing was, or it can't be read (logged)."""
        ...

    def save(self, activations: Sequence[Activation]) -> None:
        """Replace it atomically; durable before it returns."""
        ...


class ReportSpool(Protocol):
    """What the broker has still to hear, on disk, bounded however long the broker is away.

    It keeps the latest report of each certificate, and since the last acknowledgement the latest of each state that the
    certificate was in.

    Sequences go up and are never used again in an epoch, also after a crash. `add` and `acknowledge` block and raise
    nothing: what can't be written now stays in memory and is written with a later report.
    """

    @property
    def epoch(self) -> str:
        """The name of the counting: made with the state directory."""
        ...

    def add(self, report: CertificateStatus) -> None:
        """Take a report up, unless the latest of this certificate says the same. On any thread."""
        ...

    def reports(self, after: int = 0) -> Sequence[Report]:
        """Those with a sequence beyond `after`, in its order: what a broker that knows nothing has to be told."""
        ...

    def acknowledge(self, sequence: int) -> None:
        """The broker has all up to `sequence` durably: forget the steps before the latest of each certificate.

        A sequence that was never used means that this directory is an older copy: the counting starts anew, in
        another epoch.
        """
        ...

    @property
    def unacknowledged(self) -> int:
        """How many reports the broker hasn't acknowledged."""
        ...


class HookRunner(Protocol):
    """Runs an operator's command."""

    async def run(self, command: str, timeout: timedelta, environment: dict[str, str]) -> HookResult:
        """Run in a process group of its own, killed as a whole at `timeout`; wait for the exit, not the end of output.

        NOTIFY_SOCKET and CREDENTIALS_DIRECTORY are not passed on.
        """
        ...


class ServiceProbe(Protocol):
    """Looks at what one local service serves, by TLS handshakes with it."""

    async def look(self, version: Version) -> ServiceView:
        """Handshake until the service presents `version`, or its attempts are used up: a reload takes a moment.

        Every attempt has a deadline. Nothing is raised but cancellation: a service that refuses, hangs or speaks
        something else is a view with a problem, in words for whoever runs it.
        """
        ...


class InstallTrial(Protocol):
    """Sees beforehand whether a lineage's next version could be installed; beside `VersionStore`."""

    def try_install(self) -> None:
        """Try what can be tried without a change that anybody sees. Blocks.

        Raises:
            OperationError: an installation would fail: which output, why, and what to do.
        """
        ...


class Broker(Protocol):
    """The broker over one persistent mTLS channel.

    Raises:
        RefusalError: what the broker said, with its reason and when to come back.
        OperationError: the broker can't be reached, or answers with something else.
    """

    async def issue(self, *, profile: str, csr_pem: str, replaces_certificate_id: str, wait: timedelta) -> OrderView:
        """IssueCertificate, or RenewCertificate when something is replaced; answers within `wait` and a little."""
        ...

    async def get_identity(self) -> IdentityView:
        """How the broker sees this host."""
        ...

    async def report_enrollment(self, identity_serial_number: str) -> None:
        """Tell the broker what runs here."""
        ...

    async def use_identity(self, identity: Version) -> None:
        """Open a new channel with this identity for the next calls; the old channel ends when its calls have."""
        ...


class CertificateLookup(Protocol):
    """Asks the broker for one of the caller's own certificates; beside `Broker`, over the same channel."""

    async def revoke_time(self, certificate_id: str) -> datetime | None:
        """Since when it is revoked; None if it isn't.

        Raises:
            RefusalError: as `Broker`: CERTIFICATE_NOT_FOUND of one that it doesn't know.
            OperationError: as `Broker`.
        """
        ...


class OrderFollower(Protocol):
    """Follows an order at the broker while it is under way; beside `Broker`, over the same channel."""

    def watch_order(self, order_id: str, wait: timedelta) -> AsyncGenerator[OrderView, None]:
        """The order now and after each change; ends after ISSUED or FAILED, or quietly when `wait` is over.

        Raises:
            RefusalError: as `Broker`; the order goes on.
            OperationError: as `Broker`; the order goes on.
        """
        ...
