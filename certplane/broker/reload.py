"""Reading again, while the broker runs, what may change: policy, server certificate, agents' CA bundle.

Rules it keeps:

- SIGHUP and `certplane-broker reload` read all of it; the pair and the bundle are also read when their content has
  changed, the policy too with `policy.watch`. A change is taken when the files stand still, so that one written in two
  steps isn't half read.
- What doesn't load is refused, logged and audited, and the last good one stays in force. So is a certificate that has
  expired already, a bundle of which everything has ended, and a file that can't be read for longer than a replacement
  takes: it may be the renewed one, and what is in force ends meanwhile.
- What is in force, and until when, is in the log with its hashes.

The broker's own certificate is looked at all the time: its end is announced in the log a quarter and an eighth of its
life ahead, and then as an error. So are the CAs of the bundle: one that ends is dropped from the next handshake on, and
its end is announced 30 days ahead.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from certplane.broker import metrics
from certplane.broker.changes import TAKEN, changed_keys, take_logging, waiting_keys
from certplane.broker.control import ReloadResult
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.ports import AuditLog, DurableLimits, Meter
from certplane.broker.services.trust import LoadedTrust, TrustFiles, TrustInForce, TrustText
from certplane.broker.settings import BrokerSettings, load_settings
from certplane.broker.settings.common import common_hash
from certplane.errors import ConfigurationError, ConfigurationProblem, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

_logger = logging.getLogger(__name__)

_INTERVAL: Final = timedelta(seconds=5)
"""Between looks at the files: certificates are renewed hours before they end."""

_SETTLE: Final = timedelta(seconds=1)
"""A changed file must stand still for this long."""

_PATIENCE: Final = timedelta(minutes=1)
"""How long a file may be away or unreadable, as in the middle of a replacement, before that is told."""

_LONGEST_REASON: Final = 1000
"""Characters of an audit event's reason."""


class ExpiryLevel(IntEnum):
    """How near the end of a certificate is."""

    FINE = 0
    QUARTER = 1
    EIGHTH = 2
    EXPIRED = 3


def expiry_level(not_before: datetime, not_after: datetime, now: datetime) -> ExpiryLevel:
    """How near the end is: fractions of the life, so that they mean the same for a day as for a year. Pure."""
    left = not_after - now
    life = not_after - not_before
    if left <= timedelta():
        return ExpiryLevel.EXPIRED
    if left * 8 <= life:
        return ExpiryLevel.EIGHTH
    return ExpiryLevel.QUARTER if left * 4 <= life else ExpiryLevel.FINE


def trust_fields(trust: LoadedTrust) -> dict[str, Any]:
    """What a log line says of a pair and bundle."""
    return {
        "server_serial_number": trust.server.serial_number,
        "server_not_after": f"{trust.server.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "server_names": " ".join((*trust.server.dns_names, *trust.server.uris)),
        "agent_ca_bundle_hash": trust.bundle.hash,
        "agent_cas": len(trust.bundle.certificates),
    }


class Reloader:
    """Watches the files and puts what loads in force. One task: `run`."""

    def __init__(
        self,
        *,
        trust: TrustInForce,
        files: TrustFiles,
        loaded: TrustText,
        policy: FilePolicySource,
        watch_policy: bool,
        audit: AuditLog,
        meter: Meter,
        clock: Clock,
        trail: AuditTrail,
        ask_again: Callable[[str], None] | None = None,
        settings: BrokerSettings | None = None,
        take_limits: Callable[[DurableLimits], None] | None = None,
        take_level: Callable[[str], None] | None = None,
        interval: timedelta = _INTERVAL,
        settle: timedelta = _SETTLE,
    ) -> None:
        """Take what is in force; `loaded` is the text that it was made of.

        `ask_again` is called when a person had everything read again: what hosts wait for may be mended.
        `settings` are those in force; without them broker.yml is not looked at. `take_limits` puts its limits in force,
        `take_level` the log's level where this process isn't all that logs.
        """
        self._trust = trust
        self._files = files
        self._seen = loaded.fingerprint
        self._policy = policy
        self._watch_policy = watch_policy
        self._audit = audit
        self._meter = meter
        self._clock = clock
        self._trail = trail
        self._ask_again = ask_again
        self._interval = interval
        self._settle = settle
        self._pool = BlockingPool("reload", 1)
        self._requested = asyncio.Event()
        self._waiting: list[asyncio.Future[ReloadResult]] = []
        self._settings = settings
        self.common_hash = "" if settings is None else common_hash(settings)
        """Of the settings in force, as brokers compare it."""
        self._take_limits = take_limits
        self._take_level = take_level
        self._refused: dict[str, str] = {}
        self._unreadable: dict[str, float] = {}
        """Since when, in monotonic seconds; infinity once it was told."""
        self.on_refused: Callable[[tuple[str, ...]], None] | None = None
        """Called with `refused` whenever it changes, whoever had the files read."""
        self._announced = ("", ExpiryLevel.FINE)
        self._announced_cas: frozenset[str] = frozenset()
        self._note_trust()
        self._announce_expiry()

    def request(self) -> asyncio.Future[ReloadResult]:
        """Read everything again soon, as SIGHUP asks; the result comes when all was taken or refused."""
        result: asyncio.Future[ReloadResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(result)
        self._requested.set()
        return result

    @property
    def refused(self) -> tuple[str, ...]:
        """What the last look at each file refused, a line each: what is in force is older than the file."""
        return tuple(self._refused.values())

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                await self._wait()
                if self._requested.is_set():
                    self._requested.clear()
                    waiting, self._waiting = self._waiting, []
                    result = await self._reload_all()
                    if self._ask_again is not None:
                        self._ask_again("the files were read again")
                    for each in waiting:
                        if not each.done():  # whoever asked may have gone
                            each.set_result(result)
                else:
                    await self._look()
                await self._drop_ended()
                self._announce_expiry()
        finally:
            self._pool.close()

    async def _reload_all(self) -> ReloadResult:
        trust = await self.reload_trust()
        policy = await self.reload_policy()
        settings = await self._reload_settings()
        lines = [*self.refused]
        lines += ["server certificate and agent CA bundle loaded"] if trust else []
        lines += [f"policy loaded, hash {self._policy.current.hash}"] if policy else []
        return ReloadResult(trust and policy and settings is not None, (*lines, *(settings or ())))

    async def _reload_settings(self) -> list[str] | None:
        """Look at broker.yml and take what can be taken; lines that say what of it waits. None if it is refused."""
        before = self._settings
        if before is None:
            return []
        try:
            after = await self._pool.run(load_settings, Path(before.source.file))
        except ConfigurationError as error:
            self._refuse("configuration", error)
            return None
        self._accept("configuration")
        if taken := [key for key in changed_keys(before, after) if key in TAKEN]:
            take_logging(after)
            if self._take_level is not None:
                self._take_level(after.logging.level)
            if self._take_limits is not None:
                self._take_limits(after.rate_limits.durable_limits)
            self._settings = before = replace(before, logging=after.logging, rate_limits=after.rate_limits)
            self.common_hash = common_hash(before)
        waiting = waiting_keys(before, after)
        lines = [f"{before.source.file}: applied: {', '.join(taken)}"] if taken else []
        if waiting:
            lines.append(f"{before.source.file}: takes effect after a restart: {', '.join(waiting)}")
        for line in lines:
            _logger.log(logging.WARNING if waiting else logging.INFO, "%s", line)
        return lines

    async def reload_trust(self) -> bool:
        """Read pair and bundle and put them in force; False if they were refused."""
        try:
            text = await self._pool.run(self._files.read)
        except ConfigurationError as error:
            self._unreadable["trust"] = math.inf
            await self._reject("trust", AuditEventType.TRUST_REJECTED, error)
            return False
        return await self._take(text)

    async def reload_policy(self) -> bool:
        """Read the policy and put it in force; False if it was refused."""
        try:
            policy = await self._pool.run(self._policy.reload)
        except ConfigurationError as error:
            await self._reject("policy", AuditEventType.POLICY_REJECTED, error)
            return False
        _logger.info("policy loaded", extra={"fields": {"policy_hash": policy.hash, "file": str(self._policy.path)}})
        self._accept("policy")
        reason = f"loaded {self._policy.path}"[:_LONGEST_REASON]
        await self._record(self._trail.event(AuditEventType.POLICY_LOADED, policy_hash=policy.hash, reason=reason))
        self._meter.count(metrics.RELOADS, what="policy", result="loaded")
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
                await self._take(again)
        if self._watch_policy and await self._has_policy_changed():
            await self._clock.sleep(self._settle)
            await self.reload_policy()

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

    async def _take(self, text: TrustText) -> bool:
        self._seen = text.fingerprint
        try:
            trust = await self._pool.run(self._files.check, text)
            self._check_not_expired(trust)
        except ConfigurationError as error:
            await self._reject("trust", AuditEventType.TRUST_REJECTED, error)
            return False
        self._trust.replace(trust, self._clock.now())
        self._note_trust()
        self._accept("trust")
        _logger.info("server certificate and agent CA bundle loaded", extra={"fields": trust_fields(trust)})
        reason = (
            f"server certificate {trust.server.serial_number}, agent CA bundle {trust.bundle.hash} "
            f"({len(trust.bundle.certificates)} CAs)"
        )
        await self._record(self._trail.event(AuditEventType.TRUST_RELOADED, reason=reason[:_LONGEST_REASON]))
        self._meter.count(metrics.RELOADS, what="trust", result="loaded")
        return True

    def _check_not_expired(self, trust: LoadedTrust) -> None:
        if trust.server.not_after <= self._clock.now():
            at = self._files.locate("server.tls.cert")
            message = f"{self._files.cert} expired at {trust.server.not_after:%Y-%m-%dT%H:%M:%SZ}"
            raise ConfigurationError([ConfigurationProblem(at.file, at.line, at.key, message, "renew it")])
        if problem := trust.ca_problem(self._clock.now()):
            at = self._files.locate("server.mtls.agent_ca_bundle")
            message, remedy = (
                f"{self._files.agent_ca_bundle} {problem}",
                "put the identity CA's current certificate there",
            )
            raise ConfigurationError([ConfigurationProblem(at.file, at.line, at.key, message, remedy)])

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

    async def _reject(self, what: str, event_type: AuditEventType, error: ConfigurationError) -> None:
        self._refuse(what, error)
        reason = "; ".join(str(problem) for problem in error.problems[:5])
        event = self._trail.event(
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

    def _announce_cas(self) -> None:
        """Log once what has ended of the bundle, and what soon will."""
        trust, now = self._trust.current, self._clock.now()
        problem = trust.ca_problem(now)
        lines = frozenset([problem] if problem else trust.ca_warnings(now))
        for line in sorted(lines - self._announced_cas):
            level = logging.ERROR if problem else logging.WARNING
            text = f"{line}: no agent can connect" if problem else line
            _logger.log(level, "%s: %s", self._files.agent_ca_bundle, text)
        self._announced_cas = lines

    def _announce_expiry(self) -> None:
        """Log each step towards the end of the broker's certificate once, and of the CAs."""
        self._announce_cas()
        server = self._trust.current.server
        level = expiry_level(server.not_before, server.not_after, self._clock.now())
        serial, announced = self._announced
        if server.serial_number == serial and level <= announced:
            return
        self._announced = (server.serial_number, level)
        text = f"the broker's own certificate {server.serial_number}"
        end = f"{server.not_after:%Y-%m-%dT%H:%M:%SZ}"
        if level is ExpiryLevel.EXPIRED:
            _logger.error("%s expired at %s: agents can't connect; renew %s", text, end, self._files.cert)
        elif level is not ExpiryLevel.FINE:
            _logger.warning("%s ends at %s; renew %s", text, end, self._files.cert)
