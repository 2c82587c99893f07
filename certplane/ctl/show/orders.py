"""Orders at the CAs as rows and lines: the step, what it waits for, and what fails."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from google.rpc import error_details_pb2

from certplane.ctl.show.words import moment, off
from certplane.runtime.columns import Column
from certplane.runtime.terminal import Style
from certplane.v1 import certificate_pb2, order_pb2

_STATES: Final = {
    number: name.removeprefix("STATE_").lower() for name, number in certificate_pb2.Order.State.items() if number
}
_ENDED: Final = (certificate_pb2.Order.STATE_ISSUED, certificate_pb2.Order.STATE_FAILED)


def state_of(each: order_pb2.OrderStatus) -> str:
    """Where it is."""
    return _STATES.get(each.order.state, f"state {each.order.state}")


def style_of(each: order_pb2.OrderStatus) -> Style:
    """Its colour: failed, failing, done."""
    match each.order.state:
        case certificate_pb2.Order.STATE_FAILED:
            return Style.BAD
        case certificate_pb2.Order.STATE_ISSUED:
            return Style.GOOD
        case _:
            return Style.WARNING if each.step_failures else Style.PLAIN


def why(each: order_pb2.OrderStatus) -> str:
    """What failed, or fails, or what it waits for; empty while it works."""
    if each.order.state == certificate_pb2.Order.STATE_FAILED:
        return error_text(each.order)
    times = f" ({each.step_failures} times)" if each.step_failures > 1 else ""
    trouble = f"{each.order.trouble}{times}" if each.order.trouble else ""
    waits = f"waits for {each.wait_reason}" if each.wait_reason else ""
    return "; ".join(filter(None, (trouble, waits)))


def error_text(order: certificate_pb2.Order) -> str:
    """Reason and message of an order that failed."""
    reason = ""
    for detail in order.error.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            reason = info.reason
    return ": ".join(filter(None, (reason, order.error.message)))


def columns(now: datetime) -> list[Column[order_pb2.OrderStatus]]:
    """The columns of `orders`."""
    return [
        Column("IDENTITY", lambda each: each.identity, 0, least=14),
        Column("PROFILE", lambda each: each.order.profile, 3, least=6),
        Column("STATE", state_of, 0, style=style_of),
        Column("STEP", lambda each: each.step, 4, least=8),
        Column("WHY", why, 1, least=16),
        Column("NEXT TRY", lambda each: _off(each, now), 5),
        Column("AGE", lambda each: off(each.order.create_time, now).removesuffix(" ago"), 2),
        Column("ISSUER", lambda each: each.order.issuer, 6),
        Column("CAUSE", lambda each: each.cause, 7),
        Column("BROKER", lambda each: each.broker_name, 8),
        Column("NAMES", lambda each: " ".join(each.order.dns_names), None),
        Column("BUDGET", lambda each: each.budget, None),
        Column("ORDER", lambda each: each.order.order_id, None),
        Column("AT THE CA", lambda each: each.acme_order_url, None),
    ]


def order_facts(each: order_pb2.OrderStatus, now: datetime) -> list[tuple[str, str]]:
    """One order with all that is known of it."""
    order = each.order
    return [
        ("order", order.order_id),
        ("  of", f"{each.identity}, profile {order.profile}"),
        ("  names", " ".join(order.dns_names)),
        ("  state", f"{state_of(each)}, since {moment(order.update_time, now)}"),
        ("  step", each.step + (f", since {moment(each.step_time, now)}" if each.HasField("step_time") else "")),
        ("  error" if order.state == certificate_pb2.Order.STATE_FAILED else "  waits", why(each)),
        ("  next try", moment(each.next_attempt_time, now) if each.HasField("next_attempt_time") else ""),
        ("  issuer", order.issuer + (f" ({each.budget})" if each.budget else "")),
        ("  because", each.cause),
        ("  replaces", order.replaces_certificate_id),
        ("  certificate", order.certificate_id),
        ("  at the CA", each.acme_order_url),
        ("  broker", each.broker_name),
        ("  call", each.request_id),
        ("  began", moment(order.create_time, now)),
    ]


def order_line(each: order_pb2.OrderStatus) -> str:
    """A change, in a line."""
    step = "" if each.order.state in _ENDED or not each.step else f" ({each.step})"
    line = f"{each.identity}: {each.order.profile}: {state_of(each)}{step}"
    return f"{line}: {said}" if (said := why(each)) else line


def _off(each: order_pb2.OrderStatus, now: datetime) -> str:
    return off(each.next_attempt_time, now) if each.HasField("next_attempt_time") else ""
