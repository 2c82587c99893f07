"""The CAs of an agent CA bundle that is planned, and whom it would shut out."""

from __future__ import annotations

from datetime import datetime

from certplane.ctl.show.words import moment, off
from certplane.runtime.columns import Column
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import broker_pb2

Ca = broker_pb2.PlanTrustBundleResponse.Ca


def change_of(ca: Ca) -> str:
    """What becomes of it."""
    if ca.before and ca.after:
        return "stays"
    return "comes" if ca.after else "goes"


def columns(now: datetime) -> list[Column[Ca]]:
    """The columns of `trust plan`."""
    return [
        Column("CHANGE", change_of, 0, style=_style),
        Column("CA", lambda ca: ca.subject, 0, least=16),
        Column("HOSTS", lambda ca: str(ca.host_count), 1),
        Column(
            "EXPIRES", lambda ca: off(ca.not_after_time, now), 2, wide_text=lambda ca: moment(ca.not_after_time, now)
        ),
        Column("SHA-256", lambda ca: ca.sha256[:16], 3, wide_text=lambda ca: ca.sha256),
    ]


def lines(plan: broker_pb2.PlanTrustBundleResponse) -> list[str]:
    """Whom it would shut out, and whether a reload would have to be confirmed."""
    if not plan.shut_out_count:
        said = ["no host would be shut out"]
    else:
        hosts = " ".join(plan.shut_out_hosts)
        more = plan.shut_out_count - len(plan.shut_out_hosts)
        who = f"{hosts}{f' and {more} more' if more > 0 else ''}"
        connected = f"{plan.shut_out_connected_count} of them connected now"
        said = [f"{counted(plan.shut_out_count, 'host')} would be shut out, {connected}: {who}"]
    if plan.confirmation:
        said.append(f"a reload would have to be confirmed: it {plan.confirmation}")
    return said


def _style(ca: Ca) -> Style:
    if ca.before and ca.after:
        return Style.PLAIN
    return Style.GOOD if ca.after else Style.WARNING
