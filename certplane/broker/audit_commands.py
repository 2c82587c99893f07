"""`certplane-broker audit`, over the database beside a running broker, or over an exported file."""

from __future__ import annotations

import argparse
import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from certplane.broker.commands import Row
from certplane.broker.configured import secret_source
from certplane.broker.database import open_store
from certplane.broker.event_filter import EventFilter
from certplane.broker.events import AuditSeverity
from certplane.broker.ports import SecretSource
from certplane.broker.proof import lines
from certplane.broker.proof.checkpoints import HOW_TO_MAKE, CheckpointKeyError, Signer, Verifier, key_id
from certplane.broker.proof.exporting import export
from certplane.broker.proof.reading import DatabaseVerification
from certplane.broker.proof.verify import Finding, Verified
from certplane.broker.settings import BrokerSettings
from certplane.broker.store.audit_records import record_of
from certplane.config.durations import HOW_TO_TYPE_A_MOMENT, parse_moment
from certplane.errors import ConfigurationError, ConfigurationProblem, OperationError, RefusalError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.disk_errors import explain
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import counted, serial_digits

_LOOK: Final = timedelta(seconds=1)
_PROGRESS: Final = 100_000


def filter_of(options: argparse.Namespace, clock: Clock | None = None) -> EventFilter:
    """What the options of a command pick.

    Raises:
        ConfigurationError: a time can't be understood.
    """
    now = (clock or SystemClock()).now()

    def given(name: str, change: Callable[[str], str] = str) -> frozenset[str]:
        return frozenset(map(change, getattr(options, name, ())))

    return EventFilter(
        start=_moment("--since", options.since, now),
        end=_moment("--until", options.until, now),
        identities=given("identity"),
        dns_names=given("name", str.lower),
        serial_numbers=given("serial", serial_digits),
        event_types=given("type"),
        reason_codes=given("error", str.upper),
        ids=given("id"),
        profiles=given("profile"),
        severity=AuditSeverity(getattr(options, "severity", AuditSeverity.INFO)),
    )


async def last_events(settings: BrokerSettings, wanted: EventFilter, limit: int) -> tuple[list[Row], bool]:
    """The last events that are picked, oldest first, and whether there are earlier ones."""
    async with open_store(settings) as stores:
        found: list[Row] = []
        after: int | None = None
        while len(found) <= limit:
            page = await stores.audit_reader.page(wanted, after=after, limit=limit + 1 - len(found))
            found += [event.record for event in page.events]
            after = page.after
            if after is None:
                break
    return found[:limit][::-1], len(found) > limit


async def follow(
    settings: BrokerSettings, wanted: EventFilter, limit: int, show: Callable[[list[Row]], object]
) -> None:
    """Show the last events, then each new one of all brokers, until cancelled."""
    async with open_store(settings) as stores:
        tail = await stores.audit_reader.follow()
        page = await stores.audit_reader.page(wanted, limit=limit)
        shown = {event.sequence for event in page.events}
        show([event.record for event in reversed(page.events)])
        with suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(_LOOK.total_seconds())
                new = [
                    event.record
                    for event in await tail.new()
                    if event.sequence not in shown and wanted.picks(event.time, event.record)
                ]
                if new:
                    show(new)


async def verify_store(
    settings: BrokerSettings, keys: Sequence[str], say: Callable[[str], None]
) -> tuple[list[Row], Row]:
    """What doesn't hold of the log in the database, and the result; `keys` instead of the configuration's, if any."""
    verifier = _verifier(keys) if keys else await _trusted(settings)
    found: list[Row] = []
    told = _PROGRESS
    async with open_store(settings) as stores:
        verification = DatabaseVerification(stores.audit_proof, verifier)
        async for page in verification.run():
            found += map(_row, page)
            if verification.result.event_count >= told:
                say(f"certplane-broker: {counted(verification.result.event_count, 'event')} so far")
                told += _PROGRESS
    return found, _result(verification.result, verifier)


def verify_file(path: Path, keys: Sequence[str]) -> tuple[list[Row], Row]:
    """What doesn't hold of an exported log, and the result.

    Raises:
        OperationError: it can't be read, or is no exported log.
    """
    verifier = _verifier(keys)
    verification = lines.LinesVerification(verifier, record_of)
    try:
        with path.open(encoding="ascii") as file:
            found = [_row(finding) for finding in verification.run(file)]
    except OSError as error:
        cause, remedy = explain(error, path)
        raise OperationError(cause, remedy=remedy) from error
    except ValueError as error:
        what = str(error) if isinstance(error, lines.LinesError) else "this is no text of an exported audit log"
        raise OperationError(f"{path}: {what}", remedy="name a file that `audit export` has written") from error
    return found, _result(verification.result, verifier)


async def export_store(settings: BrokerSettings, wanted: EventFilter, write: Callable[[str], None]) -> None:
    """The log of the database, line by line."""
    async with open_store(settings) as stores:
        found = export(stores.audit_proof, stores.audit_reader.place_of, record_of, start=wanted.start, end=wanted.end)
        async for line in found:
            write(line)


async def public_keys(settings: BrokerSettings) -> list[Row]:
    """The keys that are trusted, the one that signs first."""
    async with _secrets(settings) as secrets:
        signing = await _signing(settings, secrets)
    known = [(key, "signs" if number == 0 else "in the secret") for number, key in enumerate(signing)]
    known += [(key, "has signed before") for key in settings.audit.checkpoint_keys if key not in signing]
    return [{"key_id": key_id(base64.b64decode(key)), "public_key": key, "use": use} for key, use in known]


async def _trusted(settings: BrokerSettings) -> Verifier:
    return _verifier([row["public_key"] for row in await public_keys(settings)])


async def _signing(settings: BrokerSettings, secrets: SecretSource) -> list[str]:
    name = settings.audit.checkpoint_key_secret
    if not name:
        return []
    problem = settings.source.problem
    try:
        return Signer(await secrets.read(name)).public_keys
    except RefusalError as error:
        what = problem("audit.checkpoint_key_secret", error.refusal.message, "provide the secret")
        raise ConfigurationError([what]) from error
    except CheckpointKeyError as error:
        what = problem("audit.checkpoint_key_secret", f"the secret {name!r} {error}", HOW_TO_MAKE)
        raise ConfigurationError([what]) from error


@asynccontextmanager
async def _secrets(settings: BrokerSettings) -> AsyncIterator[SecretSource]:
    pool = BlockingPool("audit-files", 1)
    try:
        yield secret_source(settings, pool, SystemClock())
    finally:
        pool.close()


def _verifier(keys: Sequence[str]) -> Verifier:
    try:
        return Verifier(keys)
    except CheckpointKeyError as error:
        raise _misuse("--key", f"{error}", "copy it from `certplane-broker audit keys`") from error


def _moment(option: str, text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_moment(text, now)
    except ValueError as error:
        raise _misuse(option, f"{error}", HOW_TO_TYPE_A_MOMENT) from error


def _misuse(option: str, what: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([ConfigurationProblem("certplane-broker", None, option, what, remedy)])


def _row(finding: Finding) -> Row:
    return {
        "kind": finding.kind.value,
        "sequence": str(finding.sequence),
        "event_id": finding.event_id,
        "text": finding.text,
    }


def _result(result: Verified, verifier: Verifier) -> dict[str, Any]:
    counts = {  # texts, as 64-bit numbers are in the JSON of `certplanectl audit verify`
        "event_count": result.event_count,
        "chain_count": result.chain_count,
        "checkpoint_count": result.checkpoint_count,
        "finding_count": result.finding_count,
        "signed_sequence": result.signed_sequence,
        "unchained_event_count": result.unchained_event_count,
    }
    return {
        "result": "damaged" if result.finding_count else "whole",
        **{name: str(count) for name, count in counts.items()},
        "key_ids": verifier.names,
    }
