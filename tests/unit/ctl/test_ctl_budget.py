"""`budget` and `budget forecast` against a scripted broker: what they ask, what they show, how they end."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from certplane.errors import ConfigurationError
from certplane.v1 import budget_pb2
from tests.support.operators_broker import OperatorsBroker
from tests.unit.ctl.conftest import Ctl

HOUR = timedelta(hours=1)


def a_budget() -> budget_pb2.GetBudgetResponse:
    answer, now = budget_pb2.GetBudgetResponse(), datetime.now(UTC)
    answer.budget_time.FromDatetime(now)
    ca = answer.issuers.add(issuer="letsencrypt", limits="letsencrypt", waiting_order_count=33)
    ca.waiting_until_time.FromDatetime(now + 20 * HOUR + timedelta(seconds=30))
    orders = ca.budgets.add(name="orders", scope=budget_pb2.LIMIT_SCOPE_ACCOUNT, amount=300, bucket_count=1)
    orders.per.FromTimedelta(3 * HOUR)
    bucket = orders.buckets.add(left=0, waiting_order_count=33, corrected=True)
    bucket.next_place_time.FromDatetime(now + timedelta(minutes=5, seconds=30))
    bucket.full_time.FromDatetime(now + 3 * HOUR)
    domains = ca.budgets.add(name="domains", scope=budget_pb2.LIMIT_SCOPE_REGISTERED_DOMAIN, amount=50, bucket_count=30)
    domains.per.FromTimedelta(168 * HOUR)
    for number in range(20):
        domains.buckets.add(subject=f"d{number:02d}.test", left=number).full_time.FromDatetime(now + 90 * HOUR)
    failed = ca.budgets.add(name="failed", scope=budget_pb2.LIMIT_SCOPE_FAILED_VALIDATIONS, amount=5, exempt=["ari"])
    failed.per.FromTimedelta(HOUR)
    answer.issuers.add(issuer="other", limits="none", hold_reason="too many").hold_until_time.FromDatetime(now + HOUR)
    return answer


async def test_what_is_left(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The fullest of each limit, who waits, who is held, and where nothing is counted."""
    broker.answers["GetBudget"] = a_budget()
    said = await ctl("budget", "--name", "www.example.org", "--issuer", "letsencrypt", width=120)
    assert said.status == 0, said
    (request,) = broker.requests("GetBudget")
    assert ([*request.issuers], [*request.dns_names]) == (["letsencrypt"], ["www.example.org"])
    assert re.search(r"letsencrypt +orders +the account +0 of 300 +3h 0m +in \d+m", said.out)
    assert "d02.test" in said.out
    assert "d03.test" not in said.out
    assert "5 of 5" in said.out
    assert "letsencrypt: 33 orders waiting for a place, the last of them until" in said.out
    assert "letsencrypt domains: 27 more of which places are taken" in said.out
    assert "other: nothing is asked of it before" in said.out
    assert "other: no limits are known (acme.limits: none)" in said.out


async def test_all_of_it(broker: OperatorsBroker, ctl: Ctl) -> None:
    """A wide table has the twenty that the broker shows; programs get its messages."""
    broker.answers["GetBudget"] = a_budget()
    wide = await ctl("budget", "-o", "wide")
    assert "d19.test" in wide.out
    assert "letsencrypt domains: 10 more" in wide.out
    assert "by the CA" in wide.out
    said = await ctl("budget", "-o", "json")
    assert [json.loads(line)["issuer"] for line in said.out.splitlines()] == ["letsencrypt", "other"]


async def test_it_fits_twenty_columns(broker: OperatorsBroker, ctl: Ctl) -> None:
    """What is left is always seen."""
    broker.answers["GetBudget"] = a_budget()
    said = await ctl("budget", width=20)
    assert "0 of 300" in said.out


async def test_a_forecast(broker: OperatorsBroker, ctl: Ctl) -> None:
    """When the last goes, what decides it, how many are exempt, and how far it is on the way."""
    answer, now = budget_pb2.ForecastOrdersResponse(certificate_count=333), datetime.now(UTC)
    answer.forecast.order_count, answer.forecast.exempt_count = 330, 30
    answer.forecast.bound_by = "orders of letsencrypt: 300 per 3h"
    answer.forecast.last_order_time.FromDatetime(now + 2 * HOUR)
    for number in range(1, 21):
        answer.forecast.steps.add(order_count=number * 10).time.FromDatetime(now + number * HOUR / 10)
    broker.answers["ForecastOrders"] = answer
    said = await ctl("budget", "forecast", "--issuer", "a", "--at", "letsencrypt", width=120)
    (request,) = broker.requests("ForecastOrders")
    assert ([*request.selection.issuers], request.issuer) == (["a"], "letsencrypt")
    assert said.status == 0
    assert "bound by orders of letsencrypt: 300 per 3h; 30 of 330 count for no limit" in " ".join(said.out.split())
    assert "3: the policy gives them to nobody any more" in said.out
    assert "50 by" in said.out
    before = await ctl("budget", "-o", "json", "forecast", "--all")
    assert json.loads(before.out)["certificateCount"] == 333


async def test_a_forecast_of_nothing(broker: OperatorsBroker, ctl: Ctl) -> None:
    """It says so, and ends with 1; a selection is needed, and options before the word are none of it."""
    broker.answers["ForecastOrders"] = budget_pb2.ForecastOrdersResponse()
    said = await ctl("budget", "forecast", "--host", "nobody")
    assert said.status == 1
    assert "picks no certificate in force" in said.said
    with pytest.raises(ConfigurationError, match="stand before `forecast`"):
        await ctl("budget", "--issuer", "a", "forecast", "--all")
