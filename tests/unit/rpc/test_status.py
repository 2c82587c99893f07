"""The table between reasons and gRPC codes, and the layout of a status."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from certplane.errors import ProblemDocument, Reason, Refusal, RefusalError, Violation
from certplane.rpc.status import CODES, DOMAIN, refusal_from_error, refusal_from_status, status_from_refusal

# design.md, "Errors", written out again: the table may not drift from it unnoticed.
EXPECTED_CODES = {
    "UNAUTHENTICATED": {"IDENTITY_EXPIRED", "IDENTITY_REVOKED", "IDENTITY_RETIRED", "IDENTITY_CONTESTED"},
    "PERMISSION_DENIED": {
        "IDENTITY_UNKNOWN",
        "PROFILE_NOT_ALLOWED",
        "NAMES_NOT_ALLOWED",
        "KEY_REUSED",
        "ROLE_REQUIRED",
    },
    "INVALID_ARGUMENT": {"CSR_INVALID", "KEY_WEAK", "REQUEST_INVALID"},
    "RESOURCE_EXHAUSTED": {"RATE_LIMITED", "ISSUER_RATE_LIMITED"},
    "UNAVAILABLE": {
        "AUDIT_UNAVAILABLE",
        "STORE_UNAVAILABLE",
        "POLICY_UNAVAILABLE",
        "ISSUER_UNAVAILABLE",
        "DNS_UNAVAILABLE",
        "DRAINING",
    },
    "FAILED_PRECONDITION": {"ISSUER_REJECTED", "DNS_REJECTED", "BOOTSTRAP_NOT_CONFIGURED"},
    "NOT_FOUND": {"ORDER_NOT_FOUND", "CERTIFICATE_NOT_FOUND", "HOST_NOT_FOUND"},
    "ABORTED": {"STREAM_DISPLACED", "STREAM_TIMED_OUT"},
    "INTERNAL": {"INTERNAL"},
}


def details(status: status_pb2.Status, kind: type) -> list:
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


def error_info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    (info,) = details(status, error_details_pb2.ErrorInfo)
    return info


def test_codes_are_those_of_the_design() -> None:
    """Every reason has the gRPC code that the design gives it, and none is missing."""
    actual: dict[str, set[str]] = {}
    for reason, row in CODES.items():
        actual.setdefault(row.code.name, set()).add(reason.value)
    assert actual == EXPECTED_CODES
    assert set(CODES) == set(Reason)


@pytest.mark.parametrize("reason", list(Reason))
def test_refusal_survives_the_round_trip(reason: Reason) -> None:
    """A refusal of any reason, with all that it can carry, comes back equal."""
    refusal = Refusal(
        reason,
        "The order can't be made.",
        retry_after=timedelta(minutes=3, milliseconds=250),
        violations=(Violation("csr_pem", "has no names"), Violation("profile", "is empty")),
        problems=(
            ProblemDocument("urn:ietf:params:acme:error:rejectedIdentifier", "no", 403, "a.example"),
            ProblemDocument("urn:ietf:params:acme:error:caa", "CAA forbids", None, "b.example"),
            ProblemDocument("urn:ietf:params:acme:error:dns", "SERVFAIL", 400),
        ),
    )
    status = status_from_refusal(refusal, request_id="r-1")
    assert status.code == CODES[reason].code.value[0]
    back = refusal_from_status(status)
    assert back == refusal
    assert back is not None
    assert back.request_id == RefusalError.of(back).refusal.request_id == "r-1"
    info = error_info(status)
    assert (info.domain, info.reason, info.metadata["request_id"]) == (DOMAIN, reason.value, "r-1")


@pytest.mark.parametrize("reason", list(Reason))
def test_bare_refusal_says_when_to_come_back_if_its_reason_passes(reason: Reason) -> None:
    """Reasons that pass by themselves always carry RetryInfo; the others only when the refusal says so."""
    status = status_from_refusal(Refusal(reason, "no"))
    passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED)
    expected = CODES[reason].code in passing
    assert bool(details(status, error_details_pb2.RetryInfo)) is expected
    back = refusal_from_status(status)
    assert back is not None
    assert back.retry_after == CODES[reason].retry_after
    assert (back.violations, back.problems) == ((), ())


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        pytest.param(Reason.CSR_INVALID, error_details_pb2.BadRequest, id="field"),
        pytest.param(Reason.RATE_LIMITED, error_details_pb2.QuotaFailure, id="limit"),
        pytest.param(Reason.NAMES_NOT_ALLOWED, error_details_pb2.BadRequest, id="field of a denied request"),
    ],
)
def test_violations_are_told_in_the_detail_for_their_kind(reason: Reason, kind: type) -> None:
    """A wrong field is a BadRequest, an exceeded limit a QuotaFailure."""
    status = status_from_refusal(Refusal(reason, "no", violations=(Violation("x", "y"),)))
    others = {error_details_pb2.BadRequest, error_details_pb2.QuotaFailure} - {kind}
    assert len(details(status, kind)) == 1
    assert not [message for other in others for message in details(status, other)]


def test_status_stays_small_and_keeps_the_reason() -> None:
    """However much a CA or a request has to say, the status fits into a peer's metadata and keeps what decides."""
    refusal = Refusal(
        Reason.ISSUER_REJECTED,
        "é" * 5000,
        retry_after=timedelta(hours=1),
        violations=tuple(Violation(f"names[{n}]", "ä" * 1000) for n in range(100)),
        problems=tuple(ProblemDocument("urn:" + "t" * 900, "é" * 900, 400, "n" * 900) for _ in range(100)),
    )
    status = status_from_refusal(refusal, request_id="r" * 64)
    assert status.ByteSize() < 3800
    back = refusal_from_status(status)
    assert back is not None
    assert (back.reason, back.retry_after) == (Reason.ISSUER_REJECTED, timedelta(hours=1))
    assert back.problems
    assert back.problems[0].status == 400


def test_control_characters_do_not_travel() -> None:
    """Text of a CA can't bring line breaks, escapes or lone surrogates into a terminal or a log."""
    problem = ProblemDocument("urn:x", "red \x1b[31m\r\nalert \ud800", 400, "a\x00b")
    back = refusal_from_status(status_from_refusal(Refusal(Reason.ISSUER_REJECTED, "one\ntwo", problems=(problem,))))
    assert back is not None
    assert back.message == "one two"
    assert back.problems == (ProblemDocument("urn:x", "red  [31m  alert  ", 400, "a b"),)


def test_negative_retry_is_now() -> None:
    """A time that has passed already is told as 'at once', not as a negative delay."""
    back = refusal_from_status(status_from_refusal(Refusal(Reason.RATE_LIMITED, "no", timedelta(seconds=-3))))
    assert back is not None
    assert back.retry_after == timedelta()


def test_what_a_strange_peer_says_can_be_shown_and_waited_for() -> None:
    """No control character reaches a terminal or a log, and a span that no clock has is not a crash."""
    status = status_pb2.Status(code=8, message="slow\x1b]0;down\x07")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds = 2**62
    quota = error_details_pb2.QuotaFailure()
    quota.violations.add(subject="limit\r", description="used\x9bup")
    for detail in (error_details_pb2.ErrorInfo(domain=DOMAIN, reason="RATE_LIMITED"), retry, quota):
        status.details.add().Pack(detail)

    refusal = refusal_from_status(status)

    assert refusal is not None
    assert refusal.message == "slow ]0;down "
    assert refusal.violations == (Violation("limit ", "used up"),)
    assert refusal.retry_after == timedelta.max


def test_reason_of_a_newer_broker_is_kept_as_text() -> None:
    """A reason that this version doesn't know is INTERNAL with its name, and keeps its time."""
    status = status_from_refusal(Refusal(Reason.DRAINING, "later", timedelta(seconds=7)))
    info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason="MOON_PHASE")
    status.details[0].Pack(info)
    assert refusal_from_status(status) == Refusal(Reason.INTERNAL, "MOON_PHASE: later", timedelta(seconds=7))


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(status_pb2.Status(code=14, message="no details"), id="no details"),
        pytest.param(
            status_pb2.Status(
                code=7,
                details=[any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")],
            ),
            id="not a message",
        ),
    ],
)
def test_foreign_status_is_no_refusal(status: status_pb2.Status) -> None:
    """What no Certplane broker said isn't taken for a refusal."""
    assert refusal_from_status(status) is None


def test_other_domain_is_no_refusal() -> None:
    """An ErrorInfo of another system isn't taken for ours."""
    status = status_pb2.Status(code=7)
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="googleapis.com", reason="RATE_LIMITED"))
    assert refusal_from_status(status) is None


def test_error_whose_details_contradict_its_code_is_no_refusal() -> None:
    """A status whose details disagree with its code is not believed."""
    rich = status_from_refusal(Refusal(Reason.DRAINING, "later"))
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", rich.SerializeToString()))
    honest = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), metadata, details="later")
    forged = grpc.aio.AioRpcError(grpc.StatusCode.PERMISSION_DENIED, grpc.aio.Metadata(), metadata, details="later")
    garbage = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff")),
        details="later",
    )
    assert refusal_from_error(honest) == Refusal(Reason.DRAINING, "later", CODES[Reason.DRAINING].retry_after)
    assert refusal_from_error(forged) is None
    assert refusal_from_error(garbage) is None
