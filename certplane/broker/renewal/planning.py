"""From what a CA says about a certificate to the plan for its renewal (RFC 9773 4.2 and 4.3). Pure.

- One moment is picked in the CA's window, at random, and kept as long as the window stays; a moved window is picked in
  anew. A window that is past means now, or, where many are to be replaced by a rollout, soon: it takes them over.
- The CA may bring a renewal forward as it likes, and put it off to a certain point: never past what the policy's
  `renew_before` says, nor into the last eighth of the life.
- What an operator (or a revocation) has planned is only ever brought forward.
- No answer changes no plan. Without any the lifetime's own rule holds (`certplane.pki.lifetime`).
- Asked again when the CA says, between a minute and a day; after failures that may pass soon with backoff, then, as
  after all others, every six hours.
"""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.renewal.model import (
    InForce,
    RenewalInfo,
    RenewalInfoError,
    RenewalInfoUnsupportedError,
    RenewalPlan,
    WindowMove,
)
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.backoff import Backoff

SHORTEST_WAIT: Final = timedelta(minutes=1)
LONGEST_WAIT: Final = timedelta(days=1)
"""Between two questions about one certificate, whatever the CA says (RFC 9773 4.3.1 advises such limits)."""

_USUAL_WAIT: Final = timedelta(hours=6)
"""Without the CA's word, and after errors that don't pass by themselves (RFC 9773 4.3.3)."""

_UNSUPPORTED_WAIT: Final = LONGEST_WAIT
"""A CA that has no renewal information doesn't get it overnight."""

_BACKOFF: Final = Backoff(timedelta(minutes=2), timedelta(hours=1), floor=SHORTEST_WAIT)
_MOST_TRIES: Final = 6
"""About two hours of backoff; then it isn't temporary any more."""

_JITTER: Final = 1 / 20
"""Share of a wait by which it may be longer: certificates that were asked about together drift apart."""

_OTHERS_CAUSES: Final = (RenewalCause.OPERATOR, RenewalCause.REVOKED)
"""Causes of plans that aren't the CA's to undo."""

_LAST_SHARE: Final = 1 / 8
"""Share of the life that is left for a renewal's own troubles: a CA that puts it off further isn't followed. It is
where monitoring starts to alarm."""


def plan_renewal(
    certificate: InForce,
    answer: RenewalInfo | RenewalInfoError,
    *,
    renew_before: timedelta | None,
    patience: timedelta = timedelta(),
    now: datetime,
    rng: random.Random,
) -> RenewalPlan:
    """The plan that takes the place of `certificate.plan`.

    Args:
        certificate: With the plan that it has, if any.
        answer: What the CA says, or why it says nothing.
        renew_before: What policy sets for its profile now; None if it leaves that to the lifetime and the CA.
        patience: How long a certificate that the CA wants replaced now waits for a rollout.
        now: The time of the answer.
        rng: Picks the moment, and spreads the next question.
    """
    latest = latest_renewal(certificate, renew_before)
    if isinstance(answer, RenewalInfo):
        return _on_answer(certificate, answer, latest, now, rng, patience=patience)
    return _on_error(certificate, answer, latest, now, rng)


def has_moved(before: RenewalPlan | None, after: RenewalPlan) -> bool:
    """Whether the CA's window is another one than before; the first one hasn't moved."""
    if before is None or before.window_start is None:
        return False
    return (before.window_start, before.window_end) != (after.window_start, after.window_end)


def move_of(certificate: InForce, after: RenewalPlan, now: datetime) -> WindowMove | None:
    """What the CA has done to the window of a certificate whose plan becomes `after`; None if it did nothing.

    A window is brought *forward* where all of the new one lies before the old one began, or where it is past and the
    old one wasn't: a CA that shifts its windows by some hours calls nothing back. A first answer is a move only where
    it is past and the certificate's own lifetime has it renewed later: the window of a host that was away for weeks is
    past by itself.
    """
    start, end = after.window_start, after.window_end
    if start is None or end is None:
        return None
    before = certificate.plan
    if before is None or before.window_start is None or before.window_end is None:
        if not end <= now < certificate.lifetime_renew_time:
            return None
        forward = True
    elif not has_moved(before, after):
        return None
    else:
        forward = end <= before.window_start or end <= now < before.window_end
    return WindowMove(
        certificate.certificate_id,
        certificate.host,
        certificate.issuer,
        now,
        start,
        end,
        certificate.renew_time,
        after.explanation_url,
        forward,
    )


def latest_renewal(certificate: InForce, renew_before: timedelta | None) -> datetime:
    """The moment past which no CA puts a renewal off."""
    lifetime = certificate.not_after - certificate.not_before
    left = lifetime * _LAST_SHARE
    if renew_before is not None:
        left = max(left, min(renew_before, lifetime / 2))  # capped as in certplane.pki.lifetime
    return certificate.not_after - left


def _on_answer(
    certificate: InForce,
    info: RenewalInfo,
    latest: datetime,
    now: datetime,
    rng: random.Random,
    *,
    patience: timedelta,
) -> RenewalPlan:
    plan = certificate.plan
    if plan is not None and _keeps(plan, info, latest):
        moment, cause, reason = plan.renew_time, plan.cause, plan.reason
    else:
        # Patience puts off nothing that was to come sooner: windows may move on and on.
        moment, cause, reason = _pick(info, now, min(patience, max(certificate.renew_time - now, timedelta())), rng)
    if latest < moment:
        moment, cause = latest, RenewalCause.LIFETIME
        reason = f"before the CA's window {_span(info)} ends: the latest time that the lifetime allows"
    after = RenewalPlan(certificate.certificate_id, certificate.host, moment, cause)
    if plan is not None and plan.cause in _OTHERS_CAUSES:
        after, cause = plan, plan.cause  # with all else that the request, or a rollout, asks for
        if plan.renew_time <= moment:
            moment, reason = plan.renew_time, plan.reason
    return replace(
        after,
        renew_time=moment,
        cause=cause,
        reason=reason,
        explanation_url=info.explanation_url,
        window_start=info.window_start,
        window_end=info.window_end,
        next_check_time=now + _wait(_USUAL_WAIT if info.retry_after is None else info.retry_after, rng),
        check_failures=0,
    )


def _keeps(plan: RenewalPlan, info: RenewalInfo, latest: datetime) -> bool:
    """Whether the plan has what this window leads to: another draw would only be another chance to be early."""
    if (plan.window_start, plan.window_end) != (info.window_start, info.window_end):
        return False
    # One that was brought forward by a policy that has changed since is drawn again.
    return plan.cause is not RenewalCause.LIFETIME or plan.renew_time >= latest


def _pick(
    info: RenewalInfo, now: datetime, patience: timedelta, rng: random.Random
) -> tuple[datetime, RenewalCause, str]:
    if info.window_end <= now:
        return now + patience, RenewalCause.ISSUER, "the CA asks for it now"
    moment = info.window_start + (info.window_end - info.window_start) * rng.random()
    return moment, RenewalCause.ISSUER, f"the CA's window (ARI) {_span(info)}"


def _on_error(
    certificate: InForce, error: RenewalInfoError, latest: datetime, now: datetime, rng: random.Random
) -> RenewalPlan:
    failures = 1 if certificate.plan is None else certificate.plan.check_failures + 1
    wait = _USUAL_WAIT
    if isinstance(error, RenewalInfoUnsupportedError):
        failures, wait = 0, _UNSUPPORTED_WAIT
    elif error.temporary and failures <= _MOST_TRIES:
        wait = max(_BACKOFF.wait(failures, rng), error.retry_after or timedelta())
    elif error.retry_after is not None:
        wait = max(wait, error.retry_after)
    next_check_time = now + _wait(wait, rng)
    plan = certificate.plan
    if plan is None or (plan.cause is RenewalCause.LIFETIME and plan.window_start is None):
        moment = min(certificate.lifetime_renew_time, latest)
        plan = RenewalPlan(certificate.certificate_id, certificate.host, moment, RenewalCause.LIFETIME, "its lifetime")
    return replace(
        plan, renew_time=min(plan.renew_time, latest), next_check_time=next_check_time, check_failures=failures
    )


def _wait(wait: timedelta, rng: random.Random) -> timedelta:
    clamped = max(wait, SHORTEST_WAIT)
    if clamped >= LONGEST_WAIT:
        return LONGEST_WAIT
    return min(clamped * (1 + _JITTER * rng.random()), LONGEST_WAIT)


def _span(info: RenewalInfo) -> str:
    return f"{info.window_start:%Y-%m-%dT%H:%M:%SZ}/{info.window_end:%Y-%m-%dT%H:%M:%SZ}"
