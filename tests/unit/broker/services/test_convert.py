"""Between messages and values: nothing is lost, nothing internal gets out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from certplane.broker.model import IdentityKind, OrderProgress, OrderState, RevocationReason
from certplane.broker.services.calls import EdgeRefusalError
from certplane.broker.services.convert import (
    certificate_message,
    cursor_from_token,
    identity_message,
    order_message,
    page_size,
    revocation_reason,
    timestamp,
    token_from_cursor,
    wait_of,
)
from certplane.errors import Reason, Refusal
from certplane.rpc.status import refusal_from_status
from certplane.v1 import certificate_pb2, enrollment_pb2
from tests.fakes.authority import sample_certificate, sample_order
from tests.support.callers import caller


@pytest.mark.parametrize("state", list(OrderState))
def test_every_state_has_its_number(state: OrderState) -> None:
    """Each state of an order is told by the number of the same name."""
    message = order_message(sample_order(state=state))
    assert certificate_pb2.Order.State.Name(message.state) == f"STATE_{state.value}"


@pytest.mark.parametrize("kind", list(IdentityKind))
def test_every_kind_has_its_number(kind: IdentityKind) -> None:
    """Each kind of identity is told by the number of the same name."""
    message = identity_message(caller(kind=kind))
    assert enrollment_pb2.Identity.Kind.Name(message.kind) == f"KIND_{kind.name}"


def test_every_revocation_reason_of_the_wire_is_known() -> None:
    """Each reason that a caller can send is one of ours, by name; numbers between them are refused."""
    names = {
        certificate_pb2.RevocationReason.Name(number).removeprefix("REVOCATION_REASON_"): revocation_reason(number).name
        for number in certificate_pb2.RevocationReason.values()
    }
    assert names == {name: name for name in names}
    assert set(names) == {reason.name for reason in RevocationReason}
    for number in (2, 6, 99, -1):
        with pytest.raises(EdgeRefusalError):
            revocation_reason(number)


def test_order_message_tells_what_is_in_the_way() -> None:
    """What an open order's last step met is there, for people: one printable line of bounded length."""
    order = sample_order(
        state=OrderState.VALIDATING,
        progress=OrderProgress(trouble=f"DNS_UNAVAILABLE: ns2\x1b[2J\nlacks it {'x' * 900}"),
    )
    told = order_message(order).trouble
    assert (told.startswith("DNS_UNAVAILABLE: ns2"), told.isprintable(), len(told) <= 500) == (True, True, True)
    assert order_message(sample_order()).trouble == ""


def test_order_message_tells_what_its_caller_may_know() -> None:
    """The order's fields arrive; what the broker does at the CA and in DNS doesn't."""
    order = sample_order(
        state=OrderState.FAILED,
        error=Refusal(Reason.ISSUER_REJECTED, "no"),
        retry_time=datetime(2026, 11, 23, 13, 0, 0, 250_000, tzinfo=UTC),
        replaces_certificate_id="c-0",
        acme_order_url="https://ca.example/order/secret-ish",
    )
    message = order_message(order)
    assert (message.order_id, message.profile, message.issuer) == ("order-1", "web", "default")
    assert (list(message.dns_names), message.public_key_sha256) == (["a.example", "b.example"], "k" * 64)
    assert message.replaces_certificate_id == "c-0"
    assert message.create_time.ToDatetime(UTC) == order.create_time
    assert message.update_time.ToDatetime(UTC) == order.update_time
    assert message.retry_time.ToDatetime(UTC) == order.retry_time
    assert refusal_from_status(message.error) == order.error
    assert "secret-ish" not in str(message)


def test_order_that_has_not_failed_has_no_error() -> None:
    """Optional parts of an order are unset, not empty."""
    message = order_message(sample_order())
    assert not message.HasField("error")
    assert not message.HasField("retry_time")


@pytest.mark.parametrize("with_pem", [True, False])
def test_certificate_message(with_pem: bool) -> None:
    """A certificate arrives whole; in lists without its PEM."""
    record = sample_certificate(revoke_time=datetime(2026, 12, 1, tzinfo=UTC))
    message = certificate_message(record, with_pem=with_pem)
    assert (message.certificate_pem, message.chain_pem) == (("LEAF\n", "CHAIN\n") if with_pem else ("", ""))
    for name in ("certificate_id", "profile", "serial_number", "issuer", "public_key_sha256"):
        assert getattr(message, name) == getattr(record, name)
    assert tuple(message.dns_names) == record.dns_names
    for ours, theirs in (
        ("not_before", "not_before_time"),
        ("not_after", "not_after_time"),
        ("renew_time", "renew_time"),
        ("create_time", "create_time"),
        ("revoke_time", "revoke_time"),
    ):
        assert getattr(message, theirs).ToDatetime(UTC) == getattr(record, ours)
    assert not certificate_message(sample_certificate()).HasField("revoke_time")


@pytest.mark.parametrize(
    "time",
    [
        datetime(2026, 11, 23, 12, 0, 0, 123_456, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
    ids=str,
)
def test_timestamp_is_exact(time: datetime) -> None:
    """A time survives to the microsecond, before 1970 and in the far future too."""
    assert timestamp(time).ToDatetime(UTC) == time


@pytest.mark.parametrize(
    ("duration", "remaining", "expected"),
    [
        pytest.param(None, None, 30.0, id="default"),
        pytest.param(Duration(seconds=5), None, 5.0, id="as asked"),
        pytest.param(Duration(), 20.0, 0.0, id="zero"),
        pytest.param(None, 20.0, 19.0, id="a second before the deadline"),
        pytest.param(Duration(seconds=5), 20.0, 5.0, id="shorter than the deadline"),
        pytest.param(Duration(seconds=600), 20.0, 19.0, id="longer than the deadline"),
        pytest.param(None, 0.5, 0.0, id="deadline within a second"),
        pytest.param(None, -1.0, 0.0, id="deadline passed"),
        pytest.param(Duration(nanos=500_000_000), None, 0.5, id="half a second"),
    ],
)
def test_wait(duration: Duration | None, remaining: float | None, expected: float) -> None:
    """A wait is as asked, but ends a second before the call does."""
    assert wait_of(duration, remaining) == timedelta(seconds=expected)


def test_page_sizes() -> None:
    """Zero is the default, more than the most is the most."""
    assert [page_size(size) for size in (0, 1, 500, 501, 2**31 - 1)] == [50, 1, 500, 500, 500]


@pytest.mark.parametrize("cursor", ["", "c", "0193-ab_~!", "x" * 128])
def test_page_token(cursor: str) -> None:
    """A token gives its cursor back."""
    token = token_from_cursor(cursor)
    assert cursor_from_token(token) == cursor
    assert cursor == "" or cursor not in token


@pytest.mark.parametrize("token", ["=", "YQ==", "YR", "Y", "w6k", "CgA", "Y Q", "é", "A" * 400])
def test_token_that_is_none(token: str) -> None:
    """What isn't exactly a token that the broker would have made is refused."""
    with pytest.raises(EdgeRefusalError) as caught:
        cursor_from_token(token)
    assert caught.value.refusal.violations[0].subject == "page_token"
