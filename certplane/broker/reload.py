"""Reading again, while the broker runs, what may change: policy, server certificate, agents' CA bundle.

Rules it keeps:

- SIGHUP and `certplane-broker reload` read all of it; the pair and the bundle are also read when their content has
  changed, the policy too with `policy.watch`. A change is taken when the files stand still, so that one written in two
  steps isn't half read.
- What doesn't load is refused, logged and audited, and the last good one stays in force. So is a certificate that has
  expired already, a bundle of which everything has ended, and a file that can't be read for longer than a replacement
  takes: it may be the renewed one, and what is in force ends meanwhile.
- What is in force, and until when, is in the log with its hashes.
- What takes away so much that it may be a mistake (`certplane.broker.policy.guard`; a bundle that shuts out connected
  hosts) is refused in the same way unless a person confirms it. A renewed pair beside such a bundle is taken.

A CA of the bundle that ends is dropped from the next handshake on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from certplane.broker import metrics
from certplane.broker.control import ReloadRequest, ReloadResult
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.expiry import ExpiryAnnouncer
from certplane.broker.fleet.audience import AnchoredHost
from certplane.broker.fleet.bundle_plan import removed_cas
from certplane.broker.policy.guard import UnconfirmedError
from certplane.broker.ports import AuditLog, Meter
from certplane.broker.prepared import Prepared
from certplane.broker.services.trust import LoadedTrust, TrustInForce, TrustText
from certplane.broker.settings import load_settings
from certplane.broker.settings_in_force import SettingsInForce
from certplane.broker.trust_checks import Audience, check_in_force, check_shut_out, trust_fields
from certplane.errors import ConfigurationError, Reason, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import counted, printable

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_INTERVAL: Final = timedelta(seconds=5)
"""Between looks at the files: certificates are renewed hours before they end."""

_SETTLE: Final = timedelta(seconds=1)
"""A changed file must stand still for this long."""

_PATIENCE: Final = timedelta(minutes=1)
"""How long a file may be away or unreadable, as in the middle of a replacement, before that is told."""

_LONGEST_REASON: Final = 1000
"""Characters of an audit event's reason."""

_SIGNAL: Final = ReloadRequest("SIGHUP")
_FILE: Final = ReloadRequest("a change of the file")
_STOPPING: Final = ReloadResult(ok=False, lines=("the broker is stopping; ask again shortly",))


class Reloader:
    """Watches the files and puts what loads in force. One task: `run`."""

    def __init__(
        self,
        prepared: Prepared,
        trust: TrustInForce,
        settings: SettingsInForce,
        *,
        audience: Audience,
        ask_again: Callable[[str], None],
        audit: AuditLog,
        meter: Meter,
        clock: Clock,
        trail: AuditTrail,
        interval: timedelta = _INTERVAL,
        settle: timedelta = _SETTLE,
    ) -> None:
        """Take what is in force: what was `prepared`.

        `audience` are the hosts, of whom a bundle may shut out some. `ask_again` is called when a person had
        everything read again: what hosts wait for may be mended.
        """
        self._trust = trust
        self._files = prepared.trust_files
        self._seen = prepared.trust_text.fingerprint
        self._policy = prepared.policy
        self._watch_policy = prepared.settings.policy.watch
        self._audit = audit
        self._meter = meter
        self._clock = clock
        self._trail = trail
        self._ask_again = ask_again
        self._interval = interval
        self._settle = settle
        self._pool = BlockingPool("reload", 1)
        self._ended = False
        self._requested = asyncio.Event()
        self._waiting: list[tuple[ReloadRequest, asyncio.Future[ReloadResult]]] = []
        self.policy_since = clock.now()
        """Since when the policy in force is in force here."""
        self.policy_by = "the start of the broker"
        """Who had it put in force, as far as the broker knows."""
        self.settings = settings
        self.audience = audience
        self._refused: dict[str, str] = {}
        self._unconfirmed = False  # whether the reload under way refused what could have been confirmed
        self._announced: list[str] = []
        """What came of CAs that the reload under way has taken out."""
        self._unreadable: dict[str, float] = {}
        """Since when, in monotonic seconds; infinity once it was told."""
        self.on_refused: Callable[[tuple[str, ...]], None] | None = None
        """Called with `refused` whenever it changes, whoever had the files read."""
        self.on_policy: Callable[[], Awaitable[None]] = _nothing
        """Called when a policy was put in force, the one of the start too. Never raises."""
        self._expiry = ExpiryAnnouncer(trust, self._files, clock)
        self._note_trust()
        self._expiry.announce()

    def request(self, asked: ReloadRequest = _SIGNAL) -> asyncio.Future[ReloadResult]:
        """Read everything again soon, as was asked; the result comes when all was taken or refused."""
        result: asyncio.Future[ReloadResult] = asyncio.get_running_loop().create_future()
        if self._ended:
            result.set_result(_STOPPING)
            return result
        self._waiting.append((asked, result))
        self._requested.set()
        return result

    @property
    def refused(self) -> tuple[str, ...]:
        """What the last look at each file refused, a line each: what is in force is older than the file."""
        return tuple(self._refused.values())

    @property
    def policy_refusal(self) -> str:
        """What the last look at the policy's file refused; empty where it is in force."""
        return self._refused.get("policy", "")

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Do something with a large policy, on the thread that reads them: one at a time.

        Raises:
            RefusalError: DRAINING.
        """
        if self._ended:
            raise RefusalError(Reason.DRAINING, _STOPPING.lines[0])
        return await self._pool.run(work)

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            await self.on_policy()
            while True:
                await self._wait()
                if self._requested.is_set():
                    self._requested.clear()
                    waiting, self._waiting = self._waiting, []
                    results = {
                        asked: await self._reload(asked) for asked in dict.fromkeys(asked for asked, _ in waiting)
                    }
                    self._ask_again("the files were read again")
                    for asked, each in waiting:
                        if not each.done():  # whoever asked may have gone
                            each.set_result(results[asked])
                else:
                    await self._look()
                await self._drop_ended()
                self._expiry.announce()
        finally:
            self._ended = True
            for _, each in self._waiting:
                if not each.done():
                    each.set_result(_STOPPING)
            self._pool.close()

    async def _reload(self, asked: ReloadRequest) -> ReloadResult:
        """Read again what was asked for."""
        self._unconfirmed = False
        self._announced = []
        trust = settings = None
        if not asked.policy_only:
            trust = await self._reload_trust(asked)
        policy = await self._reload_policy(asked)
        if not asked.policy_only:
            settings = await self._reload_settings()
        lines = [*filter(None, (self.policy_refusal,))] if asked.policy_only else [*self.refused]
        lines += ["server certificate and agent CA bundle loaded", *self._announced] if trust else []
        changes = self._policy.loaded.changes if policy else None
        if policy:
            lines.append(f"policy loaded, hash {self._policy.current.hash}")
            lines += [f"policy: {text}"] if (text := self._policy.loaded.summary) else []
        ok = policy and (asked.policy_only or (bool(trust) and settings is not None))
        return ReloadResult(ok, (*lines, *(settings or ())), self._unconfirmed, changes)

    async def _reload_settings(self) -> list[str] | None:
        """Look at broker.yml and take what can be taken; lines that say what of it waits. None if it is refused."""
        try:
            after = await self._pool.run(load_settings, Path(self.settings.current.source.file))
        except ConfigurationError as error:
            self._refuse("configuration", error)
            return None
        self._accept("configuration")
        return self.settings.take(after)

    async def _reload_trust(self, asked: ReloadRequest) -> bool:
        """Read pair and bundle and put them in force; False if they were refused."""
        try:
            text = await self._pool.run(self._files.read)
        except ConfigurationError as error:
            self._unreadable["trust"] = math.inf
            await self._reject("trust", AuditEventType.TRUST_REJECTED, error, asked)
            return False
        return await self._take(text, asked)

    async def _reload_policy(self, asked: ReloadRequest) -> bool:
        """Read the policy and put it in force; False if it was refused."""
        before = self._policy.current.hash
        try:
            policy = await self._pool.run(partial(self._policy.reload, confirmed=asked.confirmed))
        except ConfigurationError as error:
            await self._reject("policy", AuditEventType.POLICY_REJECTED, error, asked)
            return False
        if policy.hash != before:  # else it is in force since it came: a reload after a renewal changes nothing of it
            self.policy_since, self.policy_by = self._clock.now(), asked.by
        text = self._policy.loaded.summary
        fields = {"policy_hash": policy.hash, "file": str(self._policy.path), "by": asked.by}
        _logger.info("policy loaded", extra={"fields": {**fields, "changes": text} if text else fields})
        self._accept("policy")
        reason = f"loaded {self._policy.path}, by {asked.text}{f': {text}' if text else ''}"
        trail = self._trail.carrying(**asked.facts)
        event = trail.event(
            AuditEventType.POLICY_LOADED, policy_hash=policy.hash, reason=printable(reason, _LONGEST_REASON)
        )
        await self._record(event)
        self._meter.count(metrics.RELOADS, what="policy", result="loaded")
        await self.on_policy()
        return True

    async def _wait(self) -> None:
        """Until something is requested, or it is time to look."""
        sleep = asyncio.ensure_future(self._clock.sleep(self._interval))
        request = asyncio.ensure_future(self._requested.wait())
        try:
            await asyncio.wait({sleep, request}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            request.cancel()

    async def _look(self) -> None:
        """Take what has changed and stands still."""
        text = await self._read_changed_trust()
        if text is not None:
            await self._clock.sleep(self._settle)
            again = await self._read_changed_trust()
            if again is not None and again.fingerprint == text.fingerprint:
                await self._take(again, _FILE)
        if self._watch_policy and await self._has_policy_changed():
            await self._clock.sleep(self._settle)
            await self._reload_policy(_FILE)

    async def _read_changed_trust(self) -> TrustText | None:
        """The files' text if it is another than when it was last taken or refused; None too if it can't be read."""
        try:
            text = await self._pool.run(self._files.read)
        except ConfigurationError as error:
            await self._note_unreadable("trust", AuditEventType.TRUST_REJECTED, error)
            return None
        if self._is_readable_again("trust"):
            self._seen = ""  # judged anew, so that the refusal ends, or says what is wrong now
        return None if text.fingerprint == self._seen else text

    async def _has_policy_changed(self) -> bool:
        try:
            changed = await self._pool.run(self._policy.changed)
        except ConfigurationError as error:
            await self._note_unreadable("policy", AuditEventType.POLICY_REJECTED, error)
            return False
        return self._is_readable_again("policy") or changed

    async def _note_unreadable(self, what: str, event_type: AuditEventType, error: ConfigurationError) -> None:
        """Tell of what stays unreadable, once."""
        now = self._clock.monotonic()
        if now - self._unreadable.setdefault(what, now) >= _PATIENCE.total_seconds():
            self._unreadable[what] = math.inf
            await self._reject(what, event_type, error)

    def _is_readable_again(self, what: str) -> bool:
        """Whether it was told that it isn't."""
        return self._unreadable.pop(what, 0.0) == math.inf

    async def _take(self, text: TrustText, asked: ReloadRequest) -> bool:
        self._seen = text.fingerprint
        try:
            trust = await self._pool.run(self._files.check, text)
            check_in_force(self._files, trust, self._clock.now())
        except ConfigurationError as error:
            await self._reject("trust", AuditEventType.TRUST_REJECTED, error, asked)
            return False
        before = self._trust.bundle
        hosts: Sequence[AnchoredHost] = ()
        if before.anchors - trust.bundle.anchors:
            hosts = await self.audience()
        try:
            if not asked.confirmed:
                check_shut_out(self._files, before, trust.bundle, hosts)
        except UnconfirmedError as error:
            await self._reject("trust", AuditEventType.TRUST_REJECTED, error, asked)
            trust = replace(trust, bundle=before)
            if trust.pair != self._trust.current.pair:  # one that is renewed must not wait for the bundle
                await self._put_in_force(trust, asked)
            return False
        self._accept("trust")
        if trust.bundle.anchors - before.anchors:
            self._ask_again("the agent CA bundle has another CA")  # by which hosts may be let in again
        self._announced = removed_cas(before, trust.bundle, hosts)
        await self._put_in_force(trust, asked, self._announced)
        return True

    async def _put_in_force(self, trust: LoadedTrust, asked: ReloadRequest, announced: Sequence[str] = ()) -> None:
        self._trust.replace(trust, self._clock.now())
        self._note_trust()
        _logger.info("server certificate and agent CA bundle loaded", extra={"fields": trust_fields(trust)})
        reason = (
            f"server certificate {trust.server.serial_number}, agent CA bundle {trust.bundle.hash} "
            f"({counted(len(trust.bundle.certificates), 'CA')}), by {asked.text}"
        )
        for line in announced:
            _logger.warning("%s", line)
            reason = f"{reason}; {line}"
        trail = self._trail.carrying(**asked.facts)
        await self._record(trail.event(AuditEventType.TRUST_RELOADED, reason=reason[:_LONGEST_REASON]))
        self._meter.count(metrics.RELOADS, what="trust", result="loaded")

    def _refuse(self, what: str, error: ConfigurationError) -> None:
        for problem in error.problems:
            _logger.error("%s refused, the last good one stays in force: %s", what, problem)
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        self._refused[what] = f"{what} refused, the last good one stays in force: {error.problems[0]}{more}"
        self._tell()

    def _accept(self, what: str) -> None:
        if self._refused.pop(what, None) is not None:
            self._tell()

    def _tell(self) -> None:
        if self.on_refused is not None:
            self.on_refused(self.refused)

    async def _reject(
        self, what: str, event_type: AuditEventType, error: ConfigurationError, asked: ReloadRequest = _FILE
    ) -> None:
        self._refuse(what, error)
        self._unconfirmed = self._unconfirmed or isinstance(error, UnconfirmedError)
        reason = "; ".join(str(problem) for problem in error.problems[:5])
        event = self._trail.carrying(**asked.facts).event(
            event_type, severity=AuditSeverity.ERROR, decision=AuditDecision.ERROR, reason=reason[:_LONGEST_REASON]
        )
        await self._record(event)
        self._meter.count(metrics.RELOADS, what=what, result="rejected")

    async def _record(self, event: AuditEvent) -> None:
        try:
            await self._audit.append([event])
        except RefusalError:
            # The file is in force, or refused, all the same; the log has said so.
            _logger.exception("a reload could not be audited")

    async def _drop_ended(self) -> None:
        """Take what has ended meanwhile out of what handshakes are given."""
        if not self._trust.refresh(self._clock.now()):
            return
        self._note_trust()
        reason = "a certificate of agent CA bundle or server chain expired or became valid; handshakes follow"
        _logger.warning("%s", reason, extra={"fields": trust_fields(self._trust.current)})
        await self._record(self._trail.event(AuditEventType.TRUST_RELOADED, reason=reason[:_LONGEST_REASON]))

    def _note_trust(self) -> None:
        trust = self._trust.current
        ends = {"server": trust.server.not_after, "agent_ca": trust.ca_not_after(self._clock.now())}
        for certificate, end in ends.items():
            self._meter.level(metrics.CERTIFICATE_NOT_AFTER, end.timestamp(), certificate=certificate)


async def _nothing() -> None:
    pass
