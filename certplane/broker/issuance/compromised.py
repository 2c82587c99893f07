"""Finds what CAs have issued of compromised keys after these were blocked, and revokes it.

Whoever revokes for `keyCompromise` takes the certificates that there are. One more may come: of an order whose CSR was
sent before, since from then on only the CA's word ends it. It is stored and handed out to nobody
(`CallAuthorisation.ask_again`), but it is valid, and who has the key can use it: CT logs have it.

Only what nobody was given is revoked here, and nobody can be given it any more, so that no service loses what it
serves. A key that a rollout has blocked and nobody has called compromised (ADR 0053) is left alone: its certificate
isn't handed out, and a CA that is told of a compromise may revoke those of the same key that are in use.

One broker does it for all; twice at a time it does no harm.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from certplane.broker.model import CertificateRecord
from certplane.errors import RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker.issuance")

_LOOK: Final = timedelta(minutes=1)
_RETRY: Final = Backoff(timedelta(minutes=1), timedelta(hours=1))
"""Between tries of one certificate, which its CA doesn't revoke."""
_AT_ONCE: Final = 1000
_AFTER: Final = timedelta(days=90)
"""So long after its key was compromised a certificate may still come: no CA keeps an order under way for longer."""


class Undelivered(Protocol):
    """Where certificates are."""

    async def undelivered_of_compromised_keys(
        self, since: datetime, now: datetime, limit: int
    ) -> Sequence[CertificateRecord]:
        """See `CertificateStore`."""
        ...


class Revokes(Protocol):
    """Takes certificates back."""

    async def revoke_undelivered(self, record: CertificateRecord) -> None:
        """Revoke one that nobody was given, for its key's compromise, at its CA and here; again without effect.

        Raises:
            RefusalError: it isn't revoked, or that isn't known: ask again.
        """
        ...


class CompromisedKeys:
    """Revokes, while `run` runs. For the event loop's thread."""

    def __init__(self, certificates: Undelivered, revokes: Revokes, clock: Clock, rng: random.Random) -> None:
        """Nothing is looked at yet."""
        self._certificates = certificates
        self._revokes = revokes
        self._clock = clock
        self._rng = rng
        self._failures: dict[str, tuple[int, float, str]] = {}
        """Of certificates that could not be revoked: how often, when to try again, and what was said."""
        self._said = ""

    async def run(self) -> None:
        """Look each minute, until cancelled."""
        while True:
            try:
                await self.look()
            except RefusalError as error:
                self._say(str(error))
            except Exception as error:  # noqa: BLE001 - a bug must not end it: what is left is looked at again
                self._say(repr(error))
            else:
                self._said = ""
            await self._clock.sleep(_LOOK)

    def _say(self, error: str) -> None:
        """Once, however often it fails."""
        if error != self._said:
            _logger.warning("could not look for certificates of compromised keys; will retry: %s", error)
        self._said = error

    async def look(self) -> None:
        """Revoke what there is, each that can be.

        Raises:
            RefusalError: STORE_UNAVAILABLE; the next look goes on.
        """
        now = self._clock.now()
        found = await self._certificates.undelivered_of_compromised_keys(now - _AFTER, now, _AT_ONCE)
        self._failures = {
            record.certificate_id: known
            for record in found
            if (known := self._failures.get(record.certificate_id)) is not None
        }
        for record in found:
            failures, again, said = self._failures.get(record.certificate_id, (0, 0.0, ""))
            if failures and again > self._clock.monotonic():
                continue
            fields = {"identity": record.identity, "certificate_id": record.certificate_id, "issuer": record.issuer}
            try:
                await self._revokes.revoke_undelivered(record)
            except RefusalError as error:
                wait = max(_RETRY.wait(failures + 1, self._rng), error.refusal.retry_after or timedelta())
                again = self._clock.monotonic() + wait.total_seconds()
                self._failures[record.certificate_id] = (failures + 1, again, error.refusal.message)
                if error.refusal.message != said:
                    text = "could not revoke a certificate that a CA has issued of a compromised key; will retry: %s"
                    _logger.error(text, error, extra={"fields": fields})  # noqa: TRY400 - a traceback says nothing more
            else:
                text = "revoked a certificate that its CA has issued of a key that was compromised meanwhile"
                _logger.warning(text, extra={"fields": fields})
