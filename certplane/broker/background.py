"""What a broker does beside its calls for as long as it runs, and how it is run: nothing here ends the broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Protocol

from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuers.dns.provider import AccountFinding
from certplane.broker.issuing.remote import RemoteIssuer
from certplane.broker.issuing.supervision import IssuingProcess
from certplane.broker.members.ports import Lease
from certplane.broker.model import Profile
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.services.server import BrokerServer
from certplane.broker.store import Stores
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker")

_ACCOUNT_CHECK: Final = timedelta(seconds=30)
"""For the look at the DNS providers' credentials, beside everything else."""

_MENDED_LOOK: Final = timedelta(minutes=1)
"""Between looks at DNS credentials that couldn't be used, while that keeps certificates from hosts."""

_READY_INTERVAL: Final = timedelta(seconds=2)
"""Between looks at whether the store can be written."""


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work` beside the block; should it fail, say so in the log and let the block go on."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report_end)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _logger.critical("%s has ended unexpectedly; restart the broker", task.get_name(), exc_info=task.exception())


async def watch_readiness(
    server: BrokerServer,
    authority: RegistrationAuthority,
    stores: Stores,
    policy: FilePolicySource,
    *,
    lease: Lease,
    issuing: IssuingProcess,
    clock: Clock,
) -> None:
    """Let health say whether the store can be written, and the lease on it stands: calls that need it are refused.

    Beside it whether every profile can have certificates, and whether there is a process that orders them, which is for
    alarms: nobody is kept away for it.
    """
    ready = well = True
    blocked: Collection[str] = frozenset()
    while True:
        await clock.sleep(_READY_INTERVAL)
        now_blocked = authority.blocked([profile.name for profile in policy.current.profiles])
        if now_blocked != blocked:
            blocked = now_blocked
            names = ", ".join(sorted(blocked)) or "none"
            _logger.log(logging.ERROR if blocked else logging.INFO, "profiles blocked until a person acts: %s", names)
        now_well = not blocked and not issuing.out
        if now_well != well:
            well = now_well
            await server.set_issuing(well=well)
        now_ready = stores.ready() and lease.stands()
        if now_ready != ready:
            ready = now_ready
            _logger.log(logging.INFO if ready else logging.ERROR, "the store is %s", "ready" if ready else "not ready")
            await server.set_ready(ready=ready)


async def check_directories(issuers: Iterable[RemoteIssuer]) -> None:
    """Say at the start, not at the first order, which CA's directory can't be read. Holds nothing up."""
    async with asyncio.TaskGroup() as group:
        for issuer in issuers:
            group.create_task(issuer.note_directory(_ACCOUNT_CHECK))


class CheckingSolver(Protocol):
    """Who can tell what DNS credentials are good for."""

    async def check_accounts(self, profiles: Iterable[Profile], timeout: timedelta) -> Sequence[AccountFinding]:
        """What is wrong with those of these profiles. Never raises a refusal."""
        ...


async def watch_dns_accounts(
    solver: CheckingSolver,
    policy: FilePolicySource,
    blocked: Callable[[Collection[str]], Collection[str]],
    mended: Callable[[str], None],
    clock: Clock,
) -> None:
    """Say at the start, not at the first renewal weeks later, what DNS credentials can't do. Holds nothing up.

    And while profiles are `blocked`, look whether credentials can be used again that couldn't: what was mended at the
    provider tells nobody, and whoever waits for it is to ask again (`mended`).
    """
    for finding in await solver.check_accounts(policy.current.issued_profiles, _ACCOUNT_CHECK):
        level = logging.ERROR if finding.fatal else logging.WARNING
        _logger.log(level, "DNS provider: %s", finding.message, extra={"fields": {"remedy": finding.remedy}})
    broken: Collection[str] = frozenset()
    while True:
        await clock.sleep(_MENDED_LOOK)
        current = policy.current
        names = blocked([profile.name for profile in current.profiles])
        before, broken = broken, frozenset()
        if names:
            try:
                found = await solver.check_accounts(
                    [each for name in sorted(names) for each in current.issued(name)], _ACCOUNT_CHECK
                )
            except RuntimeError:  # of a bug there, which the log has: the next look may find out
                broken = before
                continue
            broken = frozenset(finding.message for finding in found if finding.fatal)
            if before and not broken and not found:
                mended("the DNS provider's credentials can be used again")
            broken = broken or (before if found else broken)  # what can't be told now may be broken still
