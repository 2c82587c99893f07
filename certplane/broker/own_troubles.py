"""What is wrong with this broker itself, for those who are notified: most of it hurts no certificate yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from certplane.broker.events import AuditTrail
from certplane.broker.expiry import ExpiryLevel, expiry_level
from certplane.broker.issuing.supervision import IssuingProcess
from certplane.broker.notify.model import OwnTrouble
from certplane.broker.ports import Meter
from certplane.broker.proof.sealing import Sealing
from certplane.broker.retention import Retention
from certplane.broker.services.trust import TrustInForce
from certplane.broker.settings import BrokerSettings
from certplane.broker.sinks.gate import SinkGate
from certplane.broker.soundness import REMEDY, SoundnessWatch
from certplane.broker.store import Stores
from certplane.broker.wiring import retention_of
from certplane.runtime.clock import Clock
from certplane.runtime.health import Severity
from certplane.runtime.pool import BlockingPool

_CA_ENDS: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class OwnTroubles:
    """Looks at what the broker is made of. For the event loop's thread."""

    stores: Stores
    seals: Sealing
    trust: TrustInForce
    issuing: IssuingProcess
    retention: Retention
    soundness: SoundnessWatch
    clock: Clock

    def __call__(self) -> Sequence[OwnTrouble]:
        """All that is wrong now."""
        return [*self._of_certificates(), *self._of_audit(), *self._of_the_rest()]

    def _of_certificates(self) -> Iterator[OwnTrouble]:
        now, trust = self.clock.now(), self.trust.current
        server = trust.server
        level = expiry_level(server.not_before, server.not_after, now)
        if level is not ExpiryLevel.FINE:
            when = f"{'expired' if level is ExpiryLevel.EXPIRED else 'ends'} at {server.not_after:%Y-%m-%dT%H:%M:%SZ}"
            yield OwnTrouble(
                "CERTIFICATE_ENDS",
                Severity.WARNING if level is ExpiryLevel.QUARTER else Severity.CRITICAL,
                f"the broker's own certificate {server.serial_number} {when}, and no agent connects then",
                'renew it: docs/operations.md, "The broker\'s own certificate"',
            )
        remedy = "a new internal CA: docs/rotation.md"
        if problem := trust.ca_problem(now):
            yield OwnTrouble("AGENT_CA_ENDS", Severity.CRITICAL, f"the agents' CA bundle {problem}", remedy)
        elif trust.ca_not_after(now) - now < _CA_ENDS and (warnings := trust.ca_warnings(now)):
            yield OwnTrouble("AGENT_CA_ENDS", Severity.WARNING, "; ".join(warnings), remedy)

    def _of_audit(self) -> Iterator[OwnTrouble]:
        if rescued := self.stores.writer.rescued:
            yield OwnTrouble(
                "AUDIT_RESCUED",
                Severity.CRITICAL,
                f"audit events in the spill file or the log, not in the database: {rescued}",
                "mend the database, then restart the broker, which takes them in",
            )
        if failing := self.seals.failing:
            yield OwnTrouble(
                "AUDIT_NO_CHECKPOINT",
                Severity.WARNING,
                f"the audit log gets no checkpoint, and is not proven from here on: {failing}",
                "provide the secret of audit.checkpoint_key_secret; it is tried again within minutes",
            )
        if changed := self.seals.changed:
            yield OwnTrouble(
                "AUDIT_CHANGED",
                Severity.CRITICAL,
                f"the audit log was changed in its database: {changed}",
                "see `certplanectl audit verify`, and who has access to the database",
            )
        gate = self.stores.audit.gate
        if isinstance(gate, SinkGate) and gate.behind:
            yield OwnTrouble(
                "AUDIT_SINK_HOLDS_UP",
                Severity.CRITICAL,
                f"no certificate is authorised: the audit sink {gate.behind} is required, and too far behind",
                "mend the sink; the log of the broker that has the role audit_sinks says what it answers",
            )

    def _of_the_rest(self) -> Iterator[OwnTrouble]:
        if room := self.retention.little_room:
            text, _, remedy = room.partition(": ")
            yield OwnTrouble("SPACE_LOW", Severity.CRITICAL, text, remedy)
        if damage := self.soundness.damage:
            yield OwnTrouble("STORE_DAMAGED", Severity.CRITICAL, damage, REMEDY)
        if self.issuing.out:
            text = "there is no process for CAs and DNS: nothing is issued"
            yield OwnTrouble("ISSUING_PROCESS_DOWN", Severity.CRITICAL, text, "the log of the broker says why it ends")


def own_troubles(
    settings: BrokerSettings,
    stores: Stores,
    trust: TrustInForce,
    issuing: IssuingProcess,
    files: BlockingPool,
    *,
    seals: Sealing,
    trail: AuditTrail,
    clock: Clock,
    meter: Meter,
) -> OwnTroubles:
    """The look at a broker of these parts, with the chores that look at its database; they are to be run."""
    retention = retention_of(settings, stores, files, clock=clock, meter=meter)
    soundness = SoundnessWatch(stores.soundness, audit=stores.audit, trail=trail, clock=clock, meter=meter)
    return OwnTroubles(stores, seals, trust, issuing, retention, soundness, clock)
