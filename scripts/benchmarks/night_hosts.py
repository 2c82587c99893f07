"""Hosts that do in a rollout what an agent does: keys and CSRs of their own, certificates held and activated in turn.

`python -m benchmarks.night_hosts --folder F --port P [P ...] --first N --count M` holds hosts N to N+M-1 and does what
it is told by lines on its standard input; each command is answered by one line of JSON. A host has a status stream of
its own (`wire`), follows its directives, and reports like an agent with the feature `rollout`; what it does with files
and services is its report alone. One that loses its stream comes back at the next port, as an agent does.

    connect               until each host is welcome
    back                  until each host is welcome again
    issue                 until each host has its first certificate in use
    serving FIRST COUNT   until each of these hosts has used another certificate since it was last asked
    break FIRST COUNT     from now on a reload fails on these hosts: they go back to the certificate of before
    mend                  no reload fails any more
    look                  what each host serves now, and since when it no longer serves what it served before
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from benchmarks.hosts import PATH, identity_file
from benchmarks.wire import Closed, Connection, asking, client_context, saying
from certplane.broker.descriptors import raise_file_limit
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.v1 import certificate_pb2, renewal_pb2

NAME = "host{}.certplane.test"
_ISSUE = "/certplane.v1.CertificateService/IssueCertificate"
_RENEW = "/certplane.v1.CertificateService/RenewCertificate"
_HEARTBEAT_SECONDS = 30.0
_CALL_SECONDS = 30
"""An order is waited for so long by one call, then by the next."""
_AGAIN = (0.5, 2.0)
"""Seconds, by chance, before what failed is tried again."""
_OPENING = 32
"""Handshakes at a time: what a host's first connect takes isn't measured here."""

_Status = renewal_pb2.CertificateStatus
_Request = renewal_pb2.StreamRenewalStatusRequest


@dataclass(slots=True)
class Certificate:
    """A certificate on the host's disk."""

    certificate_id: str
    held: Any
    """As reports have it."""
    rollout_id: str = ""
    activate_by: Any = None


@dataclass(slots=True)
class Change:
    """A host has begun to use a certificate, and so ended to use another, at `time` (UNIX)."""

    time: float
    certificate_id: str
    before: str


class Link:
    """A connection on the event loop."""

    def __init__(self, host: Host, first: bytes, hear: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = ended
        self._reading = self._writing = False
        self._connection = Connection(host.context, host.port, first, hear)
        self._watch()

    def send(self, message: bytes) -> None:
        """Send a message; `ended` is called if that can't be."""
        try:
            self._connection.send(message)
        except Closed:
            self._loop.call_soon(self._lost)
        else:
            self._watch()

    def close(self) -> None:
        """Hang up; nobody is told."""
        self._forget()
        self._connection.close()

    def _watch(self) -> None:
        connection = self._connection
        fd = connection.fileno()
        if connection.connected and not self._reading:
            self._loop.add_reader(fd, self._go_on)
            self._reading = True
        if connection.writing != self._writing:
            self._writing = connection.writing
            if self._writing:
                self._loop.add_writer(fd, self._go_on)
            else:
                self._loop.remove_writer(fd)

    def _go_on(self) -> None:
        try:
            self._connection.ready()
        except Closed:
            self._lost()
        else:
            self._watch()

    def _lost(self) -> None:
        if self._connection.fileno() >= 0:
            self.close()
            self._ended()

    def _forget(self) -> None:
        fd = self._connection.fileno()
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)


@dataclass
class Host:
    """One host, with one certificate."""

    fleet: Hosts
    number: int
    context: Any
    ports: list[int]
    stream: Link | None = None
    welcome: bool = False
    failures: int = 0
    sequence: int = 0
    unacknowledged: dict[int, Any] = field(default_factory=dict)
    serving: Certificate | None = None
    waiting: Certificate | None = None
    """Held back by a rollout."""
    broken: Certificate | None = None
    """Its activation has failed."""
    asking: bool = False
    version: int = 0
    breaks: bool = False
    changes: list[Change] = field(default_factory=list)
    seen: int = 0
    """How many of `changes` were told."""

    @property
    def port(self) -> int:
        """Of the broker whose turn it is."""
        return self.ports[self.failures % len(self.ports)]

    @property
    def name(self) -> str:
        """Its identity's, and its certificate's."""
        return NAME.format(self.number)

    def open(self) -> None:
        """Connect, and say hello with what was not acknowledged."""
        hello = _Request.Hello(
            agent_version="bench", epoch=f"night-{os.getpid()}", certificate_names=["identity", "web"],
            reports=list(self.unacknowledged.values()), features=["rollout"],
        )  # fmt: skip
        hello.host_time.GetCurrentTime()
        first = saying(PATH, _Request(hello=hello).SerializeToString())
        try:
            self.stream = Link(self, first, self._hear, self._lost)
        except Closed:
            self._lost()

    def beat(self) -> None:
        """Send a heartbeat."""
        if self.stream is not None and self.welcome:
            message = _Request()
            message.heartbeat.host_time.GetCurrentTime()
            self.stream.send(message.SerializeToString())

    def ask(self, renewal: Any = None) -> None:
        """Have a certificate of a new key: the first one, or as a directive says."""
        if self.asking:
            return
        self.asking = True
        csr = build_csr(generate_private_key(KeyType.EC_P256), sans=[self.name])
        self._report(_Status.STATE_REQUESTING)
        self._call(csr, renewal)

    def _call(self, csr: str, renewal: Any) -> None:
        kind: Callable[[bytes], Any]
        if renewal is None:
            request: Any = certificate_pb2.IssueCertificateRequest(profile="web", csr_pem=csr)
            path, kind = _ISSUE, certificate_pb2.IssueCertificateResponse.FromString
        else:
            request = certificate_pb2.RenewCertificateRequest(
                certificate_id=renewal.certificate_id, profile="web", csr_pem=csr
            )
            path, kind = _RENEW, certificate_pb2.RenewCertificateResponse.FromString
        request.wait_duration.seconds = _CALL_SECONDS
        answers: list[Any] = []
        link: list[Link] = []

        def again() -> None:
            self.fleet.later(random.uniform(*_AGAIN), lambda: self._call(csr, renewal))

        def answered(data: bytes) -> None:
            answers.append(kind(data))

        def ended() -> None:
            if not answers or answers[0].order.state != certificate_pb2.Order.STATE_ISSUED:
                self.failures += not answers  # another broker, where this one is away
                again()
                return
            self.asking = False
            self._take(answers[0].certificate, renewal)

        try:
            link.append(Link(self, asking(path, request.SerializeToString()), answered, ended))
        except Closed:
            self.failures += 1
            again()

    def _take(self, certificate: Any, renewal: Any) -> None:
        """A new certificate is on disk."""
        self.version += 1
        leaf = x509.load_pem_x509_certificate(certificate.certificate_pem.encode())
        held = _Status.Held(
            certificate_id=certificate.certificate_id, serial_number=f"{leaf.serial_number:x}", version=self.version,
            not_before_time=leaf.not_valid_before_utc, not_after_time=leaf.not_valid_after_utc,
        )  # fmt: skip
        taken = Certificate(certificate.certificate_id, held)
        if renewal is None or not renewal.hold_activation:
            self._activate(taken)
            return
        taken.rollout_id, taken.activate_by = renewal.rollout_id, renewal.activate_by_time
        self.waiting = taken
        self._report(_Status.STATE_ISSUED, taken)

    def _activate(self, certificate: Certificate) -> None:
        """Use it; where the reload fails, what was used before is in place again."""
        self.waiting = self.broken = None
        before = self.serving
        if self.breaks and before is not None:
            self.broken = certificate
            self._report(
                _Status.STATE_DEGRADED, certificate, failed_step=_Status.STEP_RELOAD, activation_failures=1,
                last_error="the reload command ended with status 1: nginx: configuration file test failed",
            )  # fmt: skip
            return
        self.serving = certificate
        self.changes.append(Change(time.time(), certificate.certificate_id, before.certificate_id if before else ""))
        self._report(_Status.STATE_SERVING)
        self.fleet.changed()

    def _report(self, state: int, issued: Certificate | None = None, **more: Any) -> None:
        self.sequence += 1
        status = _Status(name="web", profile="web", dns_names=[self.name], state=state, **more)
        status.update_time.GetCurrentTime()
        if state == _Status.STATE_DEGRADED:
            status.next_attempt_time.GetCurrentTime()
            status.next_attempt_time.seconds += 3600
        newest = issued or self.waiting or self.serving
        if newest is not None:
            status.issued.CopyFrom(newest.held)
        if self.serving is not None:
            status.installed.CopyFrom(self.serving.held)
            status.served.CopyFrom(self.serving.held)
            status.served.observe_time.GetCurrentTime()
        if self.waiting is not None:
            status.held_by_rollout_id = self.waiting.rollout_id
            status.activate_time.CopyFrom(self.waiting.activate_by)
        report = _Request.Report(sequence=self.sequence, certificate=status)
        self.unacknowledged[self.sequence] = report
        if self.stream is not None and self.welcome:
            self.stream.send(_Request(report=report).SerializeToString())

    def _hear(self, data: bytes) -> None:
        message = renewal_pb2.StreamRenewalStatusResponse.FromString(data)
        match message.WhichOneof("message"):
            case "welcome":
                self.welcome = True
                self._forget(message.welcome.acknowledged_sequence)
                self.fleet.welcomed(self)
            case "acknowledgement":
                self._forget(message.acknowledgement.sequence)
            case "directive":
                self._obey(message.directive)

    def _obey(self, directive: Any) -> None:
        assert self.stream is not None
        answer = _Request.DirectiveResult(nonce=directive.nonce)
        self.stream.send(_Request(directive_result=answer).SerializeToString())
        now = time.time()
        for renewal in directive.renewals:
            mine = self.serving is not None and renewal.certificate_id == self.serving.certificate_id
            if mine and self.waiting is None and renewal.renew_time.ToDatetime().timestamp() <= now + 1:
                self.ask(renewal)
        for activation in directive.activations:
            for mine in (self.waiting, self.broken):
                if mine is None or activation.certificate_id != mine.certificate_id:
                    continue
                if activation.abandoned:
                    self.waiting = self.broken = None
                    self._report(_Status.STATE_SERVING)
                else:
                    self._activate(mine)

    def _forget(self, acknowledged: int) -> None:
        for sequence in [each for each in self.unacknowledged if each <= acknowledged]:
            del self.unacknowledged[sequence]

    def _lost(self) -> None:
        self.stream, self.welcome = None, False
        self.failures += 1
        self.fleet.later(random.uniform(*_AGAIN), self.open)


class Hosts:
    """The hosts of this process."""

    def __init__(self, folder: Path, ports: list[int], numbers: range) -> None:
        roots = str(folder / "root.pem")
        self._hosts = [
            # Spread over the brokers, each with the others to go to.
            Host(self, n, client_context(str(identity_file(folder, n)), roots), ports[n % len(ports) :] + ports)
            for n in numbers
        ]
        self._moved = asyncio.Event()

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it then."""
        asyncio.get_running_loop().call_later(seconds, call)

    def welcomed(self, host: Host) -> None:
        """A host has its stream."""
        self._moved.set()
        self.later(_HEARTBEAT_SECONDS * random.uniform(0.8, 1.2), lambda: self._beat(host, host.stream))

    def changed(self) -> None:
        """A host uses another certificate."""
        self._moved.set()

    def _beat(self, host: Host, stream: Link | None) -> None:
        if host.stream is stream and stream is not None:
            host.beat()
            self.later(_HEARTBEAT_SECONDS, lambda: self._beat(host, stream))

    async def run(self) -> None:
        """Do what is asked until there is nobody left to ask."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command, *numbers = line.decode().split()
            print(json.dumps(await self._do(command, [int(number) for number in numbers])), flush=True)

    async def _do(self, command: str, numbers: list[int]) -> dict[str, Any]:  # noqa: C901, PLR0911 - a table of commands
        match command:
            case "connect":
                for start in range(0, len(self._hosts), _OPENING):
                    some = self._hosts[start : start + _OPENING]
                    for host in some:
                        host.open()
                    await self._until(lambda some=some: all(host.welcome for host in some))  # type: ignore[misc]
                return {}
            case "back":
                await self._until(lambda: all(host.welcome for host in self._hosts))
                return {}
            case "issue":
                begun = time.time()
                for host in self._hosts:
                    host.ask()
                await self._until(lambda: all(host.serving is not None for host in self._hosts))
                return {"begun": begun, "times": [host.changes[-1].time for host in self._hosts]} | self._told()
            case "serving":
                first, count = numbers
                mine = [host for host in self._hosts if first <= host.number < first + count]
                await self._until(lambda: all(len(host.changes) > host.seen for host in mine))
                return self._told()
            case "look":
                return self._told()
            case "break":
                first, count = numbers
                for host in self._hosts:
                    host.breaks = first <= host.number < first + count
                return {}
            case "mend":
                for host in self._hosts:
                    host.breaks = False
                return {}
        raise RuntimeError(f"no command {command}")

    def _told(self) -> dict[str, Any]:
        """What each host has changed since this was last asked, oldest first."""
        told = [
            [host.number, change.time, change.certificate_id, change.before]
            for host in self._hosts
            for change in host.changes[host.seen :]
        ]
        for host in self._hosts:
            host.seen = len(host.changes)
        return {"changes": told}

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._moved.clear()
            await self._moved.wait()


async def _hold(arguments: argparse.Namespace) -> None:
    hosts = Hosts(arguments.folder, arguments.port, range(arguments.first, arguments.first + arguments.count))
    gc.freeze()
    print(json.dumps({"ready": True}), flush=True)
    await hosts.run()


def main() -> None:
    """Hold hosts until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="root.pem and identities/N.pem")
    parser.add_argument("--port", type=int, required=True, nargs="+")
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    raise_file_limit()
    asyncio.run(_hold(arguments))


if __name__ == "__main__":
    main()
