"""`PolicyService` at a whole broker: what is in force, plans of any size, reloads, and who may."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.app import Broker
from certplane.broker.control import ReloadRequest
from certplane.broker.services.convert import token_from_cursor
from certplane.ctl import cli
from certplane.errors import Reason, RefusalError
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc, fleet_pb2, fleet_pb2_grpc, policy_pb2_grpc
from certplane.v1 import policy_pb2 as pb
from tests.integration.test_broker_reload import connected, events, refused, running
from tests.support.broker_files import POLICY, BrokerFiles
from tests.support.streams import HostStreamClient
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

OPERATORS = """\
  alice: {identity: alice.certplane.test, roles: [operator]}
  victor: {identity: victor.certplane.test, roles: [viewer]}
"""
HOSTS = "".join(f"  more{n}: {{identity: more{n}.certplane.test, profiles: [web]}}\n" for n in range(4))
TEXT = POLICY.replace("operators:", f"{HOSTS}operators:") + OPERATORS


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    files = BrokerFiles(tmp_path)
    files.policy.write_text(TEXT)
    return files


@asynccontextmanager
async def service(broker: Broker, files: BrokerFiles, name: str = "alice") -> AsyncIterator[Any]:
    async with connected(broker, files, files.ca.issue([f"{name}.certplane.test"])) as channel:
        yield policy_pb2_grpc.PolicyServiceStub(channel)


def messages(*pieces: str, request_id: str = "") -> list[pb.PlanPolicyRequest]:
    hello = pb.PlanPolicyRequest(hello=pb.PlanPolicyRequest.Hello(request_id=request_id))
    return [hello, *(pb.PlanPolicyRequest(policy_text=piece) for piece in pieces)]


async def planned(stub: Any, requests: Iterable[pb.PlanPolicyRequest]) -> list[pb.PlanPolicyResponse]:
    call = stub.PlanPolicy(timeout=HANG)
    for number, request in enumerate(requests):
        await call.write(request)
        if number == 0:
            await call.initial_metadata()  # from then on it is this call's turn
        if call.done():
            break
    else:
        await call.done_writing()
    return [message async for message in call]


async def test_policy_in_force(files: BrokerFiles) -> None:
    """A viewer gets the text in pieces, its hash, since when, by whom, and whether the file is another one by now.

    A reload that finds the same text, as after each renewal of the broker's certificate, makes it no younger.
    """
    long = TEXT + "".join(f"# {'ä' * 100}\n" for _ in range(500))
    files.policy.write_text(long)
    async with running(files) as broker, service(broker, files, "victor") as stub:
        answer = [message async for message in stub.GetPolicy(pb.GetPolicyRequest(), timeout=HANG)]
        policy = answer[0].policy
        assert len(answer) > 3
        assert "".join(message.policy_text for message in answer) == long
        assert policy.policy_hash == hashlib.sha256(long.encode()).hexdigest() == broker.policy.current.hash
        assert (policy.file, policy.loaded_by, policy.refusal) == (str(files.policy), "the start of the broker", "")
        assert policy.broker_id == broker.stores.members.broker_id
        assert policy.broker_name
        files.policy.write_text("hosts: {}\n")
        assert not (await broker.reloader.request()).ok
        (alone,) = [m async for m in stub.GetPolicy(pb.GetPolicyRequest(without_text=True), timeout=HANG)]
    assert alone.policy.policy_hash == policy.policy_hash
    assert alone.policy.load_time == policy.load_time
    assert "gives nothing to anybody" in alone.policy.refusal


async def test_plan(files: BrokerFiles) -> None:
    """A plan says what changes, which hosts ask for what they would be refused, and that a reload would be asked about."""
    new = POLICY.replace("[a.certplane.test, b.certplane.test]", "[a.certplane.test, c.certplane.test]") + OPERATORS
    async with running(files) as broker, service(broker, files, "victor") as stub:
        async with connected(broker, files) as channel:
            host = HostStreamClient(channel)
            await host.hello("web")
            names = ["a.certplane.test", "b.certplane.test"]
            await host.acknowledged(await host.report("web", profile="web", dns_names=names))
            before = broker.policy.current
            first, *others = await planned(stub, messages(new[:40], new[40:], request_id="plan-1"))
        assert broker.policy.current is before
    summary = first.summary
    assert (summary.policy.policy_hash, summary.policy_hash) == (before.hash, hashlib.sha256(new.encode()).hexdigest())
    assert "would remove 4 of 5 hosts (80 %)" in summary.confirmation
    assert next((c.before, c.after, c.lost) for c in summary.counts if c.subject == "host") == (5, 1, 4)
    changes = [change for message in others for change in message.changes]
    assert (summary.change_count, summary.issued_again_count) == (len(changes), 1)
    assert ("lost", "name", "web", "b.certplane.test") in [(c.change, c.subject, c.profile, c.name) for c in changes]
    (mismatch,) = [each for message in others for each in message.mismatches]
    assert (mismatch.host, mismatch.certificate, mismatch.reason) == (
        "web1.certplane.test",
        "web",
        Reason.NAMES_NOT_ALLOWED,
    )
    assert "lacks c.certplane.test and asks for b.certplane.test" in mismatch.message
    assert not mismatch.refused_now


async def test_plan_larger_than_a_message(files: BrokerFiles) -> None:
    """Text and answer are streamed: both may be larger than 64 KiB."""
    hosts = [f"  big{n}: {{identity: big{n}.{'x' * 50}.certplane.test, profiles: [web]}}\n" for n in range(1000)]
    new = TEXT.replace("operators:", f"{''.join(hosts)}operators:")
    assert len(new) > 100 * 1024
    async with running(files) as broker, service(broker, files) as stub:
        pieces = [new[start : start + 50_000] for start in range(0, len(new), 50_000)]
        first, *others = await planned(stub, messages(*pieces))
    assert len(others) > 2
    assert first.summary.confirmation == ""
    gained = [c.identity for message in others for c in message.changes if c.subject == "host"]
    assert len(gained) == 1000


async def test_plan_that_does_not_load(files: BrokerFiles) -> None:
    """A text that no broker would take is answered with all its problems, and no summary."""
    text = "profile: {}\nhosts:\n  a: {identity: a.example, profiles: [none]}\n"
    async with running(files) as broker, service(broker, files) as stub:
        (answer,) = await planned(stub, messages(text))
        (nothing,) = await planned(stub, messages())
        assert await refused(planned(stub, [])) is Reason.REQUEST_INVALID
        assert await refused(planned(stub, messages("a")[1:])) is Reason.REQUEST_INVALID
        assert await refused(planned(stub, messages(request_id="no id"))) is Reason.REQUEST_INVALID
        big = "#" * 60_000
        assert await refused(planned(stub, messages(*[big] * 300))) is Reason.REQUEST_INVALID
    assert not answer.HasField("summary")
    assert [(problem.line, problem.key_path) for problem in answer.problems] == [
        (1, "profile"),
        (3, "hosts.a.profiles[0]"),
    ]
    assert all(problem.message and problem.remedy for problem in answer.problems)
    assert "gives nothing to anybody" in nothing.problems[0].message


async def test_reload(files: BrokerFiles) -> None:
    """An operator's reload answers with what it did, asks before it removes much, and is audited with who confirmed."""
    async with running(files) as broker, service(broker, files) as stub:

        async def reload(**fields: Any) -> pb.ReloadPolicyResponse:
            answer = await stub.ReloadPolicy(pb.ReloadPolicyRequest(request_id="reload-1", **fields), timeout=HANG)
            assert isinstance(answer, pb.ReloadPolicyResponse)
            return answer

        before = broker.policy.current.hash
        files.policy.write_text(POLICY + OPERATORS)
        asked = await reload()
        assert (asked.loaded, asked.confirmation_required, asked.policy.policy_hash) == (False, True, before)
        assert "would remove 4 of 5 hosts (80 %)" in asked.lines[0]
        assert "would remove 4 of 5" in asked.policy.refusal
        taken = await reload(confirm=True)
        assert (taken.loaded, taken.confirmation_required, taken.policy.refusal) == (True, False, "")
        assert taken.policy.loaded_by == "the operator alice.certplane.test"
        assert next((c.after, c.lost) for c in taken.counts if c.subject == "host") == (1, 4)
        files.policy.write_text("profile: {}\n")
        wrong = await reload(confirm=True)
        assert (wrong.loaded, wrong.confirmation_required, list(wrong.counts)) == (False, False, [])
        recorded = [event for event in await events(broker) if event.get("request_id") == "reload-1"]
    assert [event["event_type"] for event in recorded] == ["policy_rejected", "policy_loaded", "policy_rejected"]
    assert {event["identity"] for event in recorded} == {"alice.certplane.test"}
    assert "by the operator alice.certplane.test, confirmed: hosts 5 -> 1" in recorded[1]["reason"]


@pytest.mark.parametrize("name", ["victor", "web1", "admin"])
async def test_who_may_not_reload(files: BrokerFiles, name: str) -> None:
    """A viewer, a host and a word that is no role are refused, and the audit log has it."""
    async with running(files) as broker, service(broker, files, name) as stub:
        assert await refused(stub.ReloadPolicy(pb.ReloadPolicyRequest(), timeout=HANG)) is Reason.ROLE_REQUIRED
        if name != "victor":
            assert await refused(planned(stub, messages(TEXT))) is Reason.ROLE_REQUIRED
        denied = [event for event in await events(broker) if event["event_type"] == "rpc_denied"]
        assert {event["identity"] for event in denied} == {f"{name}.certplane.test"}


async def test_certplanectl(files: BrokerFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`policy show`, `plan` and `reload`: tables for people, the broker's messages for tools, and a status."""
    new = tmp_path / "new.yml"

    async def ctl(*arguments: str, name: str = "alice", status: int = 0) -> tuple[str, str]:
        cert, key = files.ca.issue([f"{name}.certplane.test"]).write(tmp_path, name)
        (tmp_path / "root.crt").write_bytes(files.ca.root_pem)
        settings = {
            "broker": {"url": f"https://localhost:{broker.port}", "server_ca_bundle": "root.crt"},
            "identity": {"cert": str(cert), "key": str(key)},
        }
        (tmp_path / "ctl.yml").write_text(json.dumps(settings))
        options = cli._parser().parse_args(["policy", *arguments, "-c", str(tmp_path / "ctl.yml")])
        capsys.readouterr()
        assert await cli._run(options) == status
        return capsys.readouterr()

    async with running(files) as broker:
        shown, _ = await ctl("show", "--json", name="victor")
        assert json.loads(shown)["policyHash"] == broker.policy.current.hash
        assert (await ctl("show", "--text"))[0] == TEXT
        new.write_text(POLICY + OPERATORS + "# ä" * 30_000)
        lines = list(map(json.loads, (await ctl("plan", str(new), "--json"))[0].splitlines()))
        assert lines[0]["changeCount"] == len(lines) - 1 == 8
        assert {"change": "lost", "subject": "host", "identity": "more0.certplane.test"} in lines
        new.write_text("profile: {}\n")
        out, problems = await ctl("plan", str(new), "--json", status=1)
        assert json.loads(out)["keyPath"] == "profile"
        assert problems.startswith(f"{new}:1: profile: is not a known key; ")
        new.write_bytes(b"\xff")
        assert "is not UTF-8" in (await ctl("plan", str(new), status=1))[1]
        files.policy.write_text(POLICY + OPERATORS)
        _, said = await ctl("reload", status=1)
        assert "would remove 4 of 5 hosts (80 %)" in said
        assert re.search(r"certplanectl -c \S+ policy reload --confirm$", said, re.MULTILINE)
        assert json.loads((await ctl("reload", "--confirm", "--json"))[0])["loaded"] is True
        new.write_text(TEXT)
        with pytest.raises(RefusalError, match="requires the role"):
            await ctl("reload", name="victor")
        with pytest.raises(RefusalError, match="only operators and services may call this method"):
            await ctl("plan", str(new), name="web1")


async def test_policies_that_were_in_force(files: BrokerFiles) -> None:
    """Each with who loaded it, when, and what it changed; its text by the hash, for as long as it is kept."""
    async with running(files) as broker, service(broker, files, "victor") as stub:
        first = broker.policy.current.hash
        files.policy.write_text(TEXT + "# changed\n")
        assert (await broker.reloader.request(ReloadRequest("the operator alice"))).ok
        answer = await stub.ListPolicyVersions(pb.ListPolicyVersionsRequest(), timeout=HANG)
        assert [each.policy_hash for each in answer.versions] == [broker.policy.current.hash, first]
        newest, oldest = answer.versions
        assert (newest.loaded_by, newest.text_size_bytes) == ("the operator alice", len(TEXT) + 10)
        assert oldest.loaded_by == "the start of the broker"
        assert {count.subject for count in newest.counts} >= {"host", "grant"}
        page = await stub.ListPolicyVersions(pb.ListPolicyVersionsRequest(page_size=1), timeout=HANG)
        again = pb.ListPolicyVersionsRequest(page_size=1, page_token=page.next_page_token)
        assert [each.policy_hash for each in (await stub.ListPolicyVersions(again, timeout=HANG)).versions] == [first]

        messages = [m async for m in stub.GetPolicy(pb.GetPolicyRequest(policy_hash=first), timeout=HANG)]
        assert "".join(message.policy_text for message in messages) == TEXT
        assert (messages[0].policy.policy_hash, messages[0].policy.file) == (first, "")
        for wrong in ("0" * 64, "short"):
            call = stub.GetPolicy(pb.GetPolicyRequest(policy_hash=wrong), timeout=HANG)
            assert await refused(anext(aiter(call))) is Reason.REQUEST_INVALID
        for token in ("eA", token_from_cursor("9" * 30)):
            bad = pb.ListPolicyVersionsRequest(page_token=token)
            assert await refused(stub.ListPolicyVersions(bad, timeout=HANG)) is Reason.REQUEST_INVALID


async def test_plan_says_what_it_takes(files: BrokerFiles) -> None:
    """The orders that it comes to, and connected hosts that would lose all that they have."""
    new = TEXT.replace("web1.certplane.test, profiles: [web]", "web1.certplane.test")
    assert new != TEXT
    async with running(files) as broker, service(broker, files, "victor") as stub:
        async with connected(broker, files) as channel:
            await HostStreamClient(channel).hello()
            await until(lambda: len(broker.hub.registry) == 1)
            first, *_ = await planned(stub, messages(new))
        names = TEXT.replace("a.certplane.test, b.certplane.test", "a.certplane.test, c.certplane.test")
        second, *_ = await planned(stub, messages(names))
    assert (first.summary.connected_hosts_lost_count, first.summary.order_count) == (1, 0)
    assert second.summary.order_count == second.summary.issued_again_count == 5
    assert second.summary.connected_hosts_lost_count == 0


async def test_names_that_many_share_are_told(files: BrokerFiles, caplog: pytest.LogCaptureFixture) -> None:
    """What their first certificates take: in the log of a policy once it is in force, and of another text in its plan."""
    limit = {"name": "same", "scope": "names", "amount": 2, "per": "168h"}
    files.settings["issuer"]["acme"]["limits"] = [limit]
    files.write()
    files.policy.write_text(TEXT)
    own = TEXT.replace("[a.certplane.test, b.certplane.test]", "['{label}.certplane.test', b.certplane.test]")
    assert own != TEXT
    caplog.set_level(logging.WARNING)
    async with running(files) as broker, service(broker, files, "victor") as stub:
        await until(lambda: "5 identities get the same names" in caplog.text)
        first, *_ = await planned(stub, messages(TEXT.replace("more0.certplane", "other.certplane")))
        second, *_ = await planned(stub, messages(own))
        await broker.reloader.request()
        assert caplog.text.count("5 identities get the same names") == 1
    (same,) = first.summary.same_names
    assert (same.profile, list(same.dns_names)) == ("web", ["a.certplane.test", "b.certplane.test"])
    assert (same.identity_count, same.amount, same.per.ToTimedelta()) == (5, 2, timedelta(weeks=1))
    assert same.order_duration.ToTimedelta() == timedelta(days=10.5)
    assert "{label}" in same.remedy
    assert not second.summary.same_names


async def test_a_policys_names_of_labels_reach_its_hosts(files: BrokerFiles) -> None:
    """Each host is told its own literal names, and its labels are seen by operators, who can pick it by them."""
    own = TEXT.replace("[a.certplane.test, b.certplane.test]", "['{label}.{labels.dc}.certplane.test']")
    own = own.replace("profiles: [web]}", "profiles: [web], labels: {dc: fra1}}")
    files.policy.write_text(own)
    async with running(files) as broker:
        async with connected(broker, files) as channel:
            stub: Any = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
            identity = await stub.GetIdentity(enrollment_pb2.GetIdentityRequest(), timeout=HANG)
        async with connected(broker, files, files.ca.issue(["victor.certplane.test"])) as channel:
            fleet: Any = fleet_pb2_grpc.FleetServiceStub(channel)
            found = fleet_pb2.ListHostsRequest(filter=fleet_pb2.FleetFilter(labels=["dc=fra1"]))
            hosts = (await fleet.ListHosts(found, timeout=HANG)).hosts
            none = fleet_pb2.ListHostsRequest(filter=fleet_pb2.FleetFilter(labels=["dc=ams1"]))
            assert not (await fleet.ListHosts(none, timeout=HANG)).hosts
    (granted,) = identity.granted_profiles
    assert list(granted.dns_names) == ["web1.fra1.certplane.test"]
    assert len(hosts) == 5
    assert {tuple(host.labels.items()) for host in hosts} == {(("dc", "fra1"),)}
