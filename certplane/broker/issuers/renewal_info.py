"""`AcmeRenewalInfo`: what an ACME CA says about the renewal of its certificates (RFC 9773).

A small client of its own: `acme` draws another moment at each call, drops the explanation, and lets malformed answers
escape as whatever they caused. It shares the wire of the ACME client (`acme_network`: https on allowed hosts, no
redirects, bounded bodies, a deadline) and neither its workers nor its account: a slow endpoint holds up no order, and
a CA may be asked before there is an account.

It refuses to read into an answer what isn't there: a window that doesn't end after it begins, or a time that isn't
RFC 3339, is no answer. The explanation's URL is made fit to be shown, and never fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import requests
from cryptography import x509
from typing_extensions import override

from certplane.broker.issuers.acme import AcmeServer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_network import AcmeError, AcmeNetwork
from certplane.broker.issuers.answers import one_line, parse_retry_after
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.certificate_ids import certificate_id
from certplane.broker.issuers.outgoing import AllowedHosts, ForbiddenUrlError
from certplane.broker.renewal.model import RenewalInfo, RenewalInfoError, RenewalInfoUnsupportedError
from certplane.broker.renewal.ports import RenewalInfoSource
from certplane.pki.reading import READ_ERRORS
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

_LONGEST_URL: Final = 500
"""Characters of an explanation's URL; a longer one is none, since half a URL leads elsewhere."""

_DIRECTORY_LIFE: Final = timedelta(days=1)
"""How long the directory's word is taken for where to ask, and whether at all."""

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

    def __init__(self, server: AcmeServer, key: AccountKey, *, clock: Clock, workers: int = 4) -> None:
        """Make it.

        Args:
            server: which CA, and how it is reached.
            key: the account's; nothing is signed with it here.
            clock: for deadlines, and for dates in `Retry-After`.
            workers: questions under way at once.

        Raises:
            ForbiddenUrlError: the directory's URL or an allowed host can't be used.
        """
        self._hosts = AllowedHosts(server.directory_url, server.allowed_hosts)
        self._server, self._key = server, key
        self._clock = clock
        self._pool = BlockingPool("renewal-info", workers)
        self._idle: list[AcmeNetwork] = []
        self._closed = False
        self._endpoint: tuple[str, datetime] | None = None
        """Where to ask (empty: nowhere), and when the directory said so."""

    def close(self) -> None:
        """Take no more questions and close the connections."""
        self._closed = True
        self._pool.close()
        with contextlib.suppress(IndexError):  # rather than a look first: workers take and return them meanwhile
            while True:
                self._idle.pop().close()

    @override
    async def renewal_info(self, certificate_pem: str, timeout: timedelta) -> RenewalInfo:
        try:
            name = certificate_id(x509.load_pem_x509_certificate(certificate_pem.encode()))
        except READ_ERRORS as error:
            raise RenewalInfoUnsupportedError(f"the CA can't be asked: {error}") from error
        deadline = Deadline.after(timeout, self._clock)
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                return await self._pool.run(self._ask, name, deadline.at)
        except TimeoutError as error:
            raise RenewalInfoError("no answer in time", temporary=True) from error

    def _ask(self, name: str, deadline: float) -> RenewalInfo:
        try:
            network = self._idle.pop()
        except IndexError:
            network = self._new_network()
        network.deadline = deadline
        try:
            endpoint = self._find_endpoint(network)
            response = self._fetch(network, f"{endpoint.rstrip('/')}/{name}")
            return parse_renewal_info(_json(response), self._retry_after(response))
        except AcmeError as error:
            raise RenewalInfoError(error.refusal.message, temporary=True) from error
        except ValueError as error:
            raise RenewalInfoError(f"the CA sent {error}", temporary=False) from error
        finally:
            self._idle.append(network)
            if self._closed:
                self.close()

    def _new_network(self) -> AcmeNetwork:
        bundle = None if self._server.ca_bundle is None else str(self._server.ca_bundle)
        return AcmeNetwork(self._key, self._hosts, self._clock, user_agent=self._server.user_agent, ca_bundle=bundle)

    def _find_endpoint(self, network: AcmeNetwork) -> str:
        now = self._clock.now()
        if self._endpoint is None or not timedelta() <= now - self._endpoint[1] < _DIRECTORY_LIFE:
            directory = _json(self._fetch(network, self._server.directory_url))
            if not isinstance(directory, dict):
                raise ValueError("a directory that isn't a JSON object")
            url = directory.get("renewalInfo")
            try:
                self._endpoint = ("" if url is None else self._hosts.check(url), now)
            except ForbiddenUrlError as error:
                raise ValueError(str(error)) from error
        if not self._endpoint[0]:
            raise RenewalInfoUnsupportedError("the CA offers no renewal information")
        return self._endpoint[0]

    def _fetch(self, network: AcmeNetwork, url: str) -> requests.Response:
        response = network.fetch(url)
        status = response.status_code
        if status == http.HTTPStatus.OK:
            return response
        # What passes by itself (RFC 9773 4.3.3): a server's errors and limits do; a 404, or a redirect, doesn't.
        temporary = status >= 500 or status in _PASSING
        raise RenewalInfoError(
            f"the CA answered with HTTP status {status}", temporary=temporary, retry_after=self._retry_after(response)
        )

    def _retry_after(self, response: requests.Response) -> timedelta | None:
        return parse_retry_after(response.headers.get("Retry-After"), self._clock.now())


def _shown_url(url: object) -> str:
    shown = one_line(url, _LONGEST_URL + 1)
    fits = len(shown) <= _LONGEST_URL and " " not in shown and shown.lower().startswith(("https://", "http://"))
    return shown if fits else ""


def _json(response: requests.Response) -> object:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError) as error:
        raise ValueError("a body that isn't JSON") from error


def _time(window: Mapping[str, object], name: str) -> datetime:
    text = window.get(name)
    # Stricter than `fromisoformat`: that takes dates alone, week dates, and times without a zone.
    if not isinstance(text, str) or not _RFC3339.fullmatch(text):
        raise ValueError(f"a window whose {name} isn't a time of RFC 3339")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a window whose {name} is no time") from error
