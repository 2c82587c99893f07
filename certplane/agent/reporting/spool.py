"""`ReportSpool` on disk: a file for each certificate's reports, and one for the counting.

    <state_dir>/reports/spool          epoch, the sequences that are taken, what was acknowledged
    <state_dir>/reports/<name>.json    a certificate's reports that are still wanted

Sequences are taken a thousand at a time, and a thousand is durable as taken before its first is used: so none is ever
used twice, whatever else the disk refuses, and what is left of a thousand at the end of the program is a gap. A report
is written before anybody is told of it; what a crash between a status and its report leaves out is found again by
comparing the two at the start (`ReportedStatusFile.report`).

What can't be written is kept in memory and sent all the same. It is written with the next report, and missing after a
crash until then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from certplane.agent.ports import ReportSpool
from certplane.agent.reporting.encoding import decode_reports, encode_reports
from certplane.errors import OperationError
from certplane.fleet_report.model import CertificateState, CertificateStatus, Report
from certplane.runtime.failpoints import failpoint
from certplane.runtime.files import Directory, open_directory, open_for_reading
from certplane.runtime.json_state import MOST_BYTES, StateError, decode, encode

logger = logging.getLogger(__name__)

_COUNTER, _SUFFIX = "spool", ".json"
"""Lineage names may be `spool` too: their files have the suffix."""
_BLOCK = 1000
Kept = dict[str, dict[CertificateState, Report]]
"""By certificate and state; the dictionaries of one that was published are never changed."""
FAILPOINTS = tuple(
    f"reports.{step}.{side}" for step in ("reserve", "write", "acknowledge") for side in ("before", "after")
)


@dataclass(frozen=True, slots=True)
class _Counter:
    """The counting, as it is kept."""

    epoch: str
    taken: int
    acknowledged: int


class FileReportSpool(ReportSpool):
    """`ReportSpool`. Under the state lock where it is written to; reading alone (`status`) changes nothing.

    Args:
        directory: absolute; made (0755) with the first report. Nothing in it is secret.
        names: the certificates that there are; what is kept of others is dropped.
        new_epoch: makes a name for a counting.
    """

    def __init__(self, directory: Path, *, names: Collection[str], new_epoch: Callable[[], str]) -> None:
        self._directory = directory
        self._names = frozenset(names)
        self._new_epoch = new_epoch
        self._memory = threading.Lock()
        """Over what the event loop reads while the disk's thread adds; never held while the disk is waited for."""
        self._writer = threading.RLock()
        """Over everything else: one call at a time changes anything."""
        self._loaded = False
        self._epoch = ""
        self._next = 1
        self._taken = 0
        self._made = 0
        """The last sequence that this directory knows a report of; what lies up to `_taken` may be a gap."""
        self._acknowledged = 0
        self._kept: Kept = {}
        self._unwritten: set[str] = set()
        self._unnumbered: list[CertificateStatus] = []
        self._refused = False
        self._listeners: list[Callable[[], object]] = []

    @property
    @override
    def epoch(self) -> str:
        self.load()
        return self._epoch

    @property
    @override
    def unacknowledged(self) -> int:
        self.load()
        return len(self.reports(self._acknowledged)) + len(self._unnumbered)

    def listen(self, listener: Callable[[], object]) -> None:
        """Call `listener` after each report that was taken up, on the thread that did it."""
        self._listeners.append(listener)

    @override
    def reports(self, after: int = 0) -> list[Report]:
        self.load()
        with self._memory:
            found = [each for states in self._kept.values() for each in states.values() if each.sequence > after]
        return sorted(found, key=lambda each: each.sequence)

    @override
    def add(self, report: CertificateStatus) -> None:
        with self._writer:
            self.load()
            if self._says(report):
                return
            self._unnumbered = [each for each in self._unnumbered if _place(each) != _place(report)] + [report]
            if self._next > self._taken:
                self._try_on_disk(self._take_sequences)
            numbered = self._numbered()
            if self._unwritten:
                self._try_on_disk(lambda directory: self._write(directory, numbered))
            self._publish(numbered)
        for listener in self._listeners:
            listener()

    @override
    def acknowledge(self, sequence: int) -> None:
        with self._writer:
            self.load()
            if sequence <= self._acknowledged:
                return
            if sequence > self._made:
                self._start_over()
            else:
                self._acknowledged = sequence
                self._publish(self._wanted(self._kept))
            self._try_on_disk(self._write_acknowledged)

    def _says(self, report: CertificateStatus) -> bool:
        """Whether the last that was taken up of this certificate is the same."""
        for waiting in reversed(self._unnumbered):
            if waiting.name == report.name:
                return waiting == report
        states = self._kept.get(report.name)
        return states is not None and _latest(states).certificate == report

    def _take_sequences(self, directory: Directory) -> None:
        """Have sequences for what is new; durable before one is used."""
        taken = self._next + _BLOCK - 1
        self._save_counter(directory, "reserve", taken)
        self._taken = taken
        self._sweep(directory)

    def _numbered(self) -> Kept:
        """What is kept with what is new, as far as there are sequences."""
        kept = {name: dict(states) for name, states in self._kept.items()} if self._unnumbered else self._kept
        while self._unnumbered and self._next <= self._taken:
            report = self._unnumbered.pop(0)
            kept.setdefault(report.name, {})[report.state] = Report(self._next, report)
            self._unwritten.add(report.name)
            self._made = self._next
            self._next += 1
        return kept

    def _publish(self, kept: Kept) -> None:
        with self._memory:
            self._kept = kept

    def _write_acknowledged(self, directory: Directory) -> None:
        self._save_counter(directory, "acknowledge", self._taken)
        self._write(directory, self._kept)

    def _write(self, directory: Directory, kept: Kept) -> None:
        for name in sorted(self._unwritten):
            reports = sorted(kept.get(name, {}).values(), key=lambda each: each.sequence)
            failpoint("reports.write.before")
            directory.replace(name + _SUFFIX, encode_reports(self._epoch, reports), mode=0o644)
            failpoint("reports.write.after")
            self._unwritten.discard(name)

    def _save_counter(self, directory: Directory, step: str, taken: int) -> None:
        failpoint(f"reports.{step}.before")
        directory.replace(_COUNTER, encode(_Counter(self._epoch, taken, self._acknowledged)), mode=0o644)
        failpoint(f"reports.{step}.after")

    def _wanted(self, kept: Kept) -> Kept:
        """What is beyond the acknowledgement, and the latest of each certificate: that is the snapshot.

        The files still have the rest; it is left out when they are read, and gone when they are written next.
        """
        wanted: Kept = {}
        for name, states in kept.items():
            latest = _latest(states).sequence
            wanted[name] = {
                state: each
                for state, each in states.items()
                if each.sequence > self._acknowledged or each.sequence == latest
            }
        return wanted

    def _start_over(self) -> None:
        """This directory is older than what the broker has of it: a copy that was put back. Count anew."""
        logger.warning(
            "the broker has newer reports than this state directory: it was restored from a copy; counting starts over"
        )
        kept: Kept = {}
        self._epoch, self._acknowledged, self._next = self._new_epoch(), 0, 1
        for sequence, report in enumerate(self.reports(), 1):
            kept.setdefault(report.certificate.name, {})[report.certificate.state] = Report(
                sequence, report.certificate
            )
            self._next = sequence + 1
        self._made = self._next - 1
        self._taken = self._next + _BLOCK - 1
        self._unwritten = set(kept)
        self._publish(kept)

    def _try_on_disk(self, work: Callable[[Directory], None]) -> None:
        """Do `work` in the directory; a disk that refuses is said once, and leaves the work for the next time."""
        try:
            with open_directory(self._directory, create_mode=0o755) as directory:
                work(directory)
        except (OSError, OperationError) as error:
            if not self._refused:
                logger.warning("could not store reports for the broker in %s: %s", self._directory, error)
            self._refused = True
        else:
            self._refused = False

    def load(self) -> None:
        """Read what an earlier program left, once. Blocks; comes before all else on the event loop."""
        with self._writer:
            if not self._loaded:
                self._read()
                self._loaded = True

    def _read(self) -> None:
        try:
            with open_for_reading(self._directory) as directory:
                self._load_counter(directory)
                for name in sorted(self._names):
                    self._load_reports(directory, name)
        except FileNotFoundError:
            pass
        except (OSError, OperationError, StateError) as error:
            logger.warning("could not read the reports in %s; they start over: %s", self._directory, error)
            self._epoch, self._taken, self._acknowledged, self._kept = "", 0, 0, {}
        self._epoch = self._epoch or self._new_epoch()
        used = max((each.sequence for states in self._kept.values() for each in states.values()), default=0)
        self._made = max(used, self._acknowledged)
        self._taken = max(self._taken, self._made)
        self._next = self._taken + 1
        self._kept = self._wanted(self._kept)

    def _load_counter(self, directory: Directory) -> None:
        counter = decode(_Counter, directory.read(_COUNTER, most=MOST_BYTES))
        self._epoch, self._taken, self._acknowledged = counter.epoch, counter.taken, counter.acknowledged

    def _load_reports(self, directory: Directory, name: str) -> None:
        """One certificate's; what belongs to another counting is what a crash left while it started anew."""
        try:
            epoch, reports = decode_reports(directory.read(name + _SUFFIX, most=MOST_BYTES))
        except FileNotFoundError:
            return
        except (OSError, StateError) as error:
            logger.warning("%s can't be read and starts over: %s", self._directory / (name + _SUFFIX), error)
            return
        if epoch == self._epoch and reports:
            self._kept[name] = {each.certificate.state: each for each in reports}

    def _sweep(self, directory: Directory) -> None:
        """Remove what is kept of certificates that are no longer configured; their sequences stay taken."""
        for file in directory.names():
            if file.endswith(_SUFFIX) and file.removesuffix(_SUFFIX) not in self._names:
                directory.discard(file)


def _latest(states: dict[CertificateState, Report]) -> Report:
    return max(states.values(), key=lambda each: each.sequence)


def _place(report: CertificateStatus) -> tuple[str, CertificateState]:
    return report.name, report.state
