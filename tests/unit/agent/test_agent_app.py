"""The agent at work, on a real disk, with a broker and an internal CA in memory and a clock set by hand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from certplane.agent.app import Agent
from certplane.agent.control import ask
from certplane.agent.directives import HostDirectives
from certplane.agent.link.diagnosis import IdentityNotAcceptedError
from certplane.agent.model import DirectedRenewal, LineageStatus, Version
from certplane.agent.renewal.status import is_well
from certplane.agent.reporting.recording import ReportedStatusFile
from certplane.errors import ConfigurationError, OperationError, Reason, Refusal, RefusalError
from certplane.fleet_report.model import CertificateState, RenewalCause, RenewalStep
from certplane.sandbox.loopback import free_port
from tests.support.agent_world import AgentWorld, Recorder
from tests.support.lineages import LocalIssuer
from tests.support.waiting import HANG, until

HOUR = timedelta(hours=1)
MakeWorld = Callable[..., AgentWorld]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Makes an `AgentWorld` that ends with the test."""
    worlds: list[AgentWorld] = []

    def make(*certificates: str | dict[str, Any], **options: Any) -> AgentWorld:
        wanted = [each if isinstance(each, dict) else {"name": each} for each in certificates or ("web",)]
        worlds.append(AgentWorld(tmp_path, wanted, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@contextlib.asynccontextmanager
async def running(agent: Agent, events: Recorder) -> AsyncIterator[None]:
    """A daemon beside the test."""
    stop = asyncio.Event()
    task = asyncio.create_task(agent.run(stop, events))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, HANG)


def leaf_at(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


async def test_a_first_run_gets_and_installs_every_certificate(make_world: MakeWorld) -> None:
    """`run_once` brings all, each at its paths, and tells the broker who runs here."""
    world = make_world("web", "api")
    identity = await world.enroll()
    statuses = await world.agent().run_once()
    assert sorted(statuses) == ["api", "identity", "web"]
    assert all(is_well(status) for status in statuses.values())
    for name in ("web", "api"):
        assert leaf_at(world.folder / "tls" / f"{name}.pem").subject.rdns == []
    assert world.broker.reports == [identity.serial_number]
    assert "web: done: version 1 is in use until" in "\n".join(world.progress.lines)


async def test_who_waits_hears_what_is_in_the_way(make_world: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    """A run shows beside the order's state what the broker says that it waits for; the log has it too, once."""
    caplog.set_level(logging.INFO)
    world = make_world()
    await world.enroll()
    world.broker.states = ["PENDING", "VALIDATING"]
    world.broker.trouble = "DNS_UNAVAILABLE: ns2.example lacks the record"
    assert is_well((await world.agent().run_once())["web"])
    shown = [line for line in world.progress.lines if "ns2.example lacks the record" in line]
    assert any("DNS records are written and checked (DNS_UNAVAILABLE" in line for line in shown)
    logged = [record.message for record in caplog.records if "ns2.example lacks the record" in record.message]
    assert len(logged) == 1
    assert logged[0].startswith("web: ")


async def test_what_a_request_waits_for_is_its_status_meanwhile(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status`, and the broker for its operators, hear it while the order is open, as no failure; then it is gone."""
    world = make_world()
    await world.enroll()
    world.broker.states = ["PENDING", "VALIDATING"]
    world.broker.trouble = "DNS_UNAVAILABLE: ns2.example lacks the record"
    seen: list[LineageStatus] = []
    save = ReportedStatusFile.save

    def watching(self: ReportedStatusFile, status: LineageStatus) -> None:
        seen.append(status)
        save(self, status)

    monkeypatch.setattr(ReportedStatusFile, "save", watching)
    await world.agent().run_once()
    waiting = [status for status in seen if status.last_error == world.broker.trouble]
    assert [(each.state, each.failed_step, each.failures) for each in waiting] == [
        (CertificateState.REQUESTING, RenewalStep.REQUEST, 0)
    ]
    assert (seen[-1].last_error, seen[-1].failed_step) == ("", None)


async def test_a_second_run_has_nothing_to_do(make_world: MakeWorld) -> None:
    """What is fresh isn't asked for again."""
    world = make_world()
    await world.enroll()
    await world.agent().run_once()
    world.broker.calls.clear()
    await world.agent().run_once()
    assert "issue" not in world.broker.calls


async def test_a_due_certificate_is_replaced_with_a_new_key(make_world: MakeWorld) -> None:
    """The renewal names what it replaces; the key is new unless the configuration keeps it."""
    world = make_world("web", {"name": "kept", "key_rotation": "reuse"}, lifetime=timedelta(days=365))
    await world.enroll()
    await world.agent().run_once()
    world.clock.advance(timedelta(days=61))
    await world.agent().run_once()
    for name, renewed in (("web", True), ("kept", False)):
        first, second = await world.versions(name)
        assert (first.public_key_sha256 != second.public_key_sha256) == renewed
        assert second.certificate_id != first.certificate_id


async def test_one_failing_certificate_does_not_stop_the_others(make_world: MakeWorld) -> None:
    """A profile that policy doesn't give fails alone, with its reason in the status."""
    world = make_world({"name": "bad", "profile": "unknown"}, "web")
    await world.enroll()
    statuses = await world.agent().run_once()
    assert is_well(statuses["web"])
    assert statuses["bad"].state is CertificateState.FAILED
    assert "PROFILE_NOT_ALLOWED" in statuses["bad"].last_error
    assert statuses["bad"].next_attempt_time is not None


async def test_a_failure_waits_for_its_time(make_world: MakeWorld) -> None:
    """Another run before it asks nobody and says why; after it the same request goes out again."""
    world = make_world()
    await world.enroll()
    agent = world.agent()
    await agent._start()
    await agent._identity.settle()
    world.broker.errors = [OperationError("the broker can't be reached", remedy="start it")]
    status = await agent._certificates["web"].settle()
    assert status.failures == 1
    (csr,) = [(await world.host.certificates["web"].facts(world.clock.now())).pending]
    world.broker.calls.clear()
    world.progress.lines.clear()
    again = (await world.agent().run_once())["web"]
    assert not is_well(again)
    assert "issue" not in world.broker.calls
    assert "the broker can't be reached" in "\n".join(world.progress.lines)
    world.clock.advance(HOUR)
    assert is_well((await world.agent().run_once())["web"])
    assert csr is not None
    (version,) = await world.versions("web")
    assert version.public_key_sha256 == csr.public_key_sha256


async def test_a_failed_orders_time_holds_also_for_an_operator(make_world: MakeWorld) -> None:
    """`renew` before the CA's time asks nobody and says whose time that is; after it the order is made anew."""
    world = make_world()
    await world.enroll()
    world.broker.failure = Refusal(Reason.ISSUER_RATE_LIMITED, "too many certificates")
    world.broker.retry_time = world.clock.now() + 5 * HOUR
    statuses = await world.agent().run_once()
    assert statuses["web"].retry_time == world.broker.retry_time
    world.broker.failure = None
    world.broker.calls.clear()
    outcome = await world.agent().by_hand("renew", "web")
    assert not outcome.ok
    assert "ISSUER_RATE_LIMITED: too many certificates; the CA named" in outcome.text
    assert "issue" not in world.broker.calls
    world.clock.advance(5 * HOUR)
    assert (await world.agent().by_hand("renew", "web")).ok


async def test_a_key_that_can_never_work_is_dropped(make_world: MakeWorld) -> None:
    """After KEY_REUSED the next request has another key."""
    world = make_world()
    await world.enroll()
    agent = world.agent()
    await agent._start()
    world.broker.errors = [RefusalError(Reason.KEY_REUSED, "another identity's key")]
    await agent._certificates["web"].settle()
    assert (await world.host.certificates["web"].facts(world.clock.now())).pending is None


async def test_a_key_of_an_earlier_try_that_is_refused_now(make_world: MakeWorld) -> None:
    """What was left by an order that failed, and that the broker takes no more, costs no wait: a new key is asked with.

    A key that was just made and is refused is a failure like any other.
    """
    world = make_world()
    await world.enroll()
    agent = world.agent()
    await agent._start()
    web = agent._certificates["web"]
    world.broker.errors = [RefusalError(Reason.ISSUER_REJECTED, "its chain can't be used")]
    assert (await web.settle()).failures == 1
    left = (await world.host.certificates["web"].facts(world.clock.now())).pending
    assert left is not None
    world.broker.errors = [RefusalError(Reason.KEY_REUSED, "this key can't be used")]
    assert is_well(await web.settle(forced=True))
    (version,) = await world.versions("web")
    assert version.public_key_sha256 != left.public_key_sha256


async def test_a_key_that_is_blocked_while_its_order_is_under_way(make_world: MakeWorld) -> None:
    """Nobody is given what comes of it: a new key is asked with at once, not when the order's ten minutes are over."""
    world = make_world({"name": "kept", "key_rotation": "reuse"}, lifetime=timedelta(days=365))
    await world.enroll()
    await world.agent().run_once()
    world.clock.advance(timedelta(days=61))
    agent = world.agent()
    await agent._start()
    await agent._identity.settle()
    world.broker.states = ["FINALIZING"]
    world.broker.watch_errors = [RefusalError(Reason.KEY_REUSED, "this key can't be used; make a new one")]
    assert is_well(await agent._certificates["kept"].settle())
    first, second = await world.versions("kept")
    assert first.public_key_sha256 != second.public_key_sha256


async def test_an_identity_that_comes_into_use_forgives_no_request_under_way(make_world: MakeWorld) -> None:
    """At a start the identity is taken into use beside the first requests: what these fail with has its own wait."""
    world = make_world()
    await world.enroll()
    agent = world.agent()
    await agent._start()
    web = agent._certificates["web"]
    heard: list[bool] = []

    async def obtain(_request: object) -> Version:
        await agent._identity.settle()
        heard.append(web.wants_again)
        raise RefusalError(Reason.ISSUER_REJECTED, "its chain can't be used")

    web._requester = obtain
    assert (await web.settle()).failures == 1
    assert (heard, web.wants_again) == ([False], False)


async def test_a_spent_key_is_given_up_although_it_should_be_kept(make_world: MakeWorld) -> None:
    """With `key_rotation: reuse` too: a key that the broker refuses, as after a revocation, is asked with no more."""
    world = make_world({"name": "kept", "key_rotation": "reuse"}, lifetime=timedelta(days=365))
    await world.enroll()
    await world.agent().run_once()
    world.clock.advance(timedelta(days=61))
    agent = world.agent()
    await agent._start()
    await agent._identity.settle()
    world.broker.issue_errors = [RefusalError(Reason.KEY_REUSED, "a certificate of it was revoked")]
    await agent._certificates["kept"].settle()
    world.clock.advance(timedelta(days=1))
    await agent._certificates["kept"].settle()
    first, second = await world.versions("kept")
    assert first.public_key_sha256 != second.public_key_sha256


async def test_what_the_broker_has_forgotten_is_asked_for_as_a_first_one(make_world: MakeWorld) -> None:
    """A renewal of a certificate that the broker doesn't know becomes an issue."""
    world = make_world()
    await world.enroll()
    await world.agent().run_once()
    world.broker.issued.clear()
    assert (await world.agent().by_hand("renew", "web")).ok
    assert len(await world.versions("web")) == 2


@pytest.mark.parametrize("wrong", ["key", "names"])
async def test_a_certificate_that_is_not_ours_is_not_stored(make_world: MakeWorld, wrong: str) -> None:
    """What the broker hands out is checked against this host's own key and names."""
    from certplane.pki.csr import build_csr
    from tests.support.identities import new_key

    world = make_world()
    await world.enroll()

    class Liar(LocalIssuer):
        def issue(self, csr_pem: str, **how: Any) -> Any:
            if wrong == "key":
                return super().issue(build_csr(new_key(), sans=["web.example"]), **how)
            key = x509.load_pem_x509_csr(csr_pem.encode())
            issued = super().issue(csr_pem, **how)
            other = self._sign(key.subject, key.public_key(), ["other.example"], timedelta(days=90))  # type: ignore[arg-type]
            return type(issued)(other, issued.chain_pem, issued.certificate_id, issued.renew_time)

    world.broker._issuer = Liar(now=world.clock.now())
    statuses = await world.agent().run_once()
    assert statuses["web"].state is CertificateState.FAILED
    assert "ISSUER_REJECTED" in statuses["web"].last_error
    assert await world.versions("web") == []


async def test_a_limit_of_the_ca_is_waited_for_and_is_no_failure(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """However long: the step ends with the time that the broker expects, in the log as information, and counts for nothing."""
    caplog.set_level(logging.INFO)
    world = make_world()
    await world.enroll()
    world.broker.states, world.broker.waits = ["PENDING"], True
    world.broker.trouble = "budget: 5 per 168h for these names; free at 2026-11-30T11:24:00Z"
    world.broker.wait_time = world.clock.now() + timedelta(hours=33)
    run = asyncio.create_task(world.agent().run_once())
    await until(lambda: "watch_order" in world.broker.calls)

    async def pass_time() -> None:
        while not run.done():
            world.clock.advance(timedelta(seconds=30))
            await asyncio.sleep(0)

    await asyncio.wait_for(pass_time(), HANG)
    status = (await run)["web"]
    assert (status.failures, status.state, status.next_attempt_time) == (0, CertificateState.REQUESTING, None)
    assert status.last_error == world.broker.trouble
    (ended,) = [
        record for record in caplog.records if "waits for a place within the CA's limits, until" in record.message
    ]
    assert (ended.levelno, world.broker.trouble in ended.message) == (logging.INFO, True)
    world.broker.waits = False
    assert is_well((await world.agent().run_once())["web"])


async def test_an_order_that_takes_long_is_taken_up_by_the_next_run(make_world: MakeWorld) -> None:
    """A step's time over, the order isn't a failure: the next run sends the same request and gets its certificate."""
    world = make_world()
    await world.enroll()
    world.broker.states = ["PENDING"]
    world.broker.stall = asyncio.Event()
    run = asyncio.create_task(world.agent().run_once())
    await until(lambda: "watch_order" in world.broker.calls)
    world.broker.errors = [OperationError("broken")] * 1000  # the watch ends in an error, again and again
    world.broker.stall.set()
    world.broker.stall = None
    world.broker.states = []

    async def pass_time() -> None:
        while not run.done():
            world.clock.advance(timedelta(seconds=30))
            await asyncio.sleep(0)

    await asyncio.wait_for(pass_time(), HANG)
    status = (await run)["web"]
    assert status.failures == 0
    world.broker.errors = []
    assert is_well((await world.agent().run_once())["web"])
    assert world.broker.issued == ["certificate-1"]


async def test_an_identity_is_renewed_without_a_restart(make_world: MakeWorld) -> None:
    """A running agent re-keys its identity when it is due, and calls by the new one from then on."""
    world = make_world()
    first = await world.enroll()
    events = Recorder()
    async with running(world.agent(events), events):
        await until(lambda: world.broker.reports == [first.serial_number])
        await until(lambda: world.clock.sleepers >= 2)

        def renewed() -> bool:
            world.clock.advance(timedelta(minutes=15))  # the plan is made anew as often
            return len(world.broker.reports) > 1

        await until(renewed)
        assert world.broker.identities[-1].serial_number != first.serial_number
        assert world.broker.identities[-1].public_key_sha256 != first.public_key_sha256
        assert world.broker.reports[-1] == world.broker.identities[-1].serial_number


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(RefusalError(Reason.IDENTITY_UNKNOWN, "this identity is unknown"), id="refused by the broker"),
        pytest.param(IdentityNotAcceptedError("the broker doesn't accept it"), id="refused in the handshake"),
    ],
)
async def test_a_new_identity_that_the_broker_refuses_gives_way(make_world: MakeWorld, refusal: Exception) -> None:
    """The one before stays in force and in use, the status says why."""
    world = make_world(lifetime=timedelta(days=20))
    first = await world.enroll()
    await world.agent().run_once()
    world.clock.advance(timedelta(days=15))
    agent = world.agent()
    await agent._start()
    world.broker.errors = [refusal]  # type: ignore[list-item] # both are CertplaneErrors
    status = await agent._identity.settle()
    assert status.state is CertificateState.DEGRADED
    assert str(refusal) in status.last_error
    assert world.broker.identities[-1] == first
    assert await world.host.current_identity() == first
    assert len(await world.versions("identity")) == 2


def directives_of(world: AgentWorld, agent: Agent) -> HostDirectives:
    """What takes the broker's directives for an agent."""
    return HostDirectives(
        world.host.certificates,
        agent._certificates,
        identity=world.host.identity,
        identity_runner=agent._identity,
        disk=world.host.disk,
        clock=world.clock,
        policy_hash="",
        on_policy=lambda _: None,
        retry_epoch="",
        on_retry_epoch=lambda _: None,
        rng=world.host.rng,
    )


async def test_an_identity_is_renewed_on_demand(make_world: MakeWorld) -> None:
    """By hand here, or because an operator asked the broker for it: long before it is due, and the broker hears of it."""
    world = make_world()
    first = await world.enroll()
    outcome = await world.agent().by_hand("renew", "identity")
    assert outcome.ok, outcome.text
    second = await world.host.current_identity()
    assert second is not None
    assert second.serial_number != first.serial_number
    agent = world.agent()
    await agent._start()
    directives = directives_of(world, agent)
    await directives.renew([DirectedRenewal("", world.clock.now(), RenewalCause.OPERATOR, "key ceremony")])
    assert agent._identity.wants_again, "`run --once` does it in the same run"
    assert is_well(await agent._identity.settle())
    third = await world.host.current_identity()
    assert third is not None
    assert third.serial_number not in {first.serial_number, second.serial_number}
    assert world.broker.identities[-1].serial_number == third.serial_number


async def test_a_broker_that_is_down_does_not_stop_a_new_identity(make_world: MakeWorld) -> None:
    """Nobody has refused it: it stays in force."""
    world = make_world(lifetime=timedelta(days=20))
    await world.enroll()
    await world.agent().run_once()
    world.clock.advance(timedelta(days=15))
    agent = world.agent()
    await agent._start()
    world.broker.errors = [OperationError("the broker can't be reached")]
    assert is_well(await agent._identity.settle())
    current = await world.host.current_identity()
    assert current is not None
    assert current.number == 2
    assert world.broker.identities[-1] == current


async def test_an_internal_ca_that_is_down_is_tried_again(make_world: MakeWorld) -> None:
    """The identity's failure has its own waiting time, and the certificates go on meanwhile."""
    world = make_world(lifetime=timedelta(days=20))
    await world.enroll()
    await world.agent().run_once()
    world.clock.advance(timedelta(days=15))
    world.authority.errors = [OperationError("the CA can't be reached")]
    statuses = await world.agent().run_once()
    assert statuses["identity"].state is CertificateState.FAILED
    assert is_well(statuses["web"])
    world.clock.advance(HOUR)
    assert is_well((await world.agent().run_once())["identity"])


async def test_a_lost_answer_of_the_ca_costs_no_key(make_world: MakeWorld) -> None:
    """A re-key whose answer was lost is sent again with the same key."""
    world = make_world(lifetime=timedelta(days=20))
    await world.enroll()
    await world.agent().run_once()
    world.clock.advance(timedelta(days=15))
    world.authority.lose_next_answer = True
    await world.agent().run_once()
    facts = await world.host.identity.facts(world.clock.now())
    assert facts.pending is not None
    world.clock.advance(HOUR)
    await world.agent().run_once()
    current = await world.host.current_identity()
    assert current is not None
    assert current.public_key_sha256 == facts.pending.public_key_sha256


async def test_an_identity_that_is_over_as_it_begins_is_not_asked_for_in_a_loop(make_world: MakeWorld) -> None:
    """One request in a run, however short the CA makes its certificates."""
    world = make_world(lifetime=timedelta(seconds=30))
    await world.enroll()
    await world.agent().run_once()
    assert world.authority.calls.count("rekey") == 1


async def test_renew_reaches_a_running_agent(make_world: MakeWorld) -> None:
    """Over its socket: the steps come as they happen, then the result; the socket's directory is the agent's alone."""
    world = make_world("web", "api")
    await world.enroll()
    events = Recorder()
    async with running(world.agent(events), events):
        await until(lambda: len(world.broker.issued) == 2)
        await until(lambda: world.clock.sleepers >= 3)
        heard = Recorder()
        outcome = await ask(world.host.state_dir, {"command": "renew", "name": "web"}, heard)
        assert outcome is not None
        assert outcome.ok
        assert heard.lines[0] == "web: step: requesting: an operator asked for it"
        assert heard.lines[-1].startswith("web: done: version 2 is in use")
        assert not any(line.startswith("api") for line in heard.lines)
        assert (world.host.state_dir / "control").stat().st_mode & 0o777 == 0o700

        outcome = await ask(world.host.state_dir, {"command": "renew", "name": "none"}, heard)
        assert outcome is not None
        assert not outcome.ok
        outcome = await ask(world.host.state_dir, {"command": "shutdown"}, heard)
        assert outcome is not None
        assert not outcome.ok
    assert await ask(world.host.state_dir, {"command": "ping"}, heard) is None


async def test_a_failing_renewal_tells_its_reason_over_the_socket(make_world: MakeWorld) -> None:
    """The refusal's words reach whoever asked."""
    world = make_world()
    await world.enroll()
    events = Recorder()
    async with running(world.agent(events), events):
        await until(lambda: world.clock.sleepers >= 2)
        world.broker.errors = [RefusalError(Reason.RATE_LIMITED, "20 an hour", retry_after=HOUR)]
        heard = Recorder()
        outcome = await ask(world.host.state_dir, {"command": "renew", "name": "web"}, heard)
        assert outcome is not None
        assert not outcome.ok
        assert "RATE_LIMITED: 20 an hour" in heard.lines[-1]


async def test_a_fault_of_ours_ends_no_lineage(make_world: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is logged with its traceback, and tried again after a while."""
    world = make_world("web", "api")
    await world.enroll()
    events = Recorder()
    agent = world.agent(events)
    broken = agent._certificates["web"]
    obtain, broken._requester = broken._requester, None  # type: ignore[assignment] # on purpose
    with caplog.at_level(logging.ERROR):
        async with running(agent, events):
            await until(lambda: "web: unexpected" in caplog.text)
            await until(lambda: world.clock.sleepers >= 3)
            assert len(world.broker.issued) == 1
            broken._requester = obtain
            world.clock.advance(timedelta(minutes=6))
            await until(lambda: len(world.broker.issued) == 2)


async def test_stopping_finishes_an_installation_that_has_begun(make_world: MakeWorld) -> None:
    """SIGTERM in the middle of a reload: the hook ends, the version is confirmed, then the agent stops."""
    world = make_world({"name": "web", "reload_command": "touch started; sleep 0.5; touch ended"})
    folder = world.folder
    world.configure([{"name": "web", "reload_command": f"touch {folder}/started; sleep 0.5; touch {folder}/ended"}], {})
    await world.enroll()
    events = Recorder()
    async with running(world.agent(events), events):
        await until((folder / "started").exists)
    assert (folder / "ended").exists()
    assert (await world.status("web")).confirmed_version == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda path: path.unlink(), "does not exist", id="missing"),
        pytest.param(lambda path: path.write_text("nothing"), "holds no PEM block CERTIFICATE", id="no certificate"),
    ],
)
async def test_a_wrong_ca_bundle_is_a_configuration_error(
    make_world: MakeWorld, spoil: Callable[[Path], object], words: str
) -> None:
    """Named with file, line and key, instead of as a connection that fails for no visible reason."""
    world = make_world()
    await world.enroll()
    spoil(world.folder / "broker-ca.crt")
    with pytest.raises(ConfigurationError, match=words) as refused:
        await world.agent().run_once()
    assert f"{world.folder / 'agent.yml'}:2: broker.server_ca_bundle: " in str(refused.value)


async def test_new_output_paths_are_linked_at_the_start(make_world: MakeWorld) -> None:
    """A path that is added to agent.yml shows the current version after a restart, without a renewal."""
    world = make_world()
    await world.enroll()
    await world.agent().run_once()
    combined = world.folder / "tls" / "web.combined"
    world.configure([{"name": "web", "combined": str(combined)}], {})
    await world.agent().run_once()
    assert combined.exists()
    assert len(await world.versions("web")) == 1


def window_from(world: AgentWorld, hours: float) -> dict[str, Any]:
    """A certificate whose window opens in so many hours, for one hour."""
    begin = world.clock.now() + hours * HOUR
    return {"name": "web", "activate": {"window": f"{begin:%H:%M}-{begin + HOUR:%H:%M} UTC"}}


async def test_a_renewal_in_the_daytime_is_used_at_night(make_world: MakeWorld) -> None:
    """The certificate is issued at once and put in place when the window opens; `renew` says so, and orders no other."""
    world = make_world()
    await world.enroll()
    await world.agent().run_once()
    world.configure([window_from(world, 5)], {})
    outcome = await world.agent().by_hand("renew", "web")
    assert outcome.ok
    assert outcome.text.startswith("version 2 is here; it is used from")
    first, second = await world.versions("web")
    status = await world.status("web")
    assert (status.state, status.issued_version, status.installed_version) == (CertificateState.ISSUED, 2, 1)
    assert status.activate_after is not None
    assert timedelta(hours=4.9) < status.activate_after - world.clock.now() <= 5 * HOUR
    assert leaf_at(world.folder / "tls" / "web.pem").serial_number == int(first.serial_number, 16)
    again = await world.agent().by_hand("renew", "web")
    assert (again.ok, len(await world.versions("web"))) == (False, 2)
    assert again.text.startswith("not renewed: version 2 waits for its window")
    assert is_well((await world.agent().run_once())["web"])
    world.clock.advance(5 * HOUR)
    status = (await world.agent().run_once())["web"]
    assert (status.state, status.installed_version, status.activate_after) == (CertificateState.WAITING, 2, None)
    assert leaf_at(world.folder / "tls" / "web.pem").serial_number == int(second.serial_number, 16)


@pytest.mark.parametrize("both", [False, True], ids=["the one in use", "both"])
async def test_no_window_keeps_a_revoked_certificate_in_use(make_world: MakeWorld, both: bool) -> None:
    """It is revoked while the next one waits for its window: that one is used at once, or what follows it."""
    world = make_world()
    await world.enroll()
    await world.agent().run_once()
    world.configure([window_from(world, 5)], {})
    await world.agent().by_hand("renew", "web")
    versions = await world.versions("web")
    agent = world.agent()
    await agent._start()
    directives = directives_of(world, agent)
    revoked = versions if both else versions[:1]
    await directives.renew(
        [DirectedRenewal(each.certificate_id, world.clock.now(), RenewalCause.REVOKED) for each in revoked]
    )
    assert agent._certificates["web"].wants_again, "`run --once` does it in the same run"
    status = await agent._certificates["web"].settle()
    assert not agent._certificates["web"].wants_again
    assert status.installed_version == (3 if both else 2)
    assert (await world.status("web")).confirmed_version == status.installed_version
    await agent.close()


async def test_a_first_certificate_waits_for_no_window(make_world: MakeWorld) -> None:
    """A service that has nothing gets its certificate at any time."""
    world = make_world()
    world.configure([window_from(world, 5)], {})
    await world.enroll()
    status = (await world.agent().run_once())["web"]
    assert (status.state, status.installed_version) == (CertificateState.WAITING, 1)


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["ahead", "back"])
async def test_a_clock_that_is_set_does_no_harm(
    make_world: MakeWorld, jump: timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    """A wait that a CA asked for keeps its length while the agent runs, however the clock is set meanwhile."""
    world = make_world()
    await world.enroll()
    agent = world.agent()
    await agent._start()
    await agent._identity.settle()
    world.broker.errors = [RefusalError(Reason.ISSUER_RATE_LIMITED, "5 a week", retry_after=3 * HOUR)]
    runner = agent._certificates["web"]
    await runner.settle()
    world.clock.jump(jump)
    world.broker.calls.clear()
    await runner.settle(forced=True)
    assert "the clock was set by" in caplog.text
    assert (await world.status("web")).retry_time == world.clock.now() + 3 * HOUR
    world.clock.advance(3 * HOUR - timedelta(minutes=1))
    await runner.settle(forced=True)
    assert "issue" not in world.broker.calls
    world.clock.advance(timedelta(minutes=1))
    assert is_well(await runner.settle())


async def test_waits_of_a_clock_that_was_years_ahead_end(make_world: MakeWorld) -> None:
    """A record from the future is moved once, on disk: its waits end although it is read again and again."""
    world = make_world()
    await world.enroll()
    agent = world.agent()
    await agent._start()
    await agent._identity.settle()
    world.broker.errors = [RefusalError(Reason.RATE_LIMITED, "20 an hour", retry_after=3 * HOUR)]
    await agent._certificates["web"].settle()
    world.clock.jump(timedelta(days=-400))
    world.broker._issuer = LocalIssuer(now=world.clock.now())
    for _ in range(3):
        status = (await world.agent().run_once())["web"]
        world.clock.advance(HOUR)
    assert status.failures
    assert is_well((await world.agent().run_once())["web"])


async def test_renew_says_when_it_has_only_finished_what_was_begun(make_world: MakeWorld) -> None:
    """A version whose activation is due again is activated first; that no new one came is said, not only a status 1."""
    world = make_world({"name": "web", "reload_command": "exit 3"})
    await world.enroll()
    assert not is_well((await world.agent().run_once())["web"])
    world.configure([{"name": "web", "reload_command": "true"}], {})
    world.clock.advance(timedelta(minutes=10))
    outcome = await world.agent().by_hand("renew", "web")
    assert not outcome.ok
    assert outcome.text.startswith("not renewed: version 1, which was here already")
    assert (await world.agent().by_hand("renew", "web")).ok


async def test_a_daemon_looks_again_in_its_time(make_world: MakeWorld) -> None:
    """A service that is down is looked at with back-off, reloaded once, and costs no request and no loop."""
    world = make_world()
    await world.enroll()
    await world.agent().run_once()
    reloads = world.folder / "reloads"
    world.configure(
        [
            {
                "name": "web",
                "reload_command": f"echo >> {reloads}",
                "verify": {"connect": f"127.0.0.1:{free_port()}", "attempts": 1},
            }
        ],
        {},
    )
    events = Recorder()
    agent = world.agent(events)
    world.broker.calls.clear()

    def finds() -> int:
        return sum("can't be reached: Connection refused" in line for line in events.lines)

    async with running(agent, events):
        await until(lambda: finds() == 1)
        await asyncio.sleep(0.2)  # time stands still for the agent: whatever comes now came in a loop
        assert finds() == 1
        world.clock.advance(7 * HOUR)
        await until(lambda: finds() == 2)
        await asyncio.sleep(0.2)
        assert finds() == 2
    status = await world.status("web")
    assert (status.state, status.drift_reloaded, status.verify_failures) == (CertificateState.DEGRADED, True, 3)
    assert reloads.read_text() == "\n"
    assert "issue" not in world.broker.calls
