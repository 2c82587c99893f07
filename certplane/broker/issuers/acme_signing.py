"""Signed requests: the JWS around each POST, the nonces that the CA hands out, and another try after a bad one.

Signatures are made on the event loop: P-256, which new account keys are, takes 0.06 ms, with josepy's JSON 0.3 ms. An
RSA key that was brought along takes 1 ms (2048 bits) to 5 ms (4096 bits) a request; a thread would not help, since
`cryptography` keeps the interpreter's lock while it signs.
"""

from __future__ import annotations

import asyncio
from collections import deque

from acme.jws import JWS
from josepy.errors import DeserializationError
from josepy.json_util import decode_b64jose

from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_errors import AcmeAnswer, AcmeError, refused
from certplane.broker.issuers.acme_http import AcmeHttp
from certplane.errors import Reason

_AT_ONCE = 4
"""Signed requests under way at once, for one account: a burst of orders is no burst for the CA."""
_NONCE_TRIES = 5


class SignedRequests:
    """POSTs to one CA. Safe for concurrent use on one event loop."""

    def __init__(self, http: AcmeHttp) -> None:
        """Nothing is sent yet."""
        self._http = http
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._nonces: deque[bytes] = deque(maxlen=_AT_ONCE)
        """The newest, as many as can be needed at once: a CA forgets old ones, and each answer brings another."""

    async def post(
        self, url: str, payload: bytes, key: AccountKey, *, account_url: str, new_nonce_url: str
    ) -> AcmeAnswer:
        """POST `payload`, signed by `key`; the answer is a 2xx one.

        A bad nonce is tried up to five times, each with the nonce that came with the refusal (RFC 8555 6.5).

        Args:
            url: where to.
            payload: JSON; empty for a POST-as-GET (6.3).
            key: signs.
            account_url: names the key; empty to send the key itself (6.2).
            new_nonce_url: gives nonces where none is left.

        Raises:
            AcmeError: it failed, or the CA refused it.
        """
        async with self._slots:
            nonce = None
            for tried in range(1, _NONCE_TRIES + 1):
                nonce = nonce or await self._next_nonce(new_nonce_url)
                signed = JWS.sign(
                    payload, key=key.jwk, alg=key.algorithm, nonce=nonce, url=url, kid=account_url or None
                )
                answer = await self._http.send("POST", url, signed.json_dumps().encode(), "application/jose+json")
                nonce = _nonce_of(answer)
                if 200 <= answer.status < 300:
                    break
                error = refused(answer)
                bad = error.is_problem("badNonce")
                if bad:  # the others are no younger
                    self._nonces.clear()
                if not bad or tried == _NONCE_TRIES:
                    self._keep(nonce)
                    raise error
        self._keep(nonce)
        return answer

    def _keep(self, nonce: bytes | None) -> None:
        if nonce:
            self._nonces.append(nonce)

    async def _next_nonce(self, url: str) -> bytes:
        if self._nonces:
            return self._nonces.pop()
        try:
            answer = await self._http.send("HEAD", url)
            if not 200 <= answer.status < 300:
                raise refused(answer)
        except AcmeError as error:
            error.unsent = True
            raise
        if (nonce := _nonce_of(answer)) is None:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it gave no nonce", unsent=True)
        return nonce


def _nonce_of(answer: AcmeAnswer) -> bytes | None:
    """The nonce that an answer brings; one that isn't base64url is none (6.5.1)."""
    try:
        return decode_b64jose(answer.headers.get("replay-nonce", "")) or None
    except DeserializationError:
        return None
