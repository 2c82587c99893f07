"""What a service is told of its certificates."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certplane.broker.model import RevocationReason
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.watches.model import CertificateNews, HeldByService
from certplane.broker.watches.news import news_of
from certplane.fleet_report.model import RenewalCause

DAY = timedelta(days=1)
T0 = datetime(2026, 11, 23, 12, tzinfo=UTC)
HELD = HeldByService("c-1", "api", "web", ("a.example",), "3e7", "a" * 64, T0, T0 + 90 * DAY, T0 + 60 * DAY)
PLAIN = CertificateNews("c-1", "web", ("a.example",), "3e7", "a" * 64, T0, T0 + 90 * DAY, T0 + 60 * DAY)


def plan(**fields: Any) -> RenewalPlan:
    return RenewalPlan("c-1", "api", T0 + DAY, **{"cause": RenewalCause.OPERATOR, **fields})


CASES = {
    "its lifetime alone": (HELD, PLAIN),
    "an operator's request": (
        replace(HELD, plan=plan(reason="drill", renewal_request_id="r-1")),
        replace(
            PLAIN,
            renew_time=T0 + DAY,
            renew_cause=RenewalCause.OPERATOR,
            renew_reason="drill",
            renewal_request_id="r-1",
        ),
    ),
    "a rollout's new key": (
        replace(HELD, plan=plan(rollout_id="rollout-1", new_key=True)),
        replace(PLAIN, renew_time=T0 + DAY, renew_cause=RenewalCause.OPERATOR, new_key=True),
    ),
    "the CA's window": (
        replace(HELD, plan=plan(cause=RenewalCause.ISSUER, reason="the CA asks\nfor it")),
        replace(PLAIN, renew_time=T0 + DAY, renew_cause=RenewalCause.ISSUER, renew_reason="the CA asks for it"),
    ),
    "revoked, whatever was planned": (
        replace(HELD, revoke_time=T0 + DAY, revocation_reason=RevocationReason.SUPERSEDED, plan=plan(reason="drill")),
        replace(
            PLAIN,
            renew_time=T0 + DAY,
            renew_cause=RenewalCause.REVOKED,
            renew_reason="it was revoked: superseded",
            revoke_time=T0 + DAY,
            revocation_reason=RevocationReason.SUPERSEDED,
        ),
    ),
    "revoked without a reason": (
        replace(HELD, revoke_time=T0 + DAY),
        replace(
            PLAIN,
            renew_time=T0 + DAY,
            renew_cause=RenewalCause.REVOKED,
            renew_reason="it was revoked",
            revoke_time=T0 + DAY,
        ),
    ),
    "its key is in other hands": (
        replace(HELD, revoke_time=T0 + DAY, revocation_reason=RevocationReason.KEY_COMPROMISE),
        replace(
            PLAIN,
            renew_time=T0 + DAY,
            renew_cause=RenewalCause.REVOKED,
            renew_reason="it was revoked: keyCompromise",
            new_key=True,
            revoke_time=T0 + DAY,
            revocation_reason=RevocationReason.KEY_COMPROMISE,
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_told(name: str) -> None:
    """When to renew it and why, as it is known now."""
    held, told = CASES[name]
    assert news_of([held]) == (told,)


def test_a_long_reason_is_cut() -> None:
    """A message of many certificates stays small, whatever an operator writes."""
    (told,) = news_of([replace(HELD, plan=plan(reason="\u00e4" * 500))])
    assert len(told.renew_reason.encode()) <= 500


def test_the_newest_of_each_profile_and_key_is_told() -> None:
    """The oldest first; what a newer one of the same profile and key follows is told to nobody, in whatever order it comes."""
    newer = replace(HELD, certificate_id="c-2", create_time=T0 + DAY)
    other_key = replace(HELD, certificate_id="c-3", public_key_sha256="b" * 64, create_time=T0 + DAY / 2)
    other_profile = replace(HELD, certificate_id="c-0", profile="mail", create_time=T0 + 2 * DAY)
    twin = replace(HELD, certificate_id="c-4", profile="mail", create_time=T0 + 2 * DAY)
    held = [newer, HELD, twin, other_profile, other_key]
    for ordered in (held, held[::-1]):
        assert [one.certificate_id for one in news_of(ordered)] == ["c-3", "c-2", "c-4"]
    assert news_of([]) == ()
