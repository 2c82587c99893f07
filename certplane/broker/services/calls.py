"""The call that is being served, as the edge knows it and the servicers read it.

The edge (`certplane.broker.services.interceptors.edge`) makes one `Call` for each RPC and sets it for the length of the
handler; a servicer asks `current_call()` for the caller and the request's id. Nothing else goes this way.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Final

from certplane.broker.identity.admission import Call
from certplane.broker.model import Caller
from certplane.errors import Reason, RefusalError, Violation

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class EdgeRefusalError(RefusalError):
    """A servicer refuses a request before the story sees it; the edge audits it, since nobody else will."""


class CallerGoneError(ConnectionError):
    """A message can't be sent since its call has ended at the other end: no fault of anybody's here."""


serving: ContextVar[Call] = ContextVar("certplane_call")


def current_call() -> tuple[Caller, str]:
    """The caller and the request's id of the call that is being served."""
    call = serving.get()
    if call.caller is None:
        raise RuntimeError("a servicer runs before its caller is authenticated")
    return call.caller, call.request_id


def take_request_id(text: str) -> None:
    """Take the request's id of a stream's first message, where it has one.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    if text:
        serving.get().request_id = valid_request_id(text)


def take_messages(count: int) -> None:
    """Have a message counted as so many more, before what it lists is read.

    Raises:
        RefusalError: RATE_LIMITED.
    """
    if count:
        serving.get().take_messages(count)


def is_request_id(text: str) -> bool:
    """Whether `text` can be a request's id."""
    return _REQUEST_ID.fullmatch(text) is not None


def valid_request_id(text: str) -> str:
    """`text` if it can be a request's id.

    Raises:
        EdgeRefusalError: REQUEST_INVALID; an id goes into logs and records, so only plain characters are let through.
    """
    if not is_request_id(text):
        problem = "must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"
        raise EdgeRefusalError(
            Reason.REQUEST_INVALID, f"request_id {problem}", violations=[Violation("request_id", problem)]
        )
    return text
