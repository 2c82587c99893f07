"""The pure rules of issuance as tables: what is cached, what a failure means, what the journal lists."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from certplane.broker.issuance.caching import answers, answers_again
from certplane.broker.issuance.outcome import (
    End,
    TryAgain,
    classify,
    conclude,
    pause_before_new_order,
    scopes_of,
)
from certplane.broker.issuance.validation import merge_records
from certplane.broker.model import CertificateRecord, Order, OrderState, RevocationReason, TxtRecord
from certplane.errors import ProblemDocument, Reason, Refusal, Violation
from certplane.runtime.backoff import Backoff
from tests.fakes.clock import ManualClock

NOW = ManualClock().now()
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
BACKOFF = Backoff(timedelta(seconds=2), MINUTE, floor=timedelta(seconds=1))


def record(**changes: object) -> CertificateRecord:
    """A delivered certificate in the middle of its life."""
    values: dict[str, object] = {
        "certificate_id": "c1",
        "order_id": "o1",
        "identity": "web1.test",
        "profile": "shop",
        "profile_hash": "h",
        "issuer": "ca",
        "dns_names": ("shop.test",),
        "public_key_sha256": "k",
        "serial_number": "1",
        "certificate_pem": "",
        "chain_pem": "",
        "not_before": NOW - 30 * DAY,
        "not_after": NOW + 60 * DAY,
        "renew_time": NOW + 30 * DAY,
        "create_time": NOW - 30 * DAY,
        "deliver_time": NOW - 30 * DAY,
    }
    return CertificateRecord(**(values | changes))  # type: ignore[arg-type] # fields by name


@pytest.mark.parametrize(
    ("changes", "replaces", "expected"),
    [
        pytest.param({}, "", True, id="fresh"),
        pytest.param({}, "c0", True, id="fresh-for-another-renewal"),
        pytest.param({}, "c1", False, id="the-replaced-one"),
        pytest.param({"renew_time": NOW}, "", False, id="due-at-its-renewal-time"),
        pytest.param({"renew_time": NOW + timedelta(microseconds=1)}, "", True, id="just-before-its-renewal-time"),
        pytest.param({"renew_time": NOW, "deliver_time": None}, "", True, id="due-never-delivered"),
        pytest.param({"renew_time": NOW, "deliver_time": None}, "c1", False, id="due-never-delivered-replaced"),
        pytest.param({"not_after": NOW, "deliver_time": None}, "", False, id="expired-never-delivered"),
        pytest.param({"revoke_time": NOW, "revocation_reason": RevocationReason.SUPERSEDED}, "", False, id="revoked"),
    ],
)
def test_which_certificate_answers(changes: dict[str, object], replaces: str, expected: bool) -> None:
    """Fresh or never handed out, valid, and not what is replaced."""
    found = record(**changes)
    assert answers(found, NOW, found.renew_time, replaces) is expected


@pytest.mark.parametrize(
    ("changes", "order_replaces", "replaces", "expected"),
    [
        pytest.param({"renew_time": NOW}, "c0", "c0", True, id="this-renewals"),
        pytest.param({"renew_time": NOW}, "c0", "c9", False, id="another-renewals"),
        pytest.param({"renew_time": NOW}, "", "c0", False, id="a-first-issues"),
        pytest.param({"renew_time": NOW}, "", "", False, id="no-renewal-at-all"),
        pytest.param({"not_after": NOW}, "c0", "c0", False, id="expired"),
        pytest.param({"revoke_time": NOW}, "c0", "c0", False, id="revoked"),
    ],
)
def test_which_renewal_is_answered_again(
    changes: dict[str, object], order_replaces: str, replaces: str, expected: bool
) -> None:
    """The same key and the same replaced certificate are the same renewal."""
    order = Order(
        identity="web1.test",
        profile="shop",
        profile_hash="h",
        dns_names=("shop.test",),
        public_key_sha256="k",
        csr_der=b"",
        issuer="ca",
        request_id="r",
        replaces_certificate_id=order_replaces,
        order_id="o1",
        state=OrderState.ISSUED,
        certificate_id="c1",
        create_time=NOW,
        update_time=NOW,
    )
    assert answers_again(record(**changes), order, NOW, replaces) is expected
    assert answers_again(record(**changes), None, NOW, replaces) is False


@pytest.mark.parametrize(
    ("reason", "said", "time_left", "again"),
    [
        pytest.param(Reason.ISSUER_UNAVAILABLE, None, 10 * MINUTE, True, id="issuer-away"),
        pytest.param(Reason.DNS_UNAVAILABLE, None, 10 * MINUTE, True, id="dns-away"),
        pytest.param(Reason.STORE_UNAVAILABLE, None, 10 * MINUTE, True, id="store-away"),
        pytest.param(Reason.AUDIT_UNAVAILABLE, None, 10 * MINUTE, True, id="audit-away"),
        pytest.param(Reason.POLICY_UNAVAILABLE, None, 10 * MINUTE, True, id="policy-away"),
        pytest.param(Reason.ISSUER_UNAVAILABLE, None, timedelta(), False, id="time-is-up"),
        pytest.param(Reason.ISSUER_UNAVAILABLE, None, -MINUTE, False, id="time-was-up"),
        pytest.param(Reason.ISSUER_UNAVAILABLE, 5 * MINUTE, 10 * MINUTE, True, id="back-in-time"),
        pytest.param(Reason.ISSUER_UNAVAILABLE, 10 * MINUTE, 10 * MINUTE, False, id="back-too-late"),
        pytest.param(Reason.ISSUER_RATE_LIMITED, MINUTE, 10 * MINUTE, True, id="short-rate-limit"),
        pytest.param(Reason.ISSUER_RATE_LIMITED, 2 * MINUTE, 10 * MINUTE, False, id="long-rate-limit"),
        pytest.param(Reason.ISSUER_RATE_LIMITED, None, 10 * MINUTE, False, id="rate-limit-of-unknown-length"),
        pytest.param(Reason.ISSUER_REJECTED, None, 10 * MINUTE, False, id="issuer-rejects"),
        pytest.param(Reason.DNS_REJECTED, None, 10 * MINUTE, False, id="dns-rejects"),
        pytest.param(Reason.PROFILE_NOT_ALLOWED, None, 10 * MINUTE, False, id="policy-rejects"),
        pytest.param(Reason.KEY_REUSED, None, 10 * MINUTE, False, id="key-blocked"),
        pytest.param(Reason.INTERNAL, None, 10 * MINUTE, False, id="unexpected"),
    ],
)
def test_what_a_failed_step_means(reason: Reason, said: timedelta | None, time_left: timedelta, again: bool) -> None:
    """What may pass is tried again within the order's time, never sooner than the CA said."""
    refusal = Refusal(reason, "x", said)
    for failures in (1, 2, 50):
        verdict = conclude(
            refusal, failures=failures, time_left=time_left, backoff=BACKOFF, rng=random.Random(failures)
        )
        assert isinstance(verdict, TryAgain) is again
        if isinstance(verdict, TryAgain):
            assert max(timedelta(seconds=1), said or timedelta()) <= verdict.wait <= max(MINUTE, said or timedelta())
        else:
            assert verdict == End(refusal, pause_before_new_order(refusal))


def _problems(*kinds: str) -> tuple[ProblemDocument, ...]:
    return tuple(ProblemDocument(f"urn:ietf:params:acme:error:{kind}", "x") for kind in kinds)


@pytest.mark.parametrize(
    ("refusal", "consequence", "scopes"),
    [
        pytest.param(Refusal(Reason.ISSUER_UNAVAILABLE, "x"), "retry_call", [], id="issuer-away"),
        pytest.param(Refusal(Reason.DNS_UNAVAILABLE, "x"), "retry_call", [], id="dns-away"),
        pytest.param(Refusal(Reason.DNS_REJECTED, "x"), "ask_person", [], id="dns-credentials"),
        pytest.param(Refusal(Reason.ISSUER_REJECTED, "x"), "retry_order", [], id="issuer-rejects"),
        pytest.param(
            Refusal(Reason.ISSUER_REJECTED, "x", problems=_problems("unauthorized")), "retry_order", [], id="challenge"
        ),
        pytest.param(Refusal(Reason.ISSUER_REJECTED, "x", problems=_problems("caa")), "ask_person", [], id="caa"),
        pytest.param(
            Refusal(Reason.ISSUER_REJECTED, "x", problems=_problems("compound", "rejectedIdentifier")),
            "ask_person",
            [],
            id="a-subproblem",
        ),
        pytest.param(
            Refusal(Reason.ISSUER_REJECTED, "x", problems=_problems("userActionRequired")),
            "ask_person",
            ["account"],
            id="terms-of-service",
        ),
        pytest.param(
            Refusal(Reason.ISSUER_REJECTED, "x", problems=_problems("externalAccountRequired")),
            "ask_person",
            ["account"],
            id="binding",
        ),
        pytest.param(
            Refusal(Reason.ISSUER_RATE_LIMITED, "x", violations=(Violation("domain:a.test", "x"),)),
            "wait",
            ["domain:a.test"],
            id="limit-of-a-domain",
        ),
        pytest.param(Refusal(Reason.ISSUER_RATE_LIMITED, "x"), "wait", ["name_set"], id="limit-of-who-knows-what"),
        pytest.param(
            Refusal(Reason.ISSUER_RATE_LIMITED, "x", violations=(Violation("issuer", "x"),)),
            "wait",
            ["name_set"],
            id="limit-that-an-older-version-stored",
        ),
        pytest.param(Refusal(Reason.RATE_LIMITED, "x"), "retry_order", [], id="our-own-limit"),
        pytest.param(Refusal(Reason.INTERNAL, "x"), "retry_order", [], id="unexpected"),
    ],
)
def test_what_a_failure_asks_for(refusal: Refusal, consequence: str, scopes: list[str]) -> None:
    """Each failure has one consequence, and holds up what it is about."""
    assert classify(refusal) == consequence
    assert [str(scope) for scope in scopes_of(refusal)] == scopes


@pytest.mark.parametrize(
    ("reason", "said", "pause"),
    [
        pytest.param(Reason.ISSUER_REJECTED, None, 15 * MINUTE, id="issuer-rejects"),
        pytest.param(Reason.ISSUER_RATE_LIMITED, None, timedelta(hours=1), id="limit-of-unknown-length"),
        pytest.param(Reason.ISSUER_RATE_LIMITED, timedelta(hours=34), timedelta(hours=34), id="the-ca-said-later"),
        pytest.param(Reason.ISSUER_UNAVAILABLE, timedelta(seconds=3), timedelta(seconds=3), id="the-ca-said-sooner"),
        pytest.param(Reason.ISSUER_UNAVAILABLE, -MINUTE, timedelta(), id="a-time-in-the-past"),
        pytest.param(Reason.NAMES_NOT_ALLOWED, None, timedelta(), id="policy-holds-nothing-up"),
    ],
)
def test_when_a_new_order_may_follow(reason: Reason, said: timedelta | None, pause: timedelta) -> None:
    """The CA's word wins over the table."""
    assert pause_before_new_order(Refusal(reason, "x", said)) == pause


PLANNED = TxtRecord("", "_acme-challenge.a.test", "v")
IN_ZONE = TxtRecord("a.test", "_acme-challenge.a.test", "v")
WRITTEN = TxtRecord("a.test", "_acme-challenge.a.test", "v", "rr1")
REWRITTEN = TxtRecord("a.test", "_acme-challenge.a.test", "v", "rr2")
OTHER_VALUE = TxtRecord("", "_acme-challenge.a.test", "w")


@pytest.mark.parametrize(
    ("journalled", "latest", "expected"),
    [
        pytest.param((), (PLANNED,), (PLANNED,), id="first-plan"),
        pytest.param((PLANNED,), (WRITTEN,), (WRITTEN,), id="written"),
        pytest.param((WRITTEN,), (PLANNED,), (WRITTEN,), id="planned-again-after-a-restart"),
        pytest.param((WRITTEN,), (REWRITTEN,), (REWRITTEN,), id="written-again"),
        pytest.param((PLANNED,), (IN_ZONE,), (IN_ZONE,), id="provider-without-ids"),
        pytest.param((WRITTEN,), (IN_ZONE,), (WRITTEN,), id="an-id-is-not-forgotten"),
        pytest.param((PLANNED,), (OTHER_VALUE,), (PLANNED, OTHER_VALUE), id="wildcard-and-apex-share-a-name"),
        pytest.param((WRITTEN,), (), (WRITTEN,), id="no-longer-planned-but-standing"),
    ],
)
def test_what_the_journal_lists(
    journalled: tuple[TxtRecord, ...], latest: tuple[TxtRecord, ...], expected: tuple[TxtRecord, ...]
) -> None:
    """Whatever may stand is listed, with its id as soon as that is known."""
    assert merge_records(journalled, latest) == expected
