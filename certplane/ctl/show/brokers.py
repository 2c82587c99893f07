"""The brokers of a fleet as rows and lines, and what a reload did at each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

from certplane.rpc.times import signed_span_of, time_of
from certplane.runtime.columns import Column
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style
from certplane.v1 import broker_pb2, fleet_pb2

_Subject = fleet_pb2.BrokerDifference

_HASH: Final = 8
"""Characters that are shown of one; wide tables and messages have all."""
_MARK: Final = " *"
"""Behind what differs."""


def broker_columns(now: datetime) -> list[Column[fleet_pb2.Broker]]:
    """The columns of `brokers`."""
    return [
        _column("BROKER", _Subject.SUBJECT_ADDRESS, lambda broker: broker.name, 0),
        Column("STATE", lambda broker: "DRAINING" if broker.draining else "", 1, style=lambda _: Style.WARNING),
        Column("ADDRESS", lambda broker: f"{broker.address} (shared)" if broker.reuse_port else broker.address, 5),
        _column("VERSION", _Subject.SUBJECT_VERSION, lambda broker: broker.version, 2),
        Column("UP", lambda broker: _up(broker, now), 6),
        _column("LEASE", _Subject.SUBJECT_LEASE, lambda b: "held" if b.HasField("lease_expire_time") else "", 3),
        Column("STREAMS", lambda broker: str(broker.stream_count), 1),
        _column("POLICY", _Subject.SUBJECT_POLICY, lambda broker: broker.policy_hash, 2, cut=_HASH),
        _column("TRUST", _Subject.SUBJECT_TRUST, lambda broker: broker.trust_hash, 4, cut=_HASH),
        _column("CONFIGURATION", _Subject.SUBJECT_CONFIGURATION, lambda b: b.configuration_hash, 7, cut=_HASH),
        _column("AUDIT", _Subject.SUBJECT_AUDIT_MODE, lambda broker: broker.audit_mode, 8),
        _column("CLOCK", _Subject.SUBJECT_CLOCK, _skew, 9),
        _column("ACCOUNTS", _Subject.SUBJECT_ACCOUNT, _accounts, 10),
        Column("RUNS FOR ALL", lambda broker: ", ".join(broker.roles), 11),
        Column("ID", lambda broker: broker.broker_id, None),
    ]


def difference_lines(differences: Iterable[fleet_pb2.BrokerDifference]) -> list[str]:
    """In what the brokers differ, and what to do about it."""
    return [f"* {difference.text}; {difference.remedy}" for difference in differences]


def reload_lines(
    reload: broker_pb2.ReloadBrokersResponse.Reload, others: Iterable[broker_pb2.ReloadBrokersResponse.Reload] = ()
) -> list[str]:
    """What one broker did; with its id where `others` have its name, as on one machine."""
    name = reload.broker_name or reload.broker_id
    if sum(each.broker_name == name for each in others) > 1:
        name = f"{name} ({reload.broker_id})"
    lines = list(reload.lines) or ["done" if reload.done else "said nothing"]
    return [f"{name}: {line}" for line in lines]


def _column(
    title: str, subject: int, text: Callable[[fleet_pb2.Broker], str], weight: int, cut: int = 0
) -> Column[fleet_pb2.Broker]:
    """A column that is marked where brokers differ in it."""

    def marked(broker: fleet_pb2.Broker, shown: str) -> str:
        return f"{shown or '-'}{_MARK if subject in broker.differs_in else ''}"

    return Column(
        title,
        lambda broker: marked(broker, text(broker)[: cut or None]),
        weight,
        style=lambda broker: Style.WARNING if subject in broker.differs_in else Style.PLAIN,
        wide_text=lambda broker: marked(broker, text(broker)),
    )


def _up(broker: fleet_pb2.Broker, now: datetime) -> str:
    start = time_of(broker.start_time) if broker.HasField("start_time") else None
    return "" if start is None else span_text(now - start)


def _accounts(broker: fleet_pb2.Broker) -> str:
    return ", ".join(f"{key.issuer} {key.public_key_sha256[:_HASH]}" for key in broker.account_keys)


def _skew(broker: fleet_pb2.Broker) -> str:
    skew = signed_span_of(broker.clock_skew) or timedelta()
    return f"{'-' if skew < timedelta() else '+'}{span_text(abs(skew))}"
