"""What `Broker` and `OrderFollower` promise the agent, asked of the fake and of the gRPC link over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.agent.link.broker import GrpcBroker
from certplane.agent.model import IssuedCertificate, Version
from certplane.agent.ports import Broker, CertificateLookup, OrderFollower
from certplane.errors import ProblemDocument, Reason, Refusal, RefusalError, Violation
from certplane.pki.csr import build_csr
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from certplane.sandbox.certificates import CertificateAuthority
from tests.fakes.agent_broker import FakeBroker
from tests.support.broker_server import BrokerServer
from tests.support.identities import identity_version, new_key
from tests.support.lineages import LocalIssuer

MINUTE = timedelta(minutes=1)


class Link(Broker, OrderFollower, CertificateLookup):
    """The ports: one connection."""


@dataclass
class Subject:
    """The ports, the broker behind them, and two identities to use."""

    link: Link
    broker: FakeBroker
    identities: tuple[Version, Version]
    server: BrokerServer | None = None


@pytest_asyncio.fixture(params=["fake", "grpc"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    clock = SystemClock()
    broker = FakeBroker(clock, LocalIssuer(now=clock.now()))
    agent_ca = CertificateAuthority.root("Agents")
    first, second = (identity_version(tmp_path / str(number), agent_ca, "web1.example") for number in (1, 2))
    if request.param == "fake":
        await broker.use_identity(first)
        yield Subject(broker, broker, (first, second))  # type: ignore[arg-type] # the fake is both ports
        return
    await broker.use_identity(first)
    server_ca = CertificateAuthority.root("Servers")
    (tmp_path / "server-ca.crt").write_bytes(server_ca.pem)
    pool = BlockingPool("disk", 1)
    async with BrokerServer(broker, agent_ca, server_ca.issue("broker", ["localhost"])).running() as server:
        link = GrpcBroker(
            [server.url],
            server_ca_bundle=tmp_path / "server-ca.crt",
            timeout=timedelta(seconds=5),
            clock=clock,
            disk=pool,
        )
        await link.use_identity(first)
        yield Subject(link, broker, (first, second), server)  # type: ignore[arg-type] # it is both ports
        await link.close()
    pool.close()


def csr() -> str:
    return build_csr(new_key(), sans=["web1.example"])


async def issue(subject: Subject, csr_pem: str, *, replaces: str = "", profile: str = "web") -> object:
    return await subject.link.issue(
        profile=profile, csr_pem=csr_pem, replaces_certificate_id=replaces, wait=timedelta()
    )


async def test_a_certificate_comes_with_all_that_its_holder_must_know(subject: Subject) -> None:
    """Leaf, chain, its name at the broker and when to renew it."""
    order = await subject.link.issue(profile="web", csr_pem=csr(), replaces_certificate_id="", wait=timedelta())
    assert order.state == "ISSUED"
    assert isinstance(order.certificate, IssuedCertificate)
    assert order.certificate.certificate_pem.startswith("-----BEGIN CERTIFICATE-----")
    assert order.certificate.chain_pem.startswith("-----BEGIN CERTIFICATE-----")
    assert order.certificate.certificate_id == "certificate-1"
    assert order.certificate.renew_time is not None
    assert order.certificate.renew_time.utcoffset() == timedelta()
    assert order.error is None


async def test_what_is_revoked_is_told(subject: Subject) -> None:
    """Since when; nothing of one that isn't, and a refusal of one that the broker doesn't know."""
    await issue(subject, csr())
    assert await subject.link.revoke_time("certificate-1") is None
    moment = datetime(2026, 11, 28, tzinfo=UTC)
    subject.broker.revoked["certificate-1"] = moment
    assert await subject.link.revoke_time("certificate-1") == moment
    with pytest.raises(RefusalError) as refused:
        await subject.link.revoke_time("certificate-2")
    assert refused.value.refusal.reason is Reason.CERTIFICATE_NOT_FOUND


async def test_the_profiles_names_are_told(subject: Subject) -> None:
    """What a request must ask for, profile by profile; nothing where the broker is of an older release."""
    assert (await subject.link.get_identity()).profile_names == {}
    subject.broker.profile_names = {"web": ("a.example", "b.example")}
    assert (await subject.link.get_identity()).profile_names == {"web": ("a.example", "b.example")}


async def test_the_same_request_is_the_same_order(subject: Subject) -> None:
    """A lost answer is fetched by asking again."""
    subject.broker.states = ["PENDING"]
    request = csr()
    first = await subject.link.issue(profile="web", csr_pem=request, replaces_certificate_id="", wait=timedelta())
    again = await subject.link.issue(profile="web", csr_pem=request, replaces_certificate_id="", wait=timedelta())
    assert first.order_id == again.order_id
    assert first.certificate is None


async def test_a_renewal_names_what_it_replaces(subject: Subject) -> None:
    """A known certificate can be replaced, an unknown one is refused."""
    await issue(subject, csr())
    renewed = await subject.link.issue(
        profile="web", csr_pem=csr(), replaces_certificate_id="certificate-1", wait=timedelta()
    )
    assert renewed.certificate is not None
    assert renewed.certificate.certificate_id == "certificate-2"
    with pytest.raises(RefusalError) as refused:
        await issue(subject, csr(), replaces="certificate-9")
    assert refused.value.refusal.reason is Reason.CERTIFICATE_NOT_FOUND


async def test_a_refusal_keeps_all_that_it_says(subject: Subject) -> None:
    """Reason, message, when to come back, what is wrong and the CA's own words."""
    refusal = Refusal(
        Reason.ISSUER_RATE_LIMITED,
        "too many certificates",
        timedelta(hours=2),
        (Violation("certificates per week", "5 of 5"),),
        (ProblemDocument("urn:ietf:params:acme:error:rateLimited", "slow down", 429),),
    )
    subject.broker.errors = [RefusalError.of(refusal)]
    with pytest.raises(RefusalError) as refused:
        await issue(subject, csr())
    assert refused.value.refusal == refusal


async def test_a_failed_order_is_an_answer(subject: Subject) -> None:
    """The order's error and the time from which asking again makes a new one."""
    subject.broker.failure = Refusal(Reason.DNS_REJECTED, "no such zone")
    subject.broker.retry_time = SystemClock().now().replace(microsecond=0) + timedelta(hours=1)
    order = await subject.link.issue(profile="web", csr_pem=csr(), replaces_certificate_id="", wait=timedelta())
    assert order.state == "FAILED"
    assert order.error is not None
    assert order.error.reason is Reason.DNS_REJECTED
    assert order.retry_time == subject.broker.retry_time
    assert order.certificate is None


async def test_a_watch_shows_every_state_to_the_end(subject: Subject) -> None:
    """From the state of the moment to ISSUED with the certificate; then it ends."""
    subject.broker.states = ["PENDING", "AUTHORIZED", "VALIDATING", "FINALIZING"]
    order = await subject.link.issue(profile="web", csr_pem=csr(), replaces_certificate_id="", wait=timedelta())
    seen = [view async for view in subject.link.watch_order(order.order_id, MINUTE)]
    assert [view.state for view in seen] == ["PENDING", "AUTHORIZED", "VALIDATING", "FINALIZING", "ISSUED"]
    assert [view.certificate is not None for view in seen] == [False, False, False, False, True]


async def test_a_watch_ends_quietly_when_its_time_is_over(subject: Subject) -> None:
    """The order goes on; another watch finds it where it is."""
    subject.broker.states = ["PENDING", "VALIDATING"]
    subject.broker.stall = asyncio.Event()
    order = await subject.link.issue(profile="web", csr_pem=csr(), replaces_certificate_id="", wait=timedelta())
    watched = subject.link.watch_order(order.order_id, timedelta(seconds=0.2))
    assert [view.state async for view in watched] == ["PENDING"]
    subject.broker.stall.set()
    watched = subject.link.watch_order(order.order_id, MINUTE)
    assert [view.state async for view in watched][-1] == "ISSUED"


async def test_an_unknown_order_is_refused(subject: Subject) -> None:
    """With the broker's reason."""
    with pytest.raises(RefusalError) as refused:
        _ = [view async for view in subject.link.watch_order("order-9", MINUTE)]
    assert refused.value.refusal.reason is Reason.ORDER_NOT_FOUND


async def test_the_broker_says_how_it_sees_this_host(subject: Subject) -> None:
    """Name, kind, serial, profiles and the broker's own time."""
    view = await subject.link.get_identity()
    assert (view.name, view.kind, view.label) == ("web1.example", "host", "web1")
    assert view.serial_number == subject.identities[0].serial_number
    assert view.profiles == ("web",)
    assert abs(view.broker_time - SystemClock().now()) < MINUTE


async def test_the_broker_says_that_the_identity_is_contested(subject: Subject) -> None:
    """Since when, or nothing."""
    assert (await subject.link.get_identity()).contest_time is None
    subject.broker.contest_time = SystemClock().now()
    assert (await subject.link.get_identity()).contest_time == subject.broker.contest_time


async def test_a_report_names_the_identity_on_disk(subject: Subject) -> None:
    """Whatever identity the connection has."""
    await subject.link.report_enrollment("abc")
    assert subject.broker.reports == ["abc"]
    if subject.server is not None:
        ((_, request, _),) = subject.server.calls
        assert request.agent_version
        assert {"os", "kernel", "machine"} <= set(request.host_facts)


async def test_a_new_identity_is_used_by_the_next_call(subject: Subject) -> None:
    """The next call goes by the new identity, while a call under way ends on the old one."""
    subject.broker.states = ["PENDING", "VALIDATING"]
    subject.broker.stall = asyncio.Event()
    order = await subject.link.issue(profile="web", csr_pem=csr(), replaces_certificate_id="", wait=timedelta())
    watch = subject.link.watch_order(order.order_id, MINUTE)
    assert (await anext(watch)).state == "PENDING"
    await subject.link.use_identity(subject.identities[1])
    await subject.link.report_enrollment("x")
    subject.broker.stall.set()
    assert [view.state async for view in watch] == ["VALIDATING", "ISSUED"]
    if subject.server is not None:
        serials = {method: serial for method, _, serial in subject.server.calls}
        assert serials["WatchOrder"] == subject.identities[0].serial_number
        assert serials["ReportEnrollment"] == subject.identities[1].serial_number
