"""Spans of a trace: what a program does, how long each part takes, and what it belongs to in other programs.

Off unless a program begins it (`certplane.rpc.otlp`): until then a span costs a test of a variable. A span that is open
is the parent of those that are opened within it, also in tasks that begin meanwhile. Between programs its context
crosses as text, the `traceparent` of W3C Trace Context: in the metadata of calls, in messages of streams and processes.

Names and attributes follow OpenTelemetry's conventions where there is one; ours begin with `certplane.`. No span has a
key, a token, a CSR or a text of a person.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol


class SpanKind(StrEnum):
    """Which side of a call a span is."""

    INTERNAL = "internal"
    CLIENT = "client"
    SERVER = "server"
    CONSUMER = "consumer"
    """What was sent before, and is worked on now."""


Value = str | int | bool | float


@dataclass(frozen=True, slots=True)
class Collector:
    """Where spans are sent.

    Attributes:
        target: `host:port`.
        secure: Whether it speaks TLS.
        ca_bundle: PEM file with the CAs of its certificate; None for the public ones.
        share: Of the traces that begin here, those that are kept: 1 for all.
    """

    target: str
    secure: bool
    ca_bundle: Path | None
    share: float


class Span(Protocol):
    """One that is open."""

    def note(self, name: str, value: Value) -> None:
        """Add an attribute."""
        ...

    def failed(self, kind: str) -> None:
        """It failed, for a reason that there are few of: a code, a reason, a type of error."""
        ...


class Tracer(Protocol):
    """What keeps spans."""

    def open(
        self, name: str, kind: SpanKind, parent: str, attributes: Mapping[str, Value]
    ) -> AbstractContextManager[Span]:
        """A span for the length of the block; below `parent` if that is a context, else below the one that is open.

        What leaves the block as an error makes it a failed one.
        """
        ...

    def context(self) -> str:
        """That of the open span; empty without one."""
        ...


class _NoSpan(Span):
    def note(self, name: str, value: Value) -> None:
        pass

    def failed(self, kind: str) -> None:
        pass


_NO_SPAN: Final = contextlib.nullcontext(_NoSpan())
_tracer: Tracer | None = None


def begin(tracer: Tracer | None) -> None:
    """Let `tracer` keep this process's spans from now on; None: nobody does."""
    global _tracer  # noqa: PLW0603 - of the process, as its log is
    _tracer = tracer


def on() -> bool:
    """Whether spans are kept."""
    return _tracer is not None


def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: str = "",
    attributes: Mapping[str, Value] | None = None,
) -> AbstractContextManager[Span]:
    """See `Tracer.open`."""
    return _NO_SPAN if _tracer is None else _tracer.open(name, kind, parent, attributes or {})


def context() -> str:
    """See `Tracer.context`; empty while spans aren't kept."""
    return "" if _tracer is None else _tracer.context()
