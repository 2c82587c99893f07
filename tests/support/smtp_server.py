"""A mail server on loopback that does what a test tells it: refuses, hangs, hangs up, lacks TLS."""

from __future__ import annotations

import asyncio
import base64
import email
import ssl
from dataclasses import dataclass, field
from email.message import Message
from email.policy import default
from typing import Any, Self

HANG = "hang"
"""Instead of an answer: says nothing more."""
HANG_UP = "hang up"


@dataclass
class SmtpServer:
    """Plain, with STARTTLS or with TLS from the first octet; use it as an async context manager.

    Attributes:
        context: for TLS; without one the server offers none.
        implicit: TLS from the first octet.
        login: user and password that it wants; None for no login.
        answers: the answer to a command (`MAIL`, `RCPT`, `DATA`, `.`, `QUIT`, ...) instead of the usual one, or to
            each address of RCPT; "" stands for the greeting.
        mails: what was taken, with its envelope's recipients.
        logins: who has logged in, and whether over TLS.
    """

    context: ssl.SSLContext | None = None
    implicit: bool = False
    login: tuple[str, str] | None = None
    answers: dict[str, str] = field(default_factory=dict)
    mails: list[tuple[list[str], Message[Any, Any]]] = field(default_factory=list)
    logins: list[tuple[str, bool]] = field(default_factory=list)
    connections: int = 0

    async def __aenter__(self) -> Self:
        context = self.context if self.implicit else None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass  # cancelled by `__aexit__` alone, and streams of Python 3.11 log a task that ends so
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _say(self, writer: asyncio.StreamWriter, verb: str, usual: str) -> bool:
        """Whether that was a good answer."""
        answer = self.answers.get(verb, usual)
        if answer == HANG:
            await asyncio.Event().wait()
        if answer == HANG_UP:
            raise ConnectionResetError
        writer.write(f"{answer}\r\n".encode())
        await writer.drain()
        return answer[0] in "23"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        encrypted = self.implicit
        recipients: list[str] = []
        await self._say(writer, "", "220 mail.test ready")
        while line := (await reader.readline()).decode().strip():
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    await self._say(writer, "EHLO", self._offers(encrypted=encrypted))
                case "STARTTLS" if await self._say(writer, "STARTTLS", "220 go"):
                    assert self.context is not None
                    await writer.start_tls(self.context)
                    encrypted = True
                case "AUTH":
                    _, user, password = base64.b64decode(rest.split()[1]).decode().split("\0")
                    self.logins.append((user, encrypted))
                    good = (user, password) == self.login
                    await self._say(writer, "AUTH", "235 welcome" if good else "535 5.7.8 wrong password")
                case "RCPT":
                    address = rest.partition("<")[2].partition(">")[0]
                    if await self._say(writer, address if address in self.answers else "RCPT", "250 ok"):
                        recipients.append(address)
                case "DATA" if await self._say(writer, "DATA", "354 go on"):
                    text = await reader.readuntil(b"\r\n.\r\n")
                    if await self._say(writer, ".", "250 taken"):
                        self.mails.append((recipients, email.message_from_bytes(text[:-3], policy=default)))
                case "STARTTLS" | "DATA":
                    pass  # it was refused above
                case other:
                    await self._say(writer, other, "221 bye" if other == "QUIT" else "250 ok")

    def _offers(self, *, encrypted: bool) -> str:
        offers = ["mail.test"]
        offers += ["STARTTLS"] if self.context is not None and not encrypted else []
        offers += ["AUTH PLAIN"] if self.login is not None else []
        return "\r\n".join([f"250-{offer}" for offer in offers[:-1]] + [f"250 {offers[-1]}"])
