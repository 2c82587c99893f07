"""Who is connected to this broker: all open streams, and which of them is its host's.

A host has one stream, the one that said hello last. This is one broker's memory: whether a host has its stream at
another broker is in the host's record alone (`HostStream`); a hello there ends the stream here (`displacement`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from certplane.broker import metrics
from certplane.broker.fleet.stream import ServedStream
from certplane.broker.ports import Meter


class StreamRegistry:
    """The open streams. For the event loop's thread."""

    def __init__(self, meter: Meter) -> None:
        self._open: set[ServedStream] = set()
        self._places: dict[str, ServedStream] = {}
        self._meter = meter
        self._measure()

    def __len__(self) -> int:
        """How many hosts have a stream here."""
        return len(self._places)

    def __contains__(self, host: object) -> bool:
        """Whether the host has a stream here."""
        return host in self._places

    def __iter__(self) -> Iterator[ServedStream]:
        """All that are open at this moment, those included that haven't said hello or were displaced."""
        return iter(tuple(self._open))

    @property
    def hosts(self) -> Sequence[str]:
        """Those that have a stream here at this moment."""
        return tuple(self._places)

    def place_of(self, host: str) -> ServedStream | None:
        """The stream of a host; None if it has none here."""
        return self._places.get(host)

    def add(self, stream: ServedStream) -> None:
        """A stream begins."""
        self._open.add(stream)

    def take_place(self, stream: ServedStream) -> ServedStream | None:
        """The stream is its host's from now on; the one that was, if any."""
        displaced = self._places.get(stream.host)
        self._places[stream.host] = stream
        self._measure()
        return displaced

    def remove(self, stream: ServedStream) -> bool:
        """A stream has ended; whether it was its host's."""
        self._open.discard(stream)
        return self.give_up(stream)

    def give_up(self, stream: ServedStream) -> bool:
        """An open stream isn't its host's any more; whether it was."""
        if self._places.get(stream.host) is not stream:
            return False
        del self._places[stream.host]
        self._measure()
        return True

    def _measure(self) -> None:
        self._meter.level(metrics.STREAMS, len(self._places))
