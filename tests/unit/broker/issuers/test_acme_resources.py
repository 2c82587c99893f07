"""A CA's JSON: what is read, and that nothing else gets through."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.acme_resources import (
    AcmeAuthorization,
    AcmeOrder,
    MalformedAnswerError,
    problem_documents,
)
from certplane.broker.model import IssuerOrderStatus

THUMBPRINT = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"  # a thumbprint: RFC 8555 8.1
TOKEN = "DGyRejmCefe7v4NfDGDKfA"  # RFC 8555 8.4
ORDER = {
    "status": "valid",
    "authorizations": ["https://ca/a"],
    "finalize": "https://ca/f",
    "certificate": "https://ca/c",
}
CHALLENGE = {"type": "dns-01", "url": "https://ca/chall", "token": TOKEN, "status": "pending"}
AUTHORIZATION = {
    "status": "pending",
    "identifier": {"type": "dns", "value": "Example.Test"},
    "challenges": [{"type": "dns-persist-01"}, CHALLENGE],
    "wildcard": True,
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_order() -> None:
    """The members that matter, unknown ones passed over."""
    order = AcmeOrder.parse("https://ca/o", ORDER | {"identifiers": [{"type": "tnauthlist"}], "expires": "never"}, None)
    assert order.status is IssuerOrderStatus.VALID
    assert (order.authorizations, order.finalize, order.certificate) == (
        ("https://ca/a",),
        "https://ca/f",
        "https://ca/c",
    )


def test_order_that_is_invalid_says_why() -> None:
    """The order's own problem is kept."""
    error = {"type": "urn:ietf:params:acme:error:caa", "detail": "forbidden"}
    order = AcmeOrder.parse("https://ca/o", ORDER | {"status": "invalid", "error": error}, None)
    assert [entry.detail for entry in order.problems] == ["forbidden"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"status": "deactivated"}, id="unknown-status"),
        pytest.param({"status": None}, id="no-status"),
        pytest.param({"authorizations": "https://ca/a"}, id="authorizations-as-text"),
        pytest.param({"authorizations": ["x"] * 101}, id="too-many-authorizations"),
        pytest.param({"finalize": ""}, id="no-finalize"),
    ],
)
def test_order_that_makes_no_sense(change: dict[str, Any]) -> None:
    """What is needed and missing is an error of its own."""
    with pytest.raises(MalformedAnswerError):
        AcmeOrder.parse("https://ca/o", ORDER | change, None)


def test_authorization() -> None:
    """The dns-01 challenge with its record; the name canonical, the value that of RFC 8555 8.4."""
    authorization = AcmeAuthorization.parse("https://ca/a", AUTHORIZATION, THUMBPRINT)
    challenge = authorization.challenge
    assert challenge is not None
    assert (challenge.domain, challenge.record_name) == ("example.test", "_acme-challenge.example.test")
    assert challenge.key_authorization.startswith(f"{TOKEN}.")
    assert (len(challenge.record_value), challenge.challenge_url) == (43, "https://ca/chall")


def test_authorization_without_dns_challenge() -> None:
    """A CA that offers other challenges only is shown as such."""
    assert AcmeAuthorization.parse("https://ca/a", AUTHORIZATION | {"challenges": []}, THUMBPRINT).challenge is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"identifier": {"type": "dns", "value": "../etc"}}, id="no-dns-name"),
        pytest.param({"identifier": None}, id="no-identifier"),
        pytest.param({"status": 3}, id="no-status"),
        pytest.param({"challenges": [CHALLENGE | {"token": "short"}]}, id="short-token"),
        pytest.param({"challenges": [CHALLENGE | {"token": "!" * 40}]}, id="no-base64"),
        pytest.param({"challenges": [CHALLENGE | {"url": None}]}, id="no-url"),
    ],
)
def test_authorization_that_makes_no_sense(change: dict[str, Any]) -> None:
    """Nothing that can't be a record's name and value comes out."""
    with pytest.raises(MalformedAnswerError):
        AcmeAuthorization.parse("https://ca/a", AUTHORIZATION | change, THUMBPRINT)


@given(json_values)
def test_nothing_else_is_raised(body: Any) -> None:
    """Any JSON is either read or a MalformedAnswerError."""
    problem_documents(body)
    problem_documents({"type": "x", "subproblems": body, "identifier": body, "status": body, "detail": body})
    for base in (ORDER, AUTHORIZATION):
        for member in base:
            with contextlib.suppress(MalformedAnswerError):
                AcmeOrder.parse("https://ca/o", base | {member: body, "error": body}, None)
            with contextlib.suppress(MalformedAnswerError):
                AcmeAuthorization.parse("https://ca/a", base | {member: body}, THUMBPRINT)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(None, id="none"),
        pytest.param([], id="list"),
        pytest.param({"detail": "x"}, id="no-type"),
        pytest.param({"type": 7}, id="type-as-number"),
    ],
)
def test_what_is_no_problem_document(body: object) -> None:
    """Only an object with a type is the CA's word."""
    assert problem_documents(body) == ()


def test_problem_status() -> None:
    """The document's own status counts; a foolish one is replaced by that of HTTP."""
    assert problem_documents({"type": "x", "status": 403}, 400)[0].status == 403
    assert problem_documents({"type": "x", "status": 99999}, 400)[0].status == 400
    assert problem_documents({"type": "x", "title": "a title"})[0].detail == "a title"
