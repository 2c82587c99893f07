"""The figures of a fleet: what is counted, and what no stranger's word gets a label for."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from certplane.broker import metrics
from certplane.broker.fleet.figures import FleetFigures, Link
from certplane.fleet_report.model import CertificateState
from certplane.runtime.health import HealthWord
from tests.fakes.audit import FakeMeter

NOW = datetime(2026, 11, 28, tzinfo=UTC)
DAY = timedelta(days=1)


def figures(most_hosts: int = 10) -> FleetFigures:
    return FleetFigures(NOW, most_hosts, {"web", "mail"}.__contains__)


def add(
    to: FleetFigures,
    name: str,
    left: timedelta | None,
    profile: str = "web",
    health: HealthWord = HealthWord.OK,
) -> None:
    to.add_certificate(
        "web1.test",
        name,
        profile=profile,
        issuer="ca",
        state=CertificateState.SERVING,
        health=health,
        not_after=None if left is None else NOW + left,
    )


def labelled(meter: FakeMeter, metric: metrics.Metric) -> dict[tuple[str, ...], float]:
    return {
        tuple(dict(labels)[name] for name in metric.labels): value
        for (gauge, labels), value in meter.labelled.items()
        if gauge is metric
    }


def test_ending_within() -> None:
    """A certificate counts for each span that it ends in, one that has ended for all of them."""
    counted, meter = figures(), FakeMeter()
    counted.add_host(Link.UP)
    for name, left in (("a", -DAY), ("b", 2 * DAY), ("c", 7 * DAY), ("d", 29 * DAY), ("e", 31 * DAY), ("f", None)):
        add(counted, name, left)
    counted.show(meter, frozenset())
    assert labelled(meter, metrics.ENDING) == {("web", "1"): 1, ("web", "7"): 3, ("web", "14"): 3, ("web", "30"): 4}
    assert labelled(meter, metrics.SOONEST_END) == {("web",): (NOW - DAY).timestamp()}


def test_a_profile_that_nobody_has_any_more() -> None:
    """It goes on with zero and no end, so that an alert on it ends."""
    counted, meter = figures(), FakeMeter()
    counted.add_host(Link.UP)
    add(counted, "a", DAY)
    shown = counted.show(meter, frozenset())
    assert figures().show(meter, shown) == {"web"}
    assert labelled(meter, metrics.SOONEST_END) == {("web",): math.inf}
    assert set(labelled(meter, metrics.ENDING).values()) == {0}


def test_rows_of_certificates() -> None:
    """Each has one, under no profile that the policy doesn't know; above the bound of hosts there is none at all."""
    counted, meter = figures(most_hosts=2), FakeMeter()
    counted.add_host(Link.UP)
    add(counted, "a", DAY)
    add(counted, "identity", DAY, profile="")
    add(counted, "b", DAY, profile='of "mine"')
    counted.show(meter, frozenset())
    end = (NOW + DAY).timestamp()
    assert meter.tables[metrics.NOT_AFTER] == {
        ("web1.test", "a", "web", "ca"): end,
        ("web1.test", "identity", "", "ca"): end,
        ("web1.test", "b", "", "ca"): end,
    }
    assert set(labelled(meter, metrics.SOONEST_END)) == {("web",)}
    counted.add_host(Link.NEVER, 2)
    add(counted, "c", DAY)
    counted.show(meter, frozenset())
    assert meter.tables[metrics.NOT_AFTER] == {}


def test_links_and_healths() -> None:
    """All words are there, with zero where there is none."""
    counted, meter = figures(), FakeMeter()
    counted.add_host(Link.UP)
    counted.add_host(Link.DOWN)
    add(counted, "a", -DAY, health=HealthWord.EXPIRED)
    counted.add_host(Link.NEVER, 3)
    counted.show(meter, frozenset())
    assert labelled(meter, metrics.HOSTS) == {("up",): 1, ("down",): 1, ("never",): 3}
    healths = labelled(meter, metrics.HEALTH)
    assert (healths["EXPIRED",], healths["OK",]) == (1, 0)


def test_by_labels() -> None:
    """Of the keys that are asked for: a value's words are all there, and those of a host without the label aren't."""
    counted, meter = FleetFigures(NOW, 10, {"web"}.__contains__, ("ring",)), FakeMeter()
    counted.add_labels({"ring": "canary", "dc": "fra1"}, [HealthWord.OK, HealthWord.FAILING])
    counted.add_labels({"ring": "canary"}, [HealthWord.OK])
    counted.add_labels({"dc": "fra1"}, [HealthWord.OK])
    counted.show(meter, frozenset())
    rows = meter.tables[metrics.LABEL_HEALTH]
    assert {row[:2] for row in rows} == {("ring", "canary")}
    assert {row[2]: count for row, count in rows.items() if count} == {"OK": 2, "FAILING": 1}
    assert len(rows) == len(HealthWord)


def test_a_label_of_very_many_values() -> None:
    """The most frequent hundred have series of their own, the others one."""
    counted, meter = FleetFigures(NOW, 10, {"web"}.__contains__, ("rack",)), FakeMeter()
    for number in range(102):
        counted.add_labels({"rack": f"r{number}"}, [HealthWord.OK] * (1 if number < 2 else 2))
    counted.show(meter, frozenset())
    rows = meter.tables[metrics.LABEL_HEALTH]
    assert len({value for _, value, _ in rows}) == 101
    assert rows["rack", "(others)", "OK"] == 2
    assert rows["rack", "r101", "OK"] == 2
