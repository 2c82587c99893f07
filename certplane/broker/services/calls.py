"""The call that is being served, as the edge knows it and the servicers read it.

The edge (`certplane.broker.services.interceptors.edge`) makes one `Call` per RPC and sets it for the length of the
handler; a servicer asks `current_call()` for the caller and the request's id. Nothing else goes this way.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from certplane.broker.model import Caller
from certplane.errors import Reason, RefusalError, Violation

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class EdgeRefusalError(RefusalError):
    """A servicer refuses a request before the story sees it; the edge audits it, since nobody else will."""


@dataclass(slots=True)
class Call:
    """One RPC. `caller` is None until it is authenticated, which a servicer never sees; `reason` is of its refusal.

    `stranger` is who was not: a name of its certificate, or the certificate's hash. `take_messages` takes from the
    caller's allowance of messages.
    """

    method: str
    request_id: str
    caller: Caller | None = None
    reason: str = ""
    stranger: str = ""
    take_messages: Callable[[int], object] | None = None

    def named(self) -> str:
        """Its id, made now if it brought none."""
        if not self.request_id:
            # A name, not a secret. The system's randomness would give up the interpreter's lock for a moment, and under
            # load that moment was a twentieth of a call from the cache.
            self.request_id = f"{random.getrandbits(64):016x}"
        return self.request_id


serving: ContextVar[Call] = ContextVar("certplane_call")


def current_call() -> tuple[Caller, str]:
    """The caller and the request's id of the call that is being served."""
    call = serving.get()
    if call.caller is None:
        raise RuntimeError("a servicer runs before its caller is authenticated")
    return call.caller, call.request_id


def take_messages(count: int) -> None:
    """Have a message counted as so many more, before what it lists is read.

    Raises:
        RefusalError: RATE_LIMITED.
    """
    take = serving.get().take_messages
    if take is not None and count:
        take(count)


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
