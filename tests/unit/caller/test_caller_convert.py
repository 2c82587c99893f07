"""What a broker says, into values: nonsense is refused or passed over, and texts can be shown."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.caller.convert import certificate_of, identity_of, news_of, order_of
from certplane.caller.errors import OrderFailedError
from certplane.caller.values import OrderState, RevocationReason
from certplane.errors import OperationError, Reason, Refusal, RefusalError
from certplane.rpc.status import status_from_refusal
from certplane.rpc.times import timestamp
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import enrollment_pb2, renewal_pb2
from tests.fakes.clock import ManualClock

NOW = ManualClock().now()
NO_TIME = Timestamp(seconds=1 << 60)


def certificate(**changes: Any) -> pb.Certificate:
    fields: dict[str, Any] = {
        "certificate_id": "c1",
        "not_before_time": timestamp(NOW),
        "not_after_time": timestamp(NOW),
        **changes,
    }
    return pb.Certificate(**fields)


def test_a_time_that_is_none() -> None:
    """Of the validity it is nonsense; of a renewal the own rule takes its place."""
    assert certificate_of(certificate(renew_time=NO_TIME)).renew_time is None
    for field in ("not_before_time", "not_after_time", "revoke_time"):
        with pytest.raises(OperationError, match=f"{field} is .* which is no time"):
            certificate_of(certificate(**{field: NO_TIME}))


@pytest.mark.parametrize("name", ["c\n1", "\x1b[2J", "x" * 200, "é"])
def test_an_id_that_is_none(name: str) -> None:
    """It would be shown, stored and sent again."""
    with pytest.raises(OperationError, match="certificate_id is"):
        certificate_of(certificate(certificate_id=name))
    with pytest.raises(OperationError, match="order_id is"):
        order_of(pb.Order(order_id=name), None)


def test_a_newer_brokers_words() -> None:
    """States and reasons that this version doesn't know are no errors."""
    assert order_of(pb.Order(order_id="o", state=99), None).state is OrderState.UNKNOWN
    news = renewal_pb2.WatchMyCertificatesResponse.CertificateNews(certificate_id="c", revocation_reason=99)
    assert news_of(news).revocation_reason is RevocationReason.UNSPECIFIED
    answer = enrollment_pb2.GetIdentityResponse(
        identity=enrollment_pb2.Identity(kind=99, name="a\x00b", expire_time=timestamp(NOW)), broker_time=timestamp(NOW)
    )
    assert (identity_of(answer).kind, identity_of(answer).name) == ("99", "a b")


def test_an_order_that_failed() -> None:
    """Its error has the reason, and the later one of the two times to come back."""
    refusal = Refusal(Reason.DNS_REJECTED, "no zone")
    message = pb.Order(
        order_id="o1",
        state=pb.Order.STATE_FAILED,
        error=status_from_refusal(refusal),
        retry_time=Timestamp(seconds=int(NOW.timestamp()) + 3600),
    )
    error = OrderFailedError.of_order(order_of(message, None), NOW)
    assert isinstance(error, RefusalError)
    assert (error.reason, error.order_id) == (Reason.DNS_REJECTED, "o1")
    assert error.retry_after is not None
    assert error.retry_after.total_seconds() == 3600
    assert error.retry_time is not None
    bare = OrderFailedError.of_order(order_of(pb.Order(order_id="o2", state=pb.Order.STATE_FAILED), None), NOW)
    assert (bare.reason, bare.retry_after) == (Reason.INTERNAL, None)
