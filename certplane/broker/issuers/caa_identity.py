"""`DirectoryCaaIdentity`: what a CA is called in CAA records, by its own directory (RFC 8555 7.1.1, `caaIdentities`).

It needs no account, and asks only when a name has CAA records at all. The account's URL is what the issuer knows of it:
before the first order, nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from typing_extensions import override

from certplane.broker.issuers.acme_ca import AcmeCa
from certplane.broker.issuers.acme_errors import AcmeError, too_late
from certplane.broker.ports import CaaIdentity, CaaIdentitySource
from certplane.errors import Reason, RefusalError

_FRESH: Final = timedelta(hours=1)


class DirectoryCaaIdentity(CaaIdentitySource):
    """A `CaaIdentitySource` for one CA."""

    def __init__(self, ca: AcmeCa, account_url: Callable[[], str]) -> None:
        """Nothing is asked yet; `account_url` gives the account's URL, empty as long as it isn't known."""
        self._ca, self._account_url = ca, account_url

    @override
    async def caa_identity(self, timeout: timedelta) -> CaaIdentity:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                directory = await self._ca.directory(_FRESH)
        except (TimeoutError, AcmeError) as error:
            said = error if isinstance(error, AcmeError) else too_late()
            message = f"the CA's directory can't be read: {said.refusal.message}"
            raise RefusalError(Reason.ISSUER_UNAVAILABLE, message) from error
        return CaaIdentity(directory.caa_identities, self._account_url())
