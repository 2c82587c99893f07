"""What `RenewalInfoSource` promises: of the fake, of `AcmeRenewalInfo` over real HTTPS, and of that by messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio

from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.renewal_info import AcmeRenewalInfo
from certplane.broker.issuing.remote import RemoteRenewalInfo
from certplane.broker.renewal.model import RenewalInfo, RenewalInfoError, RenewalInfoUnsupportedError
from certplane.broker.renewal.ports import RenewalInfoSource
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from tests.fakes.renewal import FakeRenewalInfoSource
from tests.support.issuing_wire import Wire
from tests.support.scripted_acme import Answer, ScriptedAcme

SOON = timedelta(seconds=20)
INFO = RenewalInfo(
    datetime(2027, 1, 2, 4, tzinfo=UTC),
    datetime(2027, 1, 3, 4, tzinfo=UTC),
    "https://ca.example/why",
    timedelta(hours=6),
)
ASK = "GET /renewalInfo/.*"


class World(Protocol):
    """A CA, and who asks it."""

    source: RenewalInfoSource

    def suggest(self, info: RenewalInfo, times: int) -> None:
        """The next answers."""
        ...

    def fail(self, wait: timedelta) -> None:
        """The next answer is an error that passes by itself, and asks for patience."""
        ...

    def offer_nothing(self) -> None:
        """The CA has no renewal information."""
        ...


class FakeWorld:
    def __init__(self) -> None:
        self.fake = FakeRenewalInfoSource(INFO)
        self.source: RenewalInfoSource = self.fake

    def suggest(self, info: RenewalInfo, times: int) -> None:
        self.fake.answer = info

    def fail(self, wait: timedelta) -> None:
        self.fake.faults.fail("renewal_info", RenewalInfoError("down", temporary=True, retry_after=wait))

    def offer_nothing(self) -> None:
        self.fake.answer = None


class HttpsWorld:
    def __init__(self, ca: ScriptedAcme, source: RenewalInfoSource) -> None:
        self.ca = ca
        self.source: RenewalInfoSource = source

    def suggest(self, info: RenewalInfo, times: int) -> None:
        window = {"start": info.window_start.isoformat(), "end": info.window_end.isoformat()}
        body = json.dumps({"suggestedWindow": window, "explanationURL": info.explanation_url}).encode()
        assert info.retry_after is not None
        headers = (("Retry-After", str(info.retry_after // timedelta(seconds=1))),)
        self.ca.fail(ASK, *[Answer(200, body, headers=headers)] * times)

    def fail(self, wait: timedelta) -> None:
        self.ca.fail(ASK, Answer(503, headers=(("Retry-After", str(wait // timedelta(seconds=1))),)))

    def offer_nothing(self) -> None:
        self.ca.renewal_info = False


@pytest_asyncio.fixture(params=["fake", "https", "messages"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    with ScriptedAcme(tmp_path) as ca:
        ca.renewal_info = True
        asked = AcmeCa(AcmeServer(ca.directory_url, ca_bundle=ca.roots_file), SystemClock())
        wire = Wire(renewal_infos={"acme": AcmeRenewalInfo(asked)})
        yield HttpsWorld(ca, RemoteRenewalInfo(wire, "acme") if request.param == "messages" else AcmeRenewalInfo(asked))
        await wire.close()
        await asked.close()


@pytest.fixture(scope="module")
def pem() -> str:
    return CertificateAuthority.root("Issuer").issue("certplane.test", ["certplane.test"]).chain_pem.decode()


async def test_gives_what_the_ca_says(world: World, pem: str) -> None:
    """Window, explanation and when to ask again; each question is asked anew."""
    world.suggest(INFO, 1)
    assert await world.source.renewal_info(pem, SOON) == INFO
    other = RenewalInfo(INFO.window_end, INFO.window_end + timedelta(days=1), "", timedelta(hours=1))
    world.suggest(other, 1)
    assert await world.source.renewal_info(pem, SOON) == other


async def test_answers_several_at_once(world: World, pem: str) -> None:
    """Concurrent questions have an answer each."""
    world.suggest(INFO, 9)
    assert await asyncio.gather(*(world.source.renewal_info(pem, SOON) for _ in range(9))) == [INFO] * 9


async def test_an_error_that_passes_says_so(world: World, pem: str) -> None:
    """With the CA's own wish, and without a second try."""
    world.fail(timedelta(minutes=7))
    with pytest.raises(RenewalInfoError) as failed:
        await world.source.renewal_info(pem, SOON)
    assert failed.value.temporary
    assert failed.value.retry_after == timedelta(minutes=7)
    world.suggest(INFO, 1)
    assert await world.source.renewal_info(pem, SOON) == INFO


async def test_a_ca_without_renewal_information_is_told_apart(world: World, pem: str) -> None:
    """It isn't in trouble."""
    world.offer_nothing()
    with pytest.raises(RenewalInfoUnsupportedError):
        await world.source.renewal_info(pem, SOON)
