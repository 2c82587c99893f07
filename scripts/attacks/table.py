"""Every attack, one row each, and how many times its quiet p99 a neighbour's p99 may be meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from attacks import budget, calls, growth, handshakes, labels, paths, streams
from attacks.target import Target


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        name: On the command line.
        what: In one line.
        run: What a hostile host does until the time is over; returns what it counted.
        hosts: With how many hostile hosts at once it is run.
        anonymous: Whether the attacker has no identity: then a factor of 5 is allowed, whatever their number.
        denied: Whether the hostile hosts are on the deny-list.
        most: How many certificates all of them together may get of the public CA; None where that isn't the point.
        megabytes: By how many the broker's files may grow for each hostile host.
    """

    name: str
    what: str
    run: Callable[[Target, float], Awaitable[Counter[str]]]
    hosts: tuple[int, ...] = (1, 4)
    anonymous: bool = False
    denied: bool = False
    most: int | None = None
    megabytes: float = 12

    def goal(self, hosts: int) -> float:
        """The factor that is allowed."""
        return 5 if self.anonymous or hosts > 1 else 3


ATTACKS = (
    Attack("nothing", "no attack: what sharing the processors with so many hostile hosts costs", handshakes.nothing),
    Attack("path-search", "a chain that makes the path search try 128 signatures", paths.run),
    Attack("path-search-denied", "the same of hosts on the deny-list", paths.run, hosts=(1,), denied=True),
    Attack("report-labels", "reports of 100 names of long A-labels", labels.reports),
    Attack("csr-labels", "CSRs of 91 names of long A-labels", labels.csrs),
    Attack("hello-reports", "hellos with 600 reports", labels.hellos),
    Attack("report-flood", "reports as fast as they are taken, a new stream at each refusal", streams.flood),
    Attack("enrollment-flood", "enrollment reports, each with another version", growth.enrollments),
    Attack("idle-connections", "500 connections without a call", growth.idle_connections, hosts=(1,)),
    Attack(
        "silent-scrapers",
        "500 silent connections a second to the metrics listener",
        growth.silent_scrapers,
        hosts=(1,),
    ),
    Attack("stream-hoard", "600 health watches and 600 reflection streams", streams.hoard, hosts=(1,)),
    Attack("call-flood", "calls far over the bucket, on 20 connections", calls.run),
    Attack("call-flood-denied", "the same of a host on the deny-list", calls.run, hosts=(1,), denied=True),
    Attack("many-connections", "60 connections with 128 calls waiting on each", calls.many, hosts=(1,)),
    Attack("given-up", "streams that are given up as soon as they begin", calls.give_up, megabytes=0.5),
    Attack("burn-by-revoking", "issue, revoke, issue again: the CA's week for a name set", budget.revoke, (1,), most=5),
    Attack("burn-by-renewing", "renew what is far from due, again and again", budget.renew, (1,), most=4),
    Attack("client-hellos", "TLS handshakes that end after the first message", handshakes.hellos, (1,), anonymous=True),
    Attack("tls-junk", "connections that bring anything but TLS", handshakes.junk, (1,), anonymous=True),
    Attack("handshakes", "whole TLS handshakes without a certificate", handshakes.whole, (1,), anonymous=True),
)
