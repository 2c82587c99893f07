"""Which chain of a certificate is kept: the preferred one, or any that is of use (RFC 8555 7.4.2, alternate chains)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from certplane.broker.issuers.acme_exchanges import AcmeExchanges
from certplane.broker.issuers.attempts import Deadline
from certplane.errors import RefusalError
from certplane.pki.chain import top_issuer

_log = logging.getLogger(__name__)

_ALTERNATE_TIME = timedelta(seconds=10)
"""For a chain that is nicer than the one that is there already."""
_MOST_ALTERNATES = 10
"""Chains that are looked at beside the default one."""


async def choose_chain(
    exchanges: AcmeExchanges, wanted: str, chain: str, alternates: Sequence[str], deadline: Deadline
) -> str:
    """The default chain; the preferred one where there is one, or any other where the default one is of no use.

    Where there is no other and none is preferred, the default one isn't looked at: whoever keeps it says what is wrong.
    """
    if not wanted and not alternates:
        return chain
    usable = ""
    for url in ("", *alternates[:_MOST_ALTERNATES]):
        try:
            other = await _alternate(exchanges, url, deadline.earlier(_ALTERNATE_TIME)) if url else chain
            top = top_issuer(other, deadline.clock.now())
        except RefusalError as error:
            # The certificate is issued: another chain serves better than none.
            which = "an alternate chain" if url else "the CA's default chain"
            _log.warning("%s can't be used: %s", which, error, extra={"fields": {"url": url}})
            continue
        if not wanted or top == wanted:
            return other
        usable = usable or other
    if wanted and usable:
        _log.warning("the CA offers no chain from %r; the first that can be used is", wanted)
    return usable or chain


async def _alternate(exchanges: AcmeExchanges, url: str, deadline: Deadline) -> str:
    chain, _ = await exchanges.call(lambda client: client.fetch_chain(url), deadline)
    return chain
