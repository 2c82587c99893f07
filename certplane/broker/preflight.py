"""`certplane-broker preflight`: what a profile's orders will need, looked at from the broker's machine.

Reads configuration, policy and secrets as the broker does, asks the DNS, the DNS provider and the CA's directory, and
changes nothing at any of them. The ACME account isn't looked up, so that what CAA says of accounts stays undecided, as
does whether an account that must be bound is there already.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

from certplane.broker import adapters
from certplane.broker.configured import locating, secret_source
from certplane.broker.issuers.acme_directory import AcmeDirectory, no_such_profile
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.acme_settings import AcmeCaSettings
from certplane.broker.model import PreflightCheck, PreflightResult, Profile
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.settings import BrokerSettings
from certplane.errors import OperationError
from certplane.pki.csr import MAX_DNS_NAMES
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.pool import BlockingPool

COLUMNS = ("check", "subject", "result", "detail", "remedy")

_TIMEOUT = timedelta(seconds=60)
_DIRECTORY_TIME = timedelta(seconds=10)


async def preflight(
    settings: BrokerSettings, profile_name: str | None = None, *, clock: Clock | None = None
) -> list[PreflightCheck]:
    """All checks of the policy's profile of this name, or of every profile, at each issuer that it names.

    What several profiles need alike is a check of the list once.

    Raises:
        ConfigurationError: policy, secrets, or a provider's section can't be used.
        OperationError: the policy has no such profile, or none at all.
    """
    clock = clock or SystemClock()
    rng = random.SystemRandom()
    profiles = profiles_issued(settings, profile_name)
    async with AsyncExitStack() as stack:
        files = BlockingPool("preflight-files", 2)
        stack.callback(files.close)
        secrets = secret_source(settings, files, clock)
        solver = adapters.solver(settings, secrets, clock, rng)
        stack.push_async_callback(solver.close)
        cas = await stack.enter_async_context(adapters.cas(settings, clock))
        looking = adapters.preflight(solver, cas, {}, clock)
        issuers = {one.name: one.issuers or (next(iter(settings.cas)),) for one in profiles}
        wanted = dict.fromkeys(name for names in issuers.values() for name in names)
        directories = await adapters.read_directories({name: cas[name] for name in wanted}, _DIRECTORY_TIME)
        found: list[PreflightCheck] = []
        for profile in _in_parts(profiles):
            names = issuers[profile.name]
            found += [_directory(name, profile, settings.cas[name], directories[name]) for name in names]
            found += await looking.report(profile, names, _TIMEOUT)
        return list(dict.fromkeys(found))


def _in_parts(profiles: Sequence[Profile]) -> Iterator[Profile]:
    """The profiles, each once, whosever names it has: together, but for as many as one certificate may have at a time.

    A thousand hosts with a name each would take minutes one by one.
    """
    names: dict[str, dict[str, None]] = {}
    for profile in profiles:
        names.setdefault(profile.name, {}).update(dict.fromkeys(profile.dns_names))
    for profile in {each.name: each for each in profiles}.values():
        of_all = tuple(names[profile.name])
        for start in range(0, len(of_all), MAX_DNS_NAMES):
            yield replace(profile, dns_names=of_all[start : start + MAX_DNS_NAMES])


def profiles_issued(settings: BrokerSettings, profile_name: str | None) -> list[Profile]:
    """The policy's profile of this name, or every one, with the names that certificates get; once for each set of them.

    Raises:
        ConfigurationError: the policy can't be used.
        OperationError: it has no such profile, or none at all.
    """
    policy = FilePolicySource(settings.policy.path, settings.cas.keys(), settings.private_issuers)
    locating(settings, policy.reload, key="policy.path")
    profiles = [one for one in policy.current.issued_profiles if profile_name in {None, one.name}]
    if not profiles:
        known = ", ".join(one.name for one in policy.current.profiles) or "none"
        if policy.current.find_profile(profile_name or "") is not None:
            problem = f"nobody has the profile {profile_name!r}, whose names are made of its holders' labels"
            raise OperationError(problem, remedy="give it to a host in the policy")
        what = "no profile" if profile_name is None else f"no profile {profile_name!r}"
        raise OperationError(f"the policy has {what}", remedy=f"it has {known}")
    return profiles


def _directory(name: str, profile: Profile, ca: AcmeCaSettings, found: AcmeDirectory | AcmeError) -> PreflightCheck:
    """Whether the CA's directory is there and offers what the profile's orders ask for."""
    subject = f"{name} ({ca.directory_url})"
    if isinstance(found, AcmeError):
        result = PreflightResult.FAILED if found.suspects_configuration else PreflightResult.UNKNOWN
        return PreflightCheck("directory", subject, result, found.refusal.message)
    if profile.acme_profile and (missing := no_such_profile(profile.acme_profile, found)) is not None:
        remedy = "correct acme.profile of the profile in the policy"
        return PreflightCheck("directory", subject, PreflightResult.FAILED, missing.message, remedy)
    if found.external_account_required and ca.eab is None:
        detail = "the CA opens ACME accounts only for its registered customers (external account binding)"
        remedy = "configure eab with the key id and the MAC key from the CA, unless the account exists already"
        return PreflightCheck("directory", subject, PreflightResult.UNKNOWN, detail, remedy)
    return PreflightCheck("directory", subject, PreflightResult.OK, "can be read")


def rows(checks: list[PreflightCheck]) -> list[dict[str, Any]]:
    """As the command prints them."""
    return [{column: str(getattr(check, column)) for column in COLUMNS} for check in checks]


def failed(checks: list[PreflightCheck]) -> bool:
    """Whether an order would fail."""
    return any(check.result is PreflightResult.FAILED for check in checks)
