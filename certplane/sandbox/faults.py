"""What CAs, DNS APIs and the networks between do to their clients: actions for the rules of a `FaultProxy`.

Those that a CA would answer itself carry one of its nonces, as RFC 8555 6.5 asks; what comes from something in front of
it (a page of HTML, a redirect) doesn't.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

from certplane.sandbox.acme_endpoints import NEW_ORDER, ORDER
from certplane.sandbox.exchange import Reply
from certplane.sandbox.fault_proxy import Action, Call

_URN = "urn:ietf:params:acme:error:"


def answer(
    status: int, body: bytes = b"", content_type: str = "application/json", *, headers: tuple[tuple[str, str], ...] = ()
) -> Action:
    """Answer this; the server never sees the request."""
    reply = Reply(status, (("Content-Type", content_type), *headers), body)
    return lambda _call: reply


def problem(
    kind: str,
    detail: str = "it said so",
    *,
    status: int = 400,
    retry_after: timedelta | datetime | str | None = None,
    **more: Any,
) -> Action:
    """Answer with a problem document (RFC 8555 6.7), as the CA would: the request had no effect.

    Args:
        kind: the last part of the type's URN, or a whole type.
        detail: for people.
        status: of HTTP.
        retry_after: a span becomes seconds, a time an HTTP date, text goes as it is.
        more: further members, such as `subproblems`.
    """
    type_ = kind if ":" in kind else _URN + kind
    body = json.dumps({"type": type_, "detail": detail, "status": status, **more}).encode()
    headers = [("Content-Type", "application/problem+json")]
    if retry_after is not None:
        headers.append(("Retry-After", _retry_after(retry_after)))
    return lambda call: Reply(status, (*headers, *call.nonce()), body)


def bad_nonce() -> Action:
    """Refuse the nonce, with a good one for the next try (6.5)."""
    return problem("badNonce", "JWS has an invalid anti-replay nonce")


def html(status: int = 502) -> Action:
    """A page of a load balancer's, without a nonce."""
    page = b"<!DOCTYPE html><html><body><h1>Something went wrong</h1></body></html>"
    return answer(status, page, "text/html; charset=utf-8")


def redirect(location: str, status: int = 307) -> Action:
    """Send the client elsewhere."""
    return answer(status, headers=(("Location", location),))


def swallowed(hold: timedelta = timedelta()) -> Action:
    """The server does what it was asked; its answer is lost, the connection cut after `hold`."""

    def act(call: Call) -> Reply | None:
        call.forward()
        call.wait(hold)
        return None

    return act


def cut() -> Action:
    """Hang up; the server never sees the request."""
    return lambda _call: None


def delayed(span: timedelta) -> Action:
    """Let time pass before the server gets the request."""

    def act(call: Call) -> Reply | None:
        call.wait(span)
        return call.forward()

    return act


def oversized(size: int) -> Action:
    """The server's answer, followed by spaces up to `size` bytes: still good JSON."""

    def act(call: Call) -> Reply | None:
        reply = call.forward()
        return Reply(reply.status, reply.headers, reply.body, max(0, size - len(reply.body)))

    return act


def altered(change: Callable[[Any], Any]) -> Action:
    """The server's answer with other JSON: `change` gets what it sent and returns what is told."""

    def act(call: Call) -> Reply | None:
        reply = call.forward()
        return reply.with_json(change(reply.json()))

    return act


def with_status(status: str, **members: Any) -> Action:
    """The server's object with another `status`, and other members; None as a value removes one."""

    def change(body: Any) -> Any:
        shown = {**body, "status": status, **members}
        return {name: value for name, value in shown.items() if value is not None}

    return altered(change)


def replaced_body(body: bytes) -> Action:
    """The server's answer with another body, such as a chain that isn't the one."""

    def act(call: Call) -> Reply | None:
        reply = call.forward()
        return Reply(reply.status, reply.headers, body)

    return act


class PendingOrderReuse:
    """Hands back the pending order of the same names and profile, whatever key it was made for, as Boulder does.

    An action for `NEW_ORDER` and `ORDER`. How an order stands is known from the last look at it.
    """

    def __init__(self) -> None:
        self._orders: dict[tuple[object, ...], tuple[str, Reply]] = {}
        self._lock = threading.Lock()
        self.reused = 0

    def __call__(self, call: Call) -> Reply | None:
        """Act on a request."""
        exchange = call.exchange
        if exchange.kind == ORDER:
            reply = call.forward()
            self._note(exchange.path, reply)
            return reply
        if exchange.kind != NEW_ORDER:
            return call.forward()
        wanted = exchange.payload
        names = tuple(sorted(entry["value"] for entry in wanted["identifiers"]))
        key = (exchange.protected.get("kid"), wanted.get("profile"), names)
        with self._lock:
            known = self._orders.get(key)
            if known is not None and (known[1].json() or {}).get("status") in {"pending", "ready"}:
                self.reused += 1
                return Reply(201, (*known[1].headers, *call.nonce()), known[1].body)
        reply = call.forward()
        if reply.status == 201:
            with self._lock:
                self._orders[key] = (reply.header("Location"), reply.with_header("Replay-Nonce", None))
        return reply

    def _note(self, path: str, reply: Reply) -> None:
        if reply.status != 200:
            return
        with self._lock:
            for key, (location, known) in self._orders.items():
                if location.endswith(path):
                    self._orders[key] = (location, Reply(201, known.headers, reply.body))


def _retry_after(value: timedelta | datetime | str) -> str:
    if isinstance(value, timedelta):
        return str(int(value.total_seconds()))
    return format_datetime(value, usegmt=True) if isinstance(value, datetime) else value
