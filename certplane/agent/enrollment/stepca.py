"""The internal CA as `IdentityAuthority`: step-ca's `/sign`, `/renew` and `/rekey`, and renewal after expiry.

Rules: the CA is identified before anything is sent; a call is repeated only if nothing was sent; what comes back is
believed only if its leaf is for our key and our names and its chain leads to a pinned root. The whole chain is kept, so
that a CA with intermediates works.
"""

from __future__ import annotations

import logging
import random
import ssl
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from cryptography import x509
from typing_extensions import override

from certplane.agent.enrollment.answers import (
    NEW_TOKEN,
    accept_certificate,
    check_identity,
    renewal_refused,
    san_names,
    sign_refused,
)
from certplane.agent.enrollment.recovery import SigningKey, renewal_token
from certplane.agent.model import IssuedCertificate, Version
from certplane.agent.ports import IdentityAuthority
from certplane.errors import CertplaneError, OperationError
from certplane.pki.keys import load_private_key, public_key_sha256
from certplane.pki.reading import READ_ERRORS
from certplane.pki.trust_bundle import TrustBundle
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool
from certplane.stepca.errors import EnrollmentError, RefusedError, UnreachableError
from certplane.stepca.exchange import Endpoint, Reply, exchange
from certplane.stepca.token import check_token, parse_token
from certplane.stepca.trust import PinnedRoots, Trust, pinned_roots

T = TypeVar("T")

logger = logging.getLogger(__name__)

_TRIES = 3
_BACKOFF = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=4), floor=timedelta(milliseconds=200))
_CREATED = 201


class StepCaAuthority(IdentityAuthority):
    """`IdentityAuthority` over HTTPS. Safe to call concurrently: the calls go one after the other.

    Args:
        endpoint: where the CA answers.
        trust: what it is known by.
        timeout: of one request; see `exchange`.
        clock: judges tokens, and waits between tries.
        rng: spreads those waits.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        trust: Trust,
        timeout: timedelta,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._endpoint = endpoint
        self._trust = trust
        self._timeout = timeout
        self._clock = clock
        self._rng = rng
        self._pool = BlockingPool("step-ca", 1)

    @override
    async def enroll(self, token: str, csr_pem: str) -> IssuedCertificate:
        return await self._repeated(lambda: self._enroll(token, csr_pem))

    @override
    async def renew(self, current: Version) -> IssuedCertificate:
        return await self._repeated(lambda: self._renew(current))

    @override
    async def rekey(self, current: Version, csr_pem: str) -> IssuedCertificate:
        return await self._repeated(lambda: self._rekey(current, csr_pem))

    @override
    async def recover(self, expired: Version) -> IssuedCertificate:
        return await self._repeated(lambda: self._recover(expired))

    @override
    async def vouch(self, certificate_pem: str, chain_pem: str) -> None:
        await self._repeated(lambda: self._vouch(certificate_pem, chain_pem))

    async def check(self) -> str:
        """Find the CA, identify it and ask for its health; returns its URL. Sends nothing that matters.

        Raises:
            EnrollmentError: it isn't there, isn't the pinned one, or isn't well.
            ConfigurationError: the bundle can't be used.
        """
        return await self._pool.run(self._check)

    def close(self) -> None:
        """Take no more calls."""
        self._pool.close()

    async def _repeated(self, call: Callable[[], T]) -> T:
        for failures in range(1, _TRIES):
            try:
                return await self._pool.run(call)
            except UnreachableError:
                await self._clock.sleep(_BACKOFF.wait(failures, self._rng))
        return await self._pool.run(call)

    def _enroll(self, token: str, csr_pem: str) -> IssuedCertificate:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        names = san_names(csr.extensions)
        claims = parse_token(token)
        roots, anchors = self._believed()
        if claims.warning:
            logger.warning("%s", claims.warning)
        check_token(claims, names=names, root_sha256=roots.sha256, now=self._clock.now())
        try:
            reply = self._exchange("POST", "/sign", roots.context(), body={"csr": csr_pem, "ott": token})
            if reply.status != _CREATED:
                raise sign_refused(reply, self._endpoint.origin)
            return self._accepted(reply, csr, names, anchors)
        except (UnreachableError, RefusedError):
            raise
        except EnrollmentError as error:
            raise EnrollmentError(
                error.message,
                remedy=f"{error.remedy}; the token may be spent, so {NEW_TOKEN}",
                token_spent=True,
            ) from error

    def _renew(self, current: Version) -> IssuedCertificate:
        roots, anchors = self._believed()
        leaf = _read_chain(current)[0]
        reply = self._exchange("POST", "/renew", _with_identity(roots.context(), current))
        return self._renewed(reply, leaf, leaf, anchors)

    def _rekey(self, current: Version, csr_pem: str) -> IssuedCertificate:
        roots, anchors = self._believed()
        leaf = _read_chain(current)[0]
        reply = self._exchange("POST", "/rekey", _with_identity(roots.context(), current), body={"csr": csr_pem})
        return self._renewed(reply, x509.load_pem_x509_csr(csr_pem.encode()), leaf, anchors)

    def _recover(self, expired: Version) -> IssuedCertificate:
        roots, anchors = self._believed()
        chain = _read_chain(expired)
        audience = f"{self._endpoint.origin}/renew"
        bearer = renewal_token(chain, _read_key(expired), audience=audience, now=self._clock.now())
        reply = self._exchange("POST", "/renew", roots.context(), bearer=bearer)
        return self._renewed(reply, chain[0], chain[0], anchors)

    def _vouch(self, certificate_pem: str, chain_pem: str) -> None:
        _, anchors = self._believed()
        check_identity(certificate_pem, chain_pem, anchors, self._clock.now())

    def _check(self) -> str:
        roots, _ = self._believed()
        reply = self._exchange("GET", "/health", roots.context())
        if reply.status != 200 or reply.json().get("status") != "ok":
            raise EnrollmentError(
                f"the internal CA at {self._endpoint.origin} is not healthy (HTTP {reply.status})",
                remedy="check the CA's log, and that identity.step_ca.url is step-ca's",
            )
        return self._endpoint.origin

    def _believed(self) -> tuple[PinnedRoots, TrustBundle]:
        """The roots to connect with and what an identity must lead to: both known before anything is sent."""
        now = self._clock.now()
        roots = pinned_roots(self._endpoint, self._trust, self._timeout, now=now)
        return roots, self._trust.anchors(roots, now)

    def _exchange(
        self,
        method: str,
        route: str,
        context: ssl.SSLContext,
        *,
        body: dict[str, str] | None = None,
        bearer: str = "",
    ) -> Reply:
        return exchange(self._endpoint, method, route, context=context, timeout=self._timeout, body=body, bearer=bearer)

    def _renewed(
        self,
        reply: Reply,
        keyed: x509.Certificate | x509.CertificateSigningRequest,
        leaf: x509.Certificate,
        anchors: TrustBundle,
    ) -> IssuedCertificate:
        if reply.status != _CREATED:
            raise renewal_refused(reply, self._endpoint.origin)
        return self._accepted(reply, keyed, san_names(leaf.extensions), anchors)

    def _accepted(
        self,
        reply: Reply,
        keyed: x509.Certificate | x509.CertificateSigningRequest,
        names: tuple[str, ...],
        anchors: TrustBundle,
    ) -> IssuedCertificate:
        """`accept_certificate` for the key of `keyed`, at this moment."""
        return accept_certificate(
            reply,
            key_sha256=public_key_sha256(keyed.public_key()),
            names=names,
            anchors=anchors,
            now=self._clock.now(),
        )


def _with_identity(context: ssl.SSLContext, current: Version) -> ssl.SSLContext:
    """`context` with the identity as client certificate, intermediates included."""
    fullchain, key = current.path / "fullchain.pem", current.path / "privkey.pem"
    try:
        # a password keeps OpenSSL from asking on the terminal, should the key be encrypted
        context.load_cert_chain(fullchain, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise _unusable(current, error) from error
    return context


def _read_chain(version: Version) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates((version.path / "fullchain.pem").read_bytes())
    except (OSError, *READ_ERRORS) as error:
        raise _unusable(version, error) from error


def _read_key(version: Version) -> SigningKey:
    try:
        return load_private_key((version.path / "privkey.pem").read_bytes())
    except (OSError, CertplaneError, *READ_ERRORS) as error:
        raise _unusable(version, error) from error


def _unusable(version: Version, error: Exception) -> OperationError:
    reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return OperationError(
        f"the identity in {version.path} can't be used: {reason}",
        remedy="restore it from a backup, or get a new token and run `certplane-agent enroll --force`",
    )
