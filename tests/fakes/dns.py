"""The world's DNS in memory, and a `ChallengeSolver` that writes into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.errors import Reason, RefusalError
from tests.fakes.faults import FaultScript


class FakeDns:
    """TXT records by id, of the zones that the provider's account has; any zone if `zones` is empty."""

    def __init__(self, zones: Sequence[str] = ()) -> None:
        self.zones = tuple(zones)
        self.records: dict[str, TxtRecord] = {}
        self.written = 0
        self.hidden = False
        """Written records aren't seen by any server yet."""

    def fork(self) -> FakeDns:
        """The same zones and records, going their own way from here."""
        other = FakeDns(self.zones)
        other.records = dict(self.records)
        other.written = self.written
        other.hidden = self.hidden
        return other

    def visible(self) -> set[tuple[str, str]]:
        """Name and value of what every authoritative server answers."""
        return set() if self.hidden else {(record.name, record.value) for record in self.records.values()}

    def zone_of(self, name: str) -> str:
        labels = name.split(".")
        parents = [".".join(labels[index:]) for index in range(len(labels))]
        found = next((parent for parent in parents if parent in self.zones), None)
        if found is None and self.zones:
            raise RefusalError(Reason.DNS_REJECTED, f"no zone of the account holds {name}")
        return found or ".".join(labels[-2:])

    def write(self, record: TxtRecord) -> TxtRecord:
        standing = self.find(record)
        if standing is not None:
            return standing
        self.written += 1
        written = replace(record, zone=self.zone_of(record.name), record_id=f"rr{self.written}")
        self.records[written.record_id] = written
        return written

    def find(self, record: TxtRecord) -> TxtRecord | None:
        return next((r for r in self.records.values() if (r.name, r.value) == (record.name, record.value)), None)

    def delete(self, record: TxtRecord) -> None:
        standing = self.records.get(record.record_id) or self.find(record)
        if standing is not None:
            del self.records[standing.record_id]


class FakeChallengeSolver:
    """`ChallengeSolver` on a `FakeDns`; `faults` go by method name, a fault of `remove` leaves the records standing."""

    def __init__(self, dns: FakeDns) -> None:
        self.dns = dns
        self.faults = FaultScript()
        self.silent: tuple[str, ...] = ()
        """Servers that give no answer."""

    async def plan(
        self, challenges: Sequence[DnsChallenge], profile: Profile, timeout: timedelta
    ) -> Sequence[TxtRecord]:
        return [
            TxtRecord("", challenge.record_name, challenge.record_value, credentials=profile.credentials)
            for challenge in challenges
        ]

    async def present(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        async with self.faults.around("present"):
            return [self.dns.write(record) for record in records]

    async def wait_until_visible(
        self, records: Sequence[TxtRecord], timeout: timedelta, tell: Callable[[str], object] | None = None
    ) -> Sequence[str]:
        async with self.faults.around("wait_until_visible"):
            for record in records:
                if (record.name, record.value) not in self.dns.visible():
                    if tell is not None:
                        tell(f"waits for the TXT record at {record.name}")
                    raise RefusalError(Reason.DNS_UNAVAILABLE, f"ns1.test lacks the TXT record of {record.name}")
            return self.silent if records else ()

    async def remove(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        try:
            async with self.faults.around("remove"):
                for record in records:
                    self.dns.delete(record)
        except RefusalError:
            return [record for record in records if self.dns.find(record) is not None]
        return []


class FakePreflight:
    """`OrderPreflight` that finds nothing, unless `faults` say what it finds (operation `check_order`)."""

    def __init__(self) -> None:
        self.faults = FaultScript()
        self.checked: list[tuple[tuple[str, ...], str]] = []

    async def check_order(self, dns_names: Sequence[str], issuer: str, timeout: timedelta) -> None:
        self.checked.append((tuple(dns_names), issuer))
        async with self.faults.around("check_order"):
            return
