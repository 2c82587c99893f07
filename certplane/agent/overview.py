"""All lineages of a host as they are now, read from its disk: for `status`, and for whoever watches the host."""

from datetime import datetime

from certplane.agent.faults import as_error
from certplane.agent.host import Host
from certplane.agent.lineage import Lineage
from certplane.agent.status import LineageReport, lineage_report, unreadable_report


async def lineage_reports(host: Host, now: datetime) -> tuple[LineageReport, tuple[LineageReport, ...]]:
    """The identity, and the certificates in their order."""
    certificates = [await _report(lineage, now) for lineage in host.certificates.values()]
    return await _report(host.identity, now, identity=True), tuple(certificates)


async def _report(lineage: Lineage, now: datetime, *, identity: bool = False) -> LineageReport:
    """One lineage; one whose state can't be read hides no other."""
    try:
        return lineage_report(lineage.spec, await lineage.facts(now), now, identity=identity)
    except Exception as error:  # noqa: BLE001 - see above
        return unreadable_report(lineage.spec, str(as_error(lineage.name, error)), now)
