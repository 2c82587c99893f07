"""`certplanectl revoke`."""

from __future__ import annotations

import argparse

from certplane.ctl.filters import REVOCATIONS
from certplane.ctl.session import Session
from certplane.ctl.show.words import clock_text
from certplane.runtime.command import FAILED, OK
from certplane.v1 import fleet_pb2


async def revoke(options: argparse.Namespace, session: Session) -> int:
    """Revoke one certificate; one that is revoked already stays as it is, which is told."""
    request = fleet_pb2.FleetServiceRevokeCertificateRequest(
        certificate_id=options.id, revocation_reason=REVOCATIONS[options.revocation_reason], reason=options.reason
    )
    async with session.client() as client:
        if not options.yes and not await session.agreed(
            f"certificate {options.id} is revoked at its CA for {options.revocation_reason}, which can't be undone"
        ):
            session.say("nothing was revoked")
            return FAILED
        answer = await client.revoke(request)
    out = session.out
    if out.for_people:
        out.line(answer_line(answer), folded=True)
    else:
        out.message(answer)
    return OK


def answer_line(answer: fleet_pb2.FleetServiceRevokeCertificateResponse) -> str:
    """What became of it, and whether its holder renews by itself."""
    certificate = answer.certificate
    names = " ".join(certificate.dns_names)
    what = f"{certificate.certificate_id} of {answer.identity} (serial {certificate.serial_number}, {names})"
    if answer.already_revoked:
        return f"{what} was revoked before, at {clock_text(certificate.revoke_time)}; nothing was changed"
    told = (
        "its host renews it, at once or when it comes back"
        if answer.holder_told
        else "nobody was told to renew it: its holder has to ask for another one"
    )
    return f"{what} is revoked; {told}"
