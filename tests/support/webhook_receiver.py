"""A receiver of webhooks on loopback: keeps what it got, and answers as a test tells it."""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.client import HTTPMessage
from typing import Any, Self, cast

from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer
from tests.support.waiting import HANG


@dataclass
class Received:
    """One request."""

    path: str
    headers: HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"] or ""


@dataclass
class WebhookReceiver:
    """Plain HTTP; use it as a context manager.

    Attributes:
        requests: what came.
        script: (status, headers, body) of the next answers.
        always: the answer when the script has ended.
        open: cleared, it answers nobody until it is set.
        flood: where set, an answer's body goes on for so many octets.
    """

    requests: list[Received] = field(default_factory=list)
    script: deque[tuple[int, tuple[tuple[str, str], ...], bytes]] = field(default_factory=deque)
    always: tuple[int, tuple[tuple[str, str], ...], bytes] = (204, (), b"")
    open: threading.Event = field(default_factory=threading.Event)
    flood: int = 0
    sent: int = 0

    def __enter__(self) -> Self:
        self.open.set()
        self._server = _Server(self)
        self._server.run()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        self._server.stop()

    @property
    def kinds(self) -> list[str]:
        """Of the messages that came, as JSON."""
        return [request.json["kind"] for request in self.requests]


class _Server(LoopbackServer):
    def __init__(self, receiver: WebhookReceiver) -> None:
        super().__init__("the webhook receiver", 0, _Handler)
        self.receiver = receiver


class _Handler(LoopbackHandler):
    def reply(self, method: str) -> None:
        receiver = cast("_Server", self.server).receiver
        receiver.requests.append(Received(self.path, self.headers, self.body()))
        receiver.open.wait(HANG)
        status, headers, content = receiver.script.popleft() if receiver.script else receiver.always
        if not receiver.flood:
            self.answer(status, content, "text/plain", headers)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(receiver.flood))
        self.end_headers()
        while receiver.sent < receiver.flood:  # until the client hangs up
            self.wfile.write(b"x" * 65536)
            receiver.sent += 65536
