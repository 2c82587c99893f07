"""`DirectoryCaaIdentity`: what a CA is called in CAA records, by its own directory (RFC 8555 7.1.1, `caaIdentities`).

It needs no account, and asks only when a name has CAA records at all. The account's URL is what the issuer knows of it:
before the first order, nothing. `DirectoryStandingAccount` is the same for the records of dns-persist-01.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from typing_extensions import override

from certplane.broker.issuers.acme_ca import AcmeCa
from certplane.broker.issuers.acme_directory import AcmeDirectory
from certplane.broker.issuers.acme_errors import AcmeError, too_late
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.issuers.dns.standing import StandingAccountSource
from certplane.broker.issuers.standing_records import StandingAccount
from certplane.broker.ports import CaaIdentity, CaaIdentitySource
from certplane.errors import Reason, RefusalError

_FRESH: Final = timedelta(hours=1)


class DirectoryCaaIdentity(CaaIdentitySource):
    """A `CaaIdentitySource` for one CA."""

    def __init__(self, ca: AcmeCa, account_url: Callable[[], str], kind: ChallengeKind = ChallengeKind.DNS_01) -> None:
        """Nothing is asked yet; `account_url` gives the account's URL, empty as long as it isn't known."""
        self._ca, self._account_url, self._kind = ca, account_url, kind

    @override
    async def caa_identity(self, timeout: timedelta) -> CaaIdentity:
        directory = await _directory(self._ca, timeout)
        return CaaIdentity(directory.caa_identities, self._account_url(), self._kind.caa_method)


class DirectoryStandingAccount(StandingAccountSource):
    """What standing records must name as far as the CA's directory says it: the account isn't looked up."""

    def __init__(self, ca: AcmeCa) -> None:
        """Nothing is asked yet."""
        self._ca = ca

    @override
    async def standing_account(self, timeout: timedelta) -> StandingAccount:
        directory = await _directory(self._ca, timeout)
        return StandingAccount(directory.issuer_domain_names or directory.caa_identities)


async def _directory(ca: AcmeCa, timeout: timedelta) -> AcmeDirectory:
    """The CA's directory, as it was within the hour. Errors as `Issuer`'s."""
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            return await ca.directory(_FRESH)
    except (TimeoutError, AcmeError) as error:
        said = error if isinstance(error, AcmeError) else too_late()
        message = f"the CA's directory can't be read: {said.refusal.message}"
        raise RefusalError(Reason.ISSUER_UNAVAILABLE, message) from error
