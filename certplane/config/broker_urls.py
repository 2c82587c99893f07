"""Where brokers are, as agent.yml and ctl.yml name them: one as `url`, or several of one fleet as `urls`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from certplane.config.decoding import KeyProblem
from certplane.config.values import HttpsUrl

_DEFAULT_HTTPS_PORT = 443
_MOST_BROKERS = 32
"""A call tries each that it finds unwell, one after the other."""
_BY_NAME = "give them one DNS name with several addresses"


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """Where the broker is; `https://host:port` because that is what the public format has."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`https://host:port`, with or without a final slash; the port is 443 when it isn't written."""
        parts = urlsplit(HttpsUrl.parse(text))
        if parts.path not in {"", "/"} or parts.query:
            raise ValueError("must be https://host:port without a path")
        assert parts.hostname is not None
        return cls(parts.hostname, parts.port or _DEFAULT_HTTPS_PORT)

    @property
    def target(self) -> str:
        """The address as gRPC dials it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"https://{self.target}"


def all_urls(url: BrokerUrl | None, urls: tuple[BrokerUrl, ...]) -> tuple[BrokerUrl, ...]:
    """Where the brokers are; one or more, in settings that are right."""
    return urls if url is None else (url,)


def url_problems(url: BrokerUrl | None, urls: tuple[BrokerUrl, ...]) -> Iterator[KeyProblem]:
    """There is one URL, or there are several different ones."""
    if url is not None and urls:
        yield KeyProblem("urls", "goes without `url`", "put that URL into the list, and drop `url`")
    elif url is None and not urls:
        remedy = "write https://host:port, or a list of them as `urls`"
        yield KeyProblem("url", "is required", remedy)
    if len(urls) > _MOST_BROKERS:
        yield KeyProblem("urls", f"names {len(urls)} brokers, at most {_MOST_BROKERS} are allowed", _BY_NAME)
    first: dict[BrokerUrl, int] = {}
    for number, each in enumerate(urls):
        if first.setdefault(each, number) != number:
            yield KeyProblem(f"urls[{number}]", f"is the same broker as urls[{first[each]}]", "name each broker once")
