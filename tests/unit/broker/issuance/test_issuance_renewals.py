"""What renewal plans mean to requests, and what a renewal's order tells the CA."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.model import CertificateRecord
from certplane.broker.renewal.model import RenewalPlan
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.fakes.issuer import FakeCa, FakeIssuer
from tests.support.issuance import World, caller, issue, settle

DAY = timedelta(days=1)


async def certificate(
    world: World, authority: RegistrationAuthority, name: str = "one", **more: str
) -> CertificateRecord:
    """One that is delivered and, by its lifetime, not due."""
    result = await authority.issue(caller(), issue(name, **more))
    assert result.certificate is not None
    return world.database.certificates[result.certificate.certificate_id]


async def plan(world: World, record: CertificateRecord, renew_in: timedelta) -> None:
    wanted = RenewalPlan(
        record.certificate_id, record.identity, world.clock.now() + renew_in, RenewalCause.ISSUER, "an incident"
    )
    await world.plans.set_plans([wanted])


@pytest.mark.parametrize(
    ("renew_in", "source"),
    [
        pytest.param(timedelta(), "order", id="now"),
        pytest.param(-DAY, "order", id="since yesterday"),
        pytest.param(timedelta(seconds=1), "cache", id="in a second"),
    ],
)
async def test_a_certificate_that_should_be_renewed_now_is_no_fresh_answer(renew_in: timedelta, source: str) -> None:
    """Whatever its lifetime says: a CA calls it back."""
    world = World()
    authority = await world.started()
    record = await certificate(world, authority)
    await plan(world, record, renew_in)
    again = await authority.issue(caller(), issue())
    assert again.source == source
    assert again.certificate is not None
    assert (again.certificate.certificate_id == record.certificate_id) is (source == "cache")


async def test_a_plan_can_put_off_what_the_lifetime_makes_due() -> None:
    """The CA's window is late in the life: until then the certificate is the answer."""
    world = World()
    authority = await world.started()
    record = await certificate(world, authority)
    world.clock.advance(70 * DAY)
    assert world.clock.now() > record.renew_time
    await plan(world, record, DAY)
    assert (await authority.issue(caller(), issue())).source == "cache"


async def test_who_plans_hears_of_each_certificate_that_is_issued() -> None:
    """When it is durable."""
    world = World()
    heard: list[str] = []
    world.plans.subscribe_issued(
        lambda record: (
            heard.append(record.certificate_id) if record.certificate_id in world.database.certificates else None
        )
    )
    record = await certificate(world, await world.started())
    assert heard == [record.certificate_id]


async def test_a_renewal_tells_the_ca_what_it_replaces() -> None:
    """A first order says nothing."""
    world = World()
    authority = await world.started()
    first = await certificate(world, authority)
    await certificate(world, authority, "two", replaces=first.certificate_id)
    assert world.ca.replaced == ["", first.certificate_pem]


async def test_another_ca_is_not_told_what_it_never_issued() -> None:
    """A renewal that moves on to the next issuer is a first order there."""
    world = World()
    other = FakeIssuer(FakeCa(world.clock, world.dns), name="second", directory="https://second.test/dir")
    world.others.append(other)
    world.change_profile(issuers=("fake-ca", "second"))
    authority = await world.started()
    first = await certificate(world, authority)
    world.issuer.faults.fail_always("create_order", RefusalError(Reason.ISSUER_UNAVAILABLE, "down"))
    await authority.issue(caller(), issue("two", replaces=first.certificate_id, wait=timedelta()))
    await settle()
    await world.run_on()
    assert world.orders[-1].issuer == "second"
    assert set(other.ca.replaced) == {""}
