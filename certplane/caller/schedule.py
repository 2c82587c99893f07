"""When the certificate of a keeper is renewed, and why. Pure.

Due is the broker's `renew_time` (it asks the CA: RFC 9773); the rule of `pki.lifetime` where the broker named none, or
none within the validity. It is never in the first tenth of the lifetime, so that no answer of a broker makes a keeper
renew in a loop; only a renewal that somebody asked for (`renewal_request_id`) and a revocation are at once: what
replaces the certificate has another id.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from certplane.caller.values import Certificate, CertificateNews
from certplane.pki.lifetime import renew_time
from certplane.runtime.backoff import Backoff

_FRESH: Final = 10
"""The first part of this many of a lifetime, in which nothing is due."""
RETRY: Final = Backoff(first=timedelta(minutes=1), most=timedelta(hours=1), floor=timedelta(seconds=10))
"""Between tries of a renewal that fails."""
MOST_RETRY: Final = timedelta(hours=24)
"""The longest wait for another try, whatever a broker says."""


class RenewalCause(StrEnum):
    """Why a keeper asks for a certificate."""

    FIRST = "there is none yet"
    EXPIRED = "it has expired"
    REVOKED = "it was revoked"
    NAMES_CHANGED = "the policy gives other names"
    REQUESTED = "an operator asked for it"
    ASKED = "the program asked for it"
    DUE = "its renewal time has come"


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of the certificate in use.

    Attributes:
        certificate: As it was issued.
        news: What the broker has said of it since; None if nothing.
        names: What the policy gives now; empty if that isn't known.
        phase_key: Fixes the place within the renewal window.
    """

    certificate: Certificate
    news: CertificateNews | None = None
    names: tuple[str, ...] = ()
    phase_key: str = ""


@dataclass(frozen=True, slots=True)
class Due:
    """When to renew, and why."""

    time: datetime
    cause: RenewalCause


def due(held: Held, now: datetime) -> Due:
    """When the certificate is to be renewed; not after `now` where that is at once."""
    certificate, news = held.certificate, held.news
    if certificate.revoke_time is not None or (news is not None and news.revoke_time is not None):
        return Due(now, RenewalCause.REVOKED)
    if now >= certificate.not_after:
        return Due(now, RenewalCause.EXPIRED)
    if held.names and held.names != certificate.dns_names:
        return Due(now, RenewalCause.NAMES_CHANGED)
    if news is not None and news.renewal_request_id and news.renew_time is not None:
        return Due(min(news.renew_time, certificate.not_after), RenewalCause.REQUESTED)
    return Due(_due_time(held), RenewalCause.DUE)


def retry_wait(failures: int, told: timedelta | None, rng: random.Random) -> timedelta:
    """How long to wait for another try.

    Args:
        failures: In a row.
        told: What the broker said; None if it said nothing.
        rng: Spreads.
    """
    own = RETRY.wait(failures, rng)
    return own if told is None else min(max(told, RETRY.floor) + own * 0.1, MOST_RETRY)


def _due_time(held: Held) -> datetime:
    certificate, news = held.certificate, held.news
    begin, end = certificate.not_before, certificate.not_after
    if end <= begin:
        return begin
    told = certificate.renew_time if news is None or news.renew_time is None else news.renew_time
    if told is None or told >= end:
        return renew_time(begin, end, None, held.phase_key)
    return max(told, begin + (end - begin) / _FRESH)
