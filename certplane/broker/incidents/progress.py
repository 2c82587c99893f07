"""How far an incident is: of each certificate from what the database and the fleet in memory say. Pure.

Who reports nothing (a service; a host without an agent that reports) is judged by what was issued to it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.incidents.model import Figures, Member
from certplane.broker.model import IdentityKind

MOST_HOSTS: Final = 20


@dataclass(frozen=True, slots=True)
class MemberProgress:
    """How far one certificate is; `over` means that nothing more is to come of it here."""

    replaced: bool = False
    in_use: bool = False
    hurt: bool = False
    failing: bool = False
    withdrawn: bool = False
    gone: bool = False
    over: bool = False


def member_progress(member: Member, holder: IndexedHost | None, now: datetime) -> MemberProgress:
    """How far a certificate of an incident is.

    Args:
        member: As the database has it.
        holder: Who has it, as the fleet is known; None if that no longer has such a host.
        now: The time.
    """
    expired = member.not_after is None or member.not_after <= now
    replaced, in_use, failing, gone = _at_holder(member, holder)
    dead = expired or member.revoke_time is not None
    withdrawn = not member.forward and not replaced and not dead
    return MemberProgress(
        replaced=replaced,
        in_use=in_use,
        hurt=dead and not in_use and not gone,
        failing=failing and not in_use,
        withdrawn=withdrawn,
        gone=gone,
        # One that has expired is the CA's affair no longer: its health says what is to be done.
        over=in_use or gone or withdrawn or expired,
    )


def _at_holder(member: Member, holder: IndexedHost | None) -> tuple[bool, bool, bool, bool]:
    """Whether its successor is on disk, and in use; whether that fails; whether the certificate is gone there."""
    issued = bool(member.new_certificate_id)
    if holder is None:
        return issued, False, False, True
    if holder.kind is IdentityKind.SERVICE or not holder.certificates:
        return issued, issued, False, False
    held = _held(member, holder)
    if held is None:
        return issued, False, False, True
    old = member.serial_number
    if held.serial_number and held.serial_number != old:
        return True, held.served_serial_number != old, held.failing, False
    return held.issued_serial_number not in {"", old}, False, held.failing, False


def _held(member: Member, holder: IndexedHost) -> IndexedCertificate | None:
    """The holder's certificate that it is, or was: of one that has it, else of one of its profile and names."""
    ids = {member.certificate_id, member.new_certificate_id} - {""}
    for each in holder.certificates:
        if each.certificate_id in ids:
            return each
    return next(
        (
            each
            for each in holder.certificates
            if each.profile == member.profile and sorted(each.dns_names) == sorted(member.dns_names)
        ),
        None,
    )


@dataclass(slots=True)
class Sums:
    """Gathers the figures of one incident, a certificate at a time: it is looked at in slices."""

    now: datetime
    _counts: Counter[str] = field(default_factory=Counter)
    _holders: set[str] = field(default_factory=set)
    _ranks: dict[str, int] = field(default_factory=dict)
    """Of hosts of which something is to come: 0 hurt, 1 failing, 2 neither."""
    _window_end: datetime | None = None
    _not_after: datetime | None = None

    def add(self, member: Member, progress: MemberProgress) -> None:
        """Count one more."""
        self._holders.add(member.host)
        counts = self._counts
        counts["certificate_count"] += 1
        counts["replaced_count"] += progress.replaced
        counts["in_use_count"] += progress.in_use
        counts["hurt_count"] += progress.hurt
        counts["failing_count"] += progress.failing
        counts["withdrawn_count"] += progress.withdrawn
        counts["gone_count"] += progress.gone
        counts["open_count"] += not progress.over
        if progress.hurt or not progress.over:
            rank = 0 if progress.hurt else 1 if progress.failing else 2
            self._ranks[member.host] = min(rank, self._ranks.get(member.host, rank))
        if not progress.over:  # what its host only holds is served no later for it
            if member.window_end > self.now:
                self._window_end = _sooner(self._window_end, member.window_end)
            if member.not_after is not None:
                self._not_after = _sooner(self._not_after, member.not_after)

    @property
    def deadline(self) -> datetime | None:
        """By when what is left should be replaced, as in `Incident`."""
        return self._not_after if self._window_end is None else self._window_end

    def figures(self) -> Figures:
        """What was counted."""
        first = heapq.nsmallest(MOST_HOSTS, self._ranks.items(), key=lambda each: (each[1], each[0]))
        return Figures(holder_count=len(self._holders), hosts=tuple(host for host, _ in first), **self._counts)


def _sooner(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else min(one, other)
