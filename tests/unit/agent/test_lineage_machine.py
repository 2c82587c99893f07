"""One certificate's whole life under a random sequence of events, with the real plan, life and activation.

What it talks to is in memory: a CA that fails in every way, a service that may ignore reloads, a disk that may be full,
a clock that is set by an hour, an operator, rollouts that hold what they renew and release it or are aborted, restarts
that keep nothing but the status as JSON. Time stands still but for the events.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from certplane.agent.install.activation import ActivationResult, Activator
from certplane.agent.lineage import Lineage, OrderFailedError, OrderUnderWayError
from certplane.agent.lineage_runner import LineageRunner
from certplane.agent.model import Activation, DirectedRenewal, HookResult, LineageStatus, ServiceView, Version
from certplane.agent.renewal.due import LineageSpec, due_time, override_time, own_due_time
from certplane.agent.renewal.machine import FOLLOWS
from certplane.agent.renewal.plan import Request, Verify, Wait, newest_version
from certplane.agent.renewal.status import is_well, new_status, revoked
from certplane.agent.renewal.window import ActivationWindow
from certplane.errors import CertplaneError, OperationError, Reason, RefusalError
from certplane.fleet_report.model import CertificateState, RenewalCause
from certplane.runtime.json_state import members_of, value_of
from certplane.runtime.progress import SilentProgress
from tests.fakes.agent_install import (
    FakeActivationFile,
    FakeDirectiveFile,
    FakeServiceProbe,
    FakeStatusFile,
    FakeVersionStore,
)
from tests.fakes.agent_keystore import FakePendingKeys
from tests.fakes.clock import ManualClock
from tests.support.lineages import LocalIssuer

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
START = datetime(2026, 11, 23, 12, tzinfo=UTC)
NAME = "www.example.org"
WINDOWS = (None, ActivationWindow.parse("02:00-04:00"), ActivationWindow.parse("sat 22:00-02:00"))
_URGENT = HOUR
"""The longest wait of `renewal.failures` that no lack of life shortens."""

FAILURES: dict[str, Callable[[ManualClock], CertplaneError]] = {
    "unreachable": lambda clock: OperationError("no connection"),
    "unreachable, says when": lambda clock: OperationError("draining", retry_after=20 * MINUTE),
    "limited": lambda clock: RefusalError(Reason.RATE_LIMITED, "", retry_after=3 * HOUR),
    "refused": lambda clock: RefusalError(Reason.PROFILE_NOT_ALLOWED, ""),
    "rejected": lambda clock: RefusalError(Reason.DNS_REJECTED, ""),
    "key given up": lambda clock: RefusalError(Reason.KEY_REUSED, ""),
    "order failed": lambda clock: OrderFailedError(RefusalError(Reason.ISSUER_RATE_LIMITED, ""), clock.now() + 2 * DAY),
    "under way": lambda clock: OrderUnderWayError("the order takes long"),
}


class InlinePool:
    """`BlockingPool` without a thread: nothing here blocks."""

    async def run(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)


class JsonStatuses(FakeStatusFile):
    """A status file that keeps what JSON keeps."""

    def load(self) -> LineageStatus | None:
        status = super().load()
        return None if status is None else value_of(LineageStatus, json.loads(json.dumps(members_of(status))))


@dataclass
class Told:
    """When, by the time that nobody sets, a request may be made at the earliest."""

    monotonic: float = 0.0


class WatchedActivator:
    """An `Activator` that is asked whether it may."""

    def __init__(self, machine: LineageMachine, inner: Activator) -> None:
        self._machine = machine
        self._inner = inner

    async def activate(self, version: Version, status: LineageStatus) -> ActivationResult:
        self._machine.assert_may_activate(version, status)
        return await self._inner.activate(version, status)

    async def verify(self, step: Verify, status: LineageStatus) -> LineageStatus:
        return await self._inner.verify(step, status)


class Service(FakeServiceProbe):
    """Loads what is in place at each reload, unless it ignores reloads, refuses them or is down."""

    def __init__(self, store: FakeVersionStore) -> None:
        super().__init__()
        self.store = store
        self.mood = "obeys"

    async def reload(self, _: Version) -> HookResult:
        if self.mood == "refuses":
            return HookResult(1, "refused")
        if self.mood == "hangs":
            return HookResult(None, "")
        if self.mood == "obeys":
            self.served = self.store.current()
        return HookResult(0, "")

    async def look(self, version: Version) -> ServiceView:
        if self.mood == "down":
            return ServiceView(None, "nobody answers")
        return await super().look(version)


class LineageMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(START)
        self.issuer = LocalIssuer(now=START)
        self.keys = FakePendingKeys(clock=self.clock)
        self.store = FakeVersionStore(self.keys)
        self.service = Service(self.store)
        self.statuses = JsonStatuses()
        self.rng = random.Random(5)
        self.ca = ""
        self.disk_full = False
        self.forced = False
        self.asked = False
        self.at_once = self.by_hand = False
        self.directive, self.activations = FakeDirectiveFile(), FakeActivationFile()
        self.rollouts = 0
        self.issued = 0
        self.told_of: dict[str, bool] = {}
        """Certificates that were released; True: abandoned."""
        self.offset = timedelta()
        self.told = Told()
        self.checked = 0
        self.confirmed: set[int] = set()

    @initialize(window=st.sampled_from(WINDOWS), lifetime=st.sampled_from([6 * DAY, 90 * DAY]), looks=st.booleans())
    def begin(self, window: ActivationWindow | None, lifetime: timedelta, looks: bool) -> None:
        self.spec = LineageSpec(
            "www",
            phase_key="host/www",
            dns_names=(NAME,),
            key_type="ec-p256",
            window=window,
            verify_interval=6 * HOUR if looks else None,
        )
        self.runnertime = lifetime
        self.start()
        self.go_on()

    def start(self) -> None:
        """A new process: nothing but the disk is left of the one before."""
        lineage = Lineage(
            self.spec,
            keys=self.keys,
            versions=self.store,
            statuses=self.statuses,
            disk=InlinePool(),  # type: ignore[arg-type]  # see there
            directive=self.directive,
            activations=self.activations,
        )
        self.lineage = lineage
        activator = Activator(
            store=self.store,
            statuses=self.statuses,
            reload=self.service.reload,
            pool=InlinePool(),  # type: ignore[arg-type]  # see there
            clock=self.clock,
            rng=self.rng,
            probe=self.service if self.spec.verify_interval else None,
            verify_interval=self.spec.verify_interval,
        )
        self.runner = LineageRunner(
            lineage,
            requester=self.obtain,
            activator=WatchedActivator(self, activator),
            clock=self.clock,
            rng=self.rng,
            progress=SilentProgress(),
        )

    # ---- the world -------------------------------------------------------------------------------------------------

    def true_now(self) -> datetime:
        return self.clock.now() - self.offset

    async def obtain(self, request: Request) -> Version:
        """The broker: asked never too soon, and never without a reason of the certificate's own."""
        status = self.status
        assert self.clock.monotonic() >= self.told.monotonic - 0.001, "sooner than somebody said"  # sums of floats
        now = self.clock.now()
        newest = newest_version(self.lineage.read_facts(now).versions)
        assert (
            newest is None
            or self.asked
            or self.keys.pending() is not None
            or status.failures
            or newest.number in status.revoked_versions
            or now >= due_time(self.spec, newest)
        ), "a request without a reason"
        self.asked = False
        replaced = "" if newest is None else newest.certificate_id
        pending = self.keys.begin(common_name="", sans=[NAME], replaces_certificate_id=replaced, reuse_key=False)
        if self.ca:
            error = FAILURES[self.ca](self.clock)
            after = getattr(error, "retry_after", None)
            until = getattr(error, "retry_time", None)
            spans = [span for span in (after, until and until - now) if span]
            self.told.monotonic = self.clock.monotonic() + max((span.total_seconds() for span in spans), default=0.0)
            raise error
        self.issuer._now = self.true_now()
        self.issued += 1
        name = f"certificate-{self.issued}"
        issued = self.issuer.issue(pending.csr_pem, lifetime=self.runnertime, certificate_id=name)
        return self.lineage.stage(issued, pending.replaces_certificate_id)

    def assert_may_activate(self, version: Version, status: LineageStatus) -> None:
        """A reload comes in the window, or where nothing of use is served, or not for long, or it was begun.

        Of what a rollout holds, none comes before it is released, its time has come, or the one in use ends soon.
        """
        now = self.clock.now()
        assert version.not_after > now
        newest = newest_version(tuple(self.store.versions()))
        assert newest is not None
        assert version.number == newest.number
        served = next((each for each in self.store.versions() if each.number == status.confirmed_version), None)
        window, current = self.spec.window, self.store.current()
        if self.by_hand or current is None or served is None or served.number in status.revoked_versions:
            return
        if current.number == version.number and status.next_activation_time is None:
            return  # it was begun
        assert self.is_released(newest, served, now)
        assert window is None or window.is_open(now) or now >= override_time(self.spec, served)

    def is_released(self, newest: Version, served: Version, now: datetime) -> bool:
        """Whether no rollout holds a version back any more."""
        if newest.hold is None:
            return True
        # Of what has taken the place of one that was held, the word about that one counts as well: the last of them.
        words = [each for name, each in self.told_of.items() if name in (newest.certificate_id, newest.hold.named_as)]
        abandoned = words[-1] if words else newest.hold.abandoned
        if words and not abandoned:
            return True
        until = own_due_time(self.spec, served) if abandoned else newest.hold.activate_by_time
        ends_soon = served.not_after - now <= min(DAY, (served.not_after - served.not_before) / 10)
        return ends_soon or (until is not None and until <= now)

    @property
    def status(self) -> LineageStatus:
        return self.statuses.load() or new_status("www", self.clock.now())

    def go_on(self) -> timedelta:
        """Do what is due now; how long nothing is due then."""
        self.asked = self.forced
        for _ in range(12):
            self.store.failures = [OperationError("the disk is full")] if self.disk_full else []
            forced, self.forced = self.forced, False
            self.by_hand, self.at_once = self.at_once, False
            plan, _ = asyncio.run(self.runner._advance(forced=forced, at_once=self.by_hand))
            self.store.failures = []
            self.check_failure_waits()
            if isinstance(plan.step, Wait):
                return max(plan.step.until - self.clock.now(), timedelta(seconds=1))
            if isinstance(plan.step, Request) and self.status.state is CertificateState.REQUESTING:
                return 5 * MINUTE  # under way: the daemon's own pause
        raise AssertionError("the plan does not terminate")

    def check_failure_waits(self) -> None:
        """Each wait is the CA's, or a share of the life that is left."""
        status, now = self.status, self.clock.now()
        if status.state is not CertificateState.FAILED or status.update_time != now:
            return
        assert status.next_attempt_time is not None
        newest = newest_version(tuple(self.store.versions()))
        share = DAY if newest is None else max(_URGENT, (newest.not_after - now) / 24)
        assert status.next_attempt_time <= max(now + share, status.retry_time or now) + timedelta(seconds=1)

    # ---- events ----------------------------------------------------------------------------------------------------

    @rule(span=st.sampled_from([MINUTE, 20 * MINUTE, 3 * HOUR, DAY, 10 * DAY, 40 * DAY]))
    def time_passes(self, span: timedelta) -> None:
        """The daemon wakes whenever it said it would, up to a bound: a machine that sleeps is a case too."""
        for _ in range(40):
            pause = min(self.go_on(), span)
            self.clock.advance(pause)
            span -= pause
            if not span:
                break
        self.clock.advance(span)
        self.go_on()

    @rule(jump=st.sampled_from([HOUR, -HOUR]))
    @precondition(lambda self: abs(self.offset) < 2 * HOUR)
    def clock_is_set(self, jump: timedelta) -> None:
        self.clock.jump(jump)
        self.offset += jump
        self.go_on()

    @rule(mood=st.sampled_from(["", "", *FAILURES]))
    def ca_changes(self, mood: str) -> None:
        self.ca = mood
        self.go_on()

    @rule(mood=st.sampled_from(["obeys", "obeys", "ignores", "refuses", "hangs", "down"]))
    def service_changes(self, mood: str) -> None:
        self.service.mood = mood
        self.go_on()

    @rule(full=st.booleans())
    def disk_changes(self, full: bool) -> None:
        self.disk_full = full
        self.go_on()

    @rule()
    def operator_forces(self) -> None:
        self.forced = True
        self.go_on()

    @rule(hold=st.booleans(), by=st.sampled_from([None, HOUR, 3 * DAY, 60 * DAY]))
    @precondition(lambda self: not self.status.failures and self.store.versions())
    def rollout_wants_a_new_one(self, hold: bool, by: timedelta | None) -> None:
        newest, now = newest_version(tuple(self.store.versions())), self.clock.now()
        assert newest is not None
        self.rollouts += 1
        rollout, by_time = f"rollout-{self.rollouts}", None if by is None else now + by
        cause = RenewalCause.OPERATOR
        directed = DirectedRenewal(newest.certificate_id, now, cause, rollout_id=rollout, hold_activation=hold)
        self.directive.save(replace(directed, activate_by_time=by_time, new_key=True, receive_time=now))
        self.runner.try_again()
        self.go_on()

    @rule(abandoned=st.booleans(), early=st.booleans())
    @precondition(lambda self: self.store.versions())
    def rollout_releases(self, abandoned: bool, early: bool) -> None:
        """What is on disk, or what is yet to come."""
        newest = newest_version(tuple(self.store.versions()))
        assert newest is not None
        name = f"certificate-{self.issued + 1}" if early else newest.certificate_id
        new = self.lineage.take_activations([Activation(name, f"rollout-{self.rollouts}", abandoned)], self.clock.now())
        if new:
            self.told_of.pop(name, None)
            self.told_of[name] = abandoned
            self.runner.release()
        self.go_on()

    @rule()
    def operator_activates(self) -> None:
        newest = newest_version(tuple(self.store.versions()))
        self.at_once = True
        if newest is not None and newest.hold is not None:
            self.told_of.pop(newest.certificate_id, None)
            self.told_of[newest.certificate_id] = False
        self.go_on()

    @rule()
    def agent_restarts(self) -> None:
        self.start()
        self.go_on()

    @rule()
    def status_is_lost(self) -> None:
        """What a CA said to wait is lost with it; the broker answers such a request with the same order."""
        self.statuses = JsonStatuses()
        self.told, self.checked = Told(), 0
        self.start()
        self.go_on()

    @rule()
    @precondition(lambda self: self.store.current() is not None)
    def certificate_is_revoked(self) -> None:
        current = self.store.current()
        assert current is not None
        self.statuses.save(revoked(self.status, current.number, self.clock.now()))
        self.go_on()

    # ---- what holds always -----------------------------------------------------------------------------------------

    @invariant()
    def states_follow_each_other(self) -> None:
        """Every status that was saved, in order."""
        saved = self.statuses.saved
        for before, after in zip(saved[self.checked :], saved[self.checked + 1 :], strict=False):
            assert after.state is before.state or after.state in FOLLOWS[before.state], (before.state, after.state)
        self.checked = max(len(saved) - 1, 0)

    @invariant()
    def last_good_version_stays(self) -> None:
        """What was confirmed last is on disk, and something is in place as soon as anything was."""
        confirmed = self.status.confirmed_version
        if confirmed is not None:
            assert confirmed in {version.number for version in self.store.versions()}
            assert self.store.current() is not None

    @invariant()
    def every_failure_has_a_next_time(self) -> None:
        status = self.status
        if status.failures:
            assert status.next_attempt_time is not None
            assert status.state is not CertificateState.FAILED or status.last_error
        newest = newest_version(tuple(self.store.versions()))
        if status.state is CertificateState.DEGRADED and status.activation_failures and newest is not None:
            assert status.next_activation_time is not None
            assert status.failed_step is not None
        if status.verify_failures:
            assert status.next_verify_time is not None
            assert status.verify_error

    @invariant()
    def states_at_rest_are_true(self) -> None:
        status, current = self.status, self.store.current()
        if status.state is CertificateState.SERVING:
            assert current is not None
            assert status.verified_version == current.number == status.confirmed_version
        if status.state is CertificateState.ISSUED and status.activate_after is not None:
            newest = newest_version(tuple(self.store.versions()))
            assert newest is not None
            assert self.spec.window is not None or newest.hold is not None
            assert status.issued_version != status.confirmed_version
        if status.activate_after is not None:
            assert status.activate_after > status.update_time

    @invariant()
    def what_is_held_is_said(self) -> None:
        """By the rollout that holds it, and never of what was released."""
        status, newest = self.status, newest_version(tuple(self.store.versions()))
        if status.held_by_rollout_id:
            assert newest is not None
            assert newest.hold is not None
            assert newest.hold.rollout_id == status.held_by_rollout_id
            assert not {newest.certificate_id, newest.hold.named_as} & self.told_of.keys()
            assert status.activate_after is not None
            assert status.installed_version != newest.number or status.activation_failures

    def teardown(self) -> None:
        """Whatever happened: once all is mended, the newest certificate is in use, or waits for its window."""
        if not hasattr(self, "runner"):
            return
        self.ca, self.service.mood, self.disk_full = "", "obeys", False
        for _ in range(9):
            self.time_passes(DAY)
        current, status = self.store.current(), self.status
        assert current is not None
        assert current.not_after > self.clock.now()
        assert current.number not in status.revoked_versions
        assert self.service.served == current or self.spec.verify_interval is None
        assert is_well(status)
        if status.state is CertificateState.ISSUED:
            assert status.activate_after is not None
        else:
            assert status.state is (CertificateState.SERVING if self.spec.verify_interval else CertificateState.WAITING)
            assert current == newest_version(tuple(self.store.versions()))


TestLineageMachine = pytest.mark.timeout(180)(LineageMachine.TestCase)
TestLineageMachine.settings = settings(
    max_examples=int(os.environ.get("CERTPLANE_MACHINE_EXAMPLES", "25")),
    stateful_step_count=25,
    deadline=None,
    derandomize="CERTPLANE_MACHINE_EXAMPLES" not in os.environ,  # who sets it wants to explore
    phases=(Phase.reuse, Phase.generate),  # shrinking would take minutes; a failing sequence has 25 events at most
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
