"""The fleet kept up to date from a watch's messages, and its changes as lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from certplane.ctl.show.words import (
    at_broker,
    by_health,
    health_word,
    held,
    is_well,
    link_text,
    moment,
    served_text,
    state_text,
)
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2

_MOST_TEXT: Final = 8000

HEADER: Final[tuple[str, ...]] = ("HOST", "LINK", "CERTIFICATE", "HEALTH", "STATE", "VALID UNTIL", "RENEWAL", "SERVED")


class FleetView:
    """The fleet as a watch tells it."""

    def __init__(self) -> None:
        self._hosts: dict[str, renewal_pb2.Host] = {}
        self._told: set[str] = set()
        self.complete = False
        """Whether a snapshot has been seen to its end."""

    @property
    def hosts(self) -> Sequence[renewal_pb2.Host]:
        """The hosts by name."""
        return [self._hosts[name] for name in sorted(self._hosts)]

    def apply(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        """Take in one message."""
        match message.WhichOneof("event"):
            case "host":
                self._hosts[message.host.name] = message.host
                self._told.add(message.host.name)
            case "certificate_change":
                self._change(message.certificate_change)
            case "snapshot_end":
                self.complete = True
                self._hosts = {name: host for name, host in self._hosts.items() if name in self._told}
            case _:
                pass  # a newer broker's event

    def begin_again(self) -> None:
        """Another watch begins: what is known stays until its snapshot has ended, and then only what it told."""
        self.complete = False
        self._told.clear()

    def _change(self, change: renewal_pb2.WatchRenewalsResponse.CertificateChange) -> None:
        host = self._hosts.setdefault(change.host, renewal_pb2.Host(name=change.host))
        self._told.add(change.host)
        others = [each for each in host.certificates if each.name != change.certificate.name]
        kept = others if change.removed else sorted([*others, change.certificate], key=lambda each: each.name)
        del host.certificates[:]
        host.certificates.extend(kept)


def change_line(message: renewal_pb2.WatchRenewalsResponse, now: datetime) -> str:
    """What a message after the snapshot says, in a line; empty if it is nothing for a person."""
    match message.WhichOneof("event"):
        case "host":
            ill = [
                f"{each.name} {health_word(each.health)}"
                for each in by_health(message.host.certificates)
                if not is_well(each)
            ]
            link = link_text(message.host, now) + at_broker(message.host, machine=False)
            line = ", ".join([f"{message.host.label or message.host.name}: {link}", *ill])
            return printable(line, _MOST_TEXT)
        case "certificate_change":
            change = message.certificate_change
            if change.removed:
                return printable(f"{change.host}: {change.certificate.name}: removed", _MOST_TEXT)
            error = f": {change.certificate.last_error}" if change.certificate.last_error else ""
            health = "" if is_well(change.certificate) else f"{health_word(change.certificate.health)}, "
            line = f"{change.host}: {change.certificate.name}: {health}{state_text(change.certificate)}{error}"
            return printable(line, _MOST_TEXT)
        case _:
            return ""


def fleet_rows(hosts: Iterable[renewal_pb2.Host], now: datetime) -> list[tuple[str, ...]]:
    """A row for each certificate, a host's worst first, and one for a host without any; the header first.

    Where the hosts are at several brokers, each says at which it is.
    """
    rows: list[tuple[str, ...]] = [HEADER]
    hosts = list(hosts)
    several = len(brokers := {host.broker_id: host.broker_name for host in hosts if host.broker_id}) > 1
    machines = len(set(brokers.values())) == len(brokers)
    for host in hosts:
        name, link = (
            host.label or host.name,
            link_text(host, now) + (at_broker(host, machine=machines) if several else ""),
        )
        if not host.certificates:
            rows.append((name, link, *["-"] * (len(HEADER) - 2)))
        for status in by_health(host.certificates):
            in_use = held(status)
            until = moment(in_use.not_after_time, now) if in_use is not None else "-"
            served = served_text(status)
            renewal = moment(status.renew_time, now) if status.HasField("renew_time") else "-"
            rows.append(
                (name, link, status.name, health_word(status.health), state_text(status), until, renewal, served)
            )
            name = link = ""
    return rows
