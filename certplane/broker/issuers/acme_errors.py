"""`AcmeError`: how a step at a CA failed, and what a CA's refusal means (RFC 8555 6.6 and 6.7). Pure.

A problem document is the CA's word. Anything else that isn't a success (a page of HTML, a redirect, a bare status)
comes from something in front of the CA and is an outage, except a bare status that brings a nonce: it is the CA's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from acme import errors
from josepy.errors import Error as JoseError

from certplane.broker.issuers.acme_limits import ACCOUNT, NAME_SET
from certplane.broker.issuers.acme_resources import MalformedAnswerError, parse_json, problem_documents
from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.outgoing import ForbiddenUrlError
from certplane.broker.model import Scope
from certplane.errors import ProblemDocument, Reason, RefusalError, Violation

LONGEST_URL = 200
"""Characters of a URL in a message."""
_URN = "urn:ietf:params:acme:error:"
ACTION_REQUIRED = f"{_URN}userActionRequired"
"""The type of problem that calls a person for the whole account (RFC 8555 6.7)."""

_UNKNOWN_WAIT = timedelta(minutes=10)
"""After a rate limit without `Retry-After` (RFC 8555 6.6 asks for one): the second step of the waits that Let's
Encrypt's integration guide recommends."""

_LINK = re.compile(r"<([^<>]*)>([^<]*)")
_RELATION = re.compile(r';\s*rel\s*=\s*"?([^";,]*)', re.IGNORECASE)


class AcmeError(RefusalError):
    """A step at the CA failed.

    Attributes:
        unsent: the CA can't have received the request, so that repeating even a finalisation is safe.
        missing: the CA itself says that it doesn't know what the URL names (404).
        misplaced: something other than an ACME directory is at the directory's URL.
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

    @property
    def suspects_configuration(self) -> bool:
        """Whether the configuration is to be suspected rather than the hour: a wrong server there, or none."""
        return self.misplaced or self.unreachable

    def concern(self, scopes: Iterable[Scope]) -> None:
        """Say for what the CA is not to be asked again, if this is a rate limit."""
        if self.refusal.reason is Reason.ISSUER_RATE_LIMITED:
            said = self.refusal.violations[0].description if self.refusal.violations else self.refusal.message
            self.refusal = replace(self.refusal, violations=tuple(Violation(str(scope), said) for scope in scopes))

    def add(self, remedy: str) -> None:
        """Say in the message what to do about it."""
        self.refusal = replace(self.refusal, message=f"{self.refusal.message}; {remedy}")

    def is_problem(self, *names: str) -> bool:
        """Whether the CA's problem document has one of these types (the last part of the URN, RFC 8555 6.7)."""
        return bool(self.refusal.problems) and self.refusal.problems[0].type in {_URN + name for name in names}


@dataclass(frozen=True, slots=True)
class AcmeAnswer:
    """A whole answer: `headers` are asked by lower-case names, `retry_after` is the CA's wish, `body` is bounded."""

    method: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after: timedelta | None = None

    @property
    def text(self) -> str:
        """The body as text; what isn't UTF-8 is replaced."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body's JSON. Raises `MalformedAnswerError` if it has none."""
        return parse_json(self.body)

    def links(self, relation: str) -> tuple[str, ...]:
        """The URLs of its `Link` headers with this relation (RFC 8288), as the CA writes them."""
        found = _LINK.findall(self.headers.get("link", ""))
        return tuple(url for url, rest in found if (rel := _RELATION.search(rest)) and relation in rel[1].split())


def too_late() -> AcmeError:
    """The caller's deadline passed."""
    return AcmeError(Reason.ISSUER_UNAVAILABLE, "no answer in time")


def refused(answer: AcmeAnswer) -> AcmeError:
    """What an answer that is no success means."""
    status, retry_after = answer.status, answer.retry_after
    problems = problem_documents(_json_or_none(answer), status)
    if status == 429 or (problems and problems[0].type == f"{_URN}rateLimited"):
        said = problems[0].detail if problems else "too many requests"
        wait = _UNKNOWN_WAIT if retry_after is None else retry_after
        # Directory and nonces name no order: too many of those are the client's. Who asks for one knows better.
        limit = Violation(str(NAME_SET if answer.method == "POST" else ACCOUNT), said)
        return AcmeError(Reason.ISSUER_RATE_LIMITED, said, retry_after=wait, problems=problems, violations=[limit])
    if 300 <= status < 400:
        return AcmeError(Reason.ISSUER_UNAVAILABLE, f"it sent a redirect ({status}), which isn't followed")
    if not problems and status < 500 and "replay-nonce" in answer.headers:
        # Pebble says so that it doesn't know an order: nothing but a status. The nonce shows whose it is.
        problems = (ProblemDocument("about:blank", f"HTTP status {status}", status),)
    if not problems:
        return AcmeError(Reason.ISSUER_UNAVAILABLE, f"HTTP status {status}", retry_after=retry_after)
    name = problems[0].type.removeprefix(_URN)
    said = f"{name}: {problems[0].detail}"
    if name == "userActionRequired":
        said += f"; a person has to visit {_where_to_act(answer) or 'the CA'}"
    temporary = status >= 500 or status == 408 or name in {"serverInternal", "badNonce"}
    reason = Reason.ISSUER_UNAVAILABLE if temporary else Reason.ISSUER_REJECTED
    # A request with a bad nonce is not looked at any further (RFC 8555 6.5), so that it may be sent again.
    missing = status == 404 and name != "accountDoesNotExist"
    return AcmeError(
        reason, said, retry_after=retry_after, problems=problems, unsent=name == "badNonce", missing=missing
    )


@contextmanager
def malformed_as_acme_errors() -> Iterator[None]:
    """An answer that can't be read is an outage: `AcmeError`."""
    try:
        yield
    except AcmeError:
        raise
    except (MalformedAnswerError, ForbiddenUrlError) as error:
        raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it sent {error}") from error
    except (errors.Error, JoseError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # What `acme` and `josepy` raise on JSON that they didn't expect.
        message = f"it sent something unreadable ({type(error).__name__})"
        raise AcmeError(Reason.ISSUER_UNAVAILABLE, message) from error


def _json_or_none(answer: AcmeAnswer) -> object:
    try:
        return answer.json()
    except MalformedAnswerError:
        return None


def _where_to_act(answer: AcmeAnswer) -> str:
    """Where a person does what the CA asks for (RFC 8555 7.3.3): shown to people, never fetched. Empty if unsaid."""
    body = _json_or_none(answer)
    instance = body.get("instance") if isinstance(body, dict) else None
    for url in (instance, *answer.links("terms-of-service")):
        shown = one_line(url, LONGEST_URL)
        if shown.startswith(("https://", "http://")) and " " not in shown:
            return shown
    return ""
