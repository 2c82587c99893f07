"""What crosses between the broker and its issuing process."""

from __future__ import annotations

import typing
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from certplane.broker.issuing import messages as m
from certplane.broker.model import DnsChallenge, IssuerOrder, IssuerOrderStatus, Profile, RevocationReason, TxtRecord
from certplane.broker.renewal.model import RenewalInfo
from certplane.config.values import DnsName
from certplane.errors import ProblemDocument, Reason, Refusal, Violation

SPAN = timedelta(minutes=3, microseconds=7)
REFUSAL = Refusal(
    Reason.ISSUER_RATE_LIMITED,
    "too many",
    SPAN,
    (Violation("account", "all"),),
    (ProblemDocument("urn:x", "y", 429, "www.shop.test"),),
)
PROFILE = Profile("web", "mixed", (DnsName.parse("a.test"), "*.a.test"), "hash", renew_before=SPAN, issuers=("one",))
CHALLENGE = DnsChallenge("a.test", "_acme-challenge.a.test", "v", "https://a", "https://c", "k")
ORDER = IssuerOrder("https://o", IssuerOrderStatus.PENDING, (CHALLENGE,), REFUSAL, "https://f", "https://c", SPAN)
RECORD = TxtRecord("a.test", "_acme-challenge.a.test", "v", "id", "cred")

CALLS: list[m.Call[typing.Any]] = [
    m.CreateOrder(SPAN, issuer="one", csr_der=b"\x00\xff", profile=PROFILE, replaces="pem"),
    m.GetOrder(SPAN, issuer="one", url="https://o"),
    m.AnswerChallenges(SPAN, issuer="one", order=ORDER),
    m.Finalize(SPAN, issuer="one", order=ORDER, csr_der=b"der"),
    m.Download(SPAN, issuer="one", order=ORDER),
    m.Revoke(SPAN, issuer="one", certificate_pem="pem", reason=RevocationReason.KEY_COMPROMISE),
    m.NoteDirectory(SPAN, issuer="one"),
    m.LookAtAccountKey(SPAN, issuer="one"),
    m.Plan(SPAN, challenges=(CHALLENGE,), profile=PROFILE),
    m.Present(SPAN, records=(RECORD,)),
    m.WaitUntilVisible(SPAN, records=(RECORD,)),
    m.Remove(SPAN, records=(RECORD,)),
    m.CheckAccounts(SPAN, names={"": ("a.test",), "other": ("*.b.test",)}),
    m.CheckOrder(SPAN, dns_names=("a.test",), issuer="one"),
    m.AskRenewalInfo(SPAN, issuer="one", certificate_pem="pem"),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: type(call).__name__)
def test_a_call_comes_as_it_was_sent(call: m.Call[typing.Any]) -> None:
    """Every field, spans to the microsecond; a name of a kind of its own is the text that it is."""
    request = m.Request(7, "r-1", call)  # type: ignore[arg-type]
    assert m.decode_to_child(m.encode(request)) == request


def test_every_call_is_here() -> None:
    """None is left out of the list above, nor of the union that is decoded."""
    assert {type(call) for call in CALLS} == set(typing.get_args(m.AnyCall)) == set(m.Call.__subclasses__())


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (CALLS[0], ORDER),
        (CALLS[4], "pem"),
        (CALLS[5], None),
        (CALLS[7], "hash"),
        (CALLS[9], (RECORD,)),
        (CALLS[-1], RenewalInfo(datetime(2027, 1, 2, 3, 4, 5, 6, UTC), datetime(2027, 1, 3, tzinfo=UTC), "u", SPAN)),
    ],
)
def test_a_result_comes_as_it_was_returned(call: m.Call[typing.Any], result: object) -> None:
    """With its type, from the call's declaration."""
    answer = m.decode_to_broker(m.encode(m.Returned(1, msgspec.Raw(m.encode(result)))))
    assert isinstance(answer, m.Returned)
    assert m.decode_result(call, answer.value) == result


def test_a_refusal_comes_whole() -> None:
    """Reason, wait, violations and the CA's problems: what follows is decided by them."""
    assert m.decode_to_broker(m.encode(m.Refused(1, REFUSAL))) == m.Refused(1, REFUSAL)


def test_only_writes_of_records_exclude_each_other() -> None:
    """Two processes must not change records at once."""
    assert {type(call) for call in CALLS if call.writes_dns} == {m.Present, m.Remove}


def test_what_no_message_has_a_place_for_is_not_sent() -> None:
    """An object of another kind is a mistake in the program, told where it is made."""
    with pytest.raises(TypeError):
        m.encode(m.SecretChanged(object()))  # type: ignore[arg-type]
