"""The ports over calls that end in every way that a process can."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from typing_extensions import override

from certplane.broker.issuers.dns.provider import AccountFinding
from certplane.broker.issuing import messages as m
from certplane.broker.issuing.child import ChildEndedError
from certplane.broker.issuing.connection import MOST_OCTETS, TooLargeError
from certplane.broker.issuing.remote import Calls, RemoteSolver
from certplane.broker.model import Profile, TxtRecord
from certplane.runtime.clock import SystemClock
from tests.support.issuing_wire import Wire

R = TypeVar("R")
SOON = timedelta(seconds=5)
RECORD = TxtRecord("", "_acme-challenge.a.certplane.test", "value")


class Ending(Calls):
    """Every call ends as it begins, without a turn of the event loop."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[m.Call[Any]] = []
        self._error = error or ChildEndedError("it ended")

    @override
    async def ask(self, call: m.Call[R], tell: Callable[[str], object] | None = None) -> R:
        self.calls.append(call)
        raise self._error


async def test_a_removal_that_is_cut_off_at_once_lets_others_run() -> None:
    """A process that has ended isn't asked without a pause, in which nobody could start another one."""
    calls = Ending()
    assert await RemoteSolver(calls, SystemClock()).remove([RECORD], timedelta(milliseconds=350)) == [RECORD]
    assert 2 <= len(calls.calls) <= 6


async def test_the_accounts_of_a_large_policy_fit_into_a_message() -> None:
    """Of hosts with a profile each, which wouldn't as profiles."""
    profiles = tuple(
        Profile(f"host-{number}.example.test", "multi_san", (f"host-{number}.example.test",), "sha256:" + 64 * "0")
        for number in range(150_000)
    )
    assert len(m.encode(profiles)) > MOST_OCTETS
    calls = Ending()
    (finding,) = await RemoteSolver(calls, SystemClock()).check_accounts(profiles, SOON)
    assert not finding.fatal
    (call,) = calls.calls
    assert len(m.encode(m.Request(1, "", call))) < MOST_OCTETS / 4  # type: ignore[arg-type]


async def test_accounts_that_fit_into_no_message_are_a_finding() -> None:
    """Nothing ends for it but the look at them."""
    (finding,) = await RemoteSolver(Ending(TooLargeError("large")), SystemClock()).check_accounts([], SOON)
    assert (finding.fatal, finding.message) == (False, "credentials can't be checked: large")


async def test_accounts_are_checked_by_name_and_credentials() -> None:
    """All that the solver looks at crosses."""
    seen: dict[str, set[str]] = {}

    class Solver:
        async def check_accounts(self, profiles: Iterable[Profile], timeout: timedelta) -> list[AccountFinding]:
            assert timeout == SOON
            seen.update({profile.credentials: set(profile.dns_names) for profile in profiles})
            return [AccountFinding("wrong", "mend it", fatal=True)]

    wire = Wire(solver=Solver())
    profiles = [
        Profile("a", "multi_san", ("a.test", "b.test"), "1"),
        Profile("b", "multi_san", ("a.test", "c.test"), "2"),
        Profile("c", "wildcard", ("*.d.test",), "3", credentials="other"),
    ]
    assert await RemoteSolver(wire, SystemClock()).check_accounts(profiles, SOON) == (
        AccountFinding("wrong", "mend it", fatal=True),
    )
    await wire.close()
    assert seen == {"": {"a.test", "b.test", "c.test"}, "other": {"*.d.test"}}
