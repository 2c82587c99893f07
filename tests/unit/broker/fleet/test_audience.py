"""Whom a bundle lets in: hosts here, at other brokers, and those that are away; what is said of CAs that are taken out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from typing_extensions import override

from certplane.broker.fleet.audience import AnchoredHost, HostAnchor, HostAnchors, TrustAudience, shut_out_by
from certplane.broker.fleet.bundle_plan import plan_bundle, removed_cas, shuts_out
from certplane.broker.members.ports import NoOtherBrokers
from certplane.errors import Reason, RefusalError
from certplane.pki.trust_bundle import TrustBundle, anchor_of
from tests.support.bundles import DAY, named_root, pem
from tests.support.ca import PrivateCa


class Anchors(HostAnchors):
    """Hosts in memory."""

    def __init__(self, *hosts: HostAnchor, away: bool = False) -> None:
        self.hosts, self.away = hosts, away

    @override
    async def list_anchors(self, *, after: str, limit: int) -> Sequence[HostAnchor]:
        if self.away:
            raise RefusalError(Reason.STORE_UNAVAILABLE, "away")
        return [host for host in self.hosts if host.host > after][:2]


class Others(NoOtherBrokers):
    """Knows one broker."""

    @override
    def find(self, broker_id: str) -> Any:
        return SimpleNamespace(broker_id="other") if broker_id == "other" else None


class Registry:
    """Hosts with a stream here, and their CAs."""

    def __init__(self, **anchors: str) -> None:
        self.hosts = tuple(anchors)
        self._anchors = anchors

    def place_of(self, host: str) -> Any:
        return SimpleNamespace(caller=SimpleNamespace(anchor=self._anchors[host]))


def audience(anchors: Anchors, **here: str) -> TrustAudience:
    policies: Any = SimpleNamespace(current=SimpleNamespace(host_names=["a", "b", "c", "d", "e"]))
    registry: Any = Registry(**here)
    return TrustAudience(anchors, registry, policies, Others())


async def test_hosts_of_all_brokers_and_those_that_are_away() -> None:
    """Connected is who has a stream at a broker that is there; who has one here counts by that; policy says who counts."""
    recorded = Anchors(
        HostAnchor("a", "stale", "other"),
        HostAnchor("b", "old", "other"),
        HostAnchor("c", "old", "gone"),
        HostAnchor("d", "", ""),
        HostAnchor("retired", "old", "other"),
    )
    found = await audience(recorded, a="old").hosts()
    assert found == [
        AnchoredHost("a", "old", connected=True),
        AnchoredHost("b", "old", connected=True),
        AnchoredHost("c", "old", connected=False),
        AnchoredHost("d", "", connected=False),
    ]
    lost = shut_out_by({"new"}, found)
    assert (lost.hosts, lost.connected, lost.all_connected) == (("a", "b", "c"), 2, 2)


async def test_without_a_database_those_here_count() -> None:
    """A guard that asks nobody would let a bundle through that shuts out who is connected."""
    assert await audience(Anchors(away=True), a="old").hosts() == [AnchoredHost("a", "old", connected=True)]


@pytest.fixture(scope="module")
def cas() -> list[PrivateCa]:
    return [PrivateCa("old"), PrivateCa("new")]


def bundle(*cas: PrivateCa) -> TrustBundle:
    return TrustBundle.from_pem(b"".join(ca.root_pem for ca in cas))


def host(name: str, ca: PrivateCa, *, connected: bool = True) -> AnchoredHost:
    return AnchoredHost(name, anchor_of(ca.root), connected)


def test_a_plan_counts_hosts_by_their_ca(cas: list[PrivateCa]) -> None:
    """CAs that come and go stand first; who would be shut out is named, and why it would be asked about."""
    old, new = cas
    hosts = [host("a", old), host("b", old, connected=False), host("c", new)]
    plan = plan_bundle(bundle(old, new), bundle(new), hosts)
    assert [(ca.before, ca.after, ca.host_count) for ca in plan.cas] == [(True, False, 2), (True, True, 1)]
    assert (plan.shut_out.hosts, plan.shut_out.connected) == (("a", "b"), 1)
    assert plan.confirmation.startswith("would shut out 1 of 2 connected hosts: it lacks CN=old")
    assert plan.trust_hash == bundle(new).hash


def test_a_root_that_is_renewed_with_its_key_shuts_nobody_out(cas: list[PrivateCa]) -> None:
    """Another certificate of the same name and key lets the same hosts in."""
    old, _ = cas
    renewed = TrustBundle.from_pem(pem(named_root(old.root.subject, old.root_key, begins=-DAY, ends=timedelta(days=9))))
    plan = plan_bundle(bundle(old), renewed, [host("a", old)])
    assert (plan.shut_out.hosts, plan.confirmation) == ((), "")
    assert {(ca.before, ca.after, ca.host_count) for ca in plan.cas} == {(False, True, 1), (True, False, 1)}


def test_hosts_that_are_away_are_not_asked_about_but_announced(cas: list[PrivateCa]) -> None:
    """A CA is taken out though a host that is switched off has an identity of it; it is said whom that concerns."""
    old, new = cas
    hosts = [host(f"h{number}", old, connected=False) for number in range(7)]
    assert shuts_out(bundle(old, new), bundle(new), hosts) == ""
    (line,) = removed_cas(bundle(old, new), bundle(new), hosts)
    assert line.startswith("CA removed: CN=old")
    assert "7 hosts with an identity of it are refused, 0 of them connected now: h0, h1, h2, h3, h4 and 2 more" in line
    assert "`certplane-agent enroll`" in line
    (nobody,) = removed_cas(bundle(old, new), bundle(new), [])
    assert nobody.endswith("0 hosts with an identity of it are refused")
