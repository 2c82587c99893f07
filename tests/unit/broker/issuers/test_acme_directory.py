"""A directory as checked values: what is needed is there and may be called, what is shown is printable."""

from __future__ import annotations

from typing import Any

import pytest

from certplane.broker.issuers.acme_directory import no_such_profile, parse_directory
from certplane.broker.issuers.acme_resources import MalformedAnswerError
from certplane.broker.issuers.outgoing import AllowedHosts, ForbiddenUrlError
from certplane.errors import Reason

HOSTS = AllowedHosts("https://ca.test/dir")
URLS = {name: f"https://ca.test/{name}" for name in ("newNonce", "newAccount", "newOrder", "revokeCert")}
SHORT, CLASSIC = "Six days\x1b[31m only", "As ever"


def test_what_a_ca_says_of_itself() -> None:
    """Profiles with their descriptions, the terms, and whether accounts must be bound; without control characters."""
    meta = {
        "profiles": {"shortlived": SHORT, "classic": CLASSIC, "odd\nname": "x", "silent": 7},
        "termsOfService": "https://ca.test/terms",
        "externalAccountRequired": True,
    }
    directory = parse_directory({**URLS, "keyChange": "https://ca.test/key", "meta": meta}, HOSTS)
    assert directory.profiles == {"shortlived": "Six days[31m only", "classic": CLASSIC, "silent": ""}
    assert (directory.terms_of_service, directory.external_account_required) == ("https://ca.test/terms", True)
    assert directory.urls["keyChange"] == "https://ca.test/key"


@pytest.mark.parametrize("meta", [None, [], "x", {"profiles": []}, {"termsOfService": 1, "externalAccountRequired": 1}])
def test_a_ca_that_says_nothing_sensible(meta: Any) -> None:
    """Whatever else stands there is passed over."""
    directory = parse_directory({**URLS, "meta": meta}, HOSTS)
    assert (dict(directory.profiles), directory.terms_of_service) == ({}, "")
    assert directory.external_account_required is False


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param([], MalformedAnswerError, id="no object"),
        pytest.param({**URLS, "newOrder": None}, ForbiddenUrlError, id="a URL is missing"),
        pytest.param({**URLS, "newOrder": "https://evil.test/"}, ForbiddenUrlError, id="another host"),
        pytest.param({**URLS, "keyChange": "https://evil.test/"}, ForbiddenUrlError, id="another host for new keys"),
        pytest.param({**URLS, "revokeCert": "http://ca.test/"}, ForbiddenUrlError, id="no https"),
    ],
)
def test_a_directory_that_cannot_be_used(body: Any, error: type[Exception]) -> None:
    """Nothing is called that isn't the CA's."""
    with pytest.raises(error):
        parse_directory(body, HOSTS)


def test_missing_profiles_are_told_in_the_cas_words() -> None:
    """A profile that isn't offered is refused with those that are; one that is offered isn't."""
    directory = parse_directory({**URLS, "meta": {"profiles": {"shortlived": SHORT, "classic": CLASSIC}}}, HOSTS)
    assert no_such_profile("classic", directory) is None
    refusal = no_such_profile("tls\x1bserver", directory)
    assert refusal is not None
    assert refusal.reason is Reason.ISSUER_REJECTED
    assert refusal.message == (
        "it has no certificate profile 'tlsserver'; it offers classic: As ever; shortlived: Six days[31m only"
    )
    without = no_such_profile("classic", parse_directory(URLS, HOSTS))
    assert without is not None
    assert without.message.endswith("it offers none at all")
