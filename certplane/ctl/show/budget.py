"""What the CAs' limits leave as rows and lines, and forecasts as facts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from certplane.ctl.show.rollouts import forecast_text
from certplane.ctl.show.words import clock_text, moment, off
from certplane.rpc.times import span_of
from certplane.runtime.columns import Column
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import budget_pb2

Bucket = budget_pb2.LimitBudget.Bucket

_SHOWN: Final = 3
"""Budgets of a limit in a table that isn't wide."""
_SCOPES: Final = {
    budget_pb2.LIMIT_SCOPE_ACCOUNT: "the account",
    budget_pb2.LIMIT_SCOPE_REGISTERED_DOMAIN: "each registered domain",
    budget_pb2.LIMIT_SCOPE_NAMES: "each set of names",
    budget_pb2.LIMIT_SCOPE_FAILED_VALIDATIONS: "each name",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A budget of a limit; None: nothing of the limit is taken."""

    issuer: str
    limit: budget_pb2.LimitBudget
    bucket: Bucket | None


def rows(issuers: Iterable[budget_pb2.IssuerBudget], *, wide: bool) -> Iterator[Row]:
    """Of each limit its fullest budgets."""
    for issuer in issuers:
        for limit in issuer.budgets:
            shown = limit.buckets if wide else limit.buckets[:_SHOWN]
            for bucket in shown:
                yield Row(issuer.issuer, limit, bucket)
            if not shown:
                yield Row(issuer.issuer, limit, None)


def columns(now: datetime) -> list[Column[Row]]:
    """A table of them."""
    return [
        Column("ISSUER", lambda row: row.issuer, 2, least=6),
        Column("LIMIT", lambda row: row.limit.name, 0, least=12),
        Column("OF", _of, 1, least=8),
        Column("LEFT", left_text, 0, style=_style),
        Column("PER", _per, 5),
        Column("NEXT", lambda row: _off(row, "next_place_time", now), 3),
        Column("FULL", lambda row: _off(row, "full_time", now), 6),
        Column("WAITING", lambda row: _waiting(row.bucket), 4),
        Column("CORRECTED", lambda row: "by the CA" if row.bucket is not None and row.bucket.corrected else "", None),
        Column("EXEMPT", lambda row: " ".join(row.limit.exempt), None),
    ]


def left_text(row: Row) -> str:
    """`3 of 5`."""
    return f"{row.limit.amount if row.bucket is None else row.bucket.left} of {row.limit.amount}"


def issuer_lines(issuer: budget_pb2.IssuerBudget, now: datetime) -> Iterator[tuple[str, Style]]:
    """What a table doesn't say."""
    name = issuer.issuer
    if issuer.HasField("hold_until_time"):
        until = moment(issuer.hold_until_time, now)
        yield f"{name}: nothing is asked of it before {until}: {issuer.hold_reason}", Style.BAD
    if issuer.waiting_order_count:
        last = "the last of them for more than 90 days"
        if issuer.HasField("waiting_until_time"):
            last = f"the last of them until {moment(issuer.waiting_until_time, now)}"
        yield f"{name}: {counted(issuer.waiting_order_count, 'order')} waiting for a place, {last}", Style.WARNING
    if not issuer.budgets:
        yield f"{name}: no limits are known (acme.limits: {issuer.limits}); what it refuses is waited out", Style.PLAIN


def more_lines(issuers: Iterable[budget_pb2.IssuerBudget], *, wide: bool) -> Iterator[str]:
    """What of a limit isn't shown."""
    for issuer in issuers:
        for limit in issuer.budgets:
            left = limit.bucket_count - len(limit.buckets if wide else limit.buckets[:_SHOWN])
            if left > 0:
                yield f"{issuer.issuer} {limit.name}: {left} more of which places are taken"


def forecast_facts(answer: budget_pb2.ForecastOrdersResponse, now: datetime) -> list[tuple[str, str]]:
    """All of it."""
    forecast = answer.forecast
    passed_over = answer.certificate_count - forecast.order_count
    steps = [f"{step.order_count} by {clock_text(step.time)}" for step in forecast.steps[4::5]]
    return [
        ("certificates", str(answer.certificate_count)),
        ("  passed over", f"{passed_over}: the policy gives them to nobody any more" if passed_over > 0 else ""),
        ("forecast", forecast_text(forecast, now)),
        ("on the way", ", ".join(steps)),
    ]


def _of(row: Row) -> str:
    if row.bucket is None:
        return _SCOPES.get(row.limit.scope, f"scope {row.limit.scope}")
    return row.bucket.subject or _SCOPES.get(row.limit.scope, f"scope {row.limit.scope}")


def _per(row: Row) -> str:
    span = span_of(row.limit.per)
    return span_text(span) if span else ""


def _style(row: Row) -> Style:
    return Style.WARNING if row.bucket is not None and not row.bucket.left else Style.PLAIN


def _waiting(bucket: Bucket | None) -> str:
    return "" if bucket is None or not bucket.waiting_order_count else str(bucket.waiting_order_count)


def _off(row: Row, field: str, now: datetime) -> str:
    if row.bucket is None or not row.bucket.HasField(field):  # type: ignore[arg-type]  # a field's name
        return ""
    return off(getattr(row.bucket, field), now)
