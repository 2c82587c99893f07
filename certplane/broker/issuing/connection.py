"""Messages on a socket pair: four octets of length, most significant first, then the message.

A length beyond `MOST_OCTETS` ends the connection before anything of the message is kept, and so does whatever the
receiver can't decode: two halves of one program that misunderstand each other have nothing left to say.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from typing_extensions import override

from certplane.broker.issuing.messages import NOT_A_MESSAGE
from certplane.runtime.text import counted

MOST_OCTETS: Final = 32 * 1024 * 1024
"""More than the profiles of the largest policy (16 MiB of text), which is the longest that is ever said."""

_LENGTH: Final = 4


class TooLargeError(Exception):
    """A message that the other half would not take."""


class Connection(asyncio.Protocol):
    """One end. For the event loop's thread."""

    def __init__(self, take: Callable[[bytes], None], lost: Callable[[str], None]) -> None:
        """Made by `connect`.

        Args:
            take: Gets each message; what it raises of `NOT_A_MESSAGE` ends the connection.
            lost: Called once with the reason, empty if the other half has closed its end.
        """
        self._take, self._lost = take, lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._why = ""

    def send(self, message: bytes) -> bool:
        """Send, or drop what nobody is there for; whether it was sent.

        Raises:
            TooLargeError: nothing is sent.
        """
        if len(message) > MOST_OCTETS:
            raise TooLargeError(f"a message of {len(message)} octets, of which {MOST_OCTETS} are allowed")
        # A transport that closes says of each write that it can't: a line of the log, which would be sent as well.
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(len(message).to_bytes(_LENGTH, "big") + message)
        return True

    @property
    def waiting(self) -> int:
        """Octets that the other half hasn't read yet, beside those in the socket."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Close this end once what was sent has been written."""
        if self._transport is not None:
            self._transport.close()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        begin = 0
        while len(buffer) >= begin + _LENGTH:
            length = int.from_bytes(buffer[begin : begin + _LENGTH], "big")
            if length > MOST_OCTETS:
                self._give_up(f"it announced a message of {length} octets")
                return
            end = begin + _LENGTH + length
            if len(buffer) < end:
                break
            message = bytes(buffer[begin + _LENGTH : end])
            begin = end
            try:
                self._take(message)
            except NOT_A_MESSAGE as error:
                # Not the error's text: it may quote what was sent.
                self._give_up(f"it sent {counted(length, 'octet')} and no message ({type(error).__name__})")
                return
        del buffer[:begin]

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._buffer.clear()
        self._lost(self._why)  # a broken pipe or a reset is an end like any other

    def _give_up(self, why: str) -> None:
        self._why = why
        self._buffer.clear()
        if self._transport is not None:
            self._transport.abort()


async def connect(own: socket.socket, take: Callable[[bytes], None], lost: Callable[[str], None]) -> Connection:
    """Take this end of a socket pair."""
    own.setblocking(False)
    _, connection = await asyncio.get_running_loop().create_unix_connection(lambda: Connection(take, lost), sock=own)
    return connection
