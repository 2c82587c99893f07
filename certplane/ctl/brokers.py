"""The brokers of a fleet as rows and lines for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

from certplane.rpc.times import signed_span_of, time_of
from certplane.runtime.tables import span_text
from certplane.v1 import fleet_pb2

_Subject = fleet_pb2.BrokerDifference

_HASH: Final = 8
"""Characters that are shown of one; `--json` has all."""
_MARK: Final = " *"
"""Behind what differs."""


def _accounts(broker: fleet_pb2.Broker) -> str:
    return ", ".join(f"{key.issuer} {key.public_key_sha256[:_HASH]}" for key in broker.account_keys)


def _skew(broker: fleet_pb2.Broker) -> str:
    skew = signed_span_of(broker.clock_skew) or timedelta()
    return f"{'-' if skew < timedelta() else '+'}{span_text(abs(skew))}"


_COLUMNS: Final[tuple[tuple[str, int, Callable[[fleet_pb2.Broker], str]], ...]] = (
    ("LEASE", _Subject.SUBJECT_LEASE, lambda broker: "held" if broker.HasField("lease_expire_time") else "-"),
    ("STREAMS", 0, lambda broker: str(broker.stream_count)),
    ("POLICY", _Subject.SUBJECT_POLICY, lambda broker: broker.policy_hash[:_HASH]),
    ("TRUST", _Subject.SUBJECT_TRUST, lambda broker: broker.trust_hash[:_HASH]),
    ("CONFIGURATION", _Subject.SUBJECT_CONFIGURATION, lambda broker: broker.configuration_hash[:_HASH]),
    ("AUDIT", _Subject.SUBJECT_AUDIT_MODE, lambda broker: broker.audit_mode),
    ("ACCOUNTS", _Subject.SUBJECT_ACCOUNT, _accounts),
    ("CLOCK", _Subject.SUBJECT_CLOCK, _skew),
    ("RUNS FOR ALL", 0, lambda broker: ", ".join(broker.roles)),
)


def broker_rows(brokers: Iterable[fleet_pb2.Broker], now: datetime) -> list[tuple[str, ...]]:
    """A row for each broker; the header first."""
    rows = [("BROKER", "ADDRESS", "VERSION", "UP", *(title for title, _, _ in _COLUMNS))]
    for broker in brokers:
        start = time_of(broker.start_time) if broker.HasField("start_time") else None
        address = f"{broker.address} (shared)" if broker.reuse_port else broker.address
        rows.append(
            (
                _marked(broker, _Subject.SUBJECT_ADDRESS, broker.name),
                address,
                _marked(broker, _Subject.SUBJECT_VERSION, broker.version),
                "-" if start is None else span_text(now - start),
                *(_marked(broker, subject, text(broker)) for _, subject, text in _COLUMNS),
            )
        )
    return rows


def difference_lines(differences: Iterable[fleet_pb2.BrokerDifference]) -> list[str]:
    """In what the brokers differ, and what to do about it."""
    return [f"* {difference.text}; {difference.remedy}" for difference in differences]


def _marked(broker: fleet_pb2.Broker, subject: int, text: str) -> str:
    return f"{text or '-'}{_MARK if subject in broker.differs_in else ''}"
