"""`certplane-broker preflight`: what a profile's orders will need, looked at from the broker's machine.

Reads configuration, policy and secrets as the broker does, asks the DNS, the DNS provider and the CA's directory, and
changes nothing at any of them. The ACME account isn't looked up, so that what CAA says of accounts stays undecided.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from certplane.broker import adapters
from certplane.broker.database import locating, secret_source
from certplane.broker.model import PreflightCheck, PreflightResult
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.settings import BrokerSettings
from certplane.errors import OperationError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.pool import BlockingPool

__all__ = ["COLUMNS", "failed", "preflight", "rows"]

COLUMNS = ("check", "subject", "result", "detail", "remedy")

_TIMEOUT = timedelta(seconds=60)


async def preflight(settings: BrokerSettings, profile_name: str, *, clock: Clock | None = None) -> list[PreflightCheck]:
    """All checks of the policy's profile of this name, at each issuer that it names.

    Raises:
        ConfigurationError: policy, secrets, or a provider's section can't be used.
        OperationError: the policy has no such profile.
    """
    clock = clock or SystemClock()
    rng = random.SystemRandom()
    policy = FilePolicySource(settings.policy.path, settings.cas.keys())
    locating(settings, policy.reload, key="policy.path")
    profile = policy.current.find_profile(profile_name)
    if profile is None:
        known = ", ".join(one.name for one in policy.current.profiles) or "none"
        raise OperationError(f"the policy has no profile {profile_name!r}", remedy=f"it has {known}")
    async with AsyncExitStack() as stack:
        files = BlockingPool("preflight-files", 2)
        stack.callback(files.close)
        secrets = secret_source(settings, files, clock)
        solver = adapters.solver(settings, secrets, clock, rng)
        stack.push_async_callback(solver.close)
        names = profile.issuers or (next(iter(settings.cas)),)
        looking = await stack.enter_async_context(adapters.preflight(settings, solver, {}, clock))
        return await looking.report(profile, names, _TIMEOUT)


def rows(checks: list[PreflightCheck]) -> list[dict[str, Any]]:
    """As the command prints them."""
    return [{column: str(getattr(check, column)) for column in COLUMNS} for check in checks]


def failed(checks: list[PreflightCheck]) -> bool:
    """Whether an order would fail."""
    return any(check.result is PreflightResult.FAILED for check in checks)
