"""Which of a host's reports are new, and which of those an auditor hears of. Pure; the store writes what this decides.

A report is new once: sequences of one epoch only grow, and a host that has lost its count begins another epoch. An
auditor hears of a certificate's outcome when it differs from the one that was last recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from certplane.fleet_report.model import Report


@dataclass(frozen=True, slots=True)
class KnownReports:
    """What is durable of a host's reports; `outcomes` by the certificate's name, of those that are asked about."""

    epoch: str = ""
    sequence: int = 0
    outcomes: Mapping[str, str] = field(default_factory=dict)

    @property
    def counted(self) -> tuple[str, int]:
        """The last durable sequence, and of which epoch it is."""
        return (self.epoch, self.sequence)


@dataclass(frozen=True, slots=True)
class TakenReports:
    """What one call adds: what is known afterwards, the new reports, and the sequences of those that are audited."""

    known: KnownReports
    new: tuple[Report, ...]
    telling: tuple[int, ...]


def take_reports(known: KnownReports, epoch: str, reports: Iterable[Report]) -> TakenReports:
    """Judge the reports of one call, in their order, by what is known of their host."""
    sequence = known.sequence if epoch == known.epoch else 0
    outcomes = dict(known.outcomes)
    new: list[Report] = []
    telling: list[int] = []
    for report in reports:
        if report.sequence <= sequence:
            continue
        sequence = report.sequence
        new.append(report)
        name, outcome = report.certificate.name, report.certificate.outcome
        if outcome and outcome != outcomes.get(name):
            outcomes[name] = outcome
            telling.append(sequence)
    return TakenReports(KnownReports(epoch, sequence, outcomes), tuple(new), tuple(telling))
