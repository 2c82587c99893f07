"""How `renew NAME` and `activate NAME` ended, in a sentence, whatever it was: pure."""

from datetime import datetime

from certplane.agent.control import Outcome
from certplane.agent.model import LineageStatus
from certplane.agent.renewal.due import waiting_text
from certplane.fleet_report.model import CertificateState


def renewal_outcome(name: str, before: int, status: LineageStatus, now: datetime) -> Outcome:
    """Whether a new version is in use (or will be, once its window opens), and if not, why.

    Args:
        name: the certificate's.
        before: the newest version before.
        status: the lineage's afterwards.
        now: the wall clock's time.
    """
    failure = _failure(status, now)
    return Outcome(ok=False, text=failure) if failure else _without_failure(name, before, status)


def activation_outcome(before: int, status: LineageStatus, now: datetime) -> Outcome:
    """Whether what was on disk is in use, and if not, why.

    Args:
        before: the version that was in use before; 0 for none.
        status: the lineage's afterwards.
        now: the wall clock's time.
    """
    confirmed, issued = status.confirmed_version or 0, status.issued_version or 0
    if confirmed > before:
        return Outcome(ok=True, text=f"version {confirmed} is in use")
    if failure := _failure(status, now):
        return Outcome(ok=False, text=failure)
    if issued > confirmed:
        return Outcome(ok=False, text=f"version {issued} is here, and has expired or was revoked: it isn't used")
    if not confirmed:
        return Outcome(ok=False, text=f"there is no certificate yet; it is {status.state}")
    return Outcome(ok=True, text=f"version {confirmed}, the newest, is in use already")


def _failure(status: LineageStatus, now: datetime) -> str:
    """What failed, and when it is tried again; empty if nothing waits for that."""
    confirmed, issued = status.confirmed_version or 0, status.issued_version or 0
    if status.failures:
        if status.retry_time is not None and status.retry_time > now:
            then = f"the CA named {_moment(status.retry_time)}: no request before"
        else:
            then = f"the agent tries again at {_moment(status.next_attempt_time)}"
        return f"not renewed: {status.request_error or status.last_error}; {then}"
    if status.activation_failures:
        what = f"version {issued} is here and not in use" if issued > confirmed else "not in use"
        return f"{what}: {status.last_error}; next try at {_moment(status.next_activation_time)}"
    if status.verify_failures:
        return f"version {confirmed} is in place, but {status.verify_error}"
    return ""


def _without_failure(name: str, before: int, status: LineageStatus) -> Outcome:
    confirmed, issued = status.confirmed_version or 0, status.issued_version or 0
    if status.state is CertificateState.REQUESTING:
        return Outcome(ok=False, text="the order is still under way at the broker; the agent goes on with it")
    if confirmed > before:
        return Outcome(ok=True, text=f"version {confirmed} is in use")
    if status.activate_after is not None:
        when = _moment(status.activate_after)
        if issued > before:
            held = status.held_by_rollout_id
            then = f"rollout {held} holds it until {when} at the latest" if held else f"it is used from {when} on"
            return Outcome(ok=True, text=f"version {issued} is here; {then}")
        waits = waiting_text(issued, status.held_by_rollout_id, "", when)
        text = f"not renewed: {waits}; `certplane-agent activate {name}` uses it now"
        return Outcome(ok=False, text=text)
    if confirmed == before:
        text = f"not renewed: version {before}, which was here already, is in use now; ask again for a new one"
        return Outcome(ok=False, text=text)
    return Outcome(ok=False, text=f"not renewed: it is {status.state}; `certplane-agent status` says more of {name}")


def _moment(time: datetime | None) -> str:
    return "once the cause is gone" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"
