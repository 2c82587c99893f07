"""`AcmeRenewalInfo`: what an ACME CA says about the renewal of its certificates (RFC 9773).

It reads answers itself: `acme` draws another moment at each call, drops the explanation, and lets malformed answers
escape as whatever they caused. It needs no account, and its questions take no connection that an order could need: a
slow endpoint holds up no order.

It refuses to read into an answer what isn't there: a window that doesn't end after it begins, or a time that isn't
RFC 3339, is no answer. The explanation's URL is made fit to be shown, and never fetched.
"""

from __future__ import annotations

import asyncio
import http
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from typing_extensions import override

from certplane.broker.issuers.acme_ca import AcmeCa
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.certificate_ids import certificate_id
from certplane.broker.renewal.model import RenewalInfo, RenewalInfoError, RenewalInfoUnsupportedError
from certplane.broker.renewal.ports import RenewalInfoSource
from certplane.pki.reading import READ_ERRORS

_LONGEST_URL: Final = 500
"""Characters of an explanation's URL; a longer one is none, since half a URL leads elsewhere."""

_DIRECTORY_LIFE: Final = timedelta(days=1)
"""How long the directory's word is taken for where to ask, and whether at all."""

_AT_ONCE: Final = 4
"""Questions under way at once."""

_PASSING: Final = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)

_RFC3339: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


def parse_renewal_info(body: object, retry_after: timedelta | None = None) -> RenewalInfo:
    """A RenewalInfo object (RFC 9773 4.2) from decoded JSON of any shape.

    Raises:
        ValueError: it isn't one; the text is ours.
    """
    fields: Mapping[str, object] = body if isinstance(body, dict) else {}
    window = fields.get("suggestedWindow")
    if not isinstance(window, dict):
        raise ValueError("an answer without a window")  # noqa: TRY004 - it is bad input, not misuse
    start, end = _time(window, "start"), _time(window, "end")
    if end <= start:
        raise ValueError("a window that doesn't end after it begins")
    return RenewalInfo(start, end, _shown_url(fields.get("explanationURL")), retry_after)


class AcmeRenewalInfo(RenewalInfoSource):
    """`RenewalInfoSource` over HTTPS. Nothing is sent before the first question."""

    def __init__(self, ca: AcmeCa) -> None:
        """Nothing is asked yet."""
        self._ca = ca
        self._slots = asyncio.Semaphore(_AT_ONCE)

    @override
    async def renewal_info(self, certificate_pem: str, timeout: timedelta) -> RenewalInfo:
        try:
            name = certificate_id(x509.load_pem_x509_certificate(certificate_pem.encode()))
        except READ_ERRORS as error:
            raise RenewalInfoUnsupportedError(f"the CA can't be asked: {error}") from error
        try:
            async with asyncio.timeout(timeout.total_seconds()), self._slots:
                return await self._ask(name)
        except TimeoutError as error:
            raise RenewalInfoError("no answer in time", temporary=True) from error
        except AcmeError as error:
            raise RenewalInfoError(
                error.refusal.message, temporary=not error.misplaced, retry_after=error.refusal.retry_after
            ) from error
        except ValueError as error:
            raise RenewalInfoError(f"the CA sent {error}", temporary=False) from error

    async def _ask(self, name: str) -> RenewalInfo:
        endpoint = (await self._ca.directory(_DIRECTORY_LIFE)).renewal_info
        if endpoint is None:
            raise RenewalInfoUnsupportedError("the CA offers no renewal information")
        # Checked here, so that a URL that may not be called counts as the CA's answer and not as an outage.
        answer = await self._ca.http.send("GET", f"{self._ca.http.hosts.check(endpoint).rstrip('/')}/{name}")
        if answer.status != http.HTTPStatus.OK:
            # What passes by itself (RFC 9773 4.3.3): a server's errors and limits do; a 404, or a redirect, doesn't.
            temporary = answer.status >= 500 or answer.status in _PASSING
            said = f"the CA answered with HTTP status {answer.status}"
            raise RenewalInfoError(said, temporary=temporary, retry_after=answer.retry_after)
        return parse_renewal_info(answer.json(), answer.retry_after)


def _shown_url(url: object) -> str:
    shown = one_line(url, _LONGEST_URL + 1)
    fits = len(shown) <= _LONGEST_URL and " " not in shown and shown.lower().startswith(("https://", "http://"))
    return shown if fits else ""


def _time(window: Mapping[str, object], name: str) -> datetime:
    text = window.get(name)
    # Stricter than `fromisoformat`: that takes dates alone, week dates, and times without a zone.
    if not isinstance(text, str) or not _RFC3339.fullmatch(text):
        raise ValueError(f"a window whose {name} isn't a time of RFC 3339")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a window whose {name} is no time") from error
