"""Forecasts, and what the limits leave: what is counted, what waits already, what decides, and what never fits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from certplane.broker.budget import gcra
from certplane.broker.budget.claims import claim_of, urgency_of
from certplane.broker.budget.forecast import Forecast, Step, forecast, in_force
from certplane.broker.budget.model import (
    FULL,
    Bucket,
    BucketKey,
    Claim,
    Exemption,
    IssuerLimits,
    LedgerState,
    Level,
    Limit,
    LimitScope,
    Need,
    Waiter,
)
from certplane.broker.budget.overview import left_text, overview
from certplane.broker.budget.published import limits_of
from tests.support.limited_ca import Play, Wish

NOW = datetime(2026, 3, 19, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
URL = "https://ca.test/directory"
ORDERS = Limit("orders", LimitScope.ACCOUNT, 4, 4 * HOUR, frozenset({Exemption.ARI, Exemption.SAME_NAMES}))
NAMES = Limit("names", LimitScope.NAMES, 2, 20 * HOUR, frozenset({Exemption.ARI}))
CA = IssuerLimits("ca", URL, "configuration", (ORDERS, NAMES))


def asked(number: int, names: tuple[str, ...] = (), *, ari: bool = False, limits: IssuerLimits = CA) -> Claim:
    urgency = urgency_of(f"c{number}", NOW + number * DAY, NOW)
    return claim_of(limits, names or (f"h{number}.example.org",), urgency=urgency, ari=ari)


def waiter(claim: Claim, order_id: str) -> Waiter:
    keys = tuple(need.key for need in claim.needs if need.takes)
    return Waiter(order_id, claim.issuer, keys, claim.urgency._replace(order_id=order_id), NOW)


def empty(need: Need, taken: int) -> Bucket:
    level = FULL
    for _ in range(taken):
        level = gcra.take(level, need.limit.rate, NOW)
    return Bucket(need.key, need.label, level)


def state(buckets: Iterable[Bucket] = (), waiters: Sequence[Waiter] = ()) -> LedgerState:
    return LedgerState(NOW, {bucket.key: bucket for bucket in buckets}, waiters)


def test_nothing_is_asked() -> None:
    """No order, no time."""
    assert forecast(state(), [], [CA]) == Forecast()


def test_what_fits_goes_now() -> None:
    """Nothing bounds it."""
    found = forecast(state(), [asked(number) for number in range(4)], [CA])
    assert found == Forecast(4, 0, NOW, "", (Step(NOW, 4),))


def test_more_than_fit_wait_for_their_limit() -> None:
    """Four at once, then one an hour: the limit is named, and the steps rise to all of them."""
    found = forecast(state(), [asked(number) for number in range(10)], [CA])
    assert (found.order_count, found.exempt_count, found.never_count) == (10, 0, 0)
    assert found.bound_by == "orders of ca: 4 per 4h"
    assert found.last_order_time is not None
    assert NOW + 6 * HOUR <= found.last_order_time <= NOW + 6 * HOUR + ORDERS.rate.lag
    assert len(found.steps) == 20
    assert [step.order_count for step in found.steps] == sorted(step.order_count for step in found.steps)
    assert found.steps[0].order_count == 4
    assert found.steps[-1] == Step(found.last_order_time, 10)


def test_renewals_in_their_window_take_no_place() -> None:
    """They are counted as such, and go now."""
    claims = [asked(number, ari=number < 6) for number in range(10)]
    found = forecast(state(), claims, [CA])
    assert (found.order_count, found.exempt_count, found.last_order_time) == (10, 6, NOW)


def test_an_issuer_without_limits_bounds_nothing() -> None:
    """All go now, and take no place of any limit."""
    free = IssuerLimits("free", "https://free.test/directory", "none")
    found = forecast(state(), [asked(number, limits=free) for number in range(50)], [CA, free])
    assert (found.order_count, found.exempt_count, found.last_order_time, found.bound_by) == (50, 50, NOW, "")


def test_what_waits_goes_by_its_urgency() -> None:
    """Orders of others that are more urgent come before."""
    four = [empty(asked(0).needs[0], 4)]
    alone = forecast(state(four), [asked(50)], [CA])
    others = [waiter(asked(number), f"o{number}") for number in range(1, 4)]
    behind = forecast(state(four, others), [asked(50)], [CA])
    assert alone.last_order_time is not None
    assert behind.last_order_time is not None
    assert behind.last_order_time - alone.last_order_time == 3 * HOUR
    late = [waiter(asked(number), f"o{number}") for number in range(60, 63)]
    assert forecast(state(four, late), [asked(50)], [CA]).last_order_time == alone.last_order_time


def test_an_order_that_waits_already_is_counted_once() -> None:
    """For the same certificate: a rollout's forecast while its orders wait is not twice as long."""
    four = [empty(asked(0).needs[0], 4)]
    claims = [asked(number) for number in range(1, 9)]
    before = forecast(state(four), claims, [CA])
    waits = [waiter(claim, f"order-{number}") for number, claim in enumerate(claims)]
    assert forecast(state(four, waits), claims, [CA]) == before
    assert forecast(state(four, waits[:3]), claims, [CA]) == before


def test_two_hosts_that_are_alike_are_two_orders() -> None:
    """Same names, same end: one waits, both are forecast."""
    one = asked(1, ("shop.example.org",))
    two = replace(one, urgency=one.urgency._replace(order_id="c2"))
    found = forecast(state([], [waiter(one, "order-1")]), [one, two], [CA])
    assert found.order_count == 2


def test_what_never_fits_is_said() -> None:
    """More certificates of the same names than 90 days give."""
    slow = replace(CA, limits=(replace(NAMES, per=80 * DAY),))
    claims = [
        replace(each, urgency=each.urgency._replace(order_id=f"c{number}"))
        for number in range(9)
        for each in [asked(1, ("shop.example.org",), limits=slow)]
    ]
    found = forecast(state(), claims, [slow])
    assert (found.order_count, found.never_count) == (9, 5)
    assert found.bound_by == "names of ca: 2 per 1920h"
    assert found.steps[-1].order_count == 4


def test_a_limit_that_is_gone_or_lowered_holds_up_nothing() -> None:
    """Buckets of limits that are no longer configured don't count, and none is fuller than empty."""
    key = asked(0).needs[0].key
    gone = Bucket(BucketKey(URL, "ca", "old", ""), "", Level(NOW, NOW + 50 * DAY))
    back = Bucket(key, "", Level(NOW, NOW + 50 * DAY))
    now = in_force(state([gone, back]), [CA])
    assert [*now.buckets] == [key]
    found = forecast(now, [asked(1)], [CA])
    assert found.last_order_time is not None
    assert found.last_order_time < NOW + 2 * HOUR


def test_it_comes_as_forecast() -> None:
    """The end of what is asked is what comes of the same orders, one by one, through the ledger: within 5 %."""
    limits = limits_of("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory")
    wishes = [
        Wish(NOW, f"c{number:04d}", (f"h{number}.d{number % 40}.test",), NOW + timedelta(minutes=number))
        for number in range(1200)
    ]
    played = Play(limits, lambda _, now: now + 900 * DAY).run(wishes)
    claims = [
        claim_of(limits, wish.dns_names, urgency=urgency_of(wish.order_id, wish.ends, wish.time)) for wish in wishes
    ]
    found = forecast(LedgerState(NOW, {}, ()), claims, [limits])
    assert found.last_order_time is not None
    last = max(played.made.values())
    assert abs(found.last_order_time - last) <= 0.05 * (last - NOW)
    for step in found.steps:
        assert step.order_count == sum(moment <= step.time for moment in played.made.values())


def test_ten_thousand_take_no_while() -> None:
    """Of processor time, which no other process takes away; the bound is generous, the usual is a tenth of it."""
    limits = limits_of("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory")
    claims = [asked(number, limits=limits) for number in range(10_000)]
    began = time.process_time()
    found = forecast(LedgerState(NOW, {}, ()), claims, [limits])
    assert time.process_time() - began < 3
    assert found.order_count == 10_000


def test_the_fullest_bucket_comes_first() -> None:
    """With what is left, when the next place is there, who waits, and whether the CA has corrected it."""
    one, two = asked(1), asked(2)
    full = replace(empty(two.needs[1], 2), told_until=NOW + HOUR)
    waits = [waiter(two, "order")]
    (ca,) = overview(state([empty(one.needs[0], 1), empty(one.needs[1], 1), full], waits), [CA])
    orders, names = ca.views
    assert (orders.left, orders.bucket_count, orders.buckets[0].next_place_time) == (3, 1, None)
    assert orders.buckets[0].waiting_count == 1
    assert [view.bucket.label for view in names.buckets] == ["h2.example.org", "h1.example.org"]
    assert (names.left, names.buckets[0].left, names.buckets[1].left) == (0, 0, 1)
    assert names.buckets[0].next_place_time is not None
    assert names.buckets[0].bucket.told_until is not None
    assert (ca.waiting_count, ca.never_count) == (1, 0)
    assert ca.waiting_until == names.buckets[0].next_place_time


def test_only_what_a_name_needs() -> None:
    """By issuer and name: the account's, its registered domain's, its own."""
    domains = Limit("domains", LimitScope.REGISTERED_DOMAIN, 5, HOUR)
    failed = Limit("failed", LimitScope.FAILED_VALIDATIONS, 5, HOUR)
    both = replace(CA, limits=(ORDERS, NAMES, domains, failed))
    buckets = [empty(need, 1) for number in (1, 2) for need in asked(number, (f"h.d{number}.test",), limits=both).needs]
    other = IssuerLimits("other", "https://other.test/directory", "none")
    (ca,) = overview(state(buckets), [both, other], ["ca"], ["x.d1.test"])
    assert [view.bucket_count for view in ca.views] == [1, 0, 1, 0]
    (ca,) = overview(state(buckets), [both, other], ["ca"], ["h.d1.test"])
    assert [view.bucket_count for view in ca.views] == [1, 1, 1, 1]
    assert [view.limits.issuer for view in overview(state(buckets), [both, other])] == ["ca", "other"]


def test_one_who_never_goes_has_no_time() -> None:
    """Who waits beyond 90 days is counted, and nothing is said of when the last goes."""
    slow = replace(CA, limits=(replace(NAMES, per=400 * DAY),))
    claim = asked(1, limits=slow)
    (ca,) = overview(state([empty(claim.needs[0], 2)], [waiter(claim, "order")]), [slow])
    assert (ca.waiting_count, ca.waiting_until, ca.never_count) == (1, None, 1)


def test_what_is_left_for_an_order() -> None:
    """Of the need that has least."""
    claim = asked(1)
    assert left_text(claim.needs, state([empty(claim.needs[1], 1)])) == "1 of 2 places of names left (2 per 20h)"
    assert not left_text((), state())
