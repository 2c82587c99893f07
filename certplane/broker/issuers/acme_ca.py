"""`AcmeCa`: one public CA as configured: how it is reached, and its directory.

There is one for each issuer: `AcmeIssuer`, `AcmeRenewalInfo` and `DirectoryCaaIdentity` use the same connections, trust
the same roots and read the same directory.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import httpx

from certplane.broker.issuers.acme_directory import AcmeDirectory, parse_directory
from certplane.broker.issuers.acme_errors import ACTION_REQUIRED, LONGEST_URL, AcmeError, refused, too_late
from certplane.broker.issuers.acme_http import AcmeHttp
from certplane.broker.issuers.acme_resources import MalformedAnswerError
from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.issuers.outgoing import AllowedHosts, ForbiddenUrlError, trusted_roots
from certplane.errors import ConfigurationError, ConfigurationProblem, ProblemDocument, Reason
from certplane.runtime.clock import Clock


@dataclass(frozen=True, slots=True)
class AcmeServer:
    """Which CA, and how it is reached.

    Attributes:
        directory_url: `issuer.acme.directory_url`, https.
        account_email: contact given when the account is made; may be empty.
        preferred_chain: common name of the issuer of the wanted chain's last certificate; empty for the CA's default.
        allowed_hosts: more hosts that its answers may point to, `host` or `host:port`.
        ca_bundle: PEM file with the roots of a private CA's HTTPS server; None for the public ones.
        user_agent: with the program's version.
        section: the configuration's section of this CA, whose keys messages name.
        challenge: how names are proved to it.
    """

    directory_url: str
    account_email: str = ""
    preferred_chain: str = ""
    allowed_hosts: tuple[str, ...] = ()
    ca_bundle: Path | None = None
    user_agent: str = "certplane"
    section: str = "issuer.acme"
    challenge: ChallengeKind = ChallengeKind.DNS_01


class AcmeCa:
    """Connections to one CA and what its directory said. Nothing is sent before the first question."""

    def __init__(self, server: AcmeServer, clock: Clock) -> None:
        """Read the roots; blocks for as long.

        Raises:
            ConfigurationError: the directory's URL, an allowed host or the roots can't be used.
        """
        try:
            hosts = AllowedHosts(server.directory_url, server.allowed_hosts)
        except ForbiddenUrlError as error:
            problem = ConfigurationProblem("", None, f"{server.section}.directory_url", str(error), "name an https URL")
            raise ConfigurationError([problem]) from error
        if server.ca_bundle is None:
            roots = httpx.create_ssl_context(trust_env=False)
        else:
            roots = trusted_roots(server.ca_bundle, f"{server.section}.ca_bundle")
        self.server, self.clock = server, clock
        self.http = AcmeHttp(hosts, roots, clock, user_agent=server.user_agent)
        self._known: AcmeDirectory | None = None
        self._known_at = 0.0
        self._reading = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        await self.http.close()

    async def directory(self, max_age: timedelta) -> AcmeDirectory:
        """The directory as it was read at most `max_age` ago, by whoever. Bound it with `asyncio.timeout`.

        Raises:
            AcmeError: see `fetch_directory`.
        """
        async with self._reading:
            age = self.clock.monotonic() - self._known_at
            if self._known is None or age > max_age.total_seconds():
                return await self.fetch_directory()
            return self._known

    async def read_directory(self, timeout: timedelta) -> AcmeDirectory:
        """As `fetch_directory`, within `timeout`."""
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                return await self.fetch_directory()
        except TimeoutError as error:
            raise too_late() from error

    async def fetch_directory(self) -> AcmeDirectory:
        """The directory, asked for once, now. Bound it with `asyncio.timeout`.

        Raises:
            AcmeError: it can't be read; the message has its URL, and what to do about it.
        """
        url, section = self.server.directory_url, self.server.section
        try:
            answer = await self.http.send("GET", url)
            if answer.status >= 500 or answer.status in {408, 429}:
                raise refused(answer)
        except AcmeError as error:
            error.refusal = replace(error.refusal, message=f"{one_line(url, LONGEST_URL)}: {error.refusal.message}")
            if error.unreachable:
                error.add(
                    f"check host and port of {section}.directory_url, the way there, and, for a private CA, "
                    f"{section}.ca_bundle"
                )
            raise
        try:
            self._known = parse_directory(answer, self.http.hosts)
        except ForbiddenUrlError as error:
            raise _misplaced(url, f"it holds {error}", f"add that host to {section}.allowed_hosts") from error
        except MalformedAnswerError as error:
            remedy = f"set {section}.directory_url to the URL that the CA documents for its ACME directory"
            raise _misplaced(url, str(error), remedy) from error
        self._known_at = self.clock.monotonic()
        return self._known


def _misplaced(url: str, what: str, remedy: str) -> AcmeError:
    """What is at the directory's URL is another thing: that doesn't pass by itself."""
    said = f"{one_line(url, LONGEST_URL)} is no ACME directory: {what}"
    problem = ProblemDocument(ACTION_REQUIRED, said)
    error = AcmeError(Reason.ISSUER_REJECTED, f"{said}; {remedy}", problems=(problem,), unsent=True)
    error.misplaced = True
    return error
