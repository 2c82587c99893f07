"""Many hosts in one process, each with an identity, a connection and a status stream of its own.

`python -m benchmarks.hosts --folder F --port P --first N --count M` holds hosts N to N+M-1 and does what it is told by
lines on its standard input; each command is answered by one line of JSON. Times are the machine's monotonic clock, so
that those of several such processes and of the broker can be compared. With more than one port a host uses the first
one until it loses its stream, then the next one at each try.

    connect WINDOW        all hosts, so many handshakes at a time; until each is welcome
    directives COUNT      until each host has had so many directives since it was last asked
    directives-in-all COUNT    until all hosts together have had so many
    report COUNT          each host reports so often, the next one when the one before is acknowledged
    stay                  from now on who loses its stream comes back, as the agent does
    away                  until every host has lost its stream
    back                  until every host that was away is welcome again
    close                 hang up

A host answers directives, pings, and sends its heartbeats. What it does when it loses its stream is the agent's:
certplane.agent.link.stream's full jitter first, then grpc's own back-off between tries to connect with the options of
certplane.rpc.channel.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import itertools
import json
import os
import random
import selectors
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from benchmarks.wire import Closed, Connection, client_context, opening
from certplane.agent.link.ending import StreamEnd
from certplane.agent.link.stream import reopening_wait
from certplane.broker.descriptors import raise_file_limit
from certplane.rpc.channel import CHANNEL_OPTIONS
from certplane.v1 import renewal_pb2 as pb

PATH = "/certplane.v1.RenewalService/StreamRenewalStatus"
HEARTBEAT_SECONDS = 45.0
_EPOCH = f"bench-{os.getpid()}"
"""Hosts of another process count from one again."""
_GRPC_MULTIPLIER, _GRPC_JITTER = 1.6, 0.2
"""grpc's connection back-off (its doc/connection-backoff.md); how long the first and the longest wait are, is ours."""
_OPTIONS = dict(CHANNEL_OPTIONS)
_FIRST_RETRY = _OPTIONS["grpc.initial_reconnect_backoff_ms"] / 1000
_MOST_RETRY = _OPTIONS["grpc.max_reconnect_backoff_ms"] / 1000
_TRY_SECONDS = _OPTIONS["grpc.min_reconnect_backoff_ms"] / 1000
"""One try to connect, handshake included."""

_State = pb.CertificateStatus
_RENEWAL = (
    _State.STATE_DUE,
    _State.STATE_REQUESTING,
    _State.STATE_ISSUED,
    _State.STATE_INSTALLING,
    _State.STATE_RELOADING,
    _State.STATE_VERIFYING,
    _State.STATE_SERVING,
)
"""What a renewal reports, one after the other."""


def identity_file(folder: Path, number: int) -> Path:
    """Certificate, chain and key of a host."""
    return folder / "identities" / f"{number}.pem"


class Host:
    """One host."""

    __slots__ = (
        "acknowledged", "connection", "context", "directives", "failures", "fleet", "number", "owed", "registered",
        "sequence", "since", "welcome",
    )  # fmt: skip

    def __init__(self, fleet: Fleet, number: int, context: ssl.SSLContext) -> None:
        self.fleet = fleet
        self.number = number
        self.context = context
        self.connection: Connection | None = None
        self.registered = 0
        self.welcome = False
        self.failures = 0
        self.directives = 0
        self.sequence = self.acknowledged = 0
        self.owed = 0
        self.since = 0.0

    def open(self) -> None:
        """Connect, and say hello with what was not acknowledged."""
        hello = pb.StreamRenewalStatusRequest.Hello(
            agent_version="bench", epoch=_EPOCH, certificate_names=["identity", "web"]
        )
        hello.host_time.GetCurrentTime()
        if self.sequence > self.acknowledged:
            hello.reports.append(self._report())
        message = pb.StreamRenewalStatusRequest(hello=hello).SerializeToString()
        port = self.fleet.ports[self.failures % len(self.fleet.ports)]
        self.connection = Connection(self.context, port, _opening_with(message), self.hear)

    def report(self) -> None:
        """Say the next step of a renewal that goes on for ever."""
        self.sequence += 1
        self.since = time.monotonic()
        if self.connection is not None and self.welcome:
            self._send(pb.StreamRenewalStatusRequest(report=self._report()))

    def beat(self) -> None:
        """Send a heartbeat."""
        message = pb.StreamRenewalStatusRequest()
        message.heartbeat.host_time.GetCurrentTime()
        self._send(message)

    def hear(self, data: bytes) -> None:
        """Take a message."""
        message = pb.StreamRenewalStatusResponse.FromString(data)
        match message.WhichOneof("message"):
            case "welcome":
                self.welcome = True
                self._take_acknowledged(message.welcome.acknowledged_sequence)
                self.fleet.welcomed(self)
            case "acknowledgement":
                self._take_acknowledged(message.acknowledgement.sequence)
            case "directive":
                self.directives += 1
                self.fleet.directed(self)
                self._send(
                    pb.StreamRenewalStatusRequest(
                        directive_result=pb.StreamRenewalStatusRequest.DirectiveResult(nonce=message.directive.nonce)
                    )
                )

    def _take_acknowledged(self, sequence: int) -> None:
        if sequence > self.sequence:
            raise RuntimeError(f"the broker acknowledges {sequence}, host {self.number} has said {self.sequence}")
        if sequence > self.acknowledged:
            self.acknowledged = sequence
            if sequence == self.sequence:
                self.fleet.acknowledged(self)

    def _report(self) -> pb.StreamRenewalStatusRequest.Report:
        step = (self.sequence - 1) % len(_RENEWAL)
        held = _State.Held(serial_number=f"{(self.sequence - 1) // len(_RENEWAL) + 1:x}", version=1)
        status = _State(
            name="web", profile="web", dns_names=["www.example.org", "example.org"], state=_RENEWAL[step],
            issued=held, installed=held, served=held, renew_reason="a third of its life is left",
        )  # fmt: skip
        return pb.StreamRenewalStatusRequest.Report(sequence=self.sequence, certificate=status)

    def _send(self, message: pb.StreamRenewalStatusRequest) -> None:
        assert self.connection is not None
        self.connection.send(message.SerializeToString())


class Fleet:
    """The hosts of this process, and the loop that serves them."""

    def __init__(self, folder: Path, ports: list[int], numbers: range) -> None:
        self.ports = ports
        self._selector = selectors.EpollSelector()
        roots = str(folder / "root.pem")
        self.hosts = [Host(self, n, client_context(str(identity_file(folder, n)), roots)) for n in numbers]
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._rng = random.Random()
        self._to_open: deque[Host] = deque()
        self._opening = 0
        self._window = 0
        self._staying = False
        self._away = 0
        self._times: list[float] = []
        self._lost_times: list[float] = []
        self._directed: list[float] = []
        self._waits: list[float] = []
        self._done: Callable[[], bool] = lambda: True
        self._answer: Callable[[], dict[str, object]] = dict
        self._busy = False
        self._lines = b""
        self._ended = False

    def run(self) -> None:
        """Do what is asked until there is nobody left to ask."""
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ, None)
        while not self._ended:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            wait = min(1.0, max(0.0, self._timers[0][0] - now)) if self._timers else 1.0
            for key, _ in self._selector.select(wait):
                if key.data is None:
                    self._obey()
                else:
                    self._serve(key.data)
            if self._busy and self._done():
                self._busy = False
                print(json.dumps(self._answer()), flush=True)

    # What hosts tell.

    def welcomed(self, host: Host) -> None:
        """A host has its stream."""
        now = time.monotonic()
        self._times.append(now)
        if host.failures:
            self._away -= 1
            host.failures = 0
        else:
            self._opening -= 1
            self._open_more()
        self._later(HEARTBEAT_SECONDS * (0.8 + 0.4 * self._rng.random()), lambda: self._beat(host, host.connection))

    def directed(self, _host: Host) -> None:
        """A host has a directive."""
        self._directed.append(time.monotonic())

    def acknowledged(self, host: Host) -> None:
        """All that a host has said is durable."""
        self._waits.append(time.monotonic() - host.since)
        if host.owed:
            host.owed -= 1
            host.report()

    # The loop.

    def _obey(self) -> None:
        data = os.read(0, 4096)
        if not data:
            self._ended = True
            return
        self._lines += data
        while b"\n" in self._lines:
            line, self._lines = self._lines.split(b"\n", 1)
            command, *argument = line.decode().split()
            self._do(command, int(argument[0]) if argument else 0)

    def _do(self, command: str, count: int) -> None:  # noqa: C901 - a table of commands
        self._busy = True
        self._done = lambda: True
        self._answer = dict
        begun = time.monotonic()
        match command:
            case "connect":
                self._times = []
                self._window = count
                self._to_open.extend(host for host in self.hosts if host.connection is None)
                wanted = len(self._to_open)
                self._done = lambda: len(self._times) >= wanted
                self._answer = lambda: {"begun": begun, "times": self._times}
                self._open_more()
            case "directives" | "directives-in-all":
                wanted = count * (len(self.hosts) if command == "directives" else 1)
                self._done = lambda: len(self._directed) >= wanted

                def told() -> dict[str, object]:
                    times, self._directed = self._directed, []
                    ends = {"first": min(times, default=begun), "last": max(times, default=begun)}
                    return {**ends, "count": len(times), "times": times}

                self._answer = told
            case "report":
                self._waits = []
                for host in self.hosts:
                    host.owed = count - 1
                    host.report()
                wanted = count * len(self.hosts)
                self._done = lambda: len(self._waits) >= wanted
                self._answer = lambda: {"begun": begun, "ended": time.monotonic(), "waits": self._waits}
            case "stay":
                self._staying = True
                self._lost_times = []
            case "away":
                self._done = lambda: self._away == len(self.hosts)
                self._answer = lambda: {"lost": self._lost_times}
                self._times = []
            case "back":
                self._done = lambda: self._away == 0
                self._answer = lambda: {"times": self._times, "acknowledged": self._all_acknowledged()}
            case "close":
                self._staying = False
                for host in self.hosts:
                    self._drop(host)
            case _:
                raise RuntimeError(f"no command {command}")

    def _all_acknowledged(self) -> bool:
        return all(host.acknowledged == host.sequence for host in self.hosts)

    def _open_more(self) -> None:
        while self._to_open and self._opening < self._window:
            self._opening += 1
            self._open(self._to_open.popleft())

    def _open(self, host: Host) -> None:
        host.welcome = False
        try:
            host.open()
            self._watch(host)
        except Closed as error:
            self._lost(host, error)

    def _serve(self, host: Host) -> None:
        try:
            assert host.connection is not None
            host.connection.ready()
            self._watch(host)
        except Closed as error:
            self._lost(host, error)

    def _watch(self, host: Host) -> None:
        """Tell the selector what the host's connection waits for."""
        connection = host.connection
        if connection is None:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.writing else 0)
        if not connection.connected:
            events = selectors.EVENT_WRITE
        if not host.registered:
            self._selector.register(connection.fileno(), events, host)
        elif host.registered != events:
            self._selector.modify(connection.fileno(), events, host)
        host.registered = events

    def _drop(self, host: Host) -> None:
        if host.connection is not None:
            if host.registered:
                self._selector.unregister(host.connection.fileno())
                host.registered = 0
            host.connection.close()
            host.connection = None
            host.welcome = False

    def _lost(self, host: Host, error: Closed) -> None:
        was_welcome = host.welcome
        self._drop(host)
        if not self._staying:
            raise RuntimeError(f"host {host.number} has lost its stream: {error}")
        now = time.monotonic()
        if was_welcome:
            self._lost_times.append(now)
            self._away += 1
            host.failures = 1
            # The stream's own wait, after which the channel is asked for: it connects at once, the first time.
            wait = reopening_wait(StreamEnd(str(error)), 1, lambda backoff, count: backoff.wait(count, self._rng))
            self._later(wait.total_seconds(), lambda: self._come_back(host))
            return
        ceiling = min(_FIRST_RETRY * _GRPC_MULTIPLIER ** (host.failures - 1), _MOST_RETRY)
        host.failures += 1
        self._later(ceiling * (1 + _GRPC_JITTER * (2 * self._rng.random() - 1)), lambda: self._come_back(host))

    def _come_back(self, host: Host) -> None:
        self._open(host)
        connection = host.connection
        if connection is not None:
            self._later(_TRY_SECONDS, lambda: self._give_up(host, connection))

    def _give_up(self, host: Host, connection: Connection) -> None:
        if host.connection is connection and not host.welcome:
            self._lost(host, Closed("no welcome in time"))

    def _beat(self, host: Host, connection: Connection | None) -> None:
        if connection is None or host.connection is not connection:
            return
        try:
            host.beat()
        except Closed as error:
            self._lost(host, error)
        else:
            self._later(HEARTBEAT_SECONDS, lambda: self._beat(host, connection))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), call))


_OPENING = opening(PATH)


def _opening_with(message: bytes) -> bytes:
    body = b"\0" + len(message).to_bytes(4) + message
    return _OPENING + len(body).to_bytes(3) + b"\0\0\0\0\0\1" + body


def main() -> None:
    """Hold hosts until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="root.pem and identities/N.pem")
    parser.add_argument("--port", type=int, required=True, nargs="+")
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    raise_file_limit()
    fleet = Fleet(arguments.folder, arguments.port, range(arguments.first, arguments.first + arguments.count))
    gc.freeze()
    print(json.dumps({"ready": True}), flush=True)
    try:
        fleet.run()
    except RuntimeError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
