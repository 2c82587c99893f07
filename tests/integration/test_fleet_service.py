"""`FleetService` over real mTLS gRPC: pages, filters, a host of any size, and renewals that reach their hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from certplane.broker.fleet.model import HostStream
from certplane.broker.members.comparison import Difference, Subject
from certplane.broker.members.model import AccountKey
from certplane.broker.model import CertificateRecord, DenyEntry, Grant, IdentityKind, Profile, RevocationReason
from certplane.broker.renewal.model import RequestedRenewal
from certplane.broker.services.brokers_convert import difference_message
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, HostFacts, Report
from certplane.v1 import certificate_pb2, fleet_pb2_grpc, renewal_pb2, renewal_pb2_grpc
from certplane.v1 import fleet_pb2 as pb
from tests.fakes.authority import sample_certificate
from tests.fakes.policy import FakePolicy
from tests.support.ca import PrivateCa
from tests.support.calls import refused
from tests.support.edge import HOST, OPERATOR, SERVICE, EdgeServer, serve_edge
from tests.support.memory_store import MemoryStores
from tests.support.stores import NO_LIMITS, certificate, draft
from tests.support.streams import HostStreamClient
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

EXPIRED = renewal_pb2.HEALTH_EXPIRED
FAILED = renewal_pb2.CertificateStatus.STATE_FAILED


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest.fixture
async def edge(ca: PrivateCa) -> AsyncIterator[EdgeServer]:
    async with serve_edge(ca) as server:
        yield server


@pytest.fixture
async def fleet(edge: EdgeServer) -> AsyncIterator[Any]:
    """The stub, with an operator's identity."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        yield fleet_pb2_grpc.FleetServiceStub(channel)


async def known(edge: EdgeServer, host: str, *certificates: CertificateStatus) -> None:
    """A host that had a stream once."""
    now = edge.clock.now()
    stream = HostStream(host, HostFacts("0.1.0"), "1f", now, "192.0.2.1", now - timedelta(hours=1), now, now)
    reports = [Report(number, status) for number, status in enumerate(certificates, 1)]
    await edge.stores.fleet.record_reports(host, "e", reports, stream=stream)
    edge.hub.watchers.host_elsewhere(host, now)  # as the change feed would say: it was at another broker
    await edge.index.settled()  # what happens next is a change to what is known by then


def status(name: str = "web", state: CertificateState = CertificateState.SERVING, error: str = "") -> CertificateStatus:
    return CertificateStatus(name, state, last_error=error)


async def issue(edge: EdgeServer, host: str = HOST, name: str = "a.example") -> CertificateRecord:
    wanted = draft(identity=host, dns_names=(name,), public_key_sha256=f"key-{host}-{name}")
    order = (await edge.stores.orders.open_order(wanted, NO_LIMITS, [])).order
    record = certificate(order, f"certificate-{order.order_id}", edge.clock.now(), timedelta(days=90))
    await edge.stores.orders.finish_order(order, record, [])
    return record


async def listed(fleet: Any, **fields: Any) -> tuple[list[str], list[int]]:
    """The names of all pages' hosts, and the pages' sizes."""
    seen: list[str] = []
    sizes = []
    request = pb.ListHostsRequest(**fields)
    while True:
        response = await fleet.ListHosts(request, timeout=HANG)
        assert response.ByteSize() < 64 * 1024
        sizes.append(len(response.hosts))
        seen += [host.name for host in response.hosts]
        if not response.next_page_token:
            return seen, sizes
        request.page_token = response.next_page_token


async def test_hosts_come_in_pages(edge: EdgeServer, fleet: Any) -> None:
    """By name, as many as were asked for, each once; the last page has no token."""
    names = [f"h{number:02d}.example" for number in range(25)]
    for name in names:
        await known(edge, name, status())
    seen, sizes = await listed(fleet, page_size=10)
    assert [name for name in seen if name in names] == names
    assert sizes == [10, 10, 7]


async def test_hosts_that_never_came_are_listed_at_their_place(edge: EdgeServer, fleet: Any) -> None:
    """Who expects a host must see that it is missing; a page that ends between two leaves none out."""
    for name in ("a.example", "web11.example", "z.example"):
        await known(edge, name, status())
    expected = ["a.example", HOST, "web11.example", "web2.example", "z.example"]
    assert sorted(expected) == (await listed(fleet))[0]
    for size in (1, 2, 3):
        assert (await listed(fleet, page_size=size))[0] == sorted(expected)
    assert HOST in (await listed(fleet, disconnected_only=True))[0]
    assert (await listed(fleet, states=[FAILED]))[0] == []


async def test_a_page_ends_before_it_is_too_large(edge: EdgeServer, fleet: Any) -> None:
    """Messages stay under 64 KiB, however much hosts have to say; a host is never left out."""
    names = [f"h{number:02d}.example" for number in range(12)]
    for name in names:
        await known(edge, name, *(status(f"c{index}", error="x" * 1900) for index in range(8)))
    seen, sizes = await listed(fleet)
    assert [name for name in seen if name in names] == names
    assert len(sizes) > 1


async def test_hosts_are_filtered(edge: EdgeServer, fleet: Any) -> None:
    """By the states of their certificates, and by whether they have a stream."""
    await known(edge, "failed.example", status(), status("mail", CertificateState.FAILED))
    await known(edge, "fine.example", status())
    async with edge.host() as channel:
        await HostStreamClient(channel).hello()
        assert (await listed(fleet, states=[FAILED]))[0] == ["failed.example"]
        away = (await listed(fleet, disconnected_only=True))[0]
        assert away == ["failed.example", "fine.example", "web2.example"]  # which policy expects
        assert len((await listed(fleet))[0]) == 4


async def test_one_host_of_any_size(edge: EdgeServer, fleet: Any) -> None:
    """A thousand certificates come in pages of the host; a list has the first of them and says how many there are."""
    names = [f"c{number:04d}" for number in range(1000)]
    await known(edge, HOST, *(status(name, error="x" * 150) for name in names))
    seen: list[str] = []
    request = pb.GetHostRequest(host="web1")
    while True:
        response = await fleet.GetHost(request, timeout=HANG)
        assert response.ByteSize() < 64 * 1024
        assert (response.host.name, response.host.label, response.host.certificate_count) == (HOST, "web1", 1000)
        seen += [each.name for each in response.host.certificates]
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert seen == names
    host = (await fleet.ListHosts(pb.ListHostsRequest(), timeout=HANG)).hosts[0]
    assert 0 < len(host.certificates) < host.certificate_count == 1000


async def test_a_host_that_never_came(fleet: Any) -> None:
    """Policy knows it, so it is shown, by name and by label; nobody else is."""
    for called in (HOST, "web1"):
        host = (await fleet.GetHost(pb.GetHostRequest(host=called), timeout=HANG)).host
        assert (host.name, host.label, host.connected) == (HOST, "web1", False)
    for called in ("web9", OPERATOR):
        answer = await refused(fleet.GetHost(pb.GetHostRequest(host=called), timeout=HANG))
        assert answer.reason is Reason.HOST_NOT_FOUND


async def test_an_operator_s_request_reaches_the_host(edge: EdgeServer, fleet: Any) -> None:
    """Durable, audited, told at once to who is there; asked again, it changes nothing and is told to nobody."""
    record = await issue(edge)
    await issue(edge, "web2.example")
    async with edge.host() as channel:
        host = HostStreamClient(channel)
        await host.hello()
        selection = pb.Selection(hosts=["web1", "web2.example"])
        request = pb.RequestRenewalRequest(request_id="drill-1", selection=selection, reason="drill")
        response = await fleet.RequestRenewal(request, timeout=HANG)
        assert (response.certificate_count, response.changed_count, response.connected_host_count) == (2, 2, 1)
        assert response.renewal_request_id == "drill-1"
        told = await host.directive()
        (renewal,) = told.renewals
        assert (renewal.certificate_id, renewal.renewal_request_id) == (record.certificate_id, "drill-1")
        shown = (await fleet.GetHost(pb.GetHostRequest(host="web1"), timeout=HANG)).host
        assert [each.certificate_id for each in shown.pending_renewals] == [record.certificate_id]
        await host.answer(told.nonce)
        again = await fleet.RequestRenewal(request, timeout=HANG)
        assert (again.changed_count, again.last_renew_time) == (2, response.last_renew_time)
        await host.heartbeat()
        assert (await host.read()).WhichOneof("message") == "heartbeat"
        shown = (await fleet.GetHost(pb.GetHostRequest(host="web1"), timeout=HANG)).host
        assert not shown.pending_renewals
    events = [event for event in edge.stores.database.events if event.event_type == "renewal_requested"]
    assert [(event.identity, event.request_id, event.count) for event in events] == [(OPERATOR, "drill-1", 2)]


async def test_a_spread_and_a_dry_run(edge: EdgeServer, fleet: Any) -> None:
    """The answer says when the last one is to renew; a dry run leaves no plan."""
    for number in range(4):
        await issue(edge, name=f"{number}.example")
    request = pb.RequestRenewalRequest(
        selection=pb.Selection(all=True), spread_duration=Duration(seconds=4000), reason="drill", dry_run=True
    )
    response = await fleet.RequestRenewal(request, timeout=HANG)
    left = response.last_renew_time.ToDatetime(UTC) - edge.clock.now()
    assert timedelta(seconds=2900) < left < timedelta(seconds=3001)
    assert not any(one.plan for one in await edge.stores.renewal_plans.in_force(HOST, edge.clock.now()))


NOTHING = pb.Selection()


@pytest.mark.parametrize(
    ("field", "method", "asked"),
    [
        pytest.param("host", "GetHost", pb.GetHostRequest(), id="no-host"),
        pytest.param("page_token", "GetHost", pb.GetHostRequest(host="web1", page_token="?"), id="token-of-a-host"),
        pytest.param("page_token", "ListHosts", pb.ListHostsRequest(page_token="?"), id="token-of-a-list"),
        pytest.param("page_size", "ListHosts", pb.ListHostsRequest(page_size=-1), id="page-size"),
        pytest.param("selection", "RequestRenewal", pb.RequestRenewalRequest(reason="x"), id="no-selection"),
        pytest.param("reason", "RequestRenewal", pb.RequestRenewalRequest(selection=NOTHING), id="no-reason"),
        pytest.param(
            "reason", "RequestRenewal", pb.RequestRenewalRequest(selection=NOTHING, reason="a\nb"), id="odd-reason"
        ),
        pytest.param(
            "spread_duration",
            "RequestRenewal",
            pb.RequestRenewalRequest(selection=NOTHING, reason="x", spread_duration=Duration(seconds=31 * 86_400)),
            id="long-spread",
        ),
        pytest.param(
            "selection.dns_names",
            "RequestRenewal",
            pb.RequestRenewalRequest(selection=pb.Selection(dns_names=["a b"]), reason="x"),
            id="no-dns-name",
        ),
    ],
)
async def test_bad_requests(fleet: Any, field: str, method: str, asked: Any) -> None:
    """REQUEST_INVALID with the field."""
    answer = await refused(getattr(fleet, method)(asked, timeout=HANG))
    assert (answer.reason, answer.fields) == (Reason.REQUEST_INVALID, [field])


async def test_hosts_are_no_operators(edge: EdgeServer) -> None:
    """No host sees another one."""
    async with edge.host() as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        for call in (
            stub.ListHosts(pb.ListHostsRequest(), timeout=HANG),
            stub.GetHost(pb.GetHostRequest(host="web1"), timeout=HANG),
            stub.RequestRenewal(pb.RequestRenewalRequest(), timeout=HANG),
        ):
            assert (await refused(call)).reason is Reason.ROLE_REQUIRED


def in_use(edge: EdgeServer, left: timedelta, name: str = "web", serial: str = "2", **fields: Any) -> CertificateStatus:
    """One that ends after `left` from now."""
    now = edge.clock.now()
    held = HeldCertificate(serial, now - 2 * left, now + left, f"certificate-{serial}", 2)
    return CertificateStatus(name, CertificateState.WAITING, profile="web", issued=held, installed=held, **fields)


async def healths(fleet: Any, host: str = "web1") -> dict[str, int]:
    """The health of each certificate of a host."""
    answer = await fleet.GetHost(pb.GetHostRequest(host=host), timeout=HANG)
    return {each.name: each.health for each in answer.host.certificates}


async def test_a_host_that_is_down_says_nothing_and_its_certificate_expires(edge: EdgeServer, fleet: Any) -> None:
    """The host is as it was, and time makes it overdue and then expired: with the cause, and what to do."""
    await known(edge, HOST, in_use(edge, timedelta(hours=12)), in_use(edge, timedelta(days=200), "mail"))
    await known(edge, "a.example", in_use(edge, timedelta(days=200)))
    assert await healths(fleet) == {"mail": renewal_pb2.HEALTH_OK, "web": renewal_pb2.HEALTH_OK}
    edge.clock.shift = timedelta(hours=6)
    assert (await healths(fleet))["web"] == renewal_pb2.HEALTH_OVERDUE
    assert (await listed(fleet, healths=[EXPIRED]))[0] == []
    edge.clock.shift = timedelta(hours=13)
    assert await healths(fleet) == {"mail": renewal_pb2.HEALTH_UNHEARD, "web": EXPIRED}
    for name in (HOST, "a.example"):
        edge.hub.watchers.host_elsewhere(name, edge.clock.now())  # the index looks each minute
    host = (await fleet.GetHost(pb.GetHostRequest(host="web1"), timeout=HANG)).host
    (expired,) = (each for each in host.certificates if each.health == EXPIRED)
    assert expired.health_reason.startswith("expired at ")
    assert "down, last heard at" in expired.health_reason
    assert expired.health_remedy == "check that the host and its certplane-agent run"
    assert (await listed(fleet, healths=[EXPIRED, renewal_pb2.HEALTH_OVERDUE]))[0] == [HOST]
    answer = await refused(fleet.ListHosts(pb.ListHostsRequest(healths=[99]), timeout=HANG))  # type: ignore[list-item]  # open enum
    assert answer.reason is Reason.REQUEST_INVALID


async def test_a_revoked_certificate_in_use_is_one_the_broker_knows_of(edge: EdgeServer, fleet: Any) -> None:
    """Whatever its host says; another host's certificate of the same serial number isn't it."""
    record = await issue(edge)
    fine = renewal_pb2.HEALTH_OK
    async with edge.host() as channel:
        host = HostStreamClient(channel)
        await host.hello()
        held = renewal_pb2.CertificateStatus.Held(serial_number=record.serial_number)
        await host.report("web", issued=held, installed=held, served=held, health=fine, health_reason="all is well")
        await host.read()
        await known(edge, "a.example", in_use(edge, timedelta(days=80), serial=record.serial_number))
        assert await healths(fleet) == {"web": fine}
        answer = await fleet.GetHost(pb.GetHostRequest(host="web1"), timeout=HANG)
        assert answer.host.certificates[0].health_reason == ""
        reason = RevocationReason.KEY_COMPROMISE
        now = edge.clock.now()
        edge.plans.note_revoked(await edge.stores.certificates.mark_revoked(record.certificate_id, reason, now, []))
        assert await healths(fleet) == {"web": renewal_pb2.HEALTH_REVOKED_IN_USE}
        assert (await listed(fleet, healths=[renewal_pb2.HEALTH_REVOKED_IN_USE]))[0] == [HOST]


async def test_the_worst_of_many_certificates_is_in_the_list(edge: EdgeServer, fleet: Any) -> None:
    """A host with more than a message holds can't hide the one that expired behind those that are well."""
    many = [in_use(edge, timedelta(days=80), f"c{number:04d}", renew_reason="x" * 200) for number in range(600)]
    await known(edge, HOST, *many, in_use(edge, timedelta(), "zone"))
    hosts = (await fleet.ListHosts(pb.ListHostsRequest(), timeout=HANG)).hosts
    (host,) = (each for each in hosts if each.name == HOST)
    names = [each.name for each in host.certificates]
    assert len(names) < host.certificate_count == 601
    assert names == sorted(names)
    assert [each.name for each in host.certificates if each.health == EXPIRED] == ["zone"]


async def test_a_watcher_is_told_what_a_policy_changes(edge: EdgeServer) -> None:
    """Within a second of its reload, though no host says anything: with the cause, and who can act."""
    grant = Grant(HOST, IdentityKind.HOST, "web1", profiles=("web",))
    operator = Grant(OPERATOR, IdentityKind.OPERATOR, "admin", roles=("viewer",))

    def policy(*names: str) -> FakePolicy:
        return FakePolicy.of([grant, operator], [Profile("web", "multi_san", names, "web")])

    edge.policy.policy = policy("a.example")
    await known(edge, HOST, in_use(edge, timedelta(days=80), dns_names=("a.example",)))
    edge.hub.watchers.host_elsewhere(HOST, edge.clock.now())  # as the change feed tells of what others record
    await edge.index.settled()
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        watch: Any = renewal_pb2_grpc.RenewalServiceStub(channel).WatchRenewals(
            renewal_pb2.WatchRenewalsRequest(hosts=["web1"]), timeout=HANG
        )
        (web,) = (await watch.read()).host.certificates
        assert web.health == renewal_pb2.HEALTH_OK
        assert (await watch.read()).HasField("snapshot_end")
        edge.policy.policy = policy("a.example", "b.example")
        (web,) = (await watch.read()).host.certificates
    assert (web.health, web.health_cause) == (renewal_pb2.HEALTH_MISMATCHED, "NAMES_NOT_ALLOWED web")
    assert web.health_actor == renewal_pb2.HEALTH_ACTOR_OPERATOR
    assert "lacks b.example" in web.health_reason
    assert "`dns_names` of web in agent.yml" in web.health_remedy
    assert web.HasField("health_since_time")


async def test_a_watcher_is_told_what_nobody_reports(edge: EdgeServer) -> None:
    """A certificate that was revoked, and one that expires, while their host says nothing."""
    record = await issue(edge)
    web = in_use(edge, timedelta(days=80), serial=record.serial_number)
    await known(edge, HOST, web, in_use(edge, timedelta(seconds=60), "mail", "3"))
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel, edge.host() as own:
        watch: Any = renewal_pb2_grpc.RenewalServiceStub(channel).WatchRenewals(
            renewal_pb2.WatchRenewalsRequest(hosts=["web1"]), timeout=HANG
        )
        while not (await watch.read()).HasField("snapshot_end"):
            pass
        host = HostStreamClient(own)
        await host.hello("web", "mail")
        soon = in_use(edge, timedelta(seconds=30), "mail", "3").installed
        assert soon is not None
        held = renewal_pb2.CertificateStatus.Held(serial_number="3", version=2, not_after_time=soon.not_after)
        await host.report("mail", "WAITING", issued=held, installed=held, served=held)

        async def told() -> dict[str, int]:
            """The next change, as the health of each certificate that it names."""
            event = await watch.read()
            changed = [event.certificate_change.certificate] if event.HasField("certificate_change") else []
            return {each.name: each.health for each in (*event.host.certificates, *changed)}

        while "web" in await told():
            pass  # the host came; then what it reported
        reason = RevocationReason.KEY_COMPROMISE
        revoked = await edge.stores.certificates.mark_revoked(record.certificate_id, reason, edge.clock.now(), [])
        edge.hub.certificate_revoked(revoked)
        assert (await told())["web"] == renewal_pb2.HEALTH_REVOKED_IN_USE
        edge.clock.shift = timedelta(seconds=31)
        assert (await told())["mail"] == EXPIRED


async def test_a_host_that_was_left_open_by_a_broker_that_was_killed_is_down(edge: EdgeServer, fleet: Any) -> None:
    """What is recorded of its stream doesn't say that it has ended; nobody has it all the same."""
    now = edge.clock.now()
    stream = HostStream(HOST, HostFacts("0.1.0"), "1f", now, "192.0.2.1", now, now)
    await edge.stores.fleet.record_reports(HOST, "e", [Report(1, in_use(edge, timedelta()))], stream=stream)
    host = (await fleet.GetHost(pb.GetHostRequest(host="web1"), timeout=HANG)).host
    assert "is down, last heard at" in host.certificates[0].health_reason
    assert (host.connected, host.broker_id, host.broker_name) == (False, "", "")


async def joined(edge: EdgeServer, number: int, **facts: Any) -> None:
    """Another broker of the fleet, which has a lease."""
    start = datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=number)
    alike = replace(edge.me(), name=f"machine{number}", start_time=start)
    other = MemoryStores.over(edge.stores.database)
    await other.members.renew(replace(alike, **facts), timedelta(minutes=1))


async def brokers_of(fleet: Any, **fields: Any) -> pb.ListBrokersResponse:
    response: pb.ListBrokersResponse = await fleet.ListBrokers(pb.ListBrokersRequest(**fields), timeout=HANG)
    assert response.ByteSize() < 64 * 1024
    return response


async def test_brokers(edge: EdgeServer, fleet: Any) -> None:
    """Each with all that it says of itself, the first one at the top."""
    keys = (AccountKey("default", "a1"),)
    facts = {"account_keys": keys, "clock_skew": timedelta(seconds=-2), "reuse_port": True, "audit_mode": "off"}
    await joined(edge, 1, stream_count=7, **facts)
    response = await brokers_of(fleet)
    mine, other = response.brokers
    assert (mine.broker_id, mine.name) == (response.broker_id, "machine")
    assert not mine.HasField("lease_expire_time")
    assert (other.name, other.address, other.version, other.stream_count) == ("machine1", "[::]:8443", "1", 7)
    assert (other.reuse_port, other.audit_mode, other.clock_skew.ToTimedelta()) == (True, "off", timedelta(seconds=-2))
    assert [(key.issuer, key.public_key_sha256) for key in other.account_keys] == [("default", "a1")]
    assert (other.policy_hash, other.trust_hash) == (edge.policy.current.hash, edge.trust.current.bundle.hash)
    assert other.lease_expire_time.ToDatetime(UTC) > edge.clock.now()
    assert (list(response.differences), response.next_page_token) == ([], "")


async def test_what_differs_is_marked(edge: EdgeServer, fleet: Any) -> None:
    """At the broker, and with words for people."""
    await joined(edge, 1)
    await joined(edge, 2, policy_hash="another")
    response = await brokers_of(fleet)
    policy = pb.BrokerDifference.SUBJECT_POLICY
    assert [list(broker.differs_in) for broker in response.brokers] == [[], [], [policy]]
    (difference,) = response.differences
    assert (difference.subject, list(difference.broker_ids)) == (policy, [response.brokers[2].broker_id])
    assert "policies differ: " in difference.text
    assert "certplane-broker reload" in difference.remedy


async def test_every_subject_has_a_number() -> None:
    """What is compared can be said on the wire."""
    numbers = {difference_message(Difference(subject, "", "", ())).subject for subject in Subject}
    assert numbers == set(pb.BrokerDifference.Subject.values()) - {pb.BrokerDifference.SUBJECT_UNSPECIFIED}


async def test_brokers_come_in_pages(edge: EdgeServer, fleet: Any) -> None:
    """Each once, as many as were asked for, or as fit into a message; the differences on each page."""
    for number in range(1, 60):
        await joined(edge, number, policy_hash="another" * 200)
    for size in (7, 0, 500):
        token, names = "", []
        while True:
            response = await brokers_of(fleet, page_size=size, page_token=token)
            names += [broker.name for broker in response.brokers]
            assert len(response.differences) == 1
            if not (token := response.next_page_token):
                break
        assert names == ["machine", *(f"machine{number}" for number in range(1, 60))]


async def test_brokers_while_the_store_is_away(edge: EdgeServer, fleet: Any) -> None:
    """Refused, and told when to come back."""
    edge.stores.database.faults.fail_always("living", RefusalError(Reason.STORE_UNAVAILABLE, "out of order"))
    assert (await refused(fleet.ListBrokers(pb.ListBrokersRequest(), timeout=HANG))).reason is Reason.STORE_UNAVAILABLE
    for bad in ({"page_size": -1}, {"page_token": "?"}):
        wrong = await refused(fleet.ListBrokers(pb.ListBrokersRequest(**bad), timeout=HANG))
        assert wrong.reason is Reason.REQUEST_INVALID


async def test_a_certificate_is_revoked_for_its_holder(edge: EdgeServer, fleet: Any) -> None:
    """What was done is told, with the holder and whether it hears of it; why is required, for the audit log."""
    request = pb.FleetServiceRevokeCertificateRequest(
        certificate_id="certificate-1",
        revocation_reason=certificate_pb2.REVOCATION_REASON_SUPERSEDED,
        reason="moved to the new cluster",
    )
    answer = await fleet.RevokeCertificate(request, timeout=HANG)
    assert (answer.identity, answer.already_revoked, answer.holder_told) == (HOST, False, True)
    assert answer.certificate.HasField("revoke_time")
    assert not answer.certificate.certificate_pem
    _, name, _, *asked = edge.authority.asked[-1]
    assert (name, *asked) == (OPERATOR, "certificate-1", RevocationReason.SUPERSEDED, "moved to the new cluster")

    edge.authority.certificates = [replace(sample_certificate(), identity=SERVICE, revoke_time=edge.clock.now())]
    answer = await fleet.RevokeCertificate(request, timeout=HANG)
    assert (answer.already_revoked, answer.holder_told) == (True, False)

    for field in ("certificate_id", "reason"):
        wrong = pb.FleetServiceRevokeCertificateRequest()
        wrong.CopyFrom(request)
        wrong.ClearField(field)  # type: ignore[arg-type]  # by name
        found = await refused(fleet.RevokeCertificate(wrong, timeout=HANG))
        assert (found.reason, found.refusal.violations[0].subject) == (Reason.REQUEST_INVALID, field)


async def progress_of(fleet: Any, request_id: str, **fields: Any) -> tuple[Any, list[Any]]:
    """The first answer, and the items of all pages."""
    request = pb.GetRenewalRequestRequest(renewal_request_id=request_id, **fields)
    first, items = None, []
    while True:
        response = await fleet.GetRenewalRequest(request, timeout=HANG)
        assert response.ByteSize() < 64 * 1024
        first = first or response
        items += response.items
        if not response.next_page_token:
            return first, items
        request.page_token = response.next_page_token


async def test_a_renewal_can_be_followed(edge: EdgeServer, fleet: Any) -> None:
    """Of each certificate how far it is, those that need a person first; the request has ended when all have."""
    word = pb.GetRenewalRequestResponse
    records = [await issue(edge, HOST, f"n{number}.example") for number in range(3)]
    held = [HeldCertificate(each.serial_number, certificate_id=each.certificate_id) for each in records]
    at_work = [
        CertificateStatus("a", CertificateState.SERVING, installed=held[0], renew_time=edge.clock.now()),
        CertificateStatus("b", CertificateState.FAILED, installed=held[1], request_failures=1, last_error="no DNS"),
        CertificateStatus("c", CertificateState.REQUESTING, installed=held[2]),
    ]
    await known(edge, HOST, *at_work)
    selection = pb.Selection(hosts=["web1"])
    asked = await fleet.RequestRenewal(pb.RequestRenewalRequest(selection=selection, reason="drill"), timeout=HANG)
    first, items = await progress_of(fleet, asked.renewal_request_id, page_size=2)
    assert (first.requested_by, first.reason, first.done) == (OPERATOR, "drill", False)
    assert first.HasField("request_time")
    assert first.HasField("last_renew_time")
    assert [(each.certificate_name, each.progress) for each in items] == [
        ("b", word.PROGRESS_FAILED),
        ("a", word.PROGRESS_PLANNED),
        ("c", word.PROGRESS_REQUESTING),
    ]
    assert items[0].reason == "no DNS"
    assert {each.certificate_id for each in items} == {each.certificate_id for each in records}
    assert [(each.progress, each.certificate_count) for each in first.counts] == [
        (word.PROGRESS_FAILED, 1),
        (word.PROGRESS_PLANNED, 1),
        (word.PROGRESS_REQUESTING, 1),
    ]

    for each in records:
        await edge.stores.certificates.mark_revoked(
            each.certificate_id, RevocationReason.UNSPECIFIED, edge.clock.now(), []
        )
    edge.clock.lapse += timedelta(minutes=1)  # what was found is answered again for a moment
    last, _ = await progress_of(fleet, asked.renewal_request_id)
    assert last.done
    assert [each.progress for each in last.counts] == [word.PROGRESS_OVERTAKEN]


async def test_each_request_can_be_followed(edge: EdgeServer, fleet: Any) -> None:
    """The broker names those that the caller doesn't, and one id of all calls of a program doesn't make them one."""
    await issue(edge)
    request = pb.RequestRenewalRequest(selection=pb.Selection(all=True), reason="drill")
    metadata = (("x-request-id", "job-7"),)
    ids = [(await fleet.RequestRenewal(request, metadata=metadata, timeout=HANG)).renewal_request_id for _ in range(3)]
    assert ids == ["job-7", "job-7.2", "job-7.3"]
    for request_id in ids:
        _, items = await progress_of(fleet, request_id)
        assert [each.reason for each in items] == ["its host never came"]
    found = await refused(fleet.GetRenewalRequest(pb.GetRenewalRequestRequest(renewal_request_id="no"), timeout=HANG))
    assert found.reason is Reason.ORDER_NOT_FOUND
    await edge.plans.set_requested([], OPERATOR, RequestedRenewal("old-1", 3, 3), edge.clock.now())
    found = await refused(
        fleet.GetRenewalRequest(pb.GetRenewalRequestRequest(renewal_request_id="old-1"), timeout=HANG)
    )
    assert "older release took this request" in found.refusal.message
    wrong = pb.GetRenewalRequestRequest(renewal_request_id=ids[0], page_token="d2Vi")
    assert (await refused(fleet.GetRenewalRequest(wrong, timeout=HANG))).fields == ["page_token"]


async def test_a_host_that_is_gone_is_forgotten(edge: EdgeServer, fleet: Any) -> None:
    """What was known of it is the answer; its certificates are valid still, and count."""
    gone = "old.example"
    await issue(edge, gone, "old.example")
    await known(edge, gone, status())
    request = pb.ForgetHostRequest(host=gone, reason="the machine was sold")
    answer = await fleet.ForgetHost(request, timeout=HANG)
    assert (answer.host.name, answer.valid_certificate_count) == (gone, 1)
    assert [each.name for each in answer.host.certificates] == ["web"]
    assert gone not in (await listed(fleet))[0]
    (event,) = (each for each in edge.stores.database.events if each.event_type == "host_forgotten")
    assert (event.identity, event.count) == (OPERATOR, 1)
    assert event.reason == "old.example, with 1 valid certificate: the machine was sold"
    assert (await refused(fleet.ForgetHost(request, timeout=HANG))).reason is Reason.HOST_NOT_FOUND
    everything = pb.RequestRenewalRequest(selection=pb.Selection(all=True), reason="drill")
    assert (await fleet.RequestRenewal(everything, timeout=HANG)).certificate_count == 0


async def test_who_watches_hears_that_a_host_was_forgotten(edge: EdgeServer, fleet: Any) -> None:
    """Else it would stay on the screen, with a trouble that nobody can mend."""
    await known(edge, "old.example", status())
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        watch: Any = renewal_pb2_grpc.RenewalServiceStub(channel).WatchRenewals(
            renewal_pb2.WatchRenewalsRequest(), timeout=HANG
        )
        while not (await watch.read()).HasField("snapshot_end"):
            pass
        await fleet.ForgetHost(pb.ForgetHostRequest(host="old.example", reason="gone"), timeout=HANG)
        assert (await watch.read()).host_removed == "old.example"


async def test_a_host_that_is_there_or_expected_stays(edge: EdgeServer, fleet: Any) -> None:
    """A mistyped name makes no host disappear that is merely down; the refusal says what to do first."""
    await known(edge, HOST, status())
    for name in (HOST, "web1"):
        found = await refused(fleet.ForgetHost(pb.ForgetHostRequest(host=name, reason="gone"), timeout=HANG))
        assert (found.reason, found.fields) == (Reason.REQUEST_INVALID, ["host"])
        assert "remove it from policy.yml" in found.refusal.message
    assert all(each.event_type != "host_forgotten" for each in edge.stores.database.events)


ABLE = {"features": ["identity"]}


async def test_identities_are_renewed_on_demand(edge: EdgeServer, fleet: Any) -> None:
    """Hosts are told, also when they come back later, until they have another identity; then it is done."""
    word = pb.GetRenewalRequestResponse
    selection = pb.Selection(hosts=["web1"], identities=True)
    request = pb.RequestRenewalRequest(request_id="ceremony-1", selection=selection, reason="key ceremony")

    async def progress() -> Any:
        edge.clock.lapse += timedelta(minutes=1)  # what was found is answered again for a moment
        return (await progress_of(fleet, "ceremony-1"))[1][0]

    first, second = edge.ca.issue([HOST]), edge.ca.issue([HOST])
    async with edge.channel(first) as channel:
        host = HostStreamClient(channel)
        await host.hello(**ABLE)
        answer = await fleet.RequestRenewal(request, timeout=HANG)
        assert (answer.certificate_count, answer.changed_count, answer.connected_host_count) == (1, 1, 1)
        assert not answer.held_up
        (renewal,) = (await host.directive()).renewals
        assert renewal.identity
        assert not renewal.certificate_id
        assert (renewal.reason, renewal.renewal_request_id) == ("key ceremony", "ceremony-1")
    await until_gone(edge)
    shown = (await fleet.GetHost(pb.GetHostRequest(host="web1"), timeout=HANG)).host
    assert [each.identity for each in shown.pending_renewals] == [True]
    assert (await progress()).progress == word.PROGRESS_UNHEARD
    async with edge.channel(first) as channel:
        host = HostStreamClient(channel)
        await host.hello(**ABLE)
        told = await host.directive()
        assert [each.identity for each in told.renewals] == [True]
        await host.answer(told.nonce)
    await until_gone(edge)
    async with edge.channel(second) as channel:
        host = HostStreamClient(channel)
        await host.hello(**ABLE)
        await host.heartbeat()
        assert (await host.read()).WhichOneof("message") == "heartbeat"
        done = await progress()
        assert (done.progress, done.certificate_name, done.certificate_id) == (word.PROGRESS_DONE, "identity", "")


async def test_an_agent_that_can_not_renew_its_identity_is_named(edge: EdgeServer, fleet: Any) -> None:
    """An older one is told nothing of it, and whoever asks learns what to do there instead."""
    async with edge.host() as channel:
        host = HostStreamClient(channel)
        await host.hello()
        request = pb.RequestRenewalRequest(selection=pb.Selection(all=True, identities=True), reason="key ceremony")
        answer = await fleet.RequestRenewal(request, timeout=HANG)
        assert [(each.host, each.certificate_name) for each in answer.held_up] == [(HOST, "identity")]
        assert "its agent (0.1.0) can't be told to: upgrade it" in answer.held_up[0].reason
        await host.heartbeat()
        assert (await host.read()).WhichOneof("message") == "heartbeat"
        _, items = await progress_of(fleet, answer.renewal_request_id)
        assert [each.progress for each in items] == [pb.GetRenewalRequestResponse.PROGRESS_FAILED]
    wrong = pb.Selection(all=True, identities=True, profiles=["web"])
    found = await refused(
        fleet.RequestRenewal(pb.RequestRenewalRequest(selection=wrong, reason="key ceremony"), timeout=HANG)
    )
    assert found.fields == ["selection.profiles"]


async def until_gone(edge: EdgeServer) -> None:
    """Wait until the broker has noticed, and recorded, that the host has gone."""

    async def is_gone() -> bool:
        record = await edge.stores.fleet.get_host(HOST)
        return HOST not in edge.hub.registry and record.stream.end_time is not None

    await until(is_gone)


async def listed_certificates(fleet: Any, **fields: Any) -> list[Any]:
    """All pages' certificates."""
    request, found = pb.ListFleetCertificatesRequest(**fields), []
    while True:
        response = await fleet.ListFleetCertificates(request, timeout=HANG)
        assert response.ByteSize() < 64 * 1024
        found += response.certificates
        if not response.next_page_token:
            assert response.certificate_count == len(found)
            return found
        request.page_token = response.next_page_token


def ends_in(edge: EdgeServer, days: int, name: str, serial: str, **fields: Any) -> CertificateStatus:
    now = edge.clock.now()
    held = HeldCertificate(serial, now - timedelta(days=10), now + timedelta(days=days))
    profile = "" if name == "identity" else name
    wanted = {"profile": profile, "dns_names": (f"{name}.example",), **fields}
    return CertificateStatus(name, CertificateState.WAITING, issued=held, installed=held, **wanted)


async def fill(edge: EdgeServer) -> None:
    """Three hosts that had a stream, the second one with a trouble, and a service with a certificate."""
    await known(edge, "a.example", ends_in(edge, 40, "web", "a1"), ends_in(edge, 9, "identity", "a2"))
    failing = ends_in(edge, 20, "mail", "b1", request_failures=1, last_error="DNS_UNAVAILABLE: ns2 is down")
    await known(edge, "b.example", failing, ends_in(edge, 60, "web", "b2"))
    await known(edge, "c.example", ends_in(edge, 30, "web", "c1"))
    await issue(edge, SERVICE, "api.example")
    await issue(edge, SERVICE, "old.example")
    edge.policy.policy = filled(edge, "a.example", "b.example", "c.example")


def filled(edge: EdgeServer, *hosts: str) -> FakePolicy:
    """The policy with these hosts too, each with both profiles; another one, so that services are read again."""
    grants = [grant for grant in edge.policy.current.grants.values() if grant.name.split(".")[0] not in "abc"]  # type: ignore[attr-defined]  # the fake's
    both = ("mail", "web")
    mine = [Grant(host, IdentityKind.HOST, host.partition(".")[0], profiles=both) for host in hosts]
    return FakePolicy.of([*grants, *mine], [Profile(name, "multi_san", (f"{name}.example",), name) for name in both])


async def test_certificates_are_listed_in_each_order(edge: EdgeServer, fleet: Any) -> None:
    """Of hosts and services, each with its holder; identities only where they are asked for."""
    await fill(edge)

    async def names(**fields: Any) -> list[str]:
        found = await listed_certificates(fleet, page_size=2, **fields)
        return [f"{each.host.partition('.')[0]}/{each.certificate.name}" for each in found if each.kind == 1]

    assert await names() == ["a/web", "b/mail", "b/web", "c/web"]
    assert await names(include_identities=True) == ["a/identity", "a/web", "b/mail", "b/web", "c/web"]
    assert await names(order_by=pb.FLEET_ORDER_EXPIRE_TIME) == ["b/mail", "c/web", "a/web", "b/web"]
    assert await names(order_by=pb.FLEET_ORDER_HEALTH) == ["b/mail", "c/web", "a/web", "b/web"]
    within = pb.FleetFilter(expiring_within=Duration(seconds=35 * 86_400))
    assert await names(filter=within) == ["b/mail", "c/web"]
    assert await names(filter=pb.FleetFilter(causes=["DNS_UNAVAILABLE"])) == ["b/mail"]
    (one,) = await listed_certificates(fleet, filter=pb.FleetFilter(serial_numbers=["B1"]))
    assert one.certificate.health == renewal_pb2.HEALTH_FAILING
    assert one.certificate.last_error == "DNS_UNAVAILABLE: ns2 is down"


async def test_services_are_in_the_lists(edge: EdgeServer, fleet: Any) -> None:
    """What was issued to them, with who issued it; a list without a filter is of hosts, as it always was."""
    await fill(edge)
    found = await listed_certificates(fleet, filter=pb.FleetFilter(kinds=[renewal_pb2.HOST_KIND_SERVICE]))
    assert {(each.host, each.label, each.issuer) for each in found} == {(SERVICE, "builder", "acme")}
    assert {tuple(each.certificate.dns_names) for each in found} == {("api.example",), ("old.example",)}
    assert all(each.certificate.installed.serial_number for each in found)
    assert SERVICE not in (await listed(fleet))[0]
    assert SERVICE in (await listed(fleet, filter=pb.FleetFilter()))[0]
    shown = (await fleet.GetHost(pb.GetHostRequest(host="builder"), timeout=HANG)).host
    assert (shown.name, shown.kind, len(shown.certificates)) == (SERVICE, renewal_pb2.HOST_KIND_SERVICE, 2)
    wanted = pb.RequestRenewalRequest(selection=pb.Selection(hosts=["builder"]), reason="drill", dry_run=True)
    answer = await fleet.RequestRenewal(wanted, timeout=HANG)
    assert (answer.certificate_count, {each.host for each in answer.held_up}) == (2, {SERVICE})


async def test_hosts_are_listed_worst_first_with_totals(edge: EdgeServer, fleet: Any) -> None:
    """Each order has pages that go on where the one before ended, and figures of all of them."""
    await fill(edge)
    worst = pb.ListHostsRequest(order_by=pb.FLEET_ORDER_HEALTH, page_size=1, brief=True)
    answer = await fleet.ListHosts(worst, timeout=HANG)
    assert [host.name for host in answer.hosts] == ["b.example"]
    assert (answer.hosts[0].health, answer.hosts[0].certificates[0].name) == (renewal_pb2.HEALTH_FAILING, "mail")
    assert (answer.host_count, answer.connected_host_count) == (5, 0)
    counts = {each.health: each.certificate_count for each in answer.health_counts}
    assert counts[renewal_pb2.HEALTH_FAILING] == 1
    assert sum(counts.values()) == 5
    for order, first in (
        (pb.FLEET_ORDER_EXPIRE_TIME, ["b.example", "c.example", "a.example"]),
        (pb.FLEET_ORDER_NAME, ["a.example", "b.example", "c.example"]),
        (pb.FLEET_ORDER_LAST_SEEN_TIME, [HOST, "web2.example"]),
    ):
        for size in (1, 2, 50):
            seen, _ = await listed(fleet, order_by=order, page_size=size)
            assert len(seen) == len(set(seen)) == 5
            assert seen[: len(first)] == first
    wrong = pb.ListHostsRequest(order_by=pb.FLEET_ORDER_NAME, page_token=answer.next_page_token)
    assert (await refused(fleet.ListHosts(wrong, timeout=HANG))).fields == ["page_token"]
    both = pb.ListHostsRequest(filter=pb.FleetFilter(), states=[FAILED])
    assert (await refused(fleet.ListHosts(both, timeout=HANG))).fields == ["states"]


async def test_a_list_goes_on_behind_what_it_has_shown(edge: EdgeServer, fleet: Any) -> None:
    """What comes and goes between two pages moves nothing else: nothing twice, and nothing left out."""
    await fill(edge)
    request = pb.ListHostsRequest(filter=pb.FleetFilter(), order_by=pb.FLEET_ORDER_EXPIRE_TIME, page_size=1)
    first = await fleet.ListHosts(request, timeout=HANG)
    assert [host.name for host in first.hosts] == ["b.example"]
    await known(edge, "aa.example", ends_in(edge, 5, "web", "f1"))  # before what was shown
    edge.policy.policy = filled(edge, "a.example", "c.example")
    gone = await fleet.ForgetHost(pb.ForgetHostRequest(host="b.example", reason="gone"), timeout=HANG)
    assert gone.host.name == "b.example"
    request.page_token = first.next_page_token
    following = await fleet.ListHosts(request, timeout=HANG)
    assert [host.name for host in following.hosts] == ["c.example"]


async def test_why_a_host_is_down_is_said(edge: EdgeServer, fleet: Any) -> None:
    """Since the end of its stream; and that it gets no certificates, with the reason, if so."""
    await known(edge, "old.example", status())
    await known(edge, HOST, status())
    now = edge.clock.now()
    await edge.stores.deny_list.deny(DenyEntry(name=HOST, reason="stolen", create_time=now), [])
    await until(lambda: edge.stores.deny_list.denied(HOST, "", "") is not None)
    retired = (await fleet.GetHost(pb.GetHostRequest(host="old.example"), timeout=HANG)).host
    denied = (await fleet.GetHost(pb.GetHostRequest(host=HOST), timeout=HANG)).host
    assert retired.blocked_reason == "the policy no longer has it"
    assert denied.blocked_reason.startswith("an operator has denied its identity")
    assert retired.HasField("disconnect_time")
    for name in ("old.example", HOST):
        edge.hub.watchers.host_elsewhere(name, now)
    seen, _ = await listed(fleet, filter=pb.FleetFilter(blocked_only=True))
    assert seen == ["old.example", HOST]
