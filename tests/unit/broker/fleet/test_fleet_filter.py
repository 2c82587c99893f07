"""A filter of the fleet: each field alone, fields together, and the moments on which it depends."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from certplane.broker.fleet.filter import FleetFilter
from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.model import IdentityKind
from certplane.fleet_report.model import CertificateState
from certplane.runtime.health import HealthWord

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
DAY = timedelta(days=1)

WEB = IndexedCertificate(
    name="web",
    profile="web",
    state=CertificateState.SERVING,
    dns_names=("a.example", "b.example"),
    serial_number="1f",
    issued_serial_number="2f",
    served_serial_number="3f",
    not_after=NOW + 20 * DAY,
    renew_time=NOW + 5 * DAY,
    issuer="letsencrypt",
    public_key_sha256="aa",
)
MAIL = IndexedCertificate(
    name="mail",
    profile="mail",
    state=CertificateState.FAILED,
    health=HealthWord.FAILING,
    cause="DNS_UNAVAILABLE ns2.example",
    not_after=NOW + 2 * DAY,
    renew_time=NOW - DAY,
    issuer="buypass",
)
IDENTITY = IndexedCertificate("identity", "", CertificateState.WAITING, not_after=NOW + DAY, renew_time=NOW + DAY / 2)
HOST = IndexedHost(
    name="web1.example",
    label="web1",
    connected=True,
    last_seen_time=NOW - timedelta(minutes=5),
    agent_version="0.2.0",
    certificates=(IDENTITY, MAIL, WEB),
)
LABELLED = replace(HOST, labels={"ring": "canary", "dc": "fra1"})
ALL = ["identity", "mail", "web"]
AWAY = replace(HOST, connected=False, end_time=NOW - 3 * DAY, last_seen_time=NOW - 4 * DAY)
NEVER = IndexedHost(name="new.example", label="new")
SERVICE = IndexedHost(name="api", label="api", kind=IdentityKind.SERVICE, certificates=(WEB,))


def one(**fields: object) -> FleetFilter:
    return FleetFilter(**fields)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize(
    ("wanted", "host", "picked"),
    [
        pytest.param(one(), HOST, ["identity", "mail", "web"], id="nothing-asked"),
        pytest.param(one(hosts=frozenset({"web1"})), HOST, ["identity", "mail", "web"], id="by-label"),
        pytest.param(one(hosts=frozenset({"web2", "web1.example"})), HOST, ["identity", "mail", "web"], id="by-name"),
        pytest.param(one(hosts=frozenset({""})), replace(HOST, label=""), [], id="no-label-is-no-name"),
        pytest.param(one(labels=frozenset({("ring", "canary"), ("a", "b")})), LABELLED, ALL, id="one-of-its-labels"),
        pytest.param(one(labels=frozenset({("ring", "rest")})), LABELLED, [], id="another-value"),
        pytest.param(one(labels=frozenset({("ring", "canary")})), SERVICE, [], id="a-service-has-no-labels"),
        pytest.param(one(kinds=frozenset({IdentityKind.SERVICE})), SERVICE, ["web"], id="services"),
        pytest.param(one(kinds=frozenset({IdentityKind.SERVICE})), HOST, [], id="not-a-service"),
        pytest.param(one(disconnected_only=True), HOST, [], id="connected"),
        pytest.param(one(disconnected_only=True), SERVICE, [], id="a-service-has-no-stream"),
        pytest.param(one(unheard_for=2 * DAY), AWAY, ["identity", "mail", "web"], id="away-since-its-streams-end"),
        pytest.param(one(unheard_for=3 * DAY + DAY / 24), AWAY, [], id="not-away-for-so-long"),
        pytest.param(one(unheard_for=2 * DAY), HOST, [], id="is-there"),
        pytest.param(one(blocked_only=True), replace(HOST, blocked="denied"), ["identity", "mail", "web"], id="blocked"),
        pytest.param(one(blocked_only=True), HOST, [], id="not-blocked"),
        pytest.param(one(agent_versions=frozenset({"0.1.0"})), HOST, [], id="another-version"),
        pytest.param(one(lacks_broker_root_sha256="new"), HOST, ["identity", "mail", "web"], id="its-agent-says-no-roots"),
        pytest.param(one(lacks_broker_root_sha256="new"), replace(HOST, broker_roots=("old", "new")), [], id="has-the-root"),
        pytest.param(one(lacks_broker_root_sha256="new"), SERVICE, [], id="a-service-has-a-trust-of-its-own"),
        pytest.param(one(healths=frozenset({HealthWord.FAILING})), HOST, ["mail"], id="by-health"),
        pytest.param(one(causes=frozenset({"DNS_UNAVAILABLE ns2.example"})), HOST, ["mail"], id="by-cause"),
        pytest.param(one(states=frozenset({CertificateState.SERVING})), HOST, ["web"], id="by-state"),
        pytest.param(one(expiring_within=2 * DAY), HOST, ["mail"], id="ends-at-that-moment-and-no-identity"),
        pytest.param(one(renewing_within=timedelta()), HOST, ["mail"], id="to-be-renewed-now"),
        pytest.param(one(renewing_within=5 * DAY), HOST, ["mail", "web"], id="to-be-renewed"),
        pytest.param(one(profiles=frozenset({"web", "api"})), HOST, ["web"], id="by-profile"),
        pytest.param(one(issuers=frozenset({"buypass"})), HOST, ["mail"], id="by-issuer"),
        pytest.param(one(dns_names=frozenset({"b.example"})), HOST, ["web"], id="by-name-in-it"),
        pytest.param(one(serial_numbers=frozenset({"3f"})), HOST, ["web"], id="served"),
        pytest.param(one(public_keys_sha256=frozenset({"aa"})), HOST, ["web"], id="by-key"),
        pytest.param(
            one(healths=frozenset({HealthWord.FAILING}), profiles=frozenset({"web"})), HOST, [], id="two-fields-one-certificate"
        ),
    ],
)  # fmt: skip
def test_what_is_picked(wanted: FleetFilter, host: IndexedHost, picked: list[str]) -> None:
    """A host is picked if one of its certificates is, and those that match every field are."""
    at = wanted.at(NOW)
    assert [each.name for each in at.picked(host)] == picked
    assert at.picks_host(host) is bool(picked)


def test_identities_are_picked_by_time_where_they_are_asked_for() -> None:
    """They live for a day or so: a list of what ends soon would be one of all hosts."""
    wanted = FleetFilter(expiring_within=DAY)
    assert [each.name for each in wanted.at(NOW, identities=True).picked(HOST)] == ["identity"]


def test_a_host_without_certificates() -> None:
    """One that never came is picked by itself, and by its health; a field about certificates alone doesn't pick it."""
    assert FleetFilter(unheard_for=DAY).at(NOW).picks_host(NEVER)
    assert FleetFilter(healths=frozenset({HealthWord.OK})).at(NOW).picks_host(NEVER)
    assert not FleetFilter(profiles=frozenset({"web"})).at(NOW).picks_host(NEVER)
    assert not FleetFilter(healths=frozenset({HealthWord.OK}), profiles=frozenset({"web"})).at(NOW).picks_host(NEVER)
