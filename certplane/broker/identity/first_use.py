"""First use activates (design, fixed decision 11): which certificate of a host's identity is the one in use. Pure.

Whoever copies a host's identity, or restores a host from a snapshot, has a second holder of one name. Both can go on as
long as neither renews; the first renewal parts them, since from then on two certificates are used in turn. So:

    never seen, not older than the newest -------- ACTIVATE: it is the active one from now on, the other is retired
    the active one ------------------------------- ACTIVE
    retired, within GRACE ------------------------ GRACE: what was under way over the old connection may end
    retired, after GRACE ------------------------- CONTEST: refused, and the identity is contested from now on
    never seen, but older than the newest -------- CONTEST: somebody keeps a copy of an earlier time
    either of the two, already contested --------- RETIRED: refused, and nothing new

"The newest" is the youngest that was ever active: the active one, unless an operator decided for an older one.
"Older" is by `not_before`, which is a whole second and may be equal in two certificates made at once: equal is not
older. A broker with a database from a backup meets certificates that it has never seen and that are newer, and just
activates them. Neither a clock that was set back nor one set forward retires anything by itself: only another
certificate does.

`KnownIdentity.retired` is kept short: those in their grace, the one retired last (an operator wants to see it), and
those that their age alone wouldn't tell from new ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final

from certplane.broker.model import DenyEntry, IdentityUse, KnownIdentity

GRACE: Final = timedelta(minutes=5)
"""Five times what an agent gives its old channel to end."""

_MOST_RETIRED: Final = 16
"""Rotations within `GRACE` that are told apart: no agent renews its identity that often. A bound for memory alone."""


class Verdict(Enum):
    """What a use of a certificate means; the module says when it is which."""

    ACTIVE = auto()
    ACTIVATE = auto()
    GRACE = auto()
    CONTEST = auto()
    RETIRED = auto()

    @property
    def refused(self) -> bool:
        """Whether the call is refused with IDENTITY_RETIRED."""
        return self in (Verdict.CONTEST, Verdict.RETIRED)


def judge(known: KnownIdentity | None, use: IdentityUse) -> Verdict:
    """What the use of a certificate, at `use.time`, means for its identity."""
    if known is None:
        return Verdict.ACTIVATE
    if use.certificate == known.active.certificate:
        return Verdict.ACTIVE
    retired = next((other for other in known.retired if other.certificate == use.certificate), None)
    if retired is None and use.not_before >= known.newest:
        return Verdict.ACTIVATE
    if retired is not None and use.time < retired.time + GRACE:
        return Verdict.GRACE
    return Verdict.CONTEST if known.contest is None else Verdict.RETIRED


def activated(known: KnownIdentity | None, name: str, use: IdentityUse) -> KnownIdentity:
    """The identity after `use` has made its certificate the active one. A contest stays until an operator decides."""
    if known is None:
        return KnownIdentity(name, use, use.not_before)
    before = (replace(known.active, time=use.time), *known.retired)
    newest = max(known.newest, use.not_before)
    return replace(known, active=use, newest=newest, retired=_kept(before, newest, use.time))


def contested(known: KnownIdentity, use: IdentityUse) -> KnownIdentity:
    """The identity after the use of a retired certificate."""
    return replace(known, contest=use)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an operator's word comes to: the identity from now on, and the certificates of it that are shut out."""

    known: KnownIdentity
    denied: tuple[DenyEntry, ...] = ()


def settle(known: KnownIdentity, keep: tuple[str, str] | None, now: datetime) -> Settlement | None:
    """An operator decides who a contested identity is.

    Args:
        known: The identity.
        keep: Issuer and serial number of the certificate that is to be the active one, all others known of being shut
            out. None leaves the active one as it is and shuts nothing out: the identity is contested again if the
            retired one is used again.
        now: The time.

    Returns:
        None when the identity isn't contested, or `keep` is none of its certificates.
    """
    if known.contest is None:
        return None
    if keep is None:
        return Settlement(replace(known, contest=None))
    uses = {use.certificate: use for use in (known.contest, *known.retired, known.active)}
    kept = uses.pop(keep, None)
    if kept is None:
        return None
    if kept is not known.active:
        kept = replace(kept, time=now)
    reason = f"another holder of {known.name}: an operator decided for certificate {kept.serial_number}"
    denied = tuple(
        DenyEntry(issuer=issuer, serial_number=serial_number, reason=reason, create_time=now)
        for issuer, serial_number in uses
    )
    # The deny-list shuts the others out from here on; they stay known, so that taking an entry back activates nothing.
    # Retired only now, they have their grace: a broker may learn of this some moments before it learns of the entries,
    # and a call in between must not make a contest of what was just settled.
    others = tuple(replace(use, time=now) for use in uses.values())
    return Settlement(replace(known, active=kept, retired=others[:_MOST_RETIRED], contest=None), denied)


def _kept(retired: tuple[IdentityUse, ...], newest: datetime, now: datetime) -> tuple[IdentityUse, ...]:
    """Those of `retired`, newest first, that must be remembered."""
    return tuple(
        use for index, use in enumerate(retired) if index == 0 or now < use.time + GRACE or use.not_before >= newest
    )[:_MOST_RETIRED]
