"""A CA's names in CAA records come from its directory, and nothing but names."""

from __future__ import annotations

import json
from datetime import timedelta

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.acme import AcmeServer
from certplane.broker.issuers.caa_identity import DirectoryCaaIdentity, caa_identities
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock

SOON = timedelta(seconds=5)


class Directory:
    """Answers of a directory, and how often it was asked."""

    def __init__(self) -> None:
        self.answer = httpx.Response(200, json={"meta": {"caaIdentities": ["CA.example", "ca.example.org."]}})
        self.asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        return self.answer


@pytest.fixture
def directory() -> Directory:
    return Directory()


def source(directory: Directory, clock: ManualClock, account: str = "") -> DirectoryCaaIdentity:
    made = DirectoryCaaIdentity(AcmeServer("https://ca.example/directory"), lambda: account, clock)
    made._http = httpx.AsyncClient(transport=httpx.MockTransport(directory))
    return made


async def test_names_and_account(directory: Directory) -> None:
    """Names as CAA records are compared with them, the account as it is known now; the directory is asked hourly."""
    clock = ManualClock()
    made = source(directory, clock, "https://ca.example/acct/1")
    for _ in range(3):
        identity = await made.caa_identity(SOON)
    assert (identity.names, identity.account_url) == (("ca.example", "ca.example.org"), "https://ca.example/acct/1")
    assert directory.asked == 1
    clock.advance(timedelta(minutes=61))
    await made.caa_identity(SOON)
    assert directory.asked == 2
    await made.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(httpx.Response(503), id="503"),
        pytest.param(httpx.Response(302, headers={"Location": "https://evil.test/"}), id="redirect"),
        pytest.param(httpx.Response(200, content=b"<html>"), id="html"),
    ],
)
async def test_directory_that_cannot_be_read(directory: Directory, answer: httpx.Response) -> None:
    """A CA that is away is said to be, and asked again at the next call."""
    made = source(directory, ManualClock())
    directory.answer = answer
    with pytest.raises(RefusalError) as caught:
        await made.caa_identity(SOON)
    assert caught.value.refusal.reason is Reason.ISSUER_UNAVAILABLE
    directory.answer = httpx.Response(200, json={})
    assert (await made.caa_identity(SOON)).names == ()
    await made.close()


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_is_read(body: object) -> None:
    """Whatever a directory says of itself, only plain names come out."""
    for wrapped in (body, {"meta": body}, {"meta": {"caaIdentities": body}}, {"meta": {"caaIdentities": [body]}}):
        assert all(name.isascii() and name.isprintable() for name in caa_identities(json.loads(json.dumps(wrapped))))
