"""What is said of an incident, for people. Pure."""

from __future__ import annotations

from certplane.broker.incidents.model import Incident
from certplane.broker.notify.model import OwnTrouble
from certplane.runtime.health import Severity, moment_text
from certplane.runtime.text import counted


def remedy(incident: Incident) -> str:
    """What to do about it."""
    figures = incident.figures
    if incident.close_time is not None:
        if not figures.hurt_count:
            return "nothing: it is over"
        return f"look at {_first_hosts(incident)}: `certplanectl certs --issuer {incident.issuer} --sort health`"
    parts = []
    if figures.hurt_count:
        what = counted(figures.hurt_count, "certificate is", "certificates are")
        parts.append(f"{what} revoked or expired with no successor in use: begin with {_first_hosts(incident)}")
    elif figures.failing_count:
        what = counted(figures.failing_count, "renewal fails", "renewals fail")
        parts.append(f"{what}: begin with {_first_hosts(incident)}; `certplanectl causes` says why")
    if incident.trouble:
        what = "no further rollout answers the rest" if incident.rollout_id else "no rollout answers it"
        parts.append(f"{what}: {incident.trouble}")
    if incident.rollout_id:
        parts.append(f"follow its rollout: `certplanectl rollout watch {incident.rollout_id}`")
    if not incident.rollout_id:
        parts.append("each host renews by itself, as its plan says; docs/incident.md has the ways to hurry or to leave")
    return "; ".join(parts)


def summary(incident: Incident) -> str:
    """How far it is, in one line."""
    figures = incident.figures
    text = f"{incident.issuer} wants {counted(figures.certificate_count, 'certificate')} of "
    text += f"{counted(figures.holder_count, 'holder')} replaced"
    text += "" if incident.deadline is None else f" by {moment_text(incident.deadline)}"
    text += f": {counted(figures.in_use_count, 'has', 'have')} a successor in use"
    text += f", {counted(figures.failing_count, 'fails', 'fail')}" if figures.failing_count else ""
    text += f", {counted(figures.hurt_count, 'is', 'are')} revoked or expired without one" if figures.hurt_count else ""
    return text + (f"; the CA explains it at {incident.explanation_url}" if incident.explanation_url else "")


def trouble(incident: Incident) -> OwnTrouble:
    """As a notifier is told of an open one; one that hurts is worse than one that doesn't."""
    bad = incident.figures.hurt_count or incident.trouble
    return OwnTrouble(
        f"INCIDENT {incident.incident_id}",
        Severity.CRITICAL if bad else Severity.WARNING,
        summary(incident),
        remedy(incident),
        of_fleet=True,
    )


def _first_hosts(incident: Incident) -> str:
    named = ", ".join(incident.figures.hosts[:3])
    return named or "the hosts of its certificates"
