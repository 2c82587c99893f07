"""Between `BudgetService`'s messages and the broker's values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from certplane.broker.budget.forecast import Forecast
from certplane.broker.budget.model import LimitScope
from certplane.broker.budget.overview import BucketView, IssuerView, LimitView
from certplane.broker.services.convert import invalid_request
from certplane.errors import Refusal
from certplane.pki.names import has_dns_syntax
from certplane.rpc.times import put_time
from certplane.runtime.text import printable
from certplane.v1 import budget_pb2 as pb

_SCOPES: Final = {scope: pb.LimitScope.Value(f"LIMIT_SCOPE_{scope.name}") for scope in LimitScope}
_MOST_NAMES: Final = 100
_MOST_TEXT: Final = 256
_MOST_LABEL: Final = 200
_LONGEST: Final = 500


def names_of(names: Sequence[str]) -> Collection[str]:
    """The DNS names that buckets are looked for by.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    if len(names) > _MOST_NAMES:
        raise invalid_request("dns_names", f"must be at most {_MOST_NAMES}")
    found = [name.lower() for name in names]
    for name in found:
        if not has_dns_syntax(name):
            raise invalid_request("dns_names", f"has {printable(name, _MOST_TEXT)!r}, which is no DNS name")
    return found


def issuers_of(field: str, issuers: Sequence[str], known: Collection[str]) -> Sequence[str]:
    """The issuers that are asked for.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, the configuration hasn't one of them.
    """
    for issuer in issuers:
        if issuer not in known:
            shown = printable(issuer, _MOST_TEXT)
            raise invalid_request(field, f"is {shown!r}, which is none of the broker's: {', '.join(sorted(known))}")
    return issuers


def forecast_message(forecast: Forecast) -> pb.Forecast:
    """When orders would be made."""
    message = pb.Forecast(
        order_count=forecast.order_count,
        exempt_count=forecast.exempt_count,
        bound_by=printable(forecast.bound_by, _LONGEST),
        never_count=forecast.never_count,
    )
    if forecast.last_order_time is not None:
        put_time(forecast.last_order_time, message.last_order_time)
    for step in forecast.steps:
        put_time(step.time, message.steps.add(order_count=step.order_count).time)
    return message


def issuer_message(view: IssuerView, held: tuple[datetime, Refusal] | None) -> pb.IssuerBudget:
    """What an issuer may be asked for; `held` is until when, and why, nothing goes there."""
    message = pb.IssuerBudget(
        issuer=view.limits.issuer,
        directory_url=view.limits.directory_url,
        limits=view.limits.source,
        budgets=map(_limit_message, view.views),
        waiting_order_count=view.waiting_count,
    )
    if view.waiting_until is not None:
        put_time(view.waiting_until, message.waiting_until_time)
    if held is not None:
        until, refusal = held
        put_time(until, message.hold_until_time)
        message.hold_reason = printable(refusal.message, _LONGEST)
    return message


def _limit_message(view: LimitView) -> pb.LimitBudget:
    limit = view.limit
    message = pb.LimitBudget(
        name=limit.name,
        scope=_SCOPES[limit.scope],
        amount=limit.amount,
        exempt=sorted(limit.exempt),
        buckets=map(_bucket_message, view.buckets),
        bucket_count=view.bucket_count,
    )
    message.per.FromTimedelta(limit.per)
    return message


def _bucket_message(view: BucketView) -> pb.LimitBudget.Bucket:
    message = pb.LimitBudget.Bucket(
        subject=printable(view.bucket.label, _MOST_LABEL),
        left=view.left,
        waiting_order_count=view.waiting_count,
        corrected=view.bucket.told_until is not None,
    )
    put_time(view.full_time, message.full_time)
    if view.next_place_time is not None:
        put_time(view.next_place_time, message.next_place_time)
    return message
