"""ARI (RFC 9773) from the CA to the host, on a real Pebble: windows, an incident, nonsense, and `replaces`.

The broker runs in this process with a clock that is moved on past each next question; everything else is as deployed.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.renewal_info import AcmeRenewalInfo
from certplane.broker.model import Profile
from certplane.broker.renewal.model import RenewalInfoError, RenewalInfoUnsupportedError, RenewalPlan
from certplane.fleet_report.model import RenewalCause
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.runtime.clock import SystemClock
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.parts import PEBBLE_SET_RENEWAL_INFO
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.v1 import certificate_pb2 as pb
from tests.support.called_back import World
from tests.support.deployed_broker import DeployedBroker, certificates, issue
from tests.support.parts import need_part
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

HOST = "web1.certplane.test"
NAME = "ari.certplane.test"
POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": [NAME]}},
    "hosts": {"web1": {"identity": HOST, "profiles": ["web"]}},
}
SOON = timedelta(seconds=20)
DAY = timedelta(days=1)
INCIDENT = "https://ca.example/incident-7"


@pytest_asyncio.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    _need_control()
    options = DeploymentOptions(POLICY)
    async with Deployment(tmp_path, options) as deployment:
        for name, value in deployment.broker_environment.items():
            monkeypatch.setenv(name, value)
        yield World(deployment)


def _need_control() -> None:
    if not need_part("pebble").can(PEBBLE_SET_RENEWAL_INFO):
        pytest.skip("this Pebble has no renewal-info control")


def csr_pem() -> str:
    return build_csr(generate_private_key(KeyType.EC_P256), sans=[NAME])


async def test_what_the_ca_says_reaches_the_host(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Its window, a moved one, an incident, nonsense, a restart, and renewals that say what they replace."""
    caplog.set_level(logging.INFO, logger="certplane")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(world.broker())
        deployed = DeployedBroker(world.deployment)
        channel = await stack.enter_async_context(deployed.channel(HOST))
        first = (await issue(channel, profile="web", csr_pem=csr_pem())).certificate

        async def plan() -> RenewalPlan | None:
            found = await broker.stores.renewal_plans.in_force(HOST, world.clock.now())
            return next((one.plan for one in found if one.certificate_id == first.certificate_id), None)

        async def shown() -> datetime:
            request = pb.GetCertificateRequest(certificate_id=first.certificate_id)
            answer: Any = await certificates(channel).GetCertificate(request, timeout=HANG)
            time: datetime = answer.certificate.renew_time.ToDatetime(UTC)
            return time

        async def shown_within(start: datetime, end: datetime) -> bool:
            return start <= await shown() < end

        # Right after the issuance the CA is asked: Pebble's own window.
        own = await until(plan)
        assert own.cause is RenewalCause.ISSUER
        assert own.window_start <= own.renew_time < own.window_end
        assert await shown() == own.renew_time

        # The window moves; the next question finds out.
        start = world.clock.now() + 30 * DAY
        await world.say(first, start, start + DAY)
        world.clock.step(timedelta(hours=6.5))
        await until(lambda: shown_within(start, start + DAY))
        (event,) = await deployed.events(event_type="renewal_window_moved")
        assert event["certificate_id"] == first.certificate_id
        assert event["identity"] == HOST
        moved = await plan()

        # Nonsense, and a moved window that ends before it begins, change nothing.
        await world.deployment.pebble.set_renewal_info(first.certificate_pem, '{"suggestedWindow": {"start": 7}}')
        world.clock.step(timedelta(hours=6.5))

        async def failed() -> bool:
            current = await plan()
            return current is not None and current.check_failures == 1

        await until(failed)
        assert (await shown()) == moved.renew_time  # type: ignore[union-attr]  # there is one

        # Another broker on the same database goes on with the same moment, from its first answer on.
        await stack.aclose()
        broker = await stack.enter_async_context(world.broker())
        channel = await stack.enter_async_context(deployed.channel(HOST))
        assert await shown() == moved.renew_time  # type: ignore[union-attr]  # there is one

        # An incident: the window is past.
        changed: list[RenewalPlan] = []
        broker.renewal_plans.subscribe(changed.extend)
        past = world.clock.now() - DAY
        await world.say(first, past, past + timedelta(hours=1), INCIDENT)
        world.clock.step(timedelta(hours=6.5))
        now = world.clock.now()
        await until(lambda: shown_within(now - timedelta(minutes=1), now + timedelta(minutes=1)))
        called_back = await plan()
        assert called_back is not None
        assert called_back.cause is RenewalCause.ISSUER
        assert called_back.explanation_url == INCIDENT
        assert [told.host for told in changed] == [HOST]
        *_, event = await deployed.events(event_type="renewal_window_moved")
        assert event["severity"] == "warning"
        assert INCIDENT in event["reason"]

        # The renewal names what it replaces; a second one of the same certificate can't, and is issued without.
        assert "takes no order that replaces" not in caplog.text
        renewed = await issue(channel, certificate_id=first.certificate_id, profile="web", csr_pem=csr_pem())
        assert renewed.certificate.certificate_id
        assert "takes no order that replaces" not in caplog.text
        assert await plan() is None, "it is in force no longer"
        again = await issue(channel, certificate_id=first.certificate_id, profile="web", csr_pem=csr_pem())
        assert again.certificate.certificate_id
        assert "alreadyReplaced" in caplog.text


@dataclass
class Asked:
    """A Pebble that validates nothing, one certificate of its, and who asks about it."""

    pebble: Pebble
    source: AcmeRenewalInfo
    certificate_pem: str


@pytest_asyncio.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Asked]:
    _need_control()
    options = PebbleOptions(always_valid=True)
    async with Pebble(tmp_path / "pebble", "127.0.0.1:1", options) as pebble:
        clock = SystemClock()
        server = AcmeServer(pebble.directory_url, ca_bundle=pebble.https_roots_file, user_agent="certplane/test")
        key = AccountKey.load_or_create(tmp_path / "account.key")
        ca = AcmeCa(server, clock)
        issuer = AcmeIssuer("pebble", ca, key, rng=random.Random())
        csr_der = x509.load_pem_x509_csr(csr_pem().encode()).public_bytes(Encoding.DER)
        order = await issuer.create_order(csr_der, Profile("web", "multi_san", (NAME,), "hash"), SOON)
        order = await issuer.finalize(await issuer.answer_challenges(order, SOON), csr_der, SOON)
        chain = await issuer.download(order, SOON)
        leaf = x509.load_pem_x509_certificates(chain.encode())[0].public_bytes(Encoding.PEM).decode()
        yield Asked(pebble, AcmeRenewalInfo(ca), leaf)
        await ca.close()


BODIES = {
    "no JSON": "later",
    "no object": "[]",
    "no window": '{"explanationURL": "https://ca.example/"}',
    "no end": '{"suggestedWindow": {"start": "2027-01-01T00:00:00Z"}}',
    "numbers": '{"suggestedWindow": {"start": 1, "end": 2}}',
    "no zone": '{"suggestedWindow": {"start": "2027-01-01T00:00:00", "end": "2027-01-02T00:00:00"}}',
    "backwards": '{"suggestedWindow": {"start": "2027-01-02T00:00:00Z", "end": "2027-01-01T00:00:00Z"}}',
    "deep": "[" * 100_000,
}


async def test_row_10_what_a_ca_sends_instead_of_a_window(asked: Asked) -> None:
    """Fault row 10: malformed bodies, a CA that is down: each an error of its kind, none a window, none a crash."""
    info = await asked.source.renewal_info(asked.certificate_pem, SOON)
    assert info.window_start < info.window_end
    assert info.retry_after is not None
    for what, body in BODIES.items():
        await asked.pebble.set_renewal_info(asked.certificate_pem, body)
        with pytest.raises(RenewalInfoError) as failed:
            await asked.source.renewal_info(asked.certificate_pem, SOON)
        assert not failed.value.temporary, what
        assert not isinstance(failed.value, RenewalInfoUnsupportedError), what
    await asked.pebble.__aexit__(None, None, None)
    with pytest.raises(RenewalInfoError) as failed:
        await asked.source.renewal_info(asked.certificate_pem, SOON)
    assert failed.value.temporary
