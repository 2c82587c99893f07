"""The five questions of an operator at night, on 200 hosts: what is shown is what was planted, and nothing is missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.issuance.queue import Lane
from certplane.broker.model import Scope, ScopeKind
from certplane.broker.notify.rules import Gathering
from certplane.broker.notify.settings import NotificationRule
from certplane.broker.notifying import explaining
from certplane.ctl.show.summary import alarms, summary_lines
from certplane.errors import Reason, Refusal
from certplane.fleet_report.messages import HEALTHS
from certplane.v1 import fleet_pb2 as pb
from certplane.v1 import fleet_pb2_grpc
from tests.support.edge import EdgeServer, serve_edge
from tests.support.planted_fleet import DAY, HOSTS, HOUR, MINUTE, OPERATOR, Planted, planted, shown
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration


@pytest.fixture
async def edge() -> AsyncIterator[EdgeServer]:
    async with serve_edge() as server:
        yield server


@pytest.fixture
async def fleet(edge: EdgeServer) -> AsyncIterator[Planted]:
    async with planted(edge) as found:
        edge.clock.lapse = MINUTE  # what services have is read again
        yield found


@pytest.fixture
async def stub(edge: EdgeServer, fleet: Planted) -> AsyncIterator[Any]:
    """An operator's; the fleet is there."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        yield fleet_pb2_grpc.FleetServiceStub(channel)


async def summary(stub: Any, **fields: Any) -> pb.SummarizeFleetResponse:
    answer: pb.SummarizeFleetResponse = await stub.SummarizeFleet(pb.SummarizeFleetRequest(**fields), timeout=HANG)
    assert answer.ByteSize() < 64 * 1024
    return answer


async def test_one_command_answers_all_five(edge: EdgeServer, fleet: Planted, stub: Any) -> None:
    """More than twelve kinds of trouble among 200 hosts: each is shown where it belongs, with nobody else."""
    assert len(fleet.troubles) >= 12
    moment = edge.clock.now()
    await edge.stores.audit.append(
        [AuditEvent("e-1", moment, AuditEventType.POLICY_LOADED, reason="profile shop: +store.example.test")]
    )
    holds = edge.orders._here.holds
    refusal = Refusal(Reason.ISSUER_RATE_LIMITED, "too many certificates already issued")
    holds.hold(Lane("default", "", ()), [Scope(ScopeKind.ACCOUNT)], moment + HOUR, refusal, moment)
    found = await summary(stub)

    # Is anyone being hurt now?
    assert shown(found.hurt) == fleet.hosts_of("hurts")
    assert found.hurt_count == len(fleet.hosts_of("hurts"))
    ranks = [HEALTHS[each.certificate.health].rank for each in found.hurt]
    assert ranks == sorted(ranks)
    assert all(each.certificate.health_reason and each.certificate.health_remedy for each in found.hurt)

    # Who is next, and will it heal by itself?
    assert shown(found.next) == fleet.hosts_of("ends") | {*fleet.renewing}
    hopeless = {host for each in fleet.troubles.values() if each.ends and not each.heals for host in each.hosts}
    assert found.next_wont_heal_count == len(hopeless)

    # One cause or many?
    causes = {(HEALTHS[each.health].value, each.cause): each.certificate_count for each in found.causes}
    assert causes == fleet.causes
    assert found.cause_count == len(causes)
    assert all(each.reason and each.actor and each.remedy for each in found.causes)
    (dns,) = (each for each in found.causes if each.cause.startswith("DNS_UNAVAILABLE"))
    assert (dns.host_count, len(dns.hosts), dns.HasField("next_attempt_time")) == (19, 5, True)

    # What changed before that?
    assert [(each.event_type, each.text) for each in found.changes] == [
        ("policy_loaded", "profile shop: +store.example.test")
    ]
    assert [(each.issuer, each.usable, each.reason) for each in found.issuers] == [("default", False, refusal.message)]

    # Who is missing?
    assert shown(found.missing) == fleet.hosts_of("missing") | {*fleet.never_came}
    assert found.missing_count == len(found.missing)
    assert all(each.reason for each in found.missing)

    # And the totals.
    words = Counter({HEALTHS[each.health].value: each.certificate_count for each in found.health_counts})
    troubled = Counter[str]()
    for (word, _), count in fleet.causes.items():
        troubled[word] += count
    assert words - Counter(OK=words["OK"]) == troubled
    assert words.total() == HOSTS - len(fleet.never_came) + found.service_count
    assert (found.host_count, found.service_count) == (HOSTS, 2)
    versions = {each.version: each.host_count for each in found.agent_versions}
    assert versions[""] == len(fleet.never_came)
    assert versions["1.1.0"] == found.connected_host_count
    assert sum(versions.values()) == HOSTS

    # On one screen, whoever is hurt and every cause is named.
    lines = "\n".join(line.text for line in summary_lines(found, moment))
    assert alarms(found)
    for name in {each.label or each.host for each in found.hurt}:
        assert name in lines
    for _, cause in fleet.causes:
        assert cause in lines


async def test_a_summary_of_a_part(fleet: Planted, stub: Any) -> None:
    """By a filter: of hosts, and of certificates; and of a longer time."""
    (first, *_) = fleet.troubles["a unit"].hosts
    found = await summary(stub, filter=pb.FleetFilter(hosts=[first]))
    assert (found.host_count, found.hurt_count, [each.cause for each in found.causes]) == (
        1,
        0,
        ["RELOAD nginx.service"],
    )
    found = await summary(stub, filter=pb.FleetFilter(causes=["RELOAD nginx.service"]))
    assert (found.host_count, found.causes[0].certificate_count, found.cause_count) == (5, 5, 1)
    request = pb.SummarizeFleetRequest()
    request.period.FromTimedelta(7 * DAY)
    longer = await stub.SummarizeFleet(request, timeout=HANG)
    assert shown(longer.next) == fleet.hosts_of("ends") | {*fleet.renewing}


async def test_notifications_tell_each_cause_and_what_to_do(edge: EdgeServer, fleet: Planted, stub: Any) -> None:
    """Of hosts and of services, silent and blocked ones among them, in the words that `certplanectl host` has."""
    await summary(stub)  # a call, by which a broker reads who is denied and contested
    gathering, explain = Gathering([NotificationRule()], edge.clock.now()), explaining(edge.view)
    async for host in edge.index.walk():
        gathering.add(host)
    troubles = list(gathering.troubles())
    wanted = Counter[str]()
    for (_, cause), count in fleet.causes.items():
        wanted[cause] += count
    assert {each.cause: each.certificate_count for each in troubles} == wanted
    assert {each.cause: each.service_count for each in troubles if each.service_count} == {"REQUEST": 1}
    for each in troubles:
        health = await explain(each.example_host, each.example_certificate)
        assert health is not None
        assert health.text, each.cause
        assert health.remedy, each.cause
