"""Which hosts and certificates a question is about: an operator's filter, asked of the values of the index. Pure.

A field that is set must match, and of a field with several values one. Fields about certificates are asked of one
certificate: what expires within a day *and* fails is one that does both. A host is picked by itself, and then, if a
field about certificates is set, by one of its certificates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Final

from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.model import IdentityKind
from certplane.fleet_report.model import CertificateState
from certplane.runtime.health import HealthWord

IDENTITY: Final = "identity"
"""The name of a host's own certificate among its certificates."""


@dataclass(frozen=True, slots=True)
class FleetFilter:
    """What is asked for; the proto file's message of this name has each field's meaning. Empty or None: not asked.

    `serial_numbers` are as they are stored: lower-case hexadecimal without leading zeros. `labels` are pairs of key and
    value.
    """

    hosts: frozenset[str] = frozenset()
    kinds: frozenset[IdentityKind] = frozenset()
    disconnected_only: bool = False
    unheard_for: timedelta | None = None
    blocked_only: bool = False
    agent_versions: frozenset[str] = frozenset()
    lacks_broker_root_sha256: str = ""
    healths: frozenset[HealthWord] = frozenset()
    causes: frozenset[str] = frozenset()
    states: frozenset[CertificateState] = frozenset()
    expiring_within: timedelta | None = None
    renewing_within: timedelta | None = None
    profiles: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    dns_names: frozenset[str] = frozenset()
    serial_numbers: frozenset[str] = frozenset()
    public_keys_sha256: frozenset[str] = frozenset()
    labels: frozenset[tuple[str, str]] = frozenset()

    def at(self, now: datetime, *, identities: bool = False) -> PickedAt:
        """The filter at a moment.

        Args:
            now: The moment that the times within are counted from.
            identities: Whether the times pick identities too, which are renewed so often that each fleet would be in
                the list at any time.
        """
        return PickedAt(self, now, identities=identities)


def silent_since(host: IndexedHost) -> datetime | None:
    """Since when nothing was heard of a host: None if it never came, or is there."""
    return None if host.connected else host.end_time or host.last_seen_time


_HostTest = Callable[[IndexedHost], bool]
_CertificateTest = Callable[[IndexedCertificate], bool]


class PickedAt:
    """What a filter picks at one moment.

    Only the fields that are set cost anything: a page of a large fleet is picked from forty thousand certificates.
    """

    def __init__(self, wanted: FleetFilter, now: datetime, *, identities: bool = False) -> None:
        self._host_tests = _host_tests(wanted, now)
        self._tests = _certificate_tests(wanted, now, identities=identities)
        self._healths_alone = wanted.healths if len(self._tests) == 1 else frozenset[HealthWord]()

    def picks_host(self, host: IndexedHost) -> bool:
        """Whether the host, or the service, is picked."""
        return self.of(host) is not None

    def picked(self, host: IndexedHost) -> Sequence[IndexedCertificate]:
        """The certificates of the host that are picked; none of a host that isn't."""
        return self.of(host) or ()

    def of(self, host: IndexedHost) -> Sequence[IndexedCertificate] | None:
        """The certificates that are picked of a host, or of a service; None of one that isn't picked itself."""
        for passes in self._host_tests:
            if not passes(host):
                return None
        picked: Sequence[IndexedCertificate] = host.certificates
        for matches in self._tests:
            picked = [each for each in picked if matches(each)]
        if picked or not self._tests:
            return picked
        # One that has no certificates has a health all the same.
        return () if not host.certificates and host.health in self._healths_alone else None


def _host_tests(wanted: FleetFilter, now: datetime) -> list[_HostTest]:
    tests: list[_HostTest] = []
    if wanted.hosts:
        tests.append(lambda host: host.name in wanted.hosts or (host.label != "" and host.label in wanted.hosts))
    if wanted.labels:
        tests.append(lambda host: not wanted.labels.isdisjoint(host.labels.items()))
    if wanted.kinds:
        tests.append(lambda host: host.kind in wanted.kinds)
    if wanted.disconnected_only or wanted.unheard_for is not None:
        # A service that never watched has nothing that it could lack.
        tests.append(
            lambda host: not host.connected and (host.kind is IdentityKind.HOST or host.connect_time is not None)
        )
    if wanted.unheard_for is not None:
        latest = now - wanted.unheard_for
        tests.append(lambda host: (since := silent_since(host)) is None or since <= latest)
    if wanted.blocked_only:
        tests.append(lambda host: host.blocked != "")
    if wanted.agent_versions:
        tests.append(lambda host: host.agent_version in wanted.agent_versions)
    if wanted.lacks_broker_root_sha256:
        tests.append(
            lambda host: host.kind is IdentityKind.HOST and wanted.lacks_broker_root_sha256 not in host.broker_roots
        )
    return tests


_ONE_VALUE: Final = {
    "healths": "health",
    "causes": "cause",
    "states": "state",
    "profiles": "profile",
    "issuers": "issuer",
    "public_keys_sha256": "public_key_sha256",
}
"""Fields, and what of a certificate must be among their values."""
_SEVERAL_VALUES: Final = {
    "dns_names": ("dns_names",),
    "serial_numbers": ("serial_number", "issued_serial_number", "served_serial_number"),
}
"""Fields, and of what a certificate has one must be among their values: of texts, or of a list of them."""
_TIMES: Final = {"expiring_within": "end", "renewing_within": "renew_time"}
"""Fields, and what moment must come within their time."""


def _certificate_tests(wanted: FleetFilter, now: datetime, *, identities: bool) -> list[_CertificateTest]:
    """One for each field that is set."""

    def is_one(attribute: str, of: frozenset[object]) -> _CertificateTest:
        value = attrgetter(attribute)  # some times as fast as a function of ours
        return lambda one: value(one) in of

    def has_one(attributes: Sequence[str], of: frozenset[str]) -> _CertificateTest:
        values = attrgetter(*attributes)
        return lambda one: not of.isdisjoint(values(one))

    def is_until(attribute: str, end: datetime) -> _CertificateTest:
        time = attrgetter(attribute)

        def test(one: IndexedCertificate) -> bool:
            found = time(one)
            return found is not None and found <= end and (identities or one.name != IDENTITY)

        return test

    tests = [is_one(attribute, of) for field, attribute in _ONE_VALUE.items() if (of := getattr(wanted, field))]
    tests += [has_one(several, of) for field, several in _SEVERAL_VALUES.items() if (of := getattr(wanted, field))]
    within = ((attribute, getattr(wanted, field)) for field, attribute in _TIMES.items())
    return tests + [is_until(attribute, now + span) for attribute, span in within if span is not None]
