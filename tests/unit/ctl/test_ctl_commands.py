"""Each command against scripted brokers: what it asks, what it shows, how it ends."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from certplane.ctl import cli
from certplane.errors import ConfigurationError, OperationError, Reason, Refusal, RefusalError
from certplane.rpc.status import status_from_refusal
from certplane.rpc.times import timestamp
from certplane.sandbox.loopback import free_port
from certplane.v1 import (
    audit_pb2,
    broker_pb2,
    certificate_pb2,
    enrollment_pb2,
    fleet_pb2,
    order_pb2,
    policy_pb2,
    renewal_pb2,
)
from tests.support.operators_broker import OperatorsBroker
from tests.unit.ctl.conftest import Ctl
from tests.unit.ctl.test_ctl_view import a_host, expired, serving

NOW = datetime.now(UTC)


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_each_command_has_what_runs_it_and_examples_that_are_taken(command: Any) -> None:
    """The table names what there is, and an example is a command line that certplanectl takes."""
    module, _, name = command.run.partition(":")
    assert callable(getattr(importlib.import_module(f"certplane.ctl.{module}"), name))
    for line, what in command.examples:
        assert what
        options = cli._parser().parse_args(shlex.split(line)[1:])
        assert options.run is command


def a_page(*hosts: renewal_pb2.Host, token: str = "") -> fleet_pb2.ListHostsResponse:
    return fleet_pb2.ListHostsResponse(
        hosts=hosts,
        next_page_token=token,
        host_count=2,
        connected_host_count=1,
        health_counts=[
            fleet_pb2.HealthCount(health=renewal_pb2.HEALTH_OK, certificate_count=2),
            fleet_pb2.HealthCount(health=renewal_pb2.HEALTH_EXPIRED, certificate_count=1),
        ],
    )


async def test_fleet(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Page by page, in the broker's order, with totals; filters and order are the broker's to apply."""
    pages = {"": a_page(a_host("b", expired("web")), token="2"), "2": a_page(a_host("a", serving("web")))}
    broker.answers["ListHosts"] = lambda request: pages[request.page_token]
    ran = await ctl("fleet")
    assert ran.status == 0
    assert ran.lines[0] == "2 hosts, 1 connected: 1 EXPIRED, 2 OK"
    assert [line.split()[0] for line in ran.lines[2:]] == ["HOST", "b", "a"]
    assert max(map(len, ran.lines)) <= 80
    request = broker.requests("ListHosts")[0]
    assert (request.order_by, request.brief) == (fleet_pb2.FLEET_ORDER_HEALTH, True)
    assert (await ctl("fleet", "-o", "name")).lines == ["b", "a"]
    assert [json.loads(line)["name"] for line in (await ctl("fleet", "--json")).lines] == ["b", "a"]
    assert [each["name"] for each in yaml.safe_load_all((await ctl("fleet", "-o", "yaml")).out)] == ["b", "a"]
    assert not broker.requests("ListHosts")[-1].brief
    assert (await ctl("fleet", "--check")).status == 1
    assert "2026" in (await ctl("fleet", "-o", "wide")).out


async def test_filters_of_the_fleet(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Each option is a field of the broker's filter."""
    broker.answers["ListHosts"] = fleet_pb2.ListHostsResponse()
    options = "--host web1 --label ring=canary --kind service --health expired --health wont_heal --state failed --cause 'RELOAD nginx'"
    options += " --profile web --issuer le --name WWW.Example.test --serial 0A:1B --key AB --agent-version 0.2.0"
    options += " --expiring-within 14d --renewing-within 1d12h --unheard-for 2h --disconnected --blocked --lacks-root 0A:FF --sort expires"
    ran = await ctl("fleet", *shlex.split(options))
    assert ran.out == "no host matches\n"
    (request,) = broker.requests("ListHosts")
    wanted = request.filter
    assert list(wanted.labels) == ["ring=canary"]
    assert (list(wanted.hosts), list(wanted.kinds)) == (["web1"], [renewal_pb2.HOST_KIND_SERVICE])
    assert list(wanted.healths) == [renewal_pb2.HEALTH_EXPIRED, renewal_pb2.HEALTH_WONT_HEAL]
    assert list(wanted.states) == [renewal_pb2.CertificateStatus.STATE_FAILED]
    assert (list(wanted.causes), list(wanted.profiles), list(wanted.issuers)) == (["RELOAD nginx"], ["web"], ["le"])
    assert (list(wanted.dns_names), list(wanted.serial_numbers)) == (["www.example.test"], ["a1b"])
    assert (list(wanted.public_keys_sha256), list(wanted.agent_versions)) == (["ab"], ["0.2.0"])
    spans = (wanted.expiring_within, wanted.renewing_within, wanted.unheard_for)
    assert [each.ToTimedelta() / timedelta(hours=1) for each in spans] == [14 * 24, 36, 2]
    assert wanted.disconnected_only
    assert wanted.lacks_broker_root_sha256 == "0aff"
    assert wanted.blocked_only
    assert request.order_by == fleet_pb2.FLEET_ORDER_EXPIRE_TIME
    await ctl("fleet", "--filter", "health=expired,overdue", "--filter", "unheard-for=2d", "--filter", "blocked")
    wanted = broker.requests("ListHosts")[-1].filter
    assert list(wanted.healths) == [renewal_pb2.HEALTH_EXPIRED, renewal_pb2.HEALTH_OVERDUE]
    assert (wanted.unheard_for.ToTimedelta(), wanted.blocked_only) == (timedelta(days=2), True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param("fleet --health ill", "there is no such health; use one of: expired, ", id="health"),
        pytest.param("fleet --kind printer", "use one of: host, service", id="kind"),
        pytest.param(
            "fleet --filter colour=red", "--filter colour=red: can't be understood; use one of: host=", id="key"
        ),
        pytest.param("fleet --filter unheard-for=soon", "write it like 30m, 24h or 7d", id="span"),
        pytest.param("orders --state lost", "use one of: pending, authorized", id="order-state"),
        pytest.param("audit list --since soon", "is neither a span nor a time; write it like 7d", id="since"),
        pytest.param("audit list --since 1d --until 2d", "--until isn't after --since", id="period"),
        pytest.param("renew --reason x", "nothing is selected", id="nothing-selected"),
        pytest.param("renew --reason x --label canary", "write it as KEY=VALUE, such as ring=canary", id="label"),
        pytest.param("renew --reason x --host a --identity --key ab", "--host or --all alone", id="identity-of-a-key"),
        pytest.param(
            "renew --reason x --identity --profile web", "with --host or --all alone", id="identity-of-a-profile"
        ),
        pytest.param("renew --reason x --identity", "nothing is selected", id="identity-of-nobody"),
        pytest.param("broker reload a --all", "exclude each other", id="all-and-one"),
        pytest.param("revoke c-1 --reason x", "there is no terminal to ask at; add --yes", id="nobody-to-ask"),
        pytest.param("fleet --context lab", "has no context lab; add it, or drop --context", id="no-contexts"),
    ],
)
async def test_misuse(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, line: str, said: str) -> None:
    """Cause and remedy, and no broker is asked."""
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        await ctl(*line.split())


async def test_certs(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Services' certificates too; one name a line is the broker's, for the next command."""
    status = serving("web")
    status.installed.certificate_id = "c-1"
    each = fleet_pb2.FleetCertificate(host="api.test", certificate=status, issuer="le", labels={"ring": "canary"})
    broker.answers["ListFleetCertificates"] = fleet_pb2.ListFleetCertificatesResponse(
        certificates=[each], certificate_count=1
    )
    ran = await ctl("certs", "--identities", "--sort", "renews")
    assert [line.split()[:3] for line in ran.lines[:2]] == [
        ["HOST", "CERTIFICATE", "HEALTH"],
        ["api.test", "web", "OK"],
    ]
    assert ran.lines[-1] == "1 certificate"
    (request,) = broker.requests("ListFleetCertificates")
    assert (request.include_identities, request.order_by) == (True, fleet_pb2.FLEET_ORDER_RENEW_TIME)
    assert (await ctl("certs", "-o", "name")).out == "c-1\n"
    assert "ring=canary" in (await ctl("certs", "-o", "wide")).out
    broker.answers["ListFleetCertificates"] = fleet_pb2.ListFleetCertificatesResponse()
    assert (await ctl("certs")).out == "no certificate matches\n"


async def test_summary(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The five questions in their order, each line within the terminal; --check tells a monitor."""
    summary = fleet_pb2.SummarizeFleetResponse(
        host_count=198,
        connected_host_count=186,
        service_count=2,
        connected_service_count=1,
        health_counts=[fleet_pb2.HealthCount(health=renewal_pb2.HEALTH_EXPIRED, certificate_count=3)],
        hurt=[fleet_pb2.FleetCertificate(host="app170", certificate=expired("web"))],
        hurt_count=3,
        next_count=4,
        next_wont_heal_count=2,
        cause_count=1,
        missing_count=1,
        open_order_count=5,
        troubled_order_count=1,
    )
    summary.causes.add(
        health=renewal_pb2.HEALTH_FAILING,
        cause="DNS_UNAVAILABLE ns2.example.org",
        reason="ns2.example.org doesn't answer",
        remedy="look at ns2.example.org, and at the way to it from the brokers",
        actor=renewal_pb2.HEALTH_ACTOR_DNS,
        certificate_count=18,
        host_count=18,
        hosts=["app001", "app002"],
        since_time=timestamp(NOW),
    )
    summary.changes.add(event_time=timestamp(NOW), event_type="policy_loaded", text="policy 6177 -> e736", count=2)
    summary.missing.add(host="app031", reason="not heard")
    summary.issuers.add(issuer="le", reason="asked us to wait")
    summary.issuers.add(issuer="zs", usable=True, waiting_order_count=12)
    summary.endings.add(certificate_count=7).within.FromTimedelta(timedelta(days=14))
    summary.agent_versions.add(version="0.2.0", host_count=198)
    broker.answers["SummarizeFleet"] = summary
    ran = await ctl("summary", "--period", "7d", "--profile", "web")
    assert ran.status == 0
    assert ran.lines[0] == "198 hosts, 186 connected, 2 services, 1 listening: 3 EXPIRED"
    heads = [line for line in ran.lines if line[:1].isupper()]
    assert [line.split()[0] for line in heads] == [
        "HURT",
        "NEXT",
        "CAUSES",
        "CHANGED",
        "MISSING",
        "ISSUER",
        "ISSUER",
        "ORDERS",
        "ENDING",
        "AGENTS",
    ]
    assert "NEXT 4, 2 won't heal" in heads
    assert "  and 2 more" in ran.lines
    text = " ".join(" ".join(ran.lines).split())
    assert "ISSUER zs: 12 orders waiting for a place within its limits, some for more than 90 days" in text
    assert "18 x FAILING DNS_UNAVAILABLE ns2.example.org at app001, app002 and 16 more, since" in text
    assert "do: look at ns2.example.org, and at the way to it from the brokers (whoever keeps the DNS" in text
    assert max(map(len, ran.lines)) <= 80
    assert (
        max(map(len, (await ctl("summary", width=20)).lines[2:])) <= 24
    )  # words that are longer than a line stay whole
    assert broker.requests("SummarizeFleet")[0].period.ToTimedelta() == timedelta(days=7)
    assert (await ctl("summary", "--check")).status == 1
    broker.answers["SummarizeFleet"] = fleet_pb2.SummarizeFleetResponse(host_count=1)
    assert (await ctl("summary", "--check")).status == 0


async def test_colours_repeat_what_words_say(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Without them the same words are there."""
    broker.answers["ListHosts"] = a_page(a_host("b", expired("web")))
    plain, painted = await ctl("fleet"), await ctl("fleet", colour=True)
    assert "\x1b[1;31mEXPIRED\x1b[0m" in painted.out
    assert "EXPIRED" in plain.out
    assert "\x1b" not in plain.out


ANSWER = fleet_pb2.RequestRenewalResponse(certificate_count=2, changed_count=2, renewal_request_id="r-1")
Progress = fleet_pb2.GetRenewalRequestResponse


def progress(*items: tuple[str, int], done: bool = False) -> fleet_pb2.GetRenewalRequestResponse:
    made = Progress(done=done, requested_by="alice", reason="a drill")
    for host, how_far in items:
        made.items.add(host=host, certificate_name="web", progress=how_far)  # type: ignore[arg-type]  # a number
        made.counts.add(progress=how_far, certificate_count=1)  # type: ignore[arg-type]  # as above
    return made


@pytest.mark.parametrize(("last", "status"), [(Progress.PROGRESS_DONE, 0), (Progress.PROGRESS_FAILED, 1)])
async def test_renew_and_wait(broker: OperatorsBroker, ctl: Ctl, last: int, status: int) -> None:
    """Each change is a line, and the last count; a certificate that failed is the status."""
    steps = iter(
        [
            progress(("a", Progress.PROGRESS_REQUESTING), ("b", Progress.PROGRESS_REQUESTING)),
            Refusal(Reason.DRAINING, "goes"),
            progress(("a", Progress.PROGRESS_DONE), ("b", Progress.PROGRESS_REQUESTING)),
            progress(("a", Progress.PROGRESS_DONE), ("b", last), done=True),
        ]
    )
    broker.answers["RequestRenewal"] = ANSWER
    broker.answers["GetRenewalRequest"] = lambda _: next(steps)
    ran = await ctl("renew", "--host", "a", "--reason", "a drill", "--yes", "--wait", width=None, clock=NoWait())
    assert ran.status == status
    assert ran.lines[0].startswith("2 of 2 matching certificates will be renewed")
    assert ran.lines[1] == "how far it is: certplanectl renewal r-1"
    assert ran.lines[2:5] == ["a: web: requesting", "b: web: requesting", "1 requesting, 1 requesting"]
    assert ran.lines[5] == "a: web: done"
    assert "asking again" in ran.said
    (request,) = broker.requests("RequestRenewal")
    assert (list(request.selection.hosts), request.reason, request.dry_run) == (["a"], "a drill", False)


async def test_all_that_a_selection_may_say(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Each option is a field of the broker's selection."""
    broker.answers["RequestRenewal"] = ANSWER
    options = "--label ring=canary --label dc=fra1 --serial 0A:1B --key AB:CD --issued-before 2026-01-02 --window-open"
    ran = await ctl("renew", *options.split(), "--incident", "i-1", "--reason", "x", "--yes")
    assert ran.status == 0
    (request,) = broker.requests("RequestRenewal")
    wanted = request.selection
    assert (list(wanted.labels), list(wanted.serial_numbers)) == (["ring=canary", "dc=fra1"], ["a1b"])
    assert (list(wanted.public_keys_sha256), wanted.incident_id, wanted.window_open) == (["abcd"], "i-1", True)
    assert wanted.issued_before_time.ToDatetime(UTC) == datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize("known", [False, True], ids=["an-older-broker", "a-newer-one"])
async def test_a_broker_that_would_pick_more_than_was_meant(broker: OperatorsBroker, ctl: Ctl, known: bool) -> None:
    """One that passes over the label would renew all of the issuer: it is asked for the label alone first."""

    def answer(request: fleet_pb2.RequestRenewalRequest) -> fleet_pb2.RequestRenewalResponse:
        seen = known or request.selection.issuers
        return ANSWER if seen else fleet_pb2.RequestRenewalResponse()

    broker.answers["RequestRenewal"] = answer
    line = "renew --all --issuer le --label ring=canary --reason x --yes"
    if known:
        assert (await ctl(*line.split())).status == 0
    else:
        with pytest.raises(OperationError, match="no certificate in force matches labels of the selection"):
            await ctl(*line.split())
    first, *others = broker.requests("RequestRenewal")
    assert (first.dry_run, list(first.selection.labels), first.selection.all) == (True, ["ring=canary"], False)
    assert [(each.dry_run, list(each.selection.issuers)) for each in others] == [(False, ["le"])] * known


class NoWait:
    """A clock of now, whose sleeps take no time."""

    def __init__(self) -> None:
        self._moment = NOW

    def now(self) -> datetime:
        return self._moment

    def monotonic(self) -> float:
        return self._moment.timestamp()

    async def sleep(self, span: timedelta) -> None:
        self._moment += span


async def test_waiting_ends_when_the_time_is_up(broker: OperatorsBroker, ctl: Ctl) -> None:
    """With what is known, how to look again, and status 1."""
    broker.answers["GetRenewalRequest"] = progress(("a", Progress.PROGRESS_UNHEARD))
    ran = await ctl("renewal", "r-1", "--wait", "--timeout", "1m", clock=NoWait())
    assert ran.status == 1
    assert "the time is up: 1 unheard; see `certplanectl renewal r-1`" in ran.said
    assert len(broker.calls) == 5, "nothing can change soon: it asks seldom"
    shown = await ctl("renewal", "r-1")
    assert (shown.status, shown.lines[-1].split()[:3]) == (0, ["a", "web", "unheard"])
    assert "by alice" in shown.out


async def test_identities_are_renewed_by_host(broker: OperatorsBroker, ctl: Ctl) -> None:
    """At the internal CA, all or those of hosts."""
    broker.answers["RequestRenewal"] = ANSWER
    ran = await ctl("renew", "--all", "--identity", "--reason", "new CA", "--yes", "--spread", "6h")
    assert "2 of 2 matching identities will be renewed" in ran.out
    (request,) = broker.requests("RequestRenewal")
    assert (request.selection.all, request.selection.identities) == (True, True)
    assert request.spread_duration.ToTimedelta() == timedelta(hours=6)


async def test_revoke(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Who it was of and whether it is replaced; one that was revoked before is told as such."""
    answer = fleet_pb2.FleetServiceRevokeCertificateResponse(
        certificate=certificate_pb2.Certificate(certificate_id="c-1", serial_number="0a", dns_names=["www.test"]),
        identity="web1.test",
        holder_told=True,
    )
    broker.answers["RevokeCertificate"] = answer
    line = ("revoke", "c-1", "--as", "keyCompromise", "--reason", "stolen", "--yes")
    assert (await ctl(*line, width=None)).out == (
        "c-1 of web1.test (serial 0a, www.test) is revoked; its host renews it, at once or when it comes back\n"
    )
    (request,) = broker.requests("RevokeCertificate")
    assert request.revocation_reason == certificate_pb2.REVOCATION_REASON_KEY_COMPROMISE
    assert (request.certificate_id, request.reason) == ("c-1", "stolen")
    answer.already_revoked = True
    assert "was revoked before" in (await ctl(*line, width=None)).out
    answer.already_revoked = answer.holder_told = False
    assert "its holder has to ask for another one" in (await ctl(*line, width=None)).out


async def test_forget(broker: OperatorsBroker, ctl: Ctl) -> None:
    """What is left of it is told; a refusal has the broker's reason."""
    broker.answers["ForgetHost"] = fleet_pb2.ForgetHostResponse(
        host=renewal_pb2.Host(name="old.test"), valid_certificate_count=1
    )
    ran = await ctl("forget", "old.test", "--reason", "gone", "--yes", width=None)
    assert ran.out == "old.test is forgotten; 1 certificate of it valid still, and watched by nobody now\n"
    broker.answers["ForgetHost"] = Refusal(Reason.REQUEST_INVALID, "the host is connected")
    with pytest.raises(RefusalError, match="the host is connected"):
        await ctl("forget", "old.test", "--reason", "gone", "--yes")


def an_order(order_id: str, state: int, **fields: Any) -> order_pb2.OrderStatus:
    order = certificate_pb2.Order(order_id=order_id, state=state, profile="web", issuer="le")  # type: ignore[arg-type]  # a number
    order.create_time.FromDatetime(NOW)
    order.trouble = fields.pop("trouble", "")
    return order_pb2.OrderStatus(order=order, identity="web1.test", **fields)


OPEN = an_order(
    "o-1", certificate_pb2.Order.STATE_VALIDATING, step="propagation", step_failures=3, trouble="DNS_UNAVAILABLE: ns2"
)
FAILED = an_order("o-2", certificate_pb2.Order.STATE_FAILED)
FAILED.order.error.CopyFrom(status_from_refusal(Refusal(Reason.DNS_REJECTED, "the zone is another's")))


async def test_orders(broker: OperatorsBroker, ctl: Ctl) -> None:
    """What each waits for and why it failed; a list that was cut says so."""
    broker.answers["ListOrders"] = order_pb2.ListOrdersResponse(
        orders=[OPEN, FAILED], next_page_token="2", open_order_count=7
    )
    ran = await ctl("orders", "--open", "--within", "1d", "--error", "dns_rejected", "--limit", "2", width=120)
    assert "DNS_UNAVAILABLE: ns2 (3 times)" in ran.out
    assert "DNS_REJECTED: the zone is another's" in ran.out
    assert ran.lines[-1] == "2 orders; there are more, shown with a larger --limit; 7 open in the fleet"
    (request,) = broker.requests("ListOrders")
    assert (request.filter.open_only, list(request.filter.reasons), request.page_size) == (True, ["DNS_REJECTED"], 2)
    ran = await ctl("orders", "--limit", "1", "-o", "name")
    assert (ran.out, ran.said) == ("o-1\n", "certplanectl: there are more orders, shown with a larger --limit\n")
    one = await ctl("orders", "--id", "o-1")
    assert "validating, since" in one.out
    broker.answers["ListOrders"] = order_pb2.ListOrdersResponse()
    assert (await ctl("orders")).out == "no order matches; 0 open in the fleet\n"


async def test_orders_live(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The open ones as a table, then a line for each change; as messages where programs read."""
    message = order_pb2.WatchOrdersResponse
    broker.answers["WatchOrders"] = [
        message(order=OPEN),
        message(snapshot_end=message.SnapshotEnd(order_count=1)),
        message(order=FAILED),
    ]
    ran = await ctl("orders", "--watch", "--identity", "web1")
    assert ran.lines[0].split()[0] == "IDENTITY"
    assert "web1.test: web: failed: DNS_REJECTED: the zone is another's" in " ".join(ran.out.split())
    assert "the broker has ended the watch" in ran.said
    lines = (await ctl("orders", "--watch", "--json")).lines
    assert [next(iter(json.loads(line))) for line in lines] == ["order", "snapshotEnd", "order"]


def an_event(number: int) -> audit_pb2.AuditEvent:
    event = audit_pb2.AuditEvent(event_id=f"e-{number}", event_type="certificate_issued", sequence=number)
    event.event_time.FromDatetime(NOW)
    event.record.update(
        {"identity": "web1.test", "severity": "info", "csr_dns_names": ["a.test", "b.test"], "cause": "operator"}
    )
    return event


async def test_audit_list_and_tail(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Names, serials, causes; what was cut is said, and an empty page isn't the end."""
    pages = {
        "": audit_pb2.ListAuditEventsResponse(next_page_token="2"),
        "2": audit_pb2.ListAuditEventsResponse(events=[an_event(2), an_event(1)], next_page_token="3"),
    }
    broker.answers["ListAuditEvents"] = lambda request: pages[request.page_token]
    ran = await ctl(
        "audit", "list", "--limit", "2", "--name", "A.test", "--since", "7d", "--type", "certificate_issued"
    )
    assert "a.test b.test" in ran.out
    assert "operator" in ran.out
    assert ran.lines[-1] == "2 events; there are more, shown with a larger number"
    wanted = broker.requests("ListAuditEvents")[0].filter
    assert list(wanted.dns_names) == ["a.test"]
    assert abs(wanted.start_time.ToDatetime(UTC) - (datetime.now(UTC) - timedelta(days=7))) < timedelta(minutes=5)
    ran = await ctl("audit", "tail", "-n", "2", "-o", "name")
    assert ran.lines == ["e-1", "e-2"]
    assert ran.said == "certplanectl: there are more events, shown with a larger number\n"
    broker.answers["TailAuditEvents"] = [audit_pb2.TailAuditEventsResponse(event=an_event(3))]
    ran = await ctl("audit", "tail", "-f", "--severity", "warning", "--since", "2026-01-02")
    assert "certificate_issued" in ran.out
    (request,) = broker.requests("TailAuditEvents")
    assert (request.past_count, request.filter.severity) == (20, "warning")
    assert request.filter.start_time.ToDatetime(UTC) == datetime(2026, 1, 2, tzinfo=UTC)


async def test_audit_verify(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Findings and a result; progress is no result. A check that ends without one hasn't found the log whole."""
    message = audit_pb2.VerifyAuditLogResponse
    result = message(result=message.Result(event_count=9, chain_count=1, checkpoint_count=2))
    broker.answers["VerifyAuditLog"] = [message(progress=message.Progress(event_count=5, total_event_count=9)), result]
    ran = await ctl("audit", "verify")
    assert (ran.status, ran.said) == (0, "certplanectl: 5 of about 9 events\n")
    assert "findings     0" in ran.out
    finding = message.Finding(sequence=7, event_id="e-7", kind="changed", text="its hash isn't the one before e-8")
    broken = message(result=message.Result(event_count=9, finding_count=1))
    broker.answers["VerifyAuditLog"] = [message(finding=finding), broken]
    ran = await ctl("audit", "verify", width=None)
    assert ran.status == 1
    assert ran.lines[0] == "CHANGED: event 7 (e-7): its hash isn't the one before e-8"
    assert "no signed checkpoint" in ran.out
    broker.answers["VerifyAuditLog"] = []
    with pytest.raises(OperationError, match="without a result"):
        await ctl("audit", "verify")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_audit_export(broker: OperatorsBroker, ctl: Ctl, tmp_path: Path) -> None:
    """The lines as they are; a file is whole or isn't there, is its owner's alone, and is never written over."""
    message = audit_pb2.ExportAuditLogResponse
    broker.answers["ExportAuditLog"] = [message(lines='{"a":"ä"}\n'), message(lines="{}\n{}\n")]
    assert (await ctl("audit", "export")).out == '{"a":"ä"}\n{}\n{}\n'
    file = tmp_path / "audit.jsonl"
    ran = await ctl("audit", "export", "--to", str(file), "--since", "2026-01-01T00:00:00Z")
    assert file.read_bytes() == b'{"a":"\xc3\xa4"}\n{}\n{}\n'
    assert file.stat().st_mode & 0o777 == 0o600
    assert "3 lines in" in ran.said
    with pytest.raises(OperationError, match=r"can't be written: it is there already; name another file"):
        await ctl("audit", "export", "--to", str(file))
    broker.answers["ExportAuditLog"] = [message(lines="{}\n"), Refusal(Reason.STORE_UNAVAILABLE, "gone")]
    with pytest.raises(RefusalError, match="gone"):
        await ctl("audit", "export", "--to", str(tmp_path / "half.jsonl"))
    assert not [name for name in names_in(tmp_path) if "half" in name]
    with pytest.raises(OperationError, match="can't be written: No such file"):
        await ctl("audit", "export", "--to", str(tmp_path / "nowhere" / "x"))


async def test_policy_history_and_an_earlier_text(broker: OperatorsBroker, ctl: Ctl) -> None:
    """What changed with each; a text is had by the first letters of its hash."""
    hashes = ["ab" * 32, "ac" * 32]
    versions = [policy_pb2.PolicyVersion(policy_hash=each, loaded_by="alice", text_size_bytes=9) for each in hashes]
    versions[0].counts.add(subject="name", gained=1)
    versions[0].counts.add(subject="host", lost=2)
    broker.answers["ListPolicyVersions"] = policy_pb2.ListPolicyVersionsResponse(versions=versions)
    broker.answers["GetPolicy"] = [
        policy_pb2.GetPolicyResponse(policy=policy_pb2.LoadedPolicy(policy_hash=hashes[1])),
        policy_pb2.GetPolicyResponse(policy_text="version: 1\n"),
    ]
    ran = await ctl("policy", "history", width=100)
    assert "name +1, host -2" in ran.out
    assert (await ctl("policy", "history", "-o", "name")).lines == hashes
    assert (await ctl("policy", "show", "ac", "--text")).out == "version: 1\n"
    assert broker.requests("GetPolicy")[-1].policy_hash == hashes[1]
    with pytest.raises(ConfigurationError, match="several policies have such a hash"):
        await ctl("policy", "show", "a")
    with pytest.raises(ConfigurationError, match="no policy has such a hash"):
        await ctl("policy", "show", "ff")


TWO = fleet_pb2.ListBrokersResponse(
    brokers=[
        fleet_pb2.Broker(broker_id="id-1", name="m1", address="[::]:1", stream_count=3),
        fleet_pb2.Broker(broker_id="id-2", name="m2", address="[::]:2"),
        fleet_pb2.Broker(broker_id="id-3", name="m2", address="[::]:3"),
    ]
)


async def test_broker_reload_and_drain(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Brokers are named as `brokers` shows them; each one's answer is told, and how to confirm."""
    broker.answers["ListBrokers"] = TWO
    answer = broker_pb2.ReloadBrokersResponse()
    answer.reloads.add(broker_id="id-1", broker_name="m1", done=True, lines=["policy: loaded"])
    answer.reloads.add(
        broker_id="id-2", broker_name="m2", lines=["trust: would shut out 3"], confirmation_required=True
    )
    broker.answers["ReloadBrokers"] = answer
    ran = await ctl("broker", "reload", "--all")
    assert (ran.status, ran.lines) == (1, ["m1: policy: loaded", "m2: trust: would shut out 3"])
    assert "if this is intended: certplanectl broker reload --all --confirm" in ran.said
    answer.reloads[0].broker_name = "m2"
    assert (await ctl("broker", "reload", "--all")).lines[0] == "m2 (id-1): policy: loaded", "of two on one machine"
    ran = await ctl("broker", "reload")
    assert "if this is intended: certplanectl broker reload id-2 --confirm" in ran.said, "and not whoever answers next"
    del answer.reloads[1]
    assert (await ctl("broker", "reload", "m1", "--confirm")).status == 0
    request = broker.requests("ReloadBrokers")[-1]
    assert (list(request.broker_ids), request.all, request.confirm) == (["id-1"], False, True)
    broker.answers["DrainBroker"] = broker_pb2.DrainBrokerResponse(stream_count=1, order_count=2, draining=True)
    ran = await ctl("broker", "drain", "m2 [::]:3", "--reason", "upgrade", "--yes")
    assert ran.out == "m2: drains, 1 stream and 2 orders left\n"
    assert broker.requests("DrainBroker")[-1].broker_id == "id-3"
    await ctl("broker", "drain", "id-1", "--undo", "--reason", "done")
    assert broker.requests("DrainBroker")[-1].undo
    with pytest.raises(
        OperationError, match=r"several brokers have the name m2; use the id of one of: m2 \[::\]:2 \(id-2\)"
    ):
        await ctl("broker", "drain", "m2", "--reason", "upgrade", "--yes")
    with pytest.raises(OperationError, match="there is no broker m9"):
        await ctl("broker", "reload", "m9")


async def test_trust_plan(broker: OperatorsBroker, ctl: Ctl, tmp_path: Path) -> None:
    """Which CAs come and go, and whom that shuts out: status 1 where it would have to be confirmed."""
    bundle = tmp_path / "new.pem"
    bundle.write_bytes(broker.ca.pem)
    plan = broker_pb2.PlanTrustBundleResponse(
        shut_out_count=3, shut_out_connected_count=2, shut_out_hosts=["a", "b"], confirmation="shuts out 2 hosts"
    )
    plan.cas.add(subject="CN=Old", before=True, host_count=3)
    plan.cas.add(subject="CN=New", after=True)
    broker.answers["PlanTrustBundle"] = plan
    ran = await ctl("trust", "plan", str(bundle))
    assert ran.status == 1
    assert [line.split()[:2] for line in ran.lines[1:3]] == [["goes", "CN=Old"], ["comes", "CN=New"]]
    assert "3 hosts would be shut out, 2 of them connected now: a b and 1 more" in ran.out
    assert broker.requests("PlanTrustBundle")[0].bundle_pem == broker.ca.pem.decode()
    broker.answers["PlanTrustBundle"] = broker_pb2.PlanTrustBundleResponse(problems=["holds no certificate"])
    ran = await ctl("trust", "plan", str(bundle))
    assert (ran.status, ran.said) == (1, f"certplanectl: {bundle}: holds no certificate\n")


async def test_health_asks_each_broker(broker: OperatorsBroker, ctl: Ctl, tmp_path: Path) -> None:
    """One that isn't there is a row and a line; so is one that says that it doesn't serve."""
    broker.answers["GetIdentity"] = enrollment_pb2.GetIdentityResponse(
        identity=enrollment_pb2.Identity(name="alice.test", roles=["operator"]), broker_version="0.2.0"
    )
    ran = await ctl("health", width=120)
    assert (ran.status, ran.lines[1].split()[:4]) == (0, [broker.url, "SERVING", "0.2.0", "alice.test"])
    broker.write_config(tmp_path, f"https://localhost:{free_port()}")
    ran = await ctl("health", "--json")
    assert ran.status == 1
    assert {json.loads(line)["serving"] for line in ran.lines} == {True, False}
    assert "check that the broker runs" in ran.said
    broker.write_config(tmp_path)
    broker.serving = False
    assert "says that it isn't serving" in (await ctl("health")).said


async def test_another_broker_is_tried(broker: OperatorsBroker, ctl: Ctl, tmp_path: Path) -> None:
    """One that is down, drains or has lost its database is passed over; a word that is the same everywhere isn't."""
    broker.answers["ListHosts"] = a_page(a_host("a", serving()))
    async with OperatorsBroker(ca=broker.ca).running() as other:
        other.answers["ListHosts"] = Refusal(Reason.DRAINING, "goes")
        config = broker.write_config(tmp_path, other.url, f"https://localhost:{free_port()}")
        for _ in range(6):  # whichever is drawn first
            assert (await ctl("fleet", "-c", str(config), "-o", "name")).lines == ["a"]
        broker.answers["ListHosts"] = Refusal(Reason.ROLE_REQUIRED, "no")
        with pytest.raises(RefusalError, match=r"give this one the role in policy\.yml"):
            await ctl("fleet", "-c", str(config))
        broker.answers["ListHosts"] = Refusal(Reason.IDENTITY_UNKNOWN, "no provisioner is named; enroll with step-ca")
        with pytest.raises(RefusalError) as caught:
            await ctl("fleet", "-c", str(config))
        assert "policy.yml" not in str(caught.value), "the broker's own remedy is the one that helps"


async def test_no_broker_is_there(broker: OperatorsBroker, ctl: Ctl, tmp_path: Path) -> None:
    """Each with its cause and remedy."""
    settings = broker.settings(tmp_path)
    settings["broker"] = {
        "urls": [f"https://localhost:{free_port()}", "https://nowhere.invalid:1"],
        "server_ca_bundle": "root.pem",
    }
    config = tmp_path / "nowhere.yml"
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(OperationError, match="none of 2 brokers takes the call: ") as caught:
        await ctl("fleet", "-c", str(config))
    assert "check that the broker runs" in str(caught.value)
    assert "check broker.url and this machine's resolver" in str(caught.value)


async def test_a_stream_that_has_begun_stays_where_it_is(broker: OperatorsBroker, ctl: Ctl, tmp_path: Path) -> None:
    """What was shown would be shown again: the error is told instead."""
    message = order_pb2.WatchOrdersResponse(order=OPEN)
    async with OperatorsBroker(ca=broker.ca).running() as other:
        for each in (broker, other):
            each.answers["WatchOrders"] = [message, Refusal(Reason.DRAINING, "goes")]
        config = broker.write_config(tmp_path, other.url)
        with pytest.raises(RefusalError, match="goes"):
            await ctl("orders", "--watch", "-c", str(config))
        assert len(broker.calls) + len(other.calls) == 1


async def test_an_older_broker(broker: OperatorsBroker, ctl: Ctl) -> None:
    """What it doesn't know is told; its list without totals is counted here, the worst first all the same."""
    with pytest.raises(OperationError, match=r"doesn't know this call .*upgrade it"):
        await ctl("summary")
    broker.answers["ListHosts"] = fleet_pb2.ListHostsResponse(hosts=[a_host("a", serving()), a_host("b", expired())])
    ran = await ctl("fleet")
    assert ran.lines[0] == "2 hosts, 2 connected: 1 EXPIRED, 1 OK"
    assert [line.split()[0] for line in ran.lines[3:]] == ["b", "a"]
    await ctl("fleet", "--health", "expired", "--disconnected")
    request = broker.requests("ListHosts")[-1]
    assert (list(request.healths), request.disconnected_only) == ([renewal_pb2.HEALTH_EXPIRED], True)
    assert not request.HasField("filter")
    with pytest.raises(OperationError, match="older than these filters, and would list all hosts; upgrade it"):
        await ctl("fleet", "--profile", "web")


async def test_contexts(broker: OperatorsBroker, ctl: Ctl, tmp_path: Path) -> None:
    """A choice holds for the commands to come, and a question names it."""
    path = tmp_path / "ctl.yml"
    path.write_text(yaml.safe_dump({"contexts": {name: broker.settings(tmp_path) for name in ("lab", "prod")}}))
    broker.answers["ListHosts"] = fleet_pb2.ListHostsResponse()
    with pytest.raises(ConfigurationError, match="has several contexts"):
        await ctl("fleet")
    assert (await ctl("context", "use", "prod")).status == 0
    assert (await ctl("fleet")).out == "no host has reported yet\n"
    ran = await ctl("context", "list")
    assert [line.split()[:2] for line in ran.lines[1:]] == [["-", "lab"], ["*", "prod"]]
    assert (await ctl("context", "list", "-o", "name")).lines == ["lab", "prod"]
    assert [each["name"] for each in yaml.safe_load_all((await ctl("context", "list", "-o", "yaml")).out)][1:] == [
        "prod"
    ]
    assert json.loads((await ctl("context", "list", "--json")).lines[1])["inUse"] is True
    with pytest.raises(ConfigurationError, match="context prod: what is known of x is forgotten"):
        await ctl("forget", "x", "--reason", "gone")


async def test_what_is_to_be_typed_next_is_for_the_same_fleet(
    broker: OperatorsBroker, ctl: Ctl, tmp_path: Path
) -> None:
    """A command that is told goes to the file and the context that this one was given, and not to those in use."""
    path = tmp_path / "two fleets.yml"
    settings = broker.settings(tmp_path, f"https://localhost:{free_port()}")
    path.write_text(yaml.safe_dump({"contexts": dict.fromkeys(("lab", "prod"), settings)}))
    named = ("-c", str(path), "--context", "lab")
    again = f"certplanectl -c '{path}' --context lab"
    broker.answers["RequestRenewal"] = ANSWER
    ran = await ctl("renew", *named, "--host", "a", "--reason", "a drill", "--yes", width=None)
    assert ran.lines[-1] == f"how far it is: {again} renewal r-1"
    refused = policy_pb2.ReloadPolicyResponse(lines=["would remove 9 hosts"], confirmation_required=True)
    refused.policy.broker_name = "m1"
    broker.answers["ReloadPolicy"] = refused
    ran = await ctl("policy", "reload", *named)
    assert f"if this is intended: {again} policy reload --confirm\n" in ran.said
    assert f"m1 has refused it, and another broker may take it: `{again} brokers` shows" in ran.said


@pytest.mark.parametrize("command", ["fleet", "certs", "summary"])
async def test_a_check_of_a_host_that_is_not_there_fails(broker: OperatorsBroker, ctl: Ctl, command: str) -> None:
    """A monitor whose host was mistyped, or is gone, is never content."""
    broker.answers["ListHosts"] = fleet_pb2.ListHostsResponse()
    broker.answers["ListFleetCertificates"] = fleet_pb2.ListFleetCertificatesResponse()
    broker.answers["SummarizeFleet"] = fleet_pb2.SummarizeFleetResponse()
    broker.answers["GetHost"] = fleet_pb2.GetHostResponse(host=a_host("web1", serving("web")))
    assert (await ctl(command, "--check", "--host", "web1")).status == 0
    broker.answers["GetHost"] = Refusal(Reason.HOST_NOT_FOUND, "there is no such host")
    with pytest.raises(OperationError, match="there is no host or service web9 in the fleet"):
        await ctl(command, "--check", "--host", "web9")
    assert (await ctl(command, "--host", "web9")).status == 0


async def test_a_host_without_certificates_is_not_called_well(broker: OperatorsBroker, ctl: Ctl) -> None:
    """One that never came has nothing that could be judged."""
    never = renewal_pb2.Host(name="never", health=renewal_pb2.HEALTH_OK)
    silent = renewal_pb2.Host(name="silent", health=renewal_pb2.HEALTH_UNHEARD)
    broker.answers["ListHosts"] = a_page(never, silent)
    ran = await ctl("fleet", width=None)
    assert [line.split()[:2] for line in ran.lines[3:]] == [["never", "-"], ["silent", "UNHEARD"]]


@pytest.mark.parametrize(
    "line", ["policy show", "policy plan FILE", "policy reload", "trust plan FILE", "context list", "fleet"]
)
def test_what_a_narrow_terminal_cuts_is_to_be_had(line: str) -> None:
    """Each table has its wide form, and each result both forms for programs."""
    for wanted in ("wide", "json", "yaml"):
        cli._parser().parse_args([*line.split(), "-o", wanted])


async def test_codes_of_no_certplane_broker(broker: OperatorsBroker, ctl: Ctl) -> None:
    """A server of another kind is told as such."""
    broker.answers["ListHosts"] = grpc.StatusCode.INTERNAL
    with pytest.raises(OperationError, match=r"check that broker\.url is a Certplane broker"):
        await ctl("fleet")
