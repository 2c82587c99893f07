"""A directory as checked values: what is needed is there and may be called, what is shown is printable."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.acme_directory import AcmeDirectory, no_such_profile, parse_directory
from certplane.broker.issuers.acme_errors import AcmeAnswer
from certplane.broker.issuers.acme_resources import MalformedAnswerError
from certplane.broker.issuers.outgoing import AllowedHosts, ForbiddenUrlError
from certplane.errors import Reason

HOSTS = AllowedHosts("https://ca.test/dir")
URLS = {name: f"https://ca.test/{name}" for name in ("newNonce", "newAccount", "newOrder", "revokeCert")}
SHORT, CLASSIC = "Six days\x1b[31m only", "As ever"


def read(body: Any) -> AcmeDirectory:
    return parse_directory(AcmeAnswer("GET", 200, {}, json.dumps(body).encode()), HOSTS)


def test_what_a_ca_says_of_itself() -> None:
    """Profiles with their descriptions, the terms, and whether accounts must be bound; without control characters."""
    meta = {
        "profiles": {"shortlived": SHORT, "classic": CLASSIC, "odd\nname": "x", "silent": 7},
        "termsOfService": "https://ca.test/terms",
        "externalAccountRequired": True,
    }
    directory = read({**URLS, "keyChange": "https://ca.test/key", "meta": meta})
    assert directory.profiles == {"shortlived": "Six days[31m only", "classic": CLASSIC, "silent": ""}
    assert (directory.terms_of_service, directory.external_account_required) == ("https://ca.test/terms", True)
    assert directory.key_change == "https://ca.test/key"


@pytest.mark.parametrize("meta", [None, [], "x", {"profiles": []}, {"termsOfService": 1, "externalAccountRequired": 1}])
def test_a_ca_that_says_nothing_sensible(meta: Any) -> None:
    """Whatever else stands there is passed over."""
    directory = read({**URLS, "meta": meta})
    assert (dict(directory.profiles), directory.terms_of_service) == ({}, "")
    assert directory.external_account_required is False


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param([], MalformedAnswerError, id="no object"),
        pytest.param({**URLS, "newOrder": None}, MalformedAnswerError, id="a URL is missing"),
        pytest.param({**URLS, "newOrder": "https://evil.test/"}, ForbiddenUrlError, id="another host"),
        pytest.param({**URLS, "keyChange": "https://evil.test/"}, ForbiddenUrlError, id="another host for new keys"),
        pytest.param({**URLS, "revokeCert": "http://ca.test/"}, ForbiddenUrlError, id="no https"),
    ],
)
def test_a_directory_that_cannot_be_used(body: Any, error: type[Exception]) -> None:
    """Nothing is called that isn't the CA's."""
    with pytest.raises(error):
        read(body)


def test_missing_profiles_are_told_in_the_cas_words() -> None:
    """A profile that isn't offered is refused with those that are; one that is offered isn't."""
    directory = read({**URLS, "meta": {"profiles": {"shortlived": SHORT, "classic": CLASSIC}}})
    assert no_such_profile("classic", directory) is None
    refusal = no_such_profile("tls\x1bserver", directory)
    assert refusal is not None
    assert refusal.reason is Reason.ISSUER_REJECTED
    assert refusal.message == (
        "it has no certificate profile 'tlsserver'; it offers classic: As ever; shortlived: Six days[31m only"
    )
    without = no_such_profile("classic", read(URLS))
    assert without is not None
    assert without.message.endswith("it offers none at all")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param("https://ca.test/ari", "https://ca.test/ari", id="a URL"),
        pytest.param("https://evil.test/", "https://evil.test/", id="another host"),
        pytest.param(7, "", id="a number"),
        pytest.param(None, None, id="null"),
    ],
)
def test_renewal_information_is_checked_by_who_asks(said: Any, kept: str | None) -> None:
    """A URL that may not be called stops no order, and isn't the same as none."""
    assert read({**URLS, "renewalInfo": said}).renewal_info == kept
    assert read(URLS).renewal_info is None


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_is_read(body: object) -> None:
    """Whatever a directory says of itself, only plain names come out for CAA records."""
    for meta in (body, {"caaIdentities": body}, {"caaIdentities": [body]}):
        assert all(name.isascii() and name.isprintable() for name in read({**URLS, "meta": meta}).caa_identities)
