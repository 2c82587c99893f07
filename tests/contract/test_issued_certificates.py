"""What `IssuedCertificates` promises, asked of SQLite in memory and on disk, and of PostgreSQL."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta

from certplane.broker.fleet.model import IssuedCertificate
from certplane.broker.model import CertificateRecord, RevocationReason
from certplane.broker.renewal.model import RenewalPlan
from certplane.fleet_report.model import RenewalCause
from tests.support.stores import StoreHarness

DAY = timedelta(days=1)


def in_short(record: CertificateRecord) -> IssuedCertificate:
    return IssuedCertificate(**{field.name: getattr(record, field.name) for field in fields(IssuedCertificate)})


async def test_certificates_are_found_by_their_ids(store: StoreHarness) -> None:
    """As many as are asked for; those that there aren't are left out."""
    records = [await store.issue(identity=f"web{number}", profile="web") for number in range(150)]
    found = await store.stores.issued.find_issued([*(each.certificate_id for each in records), "none"])
    assert sorted(found, key=lambda each: each.certificate_id) == [in_short(each) for each in records]
    assert list(await store.stores.issued.find_issued([])) == []


async def test_of_an_identity_what_is_usable_is_listed_and_the_newest_of_each_profile(store: StoreHarness) -> None:
    """The newest first; expired and revoked ones only where none of the profile came after them."""
    first = await store.issue(identity="api", profile="web", key="k1", lasts=DAY)
    usable = await store.issue(identity="api", profile="web", key="k2", lasts=90 * DAY)
    newest = await store.issue(identity="api", profile="web", key="k3", lasts=90 * DAY)
    expired = await store.issue(identity="api", profile="mail", key="k4", lasts=DAY, dns_names=("mail.example.org",))
    other = await store.issue(identity="other", profile="web", key="k5", lasts=90 * DAY)
    later = store.clock.now() + 2 * DAY
    revoke = store.stores.certificates.mark_revoked
    revoked = await revoke(newest.certificate_id, RevocationReason.KEY_COMPROMISE, store.clock.now(), [])
    issued = store.stores.issued
    assert list(await issued.issued_to(["api"], later)) == [in_short(each) for each in (expired, revoked, usable)]
    both = await issued.issued_to(["other", "api", "none"], store.clock.now())
    assert [each.certificate_id for each in both] == [
        each.certificate_id for each in (expired, revoked, usable, first, other)
    ]
    assert list(await issued.issued_to([], later)) == []


async def test_what_is_planned_is_when_it_is_to_be_renewed(store: StoreHarness) -> None:
    """An operator's request moves the time of what was issued to an identity, which no host reports."""
    record = await store.issue(identity="api", profile="web")
    time = store.clock.now() + DAY
    plan = RenewalPlan(record.certificate_id, "api", time, RenewalCause.OPERATOR, "drill")
    await store.stores.renewal_plans.set_plans([plan])
    (found,) = await store.stores.issued.issued_to(["api"], store.clock.now())
    assert (found.certificate_id, found.renew_time) == (record.certificate_id, time)
