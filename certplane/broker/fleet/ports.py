"""What the fleet needs from the store. The rules of `certplane.broker.ports` hold here too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from certplane.broker.events import AuditEvent
from certplane.broker.fleet.model import HostRecord, HostStream, IssuedCertificate, RecordedStream, RevokedCertificate
from certplane.broker.renewal.model import HostActivation
from certplane.errors import Refusal
from certplane.fleet_report.model import Report


@dataclass(frozen=True, slots=True)
class RecordedReports:
    """What is durable now: all up to `acknowledged_sequence`, and of those given, which ones were `new`.

    `forgotten` are the names of certificates that the host no longer has. `telling` are the sequences of the new ones
    that tell an auditor something, whether they had an event or not. `stream_epoch` is the number of the
    stream that began with them; 0 if none did.
    """

    acknowledged_sequence: int
    new: tuple[Report, ...]
    forgotten: tuple[str, ...] = ()
    telling: tuple[int, ...] = ()
    stream_epoch: int = 0


class FleetStore(Protocol):
    """What hosts reported: the latest of each certificate, and each host's last stream.

    A host has one stream, at one broker: the one that began last, by the number that the store gives it. What comes on
    another one changes nothing, whichever broker writes it and however late (ADR 0033).
    """

    broker_id: str
    """This broker's: streams that it says to begin are there."""

    async def record_reports(
        self,
        host: str,
        epoch: str,
        reports: Sequence[Report],
        events: Mapping[int, AuditEvent] | None = None,
        *,
        names: Sequence[str] | None = None,
        stream: HostStream | None = None,
        stream_epoch: int = 0,
    ) -> RecordedReports:
        """Keep the reports that are new (by sequence, within `epoch`), durable, in one transaction with their events.

        Another epoch than the last one starts the count anew. `names`, if given, are all certificates that the host
        has: others of its are forgotten. Safe to repeat. Many hosts' calls at once share a transaction.

        Args:
            host: The identity's name.
            epoch: Of the reports' sequences.
            reports: By sequence, upwards.
            events: By sequence. A report's event is written if the report is telling: new, and its `outcome` is
                another than the last one of its certificate that wasn't empty.
            names: All certificates that the host has, unless None.
            stream: The stream on which they came, to be kept beside them as `record_stream` does.
            stream_epoch: Else, its number.

        Raises:
            RefusalError: STREAM_DISPLACED, their stream isn't the host's any more; STORE_UNAVAILABLE,
                AUDIT_UNAVAILABLE. Nothing changed.
        """
        ...

    async def record_stream(self, stream: HostStream) -> None:
        """Keep what is known of a host's stream, durable; called at its begin and end, and now and then between.

        One without a number begins: it takes the place of the host's last one.

        Raises:
            RefusalError: STREAM_DISPLACED, it isn't the host's any more; STORE_UNAVAILABLE. Nothing changed.
        """
        ...

    async def record_directive_error(self, host: str, error: Refusal | None, stream_epoch: int) -> None:
        """Keep why a host refused the last directive; None: it took it.

        Passed over if the stream of this number isn't the host's any more.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def get_host(self, host: str) -> HostRecord | None:
        """What is known of the host of this identity name; None if it never had a stream."""
        ...

    async def list_hosts(
        self, *, after: str = "", limit: int = 500, hosts: Sequence[str] | None = None
    ) -> Sequence[HostRecord]:
        """Hosts by name, those after `after`; only those of `hosts`, at most 500, unless that is None."""
        ...

    async def list_revoked(self, now: datetime, hosts: Sequence[str] | None = None) -> Sequence[RevokedCertificate]:
        """Revoked certificates that haven't expired at `now`, by host and serial number; only of `hosts` if given."""
        ...


class HostRemoval(Protocol):
    """Forgets hosts."""

    async def forget_host(
        self, host: str, stream: HostStream | None, time: datetime, events: Sequence[AuditEvent]
    ) -> bool:
        """Remove what the host has reported and what is planned for it, durable, in one transaction with the events.

        Its certificates stay, and are in force no longer: nobody plans for them. So do the keys and which identity
        certificates it has used, by which a copy of an old one is still known.

        Args:
            host: The identity's name; a service's too, which has reported nothing.
            stream: Its last stream as it was read; None if it had none.
            time: Of the forgetting.
            events: What is audited.

        Returns:
            False, and nothing is changed, if it has had another stream since.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        ...


class IssuedCertificates(Protocol):
    """What was issued, in short."""

    async def find_issued(self, certificate_ids: Collection[str]) -> Sequence[IssuedCertificate]:
        """The certificates of these ids; those that there are.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def issued_to(self, identities: Collection[str], now: datetime) -> Sequence[IssuedCertificate]:
        """Of these identities what is neither expired nor revoked, and the newest of each profile even if it is.

        `renew_time` is the plan's, where one holds.

        By identity and profile, the newest first.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class StreamPlaces(Protocol):
    """At which broker each host's stream is."""

    async def find_streams(self, hosts: Sequence[str]) -> Sequence[RecordedStream]:
        """The last streams of these hosts; of those that never had one, none.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class Activations(Protocol):
    """Which certificates that hosts hold for a rollout were released, or abandoned."""

    async def activations_of(self, hosts: Sequence[str]) -> Sequence[HostActivation]:
        """Those of these hosts: what was released and isn't known to be in use, and what was abandoned.

        Some may be over: a host is told of those alone that it says it holds. Of one certificate there is one at most.
        Asked once for many hosts, each time some of them have come or hold another certificate.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...
