"""What a broker finds wrong with itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from certplane.broker.own_troubles import OwnTroubles
from certplane.broker.sinks.gate import SinkGate
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores

DAY = timedelta(days=1)


@dataclass
class World:
    """A broker with which all is well."""

    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        now = self.clock.now()
        self.server = SimpleNamespace(serial_number="2a", not_before=now - 10 * DAY, not_after=now + 80 * DAY)
        self.ca_end, self.ca_problem, self.ca_warnings = now + 900 * DAY, "", list[str]()
        self.stores: Any = SimpleNamespace(
            writer=SimpleNamespace(rescued=0), audit=SimpleNamespace(gate=None), events=MemoryStores.open(self.clock)
        )
        self.seals: Any = SimpleNamespace(failing="", changed="")
        self.issuing: Any = SimpleNamespace(out=False)
        self.retention: Any = SimpleNamespace(little_room="")
        self.soundness: Any = SimpleNamespace(damage="")

    def look(self) -> dict[str, tuple[str, str]]:
        """Severity and text of each, by cause; each has a remedy."""

        def ca_not_after(_now: datetime) -> datetime:
            return self.ca_end

        current = SimpleNamespace(
            server=self.server,
            ca_not_after=ca_not_after,
            ca_problem=lambda _now: self.ca_problem,
            ca_warnings=lambda _now: self.ca_warnings,
        )
        trust: Any = SimpleNamespace(current=current)
        own = OwnTroubles(self.stores, self.seals, trust, self.issuing, self.retention, self.soundness, self.clock)
        found = own()
        assert all(each.text and each.remedy for each in found)
        return {each.cause: (each.severity.value, each.text) for each in found}


@pytest.fixture
def world() -> World:
    return World()


def test_a_broker_that_is_well_says_nothing(world: World) -> None:
    """Nor does one whose bundle has a CA that ended long ago beside others."""
    world.ca_warnings = ["CN=old ended"]
    assert world.look() == {}


def test_its_certificate_ends(world: World) -> None:
    """As a share of its life: a warning, then critical."""
    world.server.not_after = world.clock.now() + 3 * DAY
    assert world.look()["CERTIFICATE_ENDS"][0] == "warning"
    world.server.not_after = world.clock.now() + DAY
    severity, text = world.look()["CERTIFICATE_ENDS"]
    assert (severity, "2a ends at" in text) == ("critical", True)
    world.server.not_after = world.clock.now() - DAY
    severity, text = world.look()["CERTIFICATE_ENDS"]
    assert (severity, "2a expired at" in text) == ("critical", True)


def test_the_agents_ca_ends(world: World) -> None:
    """Within thirty days; and when nobody can be let in."""
    world.ca_end, world.ca_warnings = world.clock.now() + 20 * DAY, ["CN=root ends in 20 days"]
    assert world.look() == {"AGENT_CA_ENDS": ("warning", "CN=root ends in 20 days")}
    world.ca_problem = "has no certificate that is still valid"
    assert world.look()["AGENT_CA_ENDS"][0] == "critical"


def test_its_audit_log_is_in_trouble(world: World) -> None:
    """Events that the database didn't take, and a required sink that holds up."""
    world.stores.writer.rescued = 3
    gate = world.stores.audit.gate = SinkGate(
        world.stores.events.stored_events, {"siem": DAY}, world.clock, FakeMeter()
    )
    assert set(world.look()) == {"AUDIT_RESCUED"}
    gate._behind = "siem"
    found = world.look()
    assert set(found) == {"AUDIT_RESCUED", "AUDIT_SINK_HOLDS_UP"}
    assert "the audit sink siem is required" in found["AUDIT_SINK_HOLDS_UP"][1]


def test_its_audit_log_is_not_proven(world: World) -> None:
    """It gets no checkpoint, or one who has the database has changed it."""
    world.seals.failing = "the secret of audit.checkpoint_key_secret is empty"
    world.seals.changed = "event e of chain 1 does not follow from the one before it"
    found = world.look()
    assert {cause: severity for cause, (severity, _) in found.items()} == {
        "AUDIT_NO_CHECKPOINT": "warning",
        "AUDIT_CHANGED": "critical",
    }
    assert "checkpoint_key_secret is empty" in found["AUDIT_NO_CHECKPOINT"][1]


def test_room_damage_and_the_issuing_process(world: World) -> None:
    """Each with the words that the log has."""
    world.retention.little_room = "5 MiB are free for the database: free space, or shorten audit.keep or store.keep"
    world.soundness.damage = "the database is damaged: row 5"
    world.issuing.out = True
    assert world.look() == {
        "SPACE_LOW": ("critical", "5 MiB are free for the database"),
        "STORE_DAMAGED": ("critical", "the database is damaged: row 5"),
        "ISSUING_PROCESS_DOWN": ("critical", "there is no process for CAs and DNS: nothing is issued"),
    }
