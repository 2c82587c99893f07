"""What the broker counts, for Prometheus.

One registry per broker, so that two in one process (tests) don't share figures. Labels are bounded: methods are those
of the access table, codes and reasons those of the error table; never a name that a caller chose.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From an answer out of the cache to the longest wait for an order."""


class Metrics:
    """The broker's figures; its methods are cheap enough for every call."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "certplane_rpc_calls_total",
            "Calls that ended, by method, gRPC code and refusal reason (empty when not refused).",
            ["method", "code", "reason"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "certplane_rpc_seconds",
            "Time from the arrival of a call with one answer to its end; streams are left out.",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("certplane_rpc_in_flight", "Calls being served.", registry=self.registry)
        self._not_after = Gauge(
            "certplane_certificate_not_after_seconds",
            "End of validity, Unix time: the broker's own certificate (server) and the CA of the agents that ends first"
            " (agent_ca).",
            ["certificate"],
            registry=self.registry,
        )
        self.reloads = Counter(
            "certplane_reloads_total",
            "Files read again, by what (policy, trust) and result (loaded, rejected).",
            ["what", "result"],
            registry=self.registry,
        )
        self.draining = Gauge("certplane_draining", "1 while the broker shuts down.", registry=self.registry)
        # Looking a child up takes a lock and builds a tuple each time; there are at most some hundreds.
        self._call_counter = lru_cache(maxsize=4096)(self._calls.labels)
        self._call_seconds = lru_cache(maxsize=256)(self._seconds.labels)

    def call_ended(self, method: str, code: str, reason: str, seconds: float | None) -> None:
        """Count one call; `seconds` is None for a stream, whose length says nothing of how fast anything was."""
        self._call_counter(method, code, reason).inc()
        if seconds is not None:
            self._call_seconds(method).observe(seconds)

    def trust_loaded(self, server_not_after: datetime, agent_ca_not_after: datetime) -> None:
        """Note until when the certificates in force are valid."""
        self._not_after.labels("server").set(server_not_after.timestamp())
        self._not_after.labels("agent_ca").set(agent_ca_not_after.timestamp())
