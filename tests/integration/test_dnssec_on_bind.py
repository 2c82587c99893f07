"""DNSSEC in preflight: real zones whose signatures are right or broken, real servers, a real resolver that validates."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.delegation import Delegations
from certplane.broker.issuers.dns.dnssec import DnssecCheck
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.no_provider import NoProvider
from certplane.broker.issuers.dns.preflight import DnsPreflight
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.routes import Route, Routes
from certplane.broker.model import PreflightCheck, PreflightResult, Profile
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from tests.support.signed_zones import (
    CHILD,
    PARENT,
    Change,
    Key,
    SignedZones,
    another_serial,
    nothing,
    signed_zones,
    without_signatures,
)

pytestmark = pytest.mark.integration

OK, FAILED, UNKNOWN = PreflightResult.OK, PreflightResult.FAILED, PreflightResult.UNKNOWN
SOON, DAY = timedelta(seconds=30), timedelta(days=1)
NAME = f"www.{CHILD}"


def lookup_of(zones: SignedZones, resolver: HostPort | None = None) -> DnsLookup:
    return DnsLookup(resolvers=[resolver or zones.resolver], servers=zones.servers)


async def look(zones: SignedZones, resolver: HostPort | None = None, name: str = NAME) -> PreflightCheck:
    deadline = Deadline.after(SOON, SystemClock())
    found = await DnssecCheck(SystemClock()).check(name, lookup_of(zones, resolver), deadline)
    assert found is not None
    return found


async def test_zones_that_validate(tmp_path: Path) -> None:
    """The resolver says so; one that doesn't validate says nothing, and nothing is found."""
    async with signed_zones(tmp_path) as zones:
        found = await look(zones)
        assert (found.subject, found.result) == (CHILD, OK)
        assert found.detail == "signed, and validated by the resolver 127.0.0.1"
        found = await look(zones, zones.plain_resolver)
        assert found.result is OK
        assert "nothing wrong at 1 of 1 server; the resolver doesn't validate" in found.detail
        assert (await look(zones, name=CHILD)).result is OK


BROKEN = [
    pytest.param(nothing, -DAY, "by key {tag} that ended 20", id="ended"),
    pytest.param(nothing, 60 * DAY, "by key {tag} that begins 20", id="not-yet"),
    pytest.param(without_signatures("SOA"), DAY, f"sends no signature (RRSIG) of SOA of {CHILD}", id="missing"),
    pytest.param(
        without_signatures("DNSKEY"), DAY, f"sends no signature (RRSIG) of DNSKEY of {CHILD}", id="keys-not-signed"
    ),
    pytest.param(
        another_serial, DAY, f"sends SOA of {CHILD} with a signature by key {{tag}} that is wrong", id="wrong"
    ),
]


@pytest.mark.parametrize(("change", "until", "said"), BROKEN)
async def test_signatures_that_fail(tmp_path: Path, change: Change, until: timedelta, said: str) -> None:
    """The resolver refuses the zone, and which signature of which server is at fault is told."""
    async with signed_zones(tmp_path, change, until=until) as zones:
        found = await look(zones)
        assert (found.subject, found.result) == (CHILD, FAILED)
        assert "the resolver 127.0.0.1 refuses it (SERVFAIL, but not with CD" in found.detail
        assert said.format(tag=zones.key.tag) in found.detail
        assert "repair the zone's signatures" in found.remedy
        plain = await look(zones, zones.plain_resolver)
        assert plain.result is FAILED
        assert said.format(tag=zones.key.tag) in plain.detail
        assert "SERVFAIL" not in plain.detail


async def test_a_ds_of_another_key(tmp_path: Path) -> None:
    """As after a key was changed at one side alone."""
    old = Key()
    async with signed_zones(tmp_path, ds_of=old) as zones:
        found = await look(zones)
        assert found.result is FAILED
        assert f"(key tag {zones.key.tag}) of which none is in the parent's DS (key tag {old.tag})" in found.detail


async def test_one_server_of_two(tmp_path: Path) -> None:
    """The broken one is named. A resolver that has asked the other one has no complaint, and neither may a CA's."""
    async with signed_zones(tmp_path, nothing, without_signatures("SOA")) as zones:
        broken = zones.servers[1]
        found = await look(zones, zones.plain_resolver)
        assert found.result is UNKNOWN
        assert found.detail.startswith(f"{broken} (127.0.0.1) sends no signature")
    async with signed_zones(tmp_path / "again", without_signatures("SOA"), nothing) as zones:
        found = await look(zones)
        assert found.result is FAILED
        assert f"{zones.servers[0]} (127.0.0.1) sends no signature" in found.detail
        assert str(zones.servers[1]) not in found.detail


async def test_a_zone_above_that_fails(tmp_path: Path) -> None:
    """It is the one that is told: nothing below it can be right."""
    async with signed_zones(tmp_path, parent_until=-DAY) as zones:
        found = await look(zones)
        assert (found.subject, found.result) == (PARENT, FAILED), found.detail
        assert f"of {PARENT} with a signature" in found.detail


async def test_a_zone_that_is_not_signed(tmp_path: Path) -> None:
    """Signatures that nobody vouches for don't count, whatever they are worth."""
    async with signed_zones(tmp_path, signed=False, until=-DAY) as zones:
        found = await look(zones)
        assert (found.subject, found.result, found.detail) == (CHILD, OK, "not signed")


@pytest.mark.parametrize("until", [DAY, -DAY], ids=["right", "ended"])
async def test_before_an_order(tmp_path: Path, until: timedelta) -> None:
    """One that a CA would have to refuse isn't spent; in the report the zone has a row."""
    async with signed_zones(tmp_path, until=until) as zones:
        lookup = lookup_of(zones)
        routes = Routes(Route(NoProvider(), lookup, PropagationCheck(lookup)))
        looking = DnsPreflight(routes, Delegations((), routes), {}, SystemClock())
        rows = await looking.report(Profile("web", "mixed", (NAME, f"*.{NAME}"), "hash"), [], SOON)
        assert [(row.subject, row.result) for row in rows if row.check == "dnssec"] == [
            (CHILD, OK if until > timedelta() else FAILED)
        ]
        if until > timedelta():
            await looking.check_order([NAME], "main", SOON)
            return
        with pytest.raises(RefusalError) as caught:
            await looking.check_order([NAME], "main", SOON)
        assert caught.value.refusal.reason is Reason.DNS_REJECTED
        assert "that ended 20" in caught.value.refusal.message


async def test_nobody_to_ask() -> None:
    """Without a resolver nothing is said; one that is away is a doubt."""
    deadline, check = Deadline.after(timedelta(seconds=2), SystemClock()), DnssecCheck(SystemClock())
    nowhere = HostPort("127.0.0.1", 9)
    assert await check.check(NAME, DnsLookup(servers=[nowhere]), deadline) is None
    found = await check.check(NAME, DnsLookup(resolvers=[nowhere]), deadline)
    assert found is not None
    assert found.result is UNKNOWN
