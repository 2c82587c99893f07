"""`certplanectl certs`."""

from __future__ import annotations

import argparse

from certplane.ctl.filters import fleet_filter, order_of
from certplane.ctl.session import Session
from certplane.ctl.show.fleet import certificate_columns, certificate_name
from certplane.ctl.show.words import alarms
from certplane.runtime.command import FAILED, OK
from certplane.runtime.text import counted
from certplane.v1 import fleet_pb2


async def certificates(options: argparse.Namespace, session: Session) -> int:
    """All certificates that match, the worst first."""
    out = session.out
    request = fleet_pb2.ListFleetCertificatesRequest(
        filter=fleet_filter(options), order_by=order_of(options), include_identities=options.identities
    )
    rows: list[fleet_pb2.FleetCertificate] = []
    alarmed = False
    async with session.client() as client:
        if options.check:
            await client.require_hosts(request.filter.hosts)
        async for page in client.certificates(request):
            alarmed = alarmed or (options.check and alarms(each.certificate for each in page.certificates))
            if out.for_people:
                rows += page.certificates
                continue
            for each in page.certificates:
                out.message(each, certificate_name(each))
    if out.for_people:
        if rows:
            out.table(certificate_columns(session.now()), rows)
        out.lines([counted(len(rows), "certificate") if rows else "no certificate matches"])
    return FAILED if alarmed else OK
