"""What one identity may have the broker do, over all of its calls, streams and connections.

    a call      takes its tokens before it is served, and pays afterwards for the work above what they include
    a message   of a stream likewise, from a bucket of its own: before it is read
    in flight   calls and streams are counted while they last
    refusals    of callers without an identity, or denied, are counted by certificate (or name) and by address

Work is time of the event loop's thread, which all callers share: counting calls alone would let one caller choose the
call that costs most. An operator's calls are counted, and their work is not: listing a fleet costs what it costs.

For the event loop's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from certplane.broker.identity.buckets import TokenBuckets
from certplane.broker.model import Caller, IdentityKind
from certplane.errors import Reason, RefusalError, Violation
from certplane.runtime.clock import Clock

_LONGEST_HELD_BACK: Final = 60.0
"""Seconds; fifty connections hold thousands of calls, and each of them costs something when it comes and goes."""

_MOST_TURNS: Final = 10_000

_BUSY: Final = timedelta(seconds=1)
"""When to try again who has too much in flight."""


@dataclass(frozen=True, slots=True)
class AllowanceSettings:
    """The limits of one identity.

    Attributes:
        calls_per_second: How fast its allowance of calls refills.
        calls_burst: Calls at once.
        call_seconds: Work that one token of a call includes: four times what an answer from the cache costs.
        messages_per_second: Messages on streams that it may send lastingly; a renewal takes about seven.
        messages_burst: Messages at once: what a host with a thousand certificates has to say after the broker was away
            for long.
        message_seconds: Work that one message includes.
        messages_pace: How many messages a second are read, whatever the bucket holds: the rest waits at the host.
        messages_at_once: How many are read at once before that pace.
        calls_in_flight: Calls that may wait for their answer at once: as many as one connection can have.
        streams_in_flight: Streams that may be open at once.
        held_back: Refusals of all callers together that may wait on their way out, at some 25 kilobytes each.
    """

    calls_per_second: float = 20
    calls_burst: int = 40
    call_seconds: float = 0.005
    messages_per_second: float = 50
    messages_burst: int = 4096
    message_seconds: float = 0.001
    messages_pace: float = 100
    messages_at_once: int = 64
    calls_in_flight: int = 128
    streams_in_flight: int = 128
    held_back: int = 8192


class Allowances:
    """Counts, and refuses with RATE_LIMITED, when to come back, and which limit it was."""

    def __init__(self, settings: AllowanceSettings, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._held_back = 0
        self._turns: OrderedDict[str, float] = OrderedDict()
        monotonic = clock.monotonic
        self._calls = TokenBuckets(rate=settings.calls_per_second, burst=settings.calls_burst, monotonic=monotonic)
        self._messages = TokenBuckets(
            rate=settings.messages_per_second, burst=settings.messages_burst, monotonic=monotonic
        )
        self._pace = TokenBuckets(rate=settings.messages_pace, burst=settings.messages_at_once, monotonic=monotonic)
        self._refusals = TokenBuckets(rate=settings.calls_per_second, burst=settings.calls_burst, monotonic=monotonic)
        self._calls_in_flight: dict[str, int] = {}
        self._streams_in_flight: dict[str, int] = {}

    def take_call(self, name: str, tokens: int) -> None:
        """A call of `name` begins.

        Raises:
            RefusalError: RATE_LIMITED.
        """
        wait = self._calls.take(name, tokens)
        if wait is not None:
            raise self._too_many_calls(wait, work=self._calls.in_debt(name))

    def pay_call(self, caller: Caller, tokens: int, seconds: float, *, open_for: float = 0.0) -> None:
        """A call has ended, and has cost `seconds` of work.

        A stream of answers may cost what calls at the allowed pace would have while it was `open_for` (seconds): who
        watches a busy fleet for hours isn't refused afterwards, and who reads all of it again and again is.
        """
        beyond = seconds / self.settings.call_seconds - tokens - open_for * self.settings.calls_per_second
        if beyond > 0 and caller.kind is not IdentityKind.OPERATOR:
            self._calls.charge(caller.name, beyond)

    def take_message(self, name: str, seconds: float, messages: int = 1) -> timedelta:
        """A message of a stream has come, and is not read yet; what came before it on its stream has cost `seconds`.

        One that lists what could be messages of their own counts as so many `messages`. Returns how long to wait before
        it is read.

        Raises:
            RefusalError: RATE_LIMITED.
        """
        beyond = seconds / self.settings.message_seconds - messages
        if beyond > 0:
            self._messages.charge(name, beyond)
        wait = self._messages.take(name, messages)
        if wait is not None:
            raise self._too_many_messages(wait, work=self._messages.in_debt(name))
        return self._pace.charge(name, messages)

    def begin(self, name: str, *, stream: bool) -> None:
        """A call or stream of `name` is in flight, until `end`.

        Raises:
            RefusalError: RATE_LIMITED, there are too many at once; then there is nothing to end.
        """
        counts = self._streams_in_flight if stream else self._calls_in_flight
        most = self.settings.streams_in_flight if stream else self.settings.calls_in_flight
        count = counts.get(name, 0)
        if count >= most:
            what = "streams" if stream else "calls"
            violation = Violation(f"{what}_in_flight_per_identity", f"{most} at once")
            message = f"too many {what} of this identity at once; end some of them, or wait for their answers"
            raise RefusalError(Reason.RATE_LIMITED, message, retry_after=_BUSY, violations=[violation])
        counts[name] = count + 1

    def end(self, name: str, *, stream: bool) -> None:
        """It has ended."""
        counts = self._streams_in_flight if stream else self._calls_in_flight
        counts[name] -= 1
        if not counts[name]:
            del counts[name]

    async def hold_back(self, name: str, time_remaining: float | None) -> None:
        """Wait before `name` is told that it was too much: it is told no more often than it may call.

        A caller in a loop is as slow as its answers, and those don't come all at once. There is a bound to how many
        are held; what is above it is told at once.

        Args:
            name: Who is told, identity or stranger.
            time_remaining: Seconds until the caller gives up; None if it doesn't.
        """
        if self._held_back >= self.settings.held_back:
            return
        now = self._clock.monotonic()
        turn = max(now, self._turns.pop(name, now)) + min(1.0, 1 / self.settings.calls_per_second)
        seconds = min(turn - now, _LONGEST_HELD_BACK)
        self._turns[name] = now + seconds
        if len(self._turns) > _MOST_TURNS:
            self._turns.popitem(last=False)
        if time_remaining is not None:
            seconds = min(seconds, max(0.0, time_remaining) / 2)
        self._held_back += 1
        try:
            await self._clock.sleep(timedelta(seconds=seconds))
        finally:
            self._held_back -= 1

    def take_refusal(self, stranger: str, address: str) -> None:
        """A caller is about to be refused: `stranger` is its certificate or name, `address` where it calls from.

        Raises:
            RefusalError: RATE_LIMITED, it was told often enough.
        """
        waits = [self._refusals.take(name) for name in (stranger, f"address {address}") if name]
        wait = max((wait for wait in waits if wait is not None), default=None)
        if wait is not None:
            violation = Violation("refused_calls_per_caller", f"{self.settings.calls_burst} at once")
            raise RefusalError(
                Reason.RATE_LIMITED,
                "too many refused calls; earlier refusals say why, and slower calls are told again",
                retry_after=wait,
                violations=[violation],
            )

    def pay_refusal(self, stranger: str, seconds: float) -> None:
        """A call of a stranger has ended, and has cost `seconds` of work."""
        beyond = seconds / self.settings.call_seconds - 1
        if beyond > 0:
            self._refusals.charge(stranger, beyond)

    def _too_many_calls(self, wait: timedelta, *, work: bool) -> RefusalError:
        settings = self.settings
        if work:
            violation = Violation("work_per_identity", f"{settings.call_seconds * 1000:g} ms a call")
            message = "the calls of this identity take too much processor time; ask for less at once, or slow down"
        else:
            limit = f"{settings.calls_burst} at once, {settings.calls_per_second:g} a second after that"
            violation, message = Violation("calls_per_identity", limit), "too many calls; slow down"
        return RefusalError(Reason.RATE_LIMITED, message, retry_after=wait, violations=[violation])

    def _too_many_messages(self, wait: timedelta, *, work: bool) -> RefusalError:
        settings = self.settings
        if work:
            violation = Violation("work_per_identity", f"{settings.message_seconds * 1000:g} ms a message")
        else:
            limit = f"{settings.messages_burst} at once, {settings.messages_per_second:g} a second after that"
            violation = Violation("messages_per_identity", limit)
        # A stream that ended takes a while to come back to: not for one message.
        wait = max(wait, timedelta(seconds=max(1.0, settings.messages_burst / 4 / settings.messages_per_second)))
        message = "too many messages on streams; come back later, with the latest report of each certificate"
        return RefusalError(Reason.RATE_LIMITED, message, retry_after=wait, violations=[violation])
