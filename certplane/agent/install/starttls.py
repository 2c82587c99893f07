"""Asking a service that begins in plain text for TLS: SMTP (RFC 3207), IMAP (RFC 9051 6.2.1), POP3 (RFC 2595 4).

Only what is needed for the handshake: nothing is sent but a greeting and the command, and no name of this host. The
caller has the deadline; a line that is too long, or too many of them, is no such service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

_MOST_LINES = 100
"""Of one answer; an SMTP server names its extensions, one a line."""


class StartTlsError(Exception):
    """The service doesn't begin TLS; the text goes on from its address."""


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


async def _smtp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _smtp_answer(reader, "220", "doesn't greet as SMTP does")
    writer.write(b"EHLO localhost\r\n")
    extensions = await _smtp_answer(reader, "250", "refuses EHLO")
    if not any(line.split()[:1] == ["STARTTLS"] for line in extensions):
        raise StartTlsError("offers no STARTTLS")
    writer.write(b"STARTTLS\r\n")
    await _smtp_answer(reader, "220", "refuses STARTTLS")


async def _smtp_answer(reader: asyncio.StreamReader, code: str, otherwise: str) -> list[str]:
    """The texts of an answer of one or several lines (RFC 5321 4.2.1), upper case."""
    texts = []
    for _ in range(_MOST_LINES):
        line = await _line(reader)
        if line[:3] != code or line[3:4] not in {"", " ", "-"}:
            raise StartTlsError(otherwise)
        texts.append(line[4:].upper())
        if line[3:4] != "-":
            return texts
    raise StartTlsError(otherwise)


async def _imap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if not (await _line(reader)).startswith("* OK"):
        raise StartTlsError("doesn't greet as IMAP does")
    writer.write(b"a1 STARTTLS\r\n")
    for _ in range(_MOST_LINES):
        line = await _line(reader)
        if line.startswith("a1 OK"):
            return
        if line.startswith("a1 "):
            break
    raise StartTlsError("refuses STARTTLS")


async def _pop3(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if not (await _line(reader)).startswith("+OK"):
        raise StartTlsError("doesn't greet as POP3 does")
    writer.write(b"STLS\r\n")
    if not (await _line(reader)).startswith("+OK"):
        raise StartTlsError("refuses STLS")


TALKS: Final[dict[str, Talk]] = {"smtp": _smtp, "imap": _imap, "pop3": _pop3}
"""What is said until the handshake may begin, by the value of `verify.starttls`. Each raises `StartTlsError`."""


async def _line(reader: asyncio.StreamReader) -> str:
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        raise StartTlsError("closes the connection before TLS begins") from error
    except asyncio.LimitOverrunError as error:
        raise StartTlsError("sends a line without an end") from error
    return line.decode("ascii", errors="replace").rstrip("\r\n")
