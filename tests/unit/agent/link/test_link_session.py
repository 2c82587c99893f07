"""What a stream has heard and has to say, without a stream."""

from datetime import UTC, datetime, timedelta

import pytest

from certplane.agent.link.session import StreamSession
from certplane.fleet_report.model import CertificateState, CertificateStatus, Report
from certplane.v1 import renewal_pb2 as pb

NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
REPORTS = [Report(number, CertificateStatus("web", CertificateState.WAITING, update_time=NOW)) for number in (1, 2, 3)]


def after(sequence: int) -> list[Report]:
    return [each for each in REPORTS if each.sequence > sequence]


@pytest.fixture
def session() -> StreamSession:
    made = StreamSession("epoch", NOW)
    welcome = pb.StreamRenewalStatusResponse.Welcome(acknowledged_sequence=1, policy_hash="p" * 65, retry_epoch="e-1")
    welcome.heartbeat_interval.FromTimedelta(timedelta(days=3))
    made.welcome(welcome)
    return made


def kinds(session: StreamSession) -> list[str | None]:
    return [message.WhichOneof("message") for message in session.messages(after, lambda: NOW + timedelta(seconds=1))]


def test_what_welcome_says_is_given_out_once(session: StreamSession) -> None:
    """And is bounded, whatever the broker says."""
    assert session.interval == timedelta(hours=1)
    assert (session.take_policy_hash(), session.take_retry_epoch()) == ("p" * 61 + "...", "e-1")
    assert (session.take_policy_hash(), session.take_retry_epoch()) == ("", "")


def test_acknowledgements_only_grow(session: StreamSession) -> None:
    """The latest is taken once; an older one is no news."""
    assert session.take_acknowledged() == 1
    session.acknowledge(3)
    session.acknowledge(2)
    assert session.take_acknowledged() == 3
    assert session.take_acknowledged() == 0


def test_the_latest_directive_counts(session: StreamSession) -> None:
    """One slot, however many come."""
    for nonce in ("a", "b"):
        session.direct(pb.StreamRenewalStatusResponse.Directive(nonce=nonce))
    directive = session.take_directive()
    assert directive is not None
    assert directive.nonce == "b"
    assert session.take_directive() is None


def test_what_is_to_be_said(session: StreamSession) -> None:
    """An answer, then a heartbeat, then the reports that the broker hasn't; each once."""
    session.answer(pb.StreamRenewalStatusRequest.DirectiveResult(nonce="a"))
    session.beat()
    assert kinds(session) == ["directive_result", "heartbeat", "report", "report"]
    assert session.asked_time == NOW + timedelta(seconds=1)
    assert kinds(session) == []


def test_a_report_that_was_not_written_is_said_again(session: StreamSession) -> None:
    """It counts as sent when the next message is asked for: the call may fail before."""
    messages = session.messages(after, lambda: NOW)
    assert next(messages).report.sequence == 2
    messages.close()
    assert [message.report.sequence for message in session.messages(after, lambda: NOW)] == [2, 3]


def test_silence(session: StreamSession) -> None:
    """Three heartbeats without an answer."""
    assert not session.is_silent(timedelta(hours=3))
    assert session.is_silent(timedelta(hours=3, seconds=1))
