"""`certplane-broker account persist-records`: the records that dns-persist-01 rests on, printed or looked for.

The owner of a name publishes them by hand: whoever may write them lets our account have certificates for the name for
as long as they stand, so that the broker never writes them, and holds no credentials that could.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from certplane.broker import adapters
from certplane.broker.account_commands import Ca, configured_ca, opened_issuer
from certplane.broker.commands import Row
from certplane.broker.configured import secret_source
from certplane.broker.database import open_store
from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.issuers.dns.standing import StandingRecords
from certplane.broker.issuers.standing_records import StandingAccount, StandingRecord, standing_records, zone_line
from certplane.broker.model import PreflightResult
from certplane.broker.preflight import profiles_issued
from certplane.broker.settings import BrokerSettings
from certplane.config.durations import parse_time
from certplane.errors import ConfigurationError, ConfigurationProblem, OperationError, Reason, RefusalError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.pool import BlockingPool

COLUMNS: Final = ("issuer", "record")
CHECK_COLUMNS: Final = ("record", "issuer", "result", "detail", "remedy")

_CA_TIME = timedelta(minutes=1)
_DNS_TIME = timedelta(minutes=1)
_PARALLEL = 32
"""Records looked for at once: each is a question to every server of its zone."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records: of one profile of the policy, or all; for one issuer, or all; and when they are to end."""

    profile: str | None = None
    issuer: str = ""
    until: datetime | None = None


def end_of_records(text: str | None) -> datetime | None:
    """The time of `--until`.

    Raises:
        ConfigurationError: it is no time, or over.
    """
    if text is None:
        return None
    wrong = "is over"
    try:
        if (until := parse_time(text)) > SystemClock().now():
            return until
    except (ValueError, OverflowError):
        wrong = f"is {text[:40]!a}, must be a time like 2027-01-02 or 2027-01-02T03:04:05Z"
    raise ConfigurationError([ConfigurationProblem("certplane-broker", None, "--until", wrong)])


async def records(settings: BrokerSettings, wanted: Wanted) -> list[Row]:
    """The records as zone files have them, a row each.

    Raises:
        ConfigurationError: the policy or the account's key can't be used.
        OperationError: no such profile or issuer, or none whose challenge is dns-persist-01.
        RefusalError: the CA can't be asked, or doesn't say its name.
    """
    clock, found = SystemClock(), _records(settings, wanted)
    rows: list[Row] = []
    for ca, needed in found:
        async with _opened(settings, ca, clock) as issuer:
            account = await _account(issuer)
        rows += [_row(ca, account, record, wanted.until) for record in needed]
    return rows


async def checked(settings: BrokerSettings, wanted: Wanted) -> list[Row]:
    """Whether the records are there, a row each. Raises as `records`, and for resolvers that can't be used."""
    clock, found = SystemClock(), _records(settings, wanted)
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        files = BlockingPool("records-files", 1)
        stack.callback(files.close)
        solver = adapters.solver(settings, secret_source(settings, files, clock), clock, random.SystemRandom())
        stack.push_async_callback(solver.close)
        looking = StandingRecords(solver.routes, clock)
        for ca, needed in found:
            async with _opened(settings, ca, clock) as issuer:
                account = await _account(issuer)
            for start in range(0, len(needed), _PARALLEL):
                rows += await _look(looking, ca, account, needed[start : start + _PARALLEL], clock)
    return rows


async def _look(
    looking: StandingRecords, ca: Ca, account: StandingAccount, needed: Sequence[StandingRecord], clock: Clock
) -> list[Row]:
    deadline = Deadline.after(_DNS_TIME, clock)
    checks = await all_of(looking.check(record, ca.name, account, deadline) for record in needed)
    return [
        {
            "record": record.name,
            "issuer": ca.name,
            "result": check.result.value,
            "detail": check.detail,
            "remedy": check.remedy,
        }
        for record, check in zip(needed, checks, strict=True)
    ]


def failed(rows: list[Row]) -> bool:
    """Whether an order would fail for want of one."""
    return any(row["result"] == PreflightResult.FAILED for row in rows)


def _records(settings: BrokerSettings, wanted: Wanted) -> list[tuple[Ca, tuple[StandingRecord, ...]]]:
    """What is needed at each issuer, each record once."""
    chosen = configured_ca(settings, wanted.issuer).name if wanted.issuer else ""
    profiles = profiles_issued(settings, wanted.profile)
    standing = set(settings.proves_by(ChallengeKind.DNS_PERSIST_01))
    names: dict[str, dict[str, None]] = {}
    for profile in profiles:
        for issuer in profile.issuers or (settings.issuer.name,):
            if issuer in standing and chosen in {"", issuer}:
                names.setdefault(issuer, {}).update(dict.fromkeys(profile.dns_names))
    if not names:
        whose = "the policy's profiles" if wanted.profile is None else f"the profile {wanted.profile}"
        what = f"{chosen} isn't one of them" if chosen else "there is none"
        remedy = f"records stand for the issuers of {whose} that have `acme.challenge: dns-persist-01`"
        raise OperationError(f"no standing records are needed: {what}", remedy=remedy)
    return [(configured_ca(settings, issuer), standing_records(list(of_ca))) for issuer, of_ca in names.items()]


async def _account(issuer: AcmeIssuer) -> StandingAccount:
    account = await issuer.standing_account(_CA_TIME)
    if not account.issuer_domain_names:
        message = "the CA's directory doesn't say by which name its records name it (issuerDomainNames, caaIdentities)"
        raise RefusalError(Reason.ISSUER_REJECTED, f"{message}; ask the CA whether it offers dns-persist-01")
    return account


@asynccontextmanager
async def _opened(settings: BrokerSettings, ca: Ca, clock: Clock) -> AsyncIterator[AcmeIssuer]:
    async with AsyncExitStack() as stack:
        stores = None
        if ca.acme.account_key.store:
            stores = await stack.enter_async_context(open_store(settings, clock=clock))
        yield await stack.enter_async_context(opened_issuer(settings, ca, clock, stores))


def _row(ca: Ca, account: StandingAccount, record: StandingRecord, until: datetime | None) -> Row:
    value = record.value(account, until)
    return {"issuer": ca.name, "name": record.name, "value": value, "record": zone_line(record, value)}
