"""`AuditService` over real mTLS gRPC: filters and pages, what comes, proof and export, and who may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity
from certplane.errors import Reason
from certplane.v1 import audit_pb2 as pb
from certplane.v1 import audit_pb2_grpc
from tests.support.audit_log import verified_lines
from tests.support.ca import PrivateCa
from tests.support.calls import refused
from tests.support.edge import HOST, OPERATOR, EdgeServer, serve_edge
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration

ISSUED, DENIED = AuditEventType.CERTIFICATE_ISSUED, AuditEventType.CERTIFICATE_DENIED


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest.fixture
async def edge(ca: PrivateCa) -> AsyncIterator[EdgeServer]:
    async with serve_edge(ca) as server:
        yield server


@pytest.fixture
async def audit(edge: EdgeServer) -> AsyncIterator[Any]:
    """The stub, with an operator's identity."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        yield audit_pb2_grpc.AuditServiceStub(channel)


class Writer:
    """Writes events past the stories."""

    def __init__(self, edge: EdgeServer) -> None:
        self._edge = edge
        self.count = 0

    async def write(self, how_many: int = 1, event_type: AuditEventType = ISSUED, **facts: Any) -> list[AuditEvent]:
        events = []
        for _ in range(how_many):
            self.count += 1
            events.append(AuditEvent(f"written-{self.count:06d}", self._edge.clock.now(), event_type, **facts))
        await self._edge.stores.audit.append(events)
        return events


@pytest.fixture
def writer(edge: EdgeServer) -> Writer:
    return Writer(edge)


async def pages(audit: Any, **fields: Any) -> list[list[pb.AuditEvent]]:
    request, found = pb.ListAuditEventsRequest(**fields), []
    while True:
        response = await audit.ListAuditEvents(request, timeout=HANG)
        assert response.ByteSize() < 64 * 1024
        found.append(list(response.events))
        if not response.next_page_token:
            return found
        request.page_token = response.next_page_token


async def listed(audit: Any, **fields: Any) -> list[str]:
    wanted = pb.AuditFilter(**{"event_types": ["certificate_issued", "certificate_denied"], **fields})
    return [event.event_id for page in await pages(audit, filter=wanted) for event in page]


async def test_an_event_as_it_is_in_the_public_format(audit: Any, writer: Writer) -> None:
    """All of it, whatever is in it."""
    (event,) = await writer.write(
        reason="zwölf \udcff", csr_dns_names=("*.a.test", "a.test"), count=3, decision=AuditDecision.ISSUE
    )
    ((shown,),) = await pages(audit, filter=pb.AuditFilter(ids=[event.event_id]))
    assert (shown.event_id, shown.event_type) == (event.event_id, "certificate_issued")
    assert shown.event_time.ToMicroseconds() == event.timestamp.timestamp() * 1_000_000
    assert shown.sequence > 0
    assert MessageToDict(shown.record) == {**event.record(), "reason": "zwölf \\udcff", "count": 3}


async def test_each_condition_of_a_filter(edge: EdgeServer, audit: Any, writer: Writer) -> None:
    """One by one, and together."""
    start = edge.clock.now()
    (first,) = await writer.write(identity=HOST, csr_dns_names=("a.test",), cert_serial_number="ab12")
    edge.clock.shift += timedelta(hours=1)
    (second,) = await writer.write(
        identity=OPERATOR, event_type=DENIED, profile_name="shop", expected_dns_names=("b.test",), reason_code="NAMES_NOT_ALLOWED",
        severity=AuditSeverity.ERROR, order_id="order-7",
    )  # fmt: skip
    (third,) = await writer.write(severity=AuditSeverity.WARNING, request_id="call-3", certificate_id="c-1")
    a, b, c = first.event_id, second.event_id, third.event_id
    hour = Duration(seconds=4000)
    later = Timestamp()
    later.FromDatetime(start + timedelta(minutes=30))
    for wanted, expected in [
        ({}, [c, b, a]),
        ({"identities": [HOST]}, [a]),
        ({"identities": ["web1"]}, [a]),
        ({"identities": ["admin"]}, [b]),
        ({"dns_names": ["A.test"]}, [a]),
        ({"dns_names": ["b.test", "x.test"]}, [b]),
        ({"serial_numbers": ["AB12"]}, [a]),
        ({"serial_numbers": ["00:AB:12"]}, [a]),
        ({"event_types": ["certificate_denied"]}, [b]),
        ({"reason_codes": ["NAMES_NOT_ALLOWED"]}, [b]),
        ({"profiles": ["shop"]}, [b]),
        ({"ids": ["order-7", "c-1"]}, [c, b]),
        ({"ids": ["call-3"]}, [c]),
        ({"severity": "warning"}, [c, b]),
        ({"severity": "error"}, [b]),
        ({"start_time": later}, [c, b]),
        ({"end_time": later}, [a]),
        ({"within": hour}, [c, b, a]),
        ({"within": Duration(seconds=60)}, [c, b]),
        ({"within": Duration(seconds=300_000_000_000)}, [c, b, a]),
        ({"start_time": Timestamp(seconds=-62_135_596_800), "end_time": Timestamp(seconds=253_402_300_799)}, [c, b, a]),
        ({"dns_names": ["a.test"], "severity": "error"}, []),
        ({"identities": ["nobody"]}, []),
    ]:
        assert await listed(audit, **wanted) == expected, wanted


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"filter": pb.AuditFilter(severity="bad")}, "filter.severity"),
        ({"filter": pb.AuditFilter(ids=[""])}, "filter.ids"),
        ({"filter": pb.AuditFilter(dns_names=["x"] * 101)}, "filter.dns_names"),
        ({"filter": pb.AuditFilter(within=Duration(seconds=-1))}, "filter.within"),
        ({"filter": pb.AuditFilter(within=Duration(seconds=1), start_time=Timestamp(seconds=1))}, "filter.within"),
        ({"filter": pb.AuditFilter(start_time=Timestamp(seconds=1 << 60))}, "filter.start_time"),
        ({"page_token": "x"}, "page_token"),
        ({"page_size": -1}, "page_size"),
    ],
)
async def test_what_is_no_filter(audit: Any, fields: dict[str, Any], field: str) -> None:
    """The field is named."""
    refusal = await refused(audit.ListAuditEvents(pb.ListAuditEventsRequest(**fields), timeout=HANG))
    assert refusal.reason is Reason.REQUEST_INVALID
    assert refusal.fields == [field]


async def test_pages_that_change_under_the_reader(audit: Any, writer: Writer) -> None:
    """Each event once, however many come meanwhile, and each page within a message; a rare one is found."""
    (rare,) = await writer.write(profile_name="rare")
    events = await writer.write(9_000, reason="x" * 500)
    request, ids = (
        pb.ListAuditEventsRequest(filter=pb.AuditFilter(event_types=["certificate_issued"]), page_size=500),
        [],
    )
    while True:
        response = await audit.ListAuditEvents(request, timeout=HANG)
        assert response.ByteSize() < 64 * 1024
        ids += [event.event_id for event in response.events]
        if len(ids) > 2_000 or not response.next_page_token:
            break
        await writer.write()
        request.page_token = response.next_page_token
    assert ids == [event.event_id for event in reversed(events)][: len(ids)]
    found = await pages(audit, filter=pb.AuditFilter(profiles=["rare"]))
    assert [event.event_id for page in found for event in page] == [rare.event_id]
    assert len(found) > 1, "a page reads so much and no more"
    first = await audit.ListAuditEvents(pb.ListAuditEventsRequest(oldest_first=True, page_size=1), timeout=HANG)
    assert first.events[0].sequence <= rare.count + 10


async def test_what_comes(audit: Any, writer: Writer) -> None:
    """The last events first, then each new one that is picked, in their order and once."""
    await writer.write(3)
    wanted = pb.AuditFilter(event_types=["certificate_issued"])
    call = audit.TailAuditEvents(pb.TailAuditEventsRequest(past_count=2, filter=wanted), timeout=HANG)
    got = [(await call.read()).event.event_id for _ in range(2)]
    for _ in range(2):
        await writer.write()
        await writer.write(event_type=DENIED)
        got.append((await call.read()).event.event_id)
    assert got == ["written-000002", "written-000003", "written-000004", "written-000006"]
    call.cancel()


async def test_the_past_of_a_rare_event_is_found(audit: Any, writer: Writer) -> None:
    """Though more events came since than are read for one page of a list."""
    (rare,) = await writer.write(profile_name="rare")
    await writer.write(5_000)
    request = pb.TailAuditEventsRequest(filter=pb.AuditFilter(profiles=["rare"]))
    call = audit.TailAuditEvents(request, timeout=HANG)
    assert (await call.read()).event.event_id == rare.event_id
    call.cancel()


async def test_a_tail_refuses_what_it_can_not_show(audit: Any) -> None:
    """More of the past than a list would."""
    call = audit.TailAuditEvents(pb.TailAuditEventsRequest(past_count=501), timeout=HANG)
    assert (await refused(call.read())).reason is Reason.REQUEST_INVALID


async def test_the_log_proves_itself(edge: EdgeServer, audit: Any, writer: Writer) -> None:
    """What was changed is named, then the result; and so it is in what is exported."""
    events = await writer.write(700)

    async def verify() -> list[pb.VerifyAuditLogResponse]:
        return [message async for message in audit.VerifyAuditLog(pb.VerifyAuditLogRequest(), timeout=HANG)]

    (whole,) = await verify()
    assert (whole.result.finding_count, whole.result.chain_count) == (0, 1)
    assert whole.result.event_count >= 700
    lines = [
        line
        async for message in audit.ExportAuditLog(pb.ExportAuditLogRequest(), timeout=HANG)
        for line in message.lines.splitlines()
    ]
    found, result = verified_lines(lines, [])
    assert (found, result.event_count) == ([], whole.result.event_count)
    edge.stores.database.connection.execute(
        "UPDATE audit_events SET create_time = 1 WHERE event_id = ?", (events[300].event_id,)
    )
    finding, last = await verify()
    assert (finding.finding.kind, finding.finding.event_id) == ("changed", events[300].event_id)
    assert last.result.finding_count == 1


async def test_a_part_of_the_log(edge: EdgeServer, audit: Any, writer: Writer) -> None:
    """From one time to another; it proves itself as a part."""
    await writer.write(5)
    edge.clock.shift += timedelta(hours=2)
    start = Timestamp()
    start.FromDatetime(edge.clock.now())
    middle = await writer.write(5)
    edge.clock.shift += timedelta(hours=2)
    end = Timestamp()
    end.FromDatetime(edge.clock.now())
    await writer.write(5)
    request = pb.ExportAuditLogRequest(start_time=start, end_time=end)
    said = "".join([message.lines async for message in audit.ExportAuditLog(request, timeout=HANG)])
    assert [event.event_id in said for event in middle] == [True] * 5
    assert said.count('"event":') == 5
    assert verified_lines(said.splitlines(), [])[0] == []


async def test_a_host_may_not(edge: EdgeServer) -> None:
    """The log is for operators."""
    async with edge.channel(edge.ca.issue([HOST])) as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        refusal = await refused(stub.ListAuditEvents(pb.ListAuditEventsRequest(), timeout=HANG))
    assert refusal.reason is Reason.ROLE_REQUIRED
