"""The fleet as a watch tells it: rows that are kept, sorted, filtered."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certplane.ctl.watch.fleet import Fleet, HostRow, Order, counts, host_row, listed
from certplane.v1 import renewal_pb2
from tests.support.watched_fleet import NOW, Message, certificate, host, snapshot, troubled_fleet


def told(*messages: renewal_pb2.WatchRenewalsResponse) -> Fleet:
    fleet = Fleet()
    for message in messages:
        fleet.apply(message)
    return fleet


def changed(name: str, status: renewal_pb2.CertificateStatus, *, removed: bool = False) -> Message:
    change = Message.CertificateChange(host=f"{name}.example.test", certificate=status, removed=removed)
    return Message(certificate_change=change)


def names(hosts: list[HostRow]) -> list[str]:
    return [each.shown for each in hosts]


def test_a_watch_is_followed() -> None:
    """A change replaces one certificate of one host, a removal takes it out, an unknown event changes nothing."""
    fleet = told(*snapshot(host("b", certificate()), host("a", certificate())))
    assert fleet.complete
    fleet.apply(changed("b", certificate("web", renewal_pb2.HEALTH_FAILING, cause="RELOAD x")))
    fleet.apply(changed("a", certificate("mail")))
    fleet.apply(changed("a", certificate("web"), removed=True))
    fleet.apply(Message())
    rows = listed(fleet.hosts.values(), Order.NAME, "")
    assert [(row.shown, row.health, [each.name for each in row.certificates]) for row in rows] == [
        ("a", "OK", ["mail"]),
        ("b", "FAILING", ["web"]),
    ]


def test_a_watch_that_begins_again_forgets_whom_it_isnt_told_of() -> None:
    """What was known stays until the new snapshot is complete, then only what that one told."""
    fleet = told(*snapshot(host("a"), host("b")))
    fleet.begin_again()
    assert sorted(fleet.hosts) == ["a.example.test", "b.example.test"]
    for message in snapshot(host("b")):
        fleet.apply(message)
    assert sorted(fleet.hosts) == ["b.example.test"]


def test_a_host_that_was_forgotten_is_gone() -> None:
    """It is no row with a trouble that nobody could mend, while the watch goes on."""
    fleet = told(*snapshot(host("a"), host("b")))
    fleet.apply(renewal_pb2.WatchRenewalsResponse(host_removed="a.example.test"))
    fleet.apply(renewal_pb2.WatchRenewalsResponse(host_removed="never.example.test"))
    assert sorted(fleet.hosts) == ["b.example.test"]


def test_the_worst_is_first_and_of_those_what_ends_soonest() -> None:
    """Whoever is hurt stands on top, however many others fail and wherever the alphabet has it."""
    fleet = told(*snapshot(*troubled_fleet()))
    shown = names(listed(fleet.hosts.values(), Order.WORST, ""))
    assert shown[:6] == ["app170", "app136", "web1", "lb9", "lb3", "app187"]
    assert shown.index("quiet1") < shown.index("well00")


def test_a_silent_host_is_unheard_and_nothing_worse() -> None:
    """Its own word is shown where its certificates have none that is worse."""
    fleet = told(*snapshot(*troubled_fleet()))
    assert fleet.hosts["quiet1.example.test"].health == "UNHEARD"
    ill = host("a", certificate("web", renewal_pb2.HEALTH_EXPIRED), connected=False)
    ill.health = renewal_pb2.HEALTH_UNHEARD
    assert host_row(ill).health == "EXPIRED"


@pytest.mark.parametrize(
    ("order", "first"),
    [
        pytest.param(Order.NAME, "app136", id="name"),
        pytest.param(Order.ENDS, "app170", id="ends"),
        pytest.param(Order.RENEWAL, "app170", id="renewal"),
        pytest.param(Order.HEARD, "never1", id="heard"),
    ],
)
def test_orders(order: Order, first: str) -> None:
    """Each order begins with whom somebody who asks for it looks for; backwards it is the last one."""
    rows = list(told(*snapshot(*troubled_fleet())).hosts.values())
    assert names(listed(rows, order, ""))[0] == first
    assert names(listed(rows, order, "", backwards=True))[-1] == first


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("postfix", ["mail1"], id="a-cause"),
        pytest.param("FAILING ns2", [f"app2{n:02}" for n in range(16)], id="health-and-cause"),
        pytest.param("down", ["never1", "quiet1"], id="link"),
        pytest.param("web1.example", ["web1"], id="name"),
        pytest.param("nothing has this", [], id="nothing"),
    ],
)
def test_filters(text: str, found: list[str]) -> None:
    """A host is found by all that its line may show, all words together, in either case."""
    rows = told(*snapshot(*troubled_fleet())).hosts.values()
    assert names(listed(rows, Order.NAME, text)) == found


def test_a_host_is_found_by_its_labels() -> None:
    """Also after one of its certificates has changed."""
    labelled = host("web1", certificate("web"))
    labelled.labels.update(ring="canary", dc="fra1")
    change = renewal_pb2.WatchRenewalsResponse.CertificateChange(host="web1", certificate=certificate("mail"))
    fleet = told(*snapshot(labelled, host("web2", certificate("web"))))
    fleet.apply(renewal_pb2.WatchRenewalsResponse(certificate_change=change))
    assert names(listed(fleet.hosts.values(), Order.NAME, "ring=canary dc=fra1")) == ["web1"]


def test_a_newer_brokers_health_is_a_warning() -> None:
    """It stands before what is well, by its number."""
    row = host_row(host("a", certificate("web"), certificate("mail", 99)))
    assert (row.health, row.worst and row.worst.name) == ("health 99", "mail")


def test_an_older_broker_says_no_health() -> None:
    """Its failed certificates come first all the same, and no word is invented."""
    ill = certificate("mail", renewal_pb2.HEALTH_UNSPECIFIED, state=renewal_pb2.CertificateStatus.STATE_FAILED)
    row = host_row(host("a", certificate("web", renewal_pb2.HEALTH_UNSPECIFIED), ill))
    assert (row.health, row.worst and row.worst.name) == ("-", "mail")
    assert row.rank < host_row(host("b", certificate("web", renewal_pb2.HEALTH_UNSPECIFIED))).rank


def test_what_stands_still_doesnt_move() -> None:
    """A pause shows the fleet of its moment."""
    fleet = told(*snapshot(host("a", certificate())))
    still = fleet.standing_still()
    fleet.apply(changed("a", certificate("web", renewal_pb2.HEALTH_EXPIRED)))
    assert (still.hosts["a.example.test"].health, fleet.hosts["a.example.test"].health) == ("OK", "EXPIRED")


def test_no_word_of_a_host_reaches_the_terminal_as_a_control() -> None:
    """What a host or broker says is text, whatever is in it."""
    evil = host("a", certificate("web", renewal_pb2.HEALTH_FAILING, cause="\x1b[2J\u202ered\n", reason="\x07bell"))
    evil.label = "\x1b]0;title\x07"
    row = host_row(evil)
    assert row.worst is not None
    assert f"{row.shown}{row.words}{row.worst.cause}{row.worst.reason}".isprintable()


def test_ten_thousand_hosts_are_picked() -> None:
    """A fleet of that size is filtered and sorted whole."""
    hosts = [host(f"h{n:05}", certificate("web", ends=timedelta(days=n % 90)), certificate("mail")) for n in range(500)]
    fleet = Fleet()
    for each in range(20):
        for one in hosts:
            one.name = f"{each}-{one.label}.example.test"
            fleet.apply(Message(host=one))
    assert len(fleet.hosts) == 10_000
    assert len(listed(fleet.hosts.values(), Order.WORST, "h000 web")) == 2_000
    assert len(listed(fleet.hosts.values(), Order.WORST, "")) == 10_000


def test_counts() -> None:
    """Certificates by health, the worst first."""
    fleet = told(*snapshot(*troubled_fleet()))
    assert counts(fleet.hosts.values())[:2] == [
        (renewal_pb2.HEALTH_EXPIRED, 2),
        (renewal_pb2.HEALTH_REVOKED_IN_USE, 1),
    ]
    assert fleet.hosts["app170.example.test"].soonest < NOW
