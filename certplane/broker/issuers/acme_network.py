"""What an ACME client sends and accepts: the wire below `acme_client`, on top of `acme`'s signatures and nonces.

`acme.client.ClientNetwork` trusts its CA: it follows redirects, reads bodies of any size, drops `Retry-After` and the
nonces of error answers, and tries a bad nonce once more. Here:

- only https, only allowed hosts, no redirects (`outgoing`);
- bodies of at most 1 MiB, read until the call's deadline and no longer;
- `badNonce` up to five tries, each with the nonce that came with the refusal (RFC 8555 6.5);
- every failure is an `AcmeError` (RFC 8555 6.7), which says whether the request can have had an effect.

One object belongs to one worker at a time: neither its session nor its nonces are made for several threads. Nothing is
repeated here but bad nonces: what is safe to repeat is known by who asks.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests
import urllib3.exceptions
from acme import errors
from acme.client import ClientNetwork
from josepy.interfaces import JSONDeSerializable
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_limits import ACCOUNT, NAME_SET
from certplane.broker.issuers.acme_resources import problem_documents
from certplane.broker.issuers.answers import one_line, parse_retry_after
from certplane.broker.issuers.outgoing import AllowedHosts, ForbiddenUrlError, roots_context
from certplane.broker.model import Scope
from certplane.errors import ProblemDocument, Reason, RefusalError, Violation
from certplane.runtime.clock import Clock

LARGEST_BODY = 1024 * 1024
"""Chains, orders and directories of real CAs stay below 64 KiB."""

_SOCKET_TIMEOUT = timedelta(seconds=30)
"""For connecting and for each wait on the socket; the call's deadline comes first if it is nearer."""
_READ_SIZE = 64 * 1024
_NONCE_TRIES = 5
_UNKNOWN_WAIT = timedelta(minutes=10)
"""After a rate limit without `Retry-After` (RFC 8555 6.6 asks for one): the second step of the waits that Let's
Encrypt's integration guide recommends."""
_LONGEST_URL = 200
_URN = "urn:ietf:params:acme:error:"

# `acme` logs every payload at DEBUG, account data and CSRs included: never, whatever level the program has.
logging.getLogger("acme").setLevel(logging.WARNING)


class AcmeError(RefusalError):
    """A step at the CA failed.

    Attributes:
        unsent: the CA can't have received the request, so that repeating even a finalisation is safe.
        missing: the CA's own word is that it doesn't know what the URL names (404).
        misplaced: something else than an ACME directory is at the directory's URL.
        unreachable: nobody answers there: no address, no connection, no trusted certificate.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after: timedelta | None = None,
        problems: Sequence[ProblemDocument] = (),
        violations: Sequence[Violation] = (),
        unsent: bool = False,
        missing: bool = False,
    ) -> None:
        super().__init__(reason, message, retry_after=retry_after, problems=problems, violations=violations)
        self.unsent = unsent
        self.missing = missing
        self.misplaced = self.unreachable = False

    def concern(self, scopes: Iterable[Scope]) -> None:
        """Say for what the CA is not to be asked again, if this is a rate limit."""
        if self.refusal.reason is Reason.ISSUER_RATE_LIMITED:
            said = self.refusal.violations[0].description if self.refusal.violations else self.refusal.message
            self.refusal = replace(self.refusal, violations=tuple(Violation(str(scope), said) for scope in scopes))

    def add(self, remedy: str) -> None:
        """Say in the message what to do about it."""
        self.refusal = replace(self.refusal, message=f"{self.refusal.message}; {remedy}")

    def is_problem(self, name: str) -> bool:
        """Whether the CA's problem document is of this type (the last part of the URN, RFC 8555 6.7)."""
        return bool(self.refusal.problems) and self.refusal.problems[0].type == _URN + name


class _RootsAdapter(HTTPAdapter):
    """HTTPS by a context's roots alone; `requests` would add the public ones, or have OpenSSL read the file."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context  # first: the base makes its pools
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, **proxy_kwargs, ssl_context=self._context)

    def cert_verify(self, conn: Any, *_args: Any, **_kwargs: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"


class AcmeNetwork(ClientNetwork):
    """One worker's connection to the CA."""

    def __init__(
        self, key: AccountKey, hosts: AllowedHosts, clock: Clock, *, user_agent: str, ca_bundle: str | None = None
    ) -> None:
        """Nothing is sent yet.

        Args:
            key: signs the requests.
            hosts: which may be called.
            clock: for deadlines and for dates in `Retry-After`.
            user_agent: as RFC 8555 6.1 demands.
            ca_bundle: PEM file with the roots of a private CA's HTTPS server; None for the public ones.
        """
        super().__init__(key.jwk, alg=key.algorithm, user_agent=user_agent)
        self._hosts = hosts
        self._clock = clock
        # False keeps ~/.netrc and REQUESTS_CA_BUNDLE out; an operator's proxy is honoured in `_send_request`.
        self.session.trust_env = False
        if ca_bundle is not None:
            self.session.mount("https://", _RootsAdapter(roots_context(Path(ca_bundle))))
        self.deadline = 0.0
        """Monotonic time; set before each call."""

    def get(self, url: str, *_args: Any, **_kwargs: Any) -> requests.Response:
        """GET, as for the directory only; whatever status below 500 it has, but no rate limit. Raises `AcmeError`."""
        response = self._send_request("GET", url)
        if response.status_code >= 500 or response.status_code in {408, 429}:
            raise self._refused(response)
        return response

    def close(self) -> None:
        """Close its connections."""
        self.session.close()

    def fetch(self, url: str) -> requests.Response:
        """GET; whatever status it has. Raises `AcmeError` unless a whole answer came."""
        return self._send_request("GET", url)

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """POST a signed object; the answer is a 2xx one. Raises `AcmeError`."""
        for _ in range(_NONCE_TRIES - 1):
            try:
                return self._post_once(*args, **kwargs)
            except AcmeError as error:
                if not error.is_problem("badNonce"):
                    raise
        return self._post_once(*args, **kwargs)

    def _post_once(
        self, url: str, obj: JSONDeSerializable, content_type: str = ClientNetwork.JOSE_CONTENT_TYPE, **kwargs: Any
    ) -> requests.Response:
        try:
            nonce = self._nonces.pop() if self._nonces else self._new_nonce(kwargs["new_nonce_url"])
        except AcmeError as error:
            error.unsent = True
            raise
        data = self._wrap_in_jws(obj, nonce, url)
        response = self._send_request("POST", url, data=data, headers={"Content-Type": content_type})
        self._keep_nonce(response)
        return self._checked(response)

    def _new_nonce(self, url: str) -> str:
        response = self._checked(self._send_request("HEAD", url))
        self._keep_nonce(response)
        if not self._nonces:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it gave no nonce")
        return self._nonces.pop()

    def _keep_nonce(self, response: requests.Response) -> None:
        # Only the newest: a CA forgets old ones, and each answer brings another.
        self._nonces.clear()
        with contextlib.suppress(errors.NonceError):
            self._add_nonce(response)

    def _send_request(self, method: str, url: str, *_args: Any, **kwargs: Any) -> requests.Response:
        """One exchange; the body has been read when it returns. Raises `AcmeError` unless a whole answer came."""
        try:
            self._hosts.check(url)
        except ForbiddenUrlError as error:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"its answer held {error}", unsent=True) from error
        headers = {"User-Agent": self.user_agent, "Accept-Encoding": "identity", **kwargs.get("headers", {})}
        with _failures_as_acme_errors():
            response = self.session.request(
                method,
                url,
                data=kwargs.get("data"),
                headers=headers,
                proxies=get_environ_proxies(url),
                timeout=self._socket_timeout(),
                allow_redirects=False,
                stream=True,
            )
            with contextlib.closing(response):
                body = self._read(response)
            # Public way to give a streamed response its content: what it reads from.
            response.raw = io.BytesIO(body)
            response.encoding = "utf-8"
        return response

    def _read(self, response: requests.Response) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _unreadable("a compressed body that was not asked for")
        body = bytearray()
        # read1 returns what has come, so that a server that drips can't hold the call past its deadline.
        while chunk := response.raw.read1(_READ_SIZE):
            body += chunk
            if len(body) > LARGEST_BODY:
                raise _unreadable(f"a body of more than {LARGEST_BODY} bytes")
            self._socket_timeout()
        return bytes(body)

    def _socket_timeout(self) -> float:
        left = self.deadline - self._clock.monotonic()
        if left <= 0:
            raise requests.Timeout
        return min(left, _SOCKET_TIMEOUT.total_seconds())

    def _checked(self, response: requests.Response) -> requests.Response:
        """A 2xx answer, else an `AcmeError`."""
        if 200 <= response.status_code < 300:
            return response
        raise self._refused(response)

    def _refused(self, response: requests.Response) -> AcmeError:
        status = response.status_code
        retry_after = parse_retry_after(response.headers.get("Retry-After"), self._clock.now())
        problems = problem_documents(_json_or_none(response), status)
        if status == 429 or (problems and problems[0].type == f"{_URN}rateLimited"):
            said = problems[0].detail if problems else "too many requests"
            wait = _UNKNOWN_WAIT if retry_after is None else retry_after
            # Directory and nonces name no order: too many of those are the client's. Who asks for one knows better.
            limit = Violation(str(NAME_SET if response.request.method == "POST" else ACCOUNT), said)
            return AcmeError(Reason.ISSUER_RATE_LIMITED, said, retry_after=wait, problems=problems, violations=[limit])
        if 300 <= status < 400:
            return _unreadable(f"a redirect ({status}), which isn't followed")
        if not problems and status < 500 and self.REPLAY_NONCE_HEADER in response.headers:
            # Pebble's way to say that it doesn't know an order: nothing but a status. The nonce shows whose it is.
            problems = (ProblemDocument("about:blank", f"HTTP status {status}", status),)
        # Anything else is something in front of the CA: a page of HTML is not the CA's word.
        if not problems:
            return AcmeError(Reason.ISSUER_UNAVAILABLE, f"HTTP status {status}", retry_after=retry_after)
        name = problems[0].type.removeprefix(_URN)
        said = f"{name}: {problems[0].detail}"
        if name == "userActionRequired":
            said += f"; a person has to visit {_where_to_act(response) or 'the CA'}"
        temporary = status >= 500 or status == 408 or name in {"serverInternal", "badNonce"}
        reason = Reason.ISSUER_UNAVAILABLE if temporary else Reason.ISSUER_REJECTED
        # A request with a bad nonce is not looked at any further (RFC 8555 6.5), so that it may be sent again.
        missing = status == 404 and name != "accountDoesNotExist"
        return AcmeError(
            reason, said, retry_after=retry_after, problems=problems, unsent=name == "badNonce", missing=missing
        )


def _json_or_none(response: requests.Response) -> object:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _where_to_act(response: requests.Response) -> str:
    """Where a person does what the CA asks for (RFC 8555 7.3.3): shown to people, never fetched. Empty if unsaid."""
    body = _json_or_none(response)
    instance = body.get("instance") if isinstance(body, dict) else None
    for url in (instance, response.links.get("terms-of-service", {}).get("url")):
        shown = one_line(url, _LONGEST_URL)
        if shown.startswith(("https://", "http://")) and " " not in shown:
            return shown
    return ""


def _unreadable(what: str) -> AcmeError:
    return AcmeError(Reason.ISSUER_UNAVAILABLE, f"it sent {what}")


@contextlib.contextmanager
def _failures_as_acme_errors() -> Iterator[None]:
    try:
        yield
    except AcmeError:
        raise
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        failure = AcmeError(
            Reason.ISSUER_UNAVAILABLE, f"no answer: {_what_happened(error)}", unsent=_nothing_sent(error)
        )
        failure.unreachable = _is_unreachable(error)
        raise failure from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: `requests` wraps urllib3's MaxRetryError, which has the cause as `reason`."""
    seen: set[int] = set()
    queue: list[object] = [error]
    while queue:
        cause = queue.pop(0)
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            queue += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]


def _nothing_sent(error: BaseException) -> bool:
    unconnected = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return any(isinstance(cause, unconnected) for cause in _causes(error))


def _is_unreachable(error: BaseException) -> bool:
    """Whether no connection came about for a reason that rarely passes by itself; a timeout may."""
    refused = (urllib3.exceptions.NewConnectionError, ssl.SSLError, requests.exceptions.SSLError)
    return not isinstance(error, requests.Timeout) and any(isinstance(cause, refused) for cause in _causes(error))


def _what_happened(error: BaseException) -> str:
    if isinstance(error, requests.Timeout):
        return "it took too long"
    for cause in _causes(error):
        if isinstance(cause, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
            return f"TLS failed ({one_line(_innermost(error), 200)})"
    return one_line(_innermost(error), 200)


def _innermost(error: BaseException) -> str:
    *_, last = _causes(error)
    return f"{type(last).__name__}: {last}" if str(last) else type(last).__name__
