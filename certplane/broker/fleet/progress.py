"""How far a renewal has come that an operator asked for: of each certificate from what the database and its host say.

Pure. Nothing is written down as it comes about: what was issued in a certificate's place, who has planned it since, and
what its host reports are durable anyway, and say more than a mark that a broker might have missed to set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from certplane.broker.fleet.filter import IDENTITY
from certplane.broker.fleet.knowledge import identity_serial, lacks_identity_renewal
from certplane.broker.fleet.model import HostRecord
from certplane.broker.renewal.model import FollowedItem
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate
from certplane.runtime.health import moment_text

_CLOSE: Final = timedelta(seconds=1)
"""A host keeps times as it likes; less than this isn't another time."""
_AT_WORK: Final = frozenset({CertificateState.INSTALLING, CertificateState.RELOADING, CertificateState.VERIFYING})


class ProgressWord(Enum):
    """How far one is, in the order in which a person wants to see them; the proto file says what each means."""

    FAILED = 1
    UNHEARD = 2
    PLANNED = 3
    REQUESTING = 4
    ISSUED = 5
    GONE = 6
    OVERTAKEN = 7
    DONE = 8

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.value >= ProgressWord.GONE.value


@dataclass(frozen=True, slots=True)
class HolderNow:
    """The holder of what was asked for.

    Attributes:
        record: What it has reported; None of one that never did, and of a service.
        connected: Whether it has a stream; of a service whether it watches its certificates.
        why_none: Why it gets no certificates; empty if it does.
        is_service: Whether it is a service, which reports nothing.
    """

    record: HostRecord | None
    connected: bool = False
    why_none: str = ""
    is_service: bool = False


@dataclass(frozen=True, slots=True)
class ItemProgress:
    """How far one item of a request is.

    Attributes:
        followed: The item.
        word: How far.
        reason: What failed, or what it waits for, for people.
        certificate_name: In its host's configuration; empty where that isn't known.
        next_attempt_time: When what failed is tried again.
    """

    followed: FollowedItem
    word: ProgressWord
    reason: str = ""
    certificate_name: str = ""
    next_attempt_time: datetime | None = None


def item_progress(followed: FollowedItem, request_id: str, holder: HolderNow, now: datetime) -> ItemProgress:
    """How far one item of the request of this id is."""
    if not followed.item.certificate_id:
        return _of_identity(followed, holder)
    status = _status_of(followed, holder)
    found = (
        _since_issued(followed, status, holder)
        if followed.new_certificate_id
        else _of_the_old(followed, request_id, status, holder, now)
    )
    return found if status is None else _named(found, status.name)


def _named(progress: ItemProgress, name: str) -> ItemProgress:
    return ItemProgress(progress.followed, progress.word, progress.reason, name, progress.next_attempt_time)


def _held(status: CertificateStatus) -> Iterator[HeldCertificate]:
    return (each for each in (status.installed, status.issued, status.served) if each is not None)


def _status_of(followed: FollowedItem, holder: HolderNow) -> CertificateStatus | None:
    """What the host says of it: of one that holds it or what is new, else of one of its profile and names."""
    if holder.record is None:
        return None
    ids = {followed.item.certificate_id, followed.new_certificate_id} - {""}
    for status in holder.record.certificates:
        if any(each.certificate_id in ids for each in _held(status)):
            return status
    for status in holder.record.certificates:
        if (status.profile, status.dns_names) == (followed.profile, followed.dns_names):
            return status
    return None


def _since_issued(followed: FollowedItem, status: CertificateStatus | None, holder: HolderNow) -> ItemProgress:
    """Its successor was issued."""
    if holder.is_service:
        return ItemProgress(followed, ProgressWord.DONE)
    if holder.record is None:
        return ItemProgress(followed, ProgressWord.ISSUED, "its host reports nothing")
    if status is None:
        return ItemProgress(followed, ProgressWord.GONE, "its host no longer has it")
    held = {each.certificate_id for each in _held(status)}
    if followed.new_certificate_id in held:
        return _activated(followed, status)
    if followed.item.certificate_id in held:
        return ItemProgress(followed, ProgressWord.ISSUED, "its host has not said that it has it")
    return ItemProgress(followed, ProgressWord.DONE)  # what the host has is newer still


def _activated(followed: FollowedItem, status: CertificateStatus) -> ItemProgress:
    """Its successor is at the host."""
    in_use = status.installed is not None and status.installed.certificate_id == followed.new_certificate_id
    if status.activation_failures or status.state is CertificateState.DEGRADED:
        return _failed(followed, status)
    if in_use and status.state not in _AT_WORK:
        return ItemProgress(followed, ProgressWord.DONE)
    waits = None if in_use else status.activate_time
    return ItemProgress(
        followed, ProgressWord.ISSUED, "" if waits is None else f"it is installed at {moment_text(waits)}"
    )


def _of_the_old(
    followed: FollowedItem, request_id: str, status: CertificateStatus | None, holder: HolderNow, now: datetime
) -> ItemProgress:
    """Nothing was issued in its place."""
    if followed.not_after is None or (status is None and followed.not_after <= now):
        return ItemProgress(followed, ProgressWord.GONE, "it has expired")
    if why := _overtaken(followed, request_id):
        return ItemProgress(followed, ProgressWord.OVERTAKEN, why)
    if status is not None and not holder.why_none:
        return _under_way(followed, status, holder)
    return ItemProgress(followed, *_without_a_status(followed, holder))


def _without_a_status(followed: FollowedItem, holder: HolderNow) -> tuple[ProgressWord, str]:
    """How far one is that its host says nothing of, or gets no certificate for."""
    if holder.is_service:
        told = f"the service was told to renew it at {moment_text(followed.item.renew_time)}"
        return ProgressWord.PLANNED, holder.why_none or told
    if holder.why_none:
        return ProgressWord.FAILED, f"its host gets no certificates: {holder.why_none}"
    if holder.record is None:
        return ProgressWord.UNHEARD, "its host never came"
    return ProgressWord.GONE, "its host no longer has it"


def _overtaken(followed: FollowedItem, request_id: str) -> str:
    """Why it is renewed for another reason; empty if it isn't."""
    if followed.revoke_time is not None:
        return "it was revoked, and its host is to replace it for that"
    if not (followed.item.planned and followed.in_force) or followed.plan_request_id == request_id:
        return ""
    other = followed.plan_request_id
    return f"the request {other} has asked for it since" if other else "it was planned anew for another reason"


def _of_identity(followed: FollowedItem, holder: HolderNow) -> ItemProgress:
    record = holder.record
    if record is None or record.stream is None:
        return ItemProgress(followed, ProgressWord.GONE, "the host is gone", IDENTITY)
    if identity_serial(record) != followed.item.serial_number:
        return ItemProgress(followed, ProgressWord.DONE, certificate_name=IDENTITY)
    if why := lacks_identity_renewal(record):
        return ItemProgress(followed, ProgressWord.FAILED, why, IDENTITY)
    status = next((each for each in record.certificates if each.name == IDENTITY), None)
    if status is None:
        return ItemProgress(followed, ProgressWord.UNHEARD, _why_unheard(holder), IDENTITY)
    return _named(_under_way(followed, status, holder), IDENTITY)


def _under_way(followed: FollowedItem, status: CertificateStatus, holder: HolderNow) -> ItemProgress:
    """The host has it, and may know when to renew it."""
    if status.state is CertificateState.REQUESTING:
        return ItemProgress(followed, ProgressWord.REQUESTING, status.last_error)
    if status.request_failures:
        return _failed(followed, status)
    renew_time = followed.item.renew_time
    knows = status.renew_time is not None and status.renew_time <= renew_time + _CLOSE
    if not knows and not holder.connected:
        return ItemProgress(followed, ProgressWord.UNHEARD, _why_unheard(holder))
    error = None if holder.record is None else holder.record.directive_error
    if not knows and error is not None:
        return ItemProgress(followed, ProgressWord.FAILED, f"its host has refused to: {error.message}")
    return ItemProgress(followed, ProgressWord.PLANNED, f"it is to be renewed at {moment_text(renew_time)}")


def _failed(followed: FollowedItem, status: CertificateStatus) -> ItemProgress:
    reason = status.last_error or f"{status.failed_step or status.state}: its host gave no details"
    return ItemProgress(followed, ProgressWord.FAILED, reason, next_attempt_time=status.next_attempt_time)


def _why_unheard(holder: HolderNow) -> str:
    stream = None if holder.record is None else holder.record.stream
    heard = "" if stream is None else f", last heard at {moment_text(stream.end_time or stream.last_seen_time)}"
    return f"its host is not connected{heard}"
