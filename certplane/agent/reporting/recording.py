"""A `StatusFile` whose every save is also a report to the broker. Reporting never harms renewing: it raises nothing."""

from __future__ import annotations

import logging

from typing_extensions import override

from certplane.agent.faults import as_error
from certplane.agent.model import LineageStatus
from certplane.agent.ports import DirectiveFile, ReportSpool, StatusFile, VersionStore
from certplane.agent.renewal.directed import laid_over
from certplane.agent.renewal.due import LineageSpec
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.reporting.report import certificate_report

logger = logging.getLogger(__name__)


class ReportedStatusFile(StatusFile):
    """`StatusFile`, and a report of each save.

    Args:
        inner: where the status is kept.
        spool: where its report goes.
        spec: the lineage.
        profile: its policy profile; empty for the identity.
        versions: the lineage's, read at each save: the report names what is on disk then.
        directive: the broker's last word on its certificate.
    """

    def __init__(
        self,
        inner: StatusFile,
        *,
        spool: ReportSpool,
        spec: LineageSpec,
        profile: str,
        versions: VersionStore,
        directive: DirectiveFile | None,
    ) -> None:
        self._inner = inner
        self._spool = spool
        self._spec = spec
        self._profile = profile
        self._versions = versions
        self._directive = directive

    @override
    def load(self) -> LineageStatus | None:
        return self._inner.load()

    @override
    def save(self, status: LineageStatus) -> None:
        """Then the report is taken up, as far as the disk lets it."""
        self._inner.save(status)
        self.report(status)

    def report(self, status: LineageStatus) -> None:
        """Take up what `status` says now, unless that was said already: a crash may have come before its report did."""
        try:
            facts = LineageFacts(tuple(self._versions.versions()), self._versions.current(), None, status)
            facts = laid_over(facts, None if self._directive is None else self._directive.load())
            self._spool.add(certificate_report(self._spec, self._profile, facts))
        except Exception as error:  # noqa: BLE001 - whatever is wrong here, the certificate's own life goes on
            logger.warning("%s: could not report its status: %s", self._spec.name, as_error(self._spec.name, error))
