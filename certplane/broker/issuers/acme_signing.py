"""Signed requests: the JWS around each POST, the nonces that the CA hands out, and another try after a bad one.

Signatures are made on the event loop: P-256, which new account keys are, takes 0.06 ms. An RSA key that was brought
along takes 1 ms (2048 bits) to 5 ms (4096 bits) a request; a thread would not help, since `cryptography` keeps the
interpreter's lock while it signs.

The key and its algorithm are josepy's, the JSON around the signature is made here: `acme.jws` takes five times as long
as the signature, because it builds each header twice and reads its own JSON again. A test holds one to the other.
"""

from __future__ import annotations

import asyncio
import re
from base64 import urlsafe_b64encode
from collections import deque
from typing import Final

import msgspec

from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_errors import AcmeAnswer, AcmeError, refused
from certplane.broker.issuers.acme_http import AcmeHttp
from certplane.errors import Reason

_AT_ONCE = 4
"""Signed requests under way at once, for one account: a burst of orders is no burst for the CA."""
_NONCE_TRIES = 5
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def base64url(octets: bytes) -> str:
    """As JWS has it: without padding (RFC 7515 2)."""
    return urlsafe_b64encode(octets).decode("ascii").rstrip("=")


def signed(payload: bytes, key: AccountKey, *, url: str, nonce: str, account_url: str) -> bytes:
    """A request's body: the JWS of `payload`, flattened, all of its header protected (RFC 8555 6.2).

    `account_url` names the key; where it is empty, the header has the key itself.
    """
    named = {"kid": account_url} if account_url else {"jwk": key.public_jwk}
    header = msgspec.json.encode({"alg": key.algorithm.name, **named, "nonce": nonce, "url": url})
    protected, content = base64url(header), base64url(payload)
    signature = key.algorithm.sign(key.jwk.key, f"{protected}.{content}".encode("ascii"))
    return msgspec.json.encode({"protected": protected, "payload": content, "signature": base64url(signature)})


class SignedRequests:
    """POSTs to one CA. Safe for concurrent use on one event loop."""

    def __init__(self, http: AcmeHttp) -> None:
        """Nothing is sent yet."""
        self._http = http
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._nonces: deque[str] = deque(maxlen=_AT_ONCE)
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
            nonce = ""
            for tried in range(1, _NONCE_TRIES + 1):
                nonce = nonce or await self._next_nonce(new_nonce_url)
                body = signed(payload, key, url=url, nonce=nonce, account_url=account_url)
                answer = await self._http.send("POST", url, body, "application/jose+json")
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

    def _keep(self, nonce: str) -> None:
        if nonce:
            self._nonces.append(nonce)

    async def _next_nonce(self, url: str) -> str:
        if self._nonces:
            return self._nonces.pop()
        try:
            answer = await self._http.send("HEAD", url)
            if not 200 <= answer.status < 300:
                raise refused(answer)
        except AcmeError as error:
            error.unsent = True
            raise
        if not (nonce := _nonce_of(answer)):
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it gave no nonce", unsent=True)
        return nonce


def _nonce_of(answer: AcmeAnswer) -> str:
    """The nonce that an answer brings; empty where there is none, or one that isn't base64url (6.5.1)."""
    nonce = answer.headers.get("replay-nonce", "").rstrip("=")
    return nonce if _BASE64URL.fullmatch(nonce) else ""
