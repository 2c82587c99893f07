"""What all calls of an operator have in common: the connection, the time that one may take, request ids, pages."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, Self, TypeVar

import grpc

from certplane.ctl.connection import Connection
from certplane.ctl.settings import Context

T = TypeVar("T")
P = TypeVar("P", bound="_Page")

PAGE: Final = 200


class _Page(Protocol):
    next_page_token: str


class Calls:
    """The way to the brokers of one context. An async context manager; on one event loop.

    Args:
        context: The fleet.
        urls: Only these of its brokers; all without it.
    """

    def __init__(self, context: Context, urls: Sequence[str] = ()) -> None:
        """Read the files and open the channel; nothing is sent.

        Raises:
            ConfigurationError: a file that the settings name can't be used.
        """
        self._connection = Connection(context, urls)

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the channel."""
        await self._connection.__aexit__()

    @property
    def url(self) -> str:
        """The broker that answers."""
        return self._connection.url

    @property
    def _seconds(self) -> float:
        return self._connection.seconds

    async def _one(
        self, request: Any, of: Callable[[grpc.aio.Channel], Callable[..., Awaitable[T]]], seconds: float = 0
    ) -> T:
        """The answer to one call; it gets a request id unless its caller has chosen one."""
        request.request_id = request.request_id or request_id()
        return await self._connection.answer(lambda channel: of(channel)(request, timeout=max(seconds, self._seconds)))

    async def _pages(
        self, request: Any, of: Callable[[grpc.aio.Channel], Callable[..., Awaitable[P]]]
    ) -> AsyncGenerator[P, None]:
        """Each page of a list, one or more."""
        request.page_size = request.page_size or PAGE
        while True:
            page = await self._one(request, of)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def request_id() -> str:
    """A new name of a call."""
    return secrets.token_hex(16)
