"""How bad it is with one certificate of one host, by what the broker knows: the words are `certplane.runtime.health`'s.

A host that is down says nothing, and its certificate expires all the same: so nothing here is the host's own verdict,
and time alone makes it another one (`next_change`). Pure.

    EXPIRED          what is in place, or what the service serves, has expired
    REVOKED_IN_USE   it was revoked, and is still in place or served
    FOREIGN_SERVED   the service serves a certificate that isn't this host's
    WONT_HEAL        its host gets no certificates, what failed needs a person, or the next try comes after the end
    OVERDUE          its renewal is late: half of the time between that and the end is over
    FAILING          a step fails, and is tried again before the end; or there is no certificate, and its host is silent
    STALE_SERVED     the service serves an older certificate than the newest, and nothing holds that one back
    OK               none of these; there may be no certificate yet

`MISMATCHED` is the host's alone to say: it has agent.yml.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from certplane.broker.fleet.model import RevokedCertificate
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate
from certplane.pki.lifetime import renew_time
from certplane.runtime.health import (
    NONE_YET,
    REMEDY_FOR_SERVICE,
    Health,
    HealthWord,
    is_persons,
    moment_text,
    overdue_time,
)

FLEET_WORDS: Final = tuple(word for word in HealthWord if word not in {HealthWord.MISMATCHED, HealthWord.UNHEARD})
"""Those that are found here, worst first."""

_IDENTITY: Final = "identity"
_ACTIVATING: Final = frozenset(
    {CertificateState.ISSUED, CertificateState.INSTALLING, CertificateState.RELOADING, CertificateState.VERIFYING}
)
_ILL: Final = frozenset({CertificateState.FAILED, CertificateState.DEGRADED})


@dataclass(frozen=True, slots=True)
class HostKnowledge:
    """What the broker knows of the host whose certificate it is.

    Attributes:
        heard: Whether it is there: it has a stream.
        last_heard: When it was last heard; None if never, or unknown.
        why_none: Why it gets no new certificates whatever it is told; empty if it does.
        revoked: Its revoked certificates that haven't expired, by serial number.
    """

    heard: bool
    last_heard: datetime | None = None
    why_none: str = ""
    revoked: Mapping[str, RevokedCertificate] = field(default_factory=dict)


def in_use(status: CertificateStatus) -> HeldCertificate | None:
    """What is at the configured paths; before anything is, what the host has."""
    return status.installed or status.issued


def certificate_health(status: CertificateStatus, host: HostKnowledge, now: datetime) -> Health:
    """How bad it is."""
    return (
        _expired(status, host, now)
        or _revoked(status, host)
        or _foreign(status, host)
        or _late(status, host, now)
        or _failing(status, host)
        or _stale(status, host, now)
        or (NONE_YET if in_use(status) is None else Health(HealthWord.OK))
    )


def next_change(status: CertificateStatus, now: datetime) -> datetime | None:
    """When time alone may next make it another one; None if it can't."""
    held, served = in_use(status), status.served
    moments = [None if held is None else held.not_after, None if served is None else served.not_after]
    moments += [_late_from(status), status.activate_time]
    return min((each for each in moments if each is not None and each > now), default=None)


def _expired(status: CertificateStatus, host: HostKnowledge, now: datetime) -> Health | None:
    held, served = in_use(status), status.served
    if held is not None and held.not_after is not None and held.not_after <= now:
        return _of_renewal(HealthWord.EXPIRED, f"expired at {moment_text(held.not_after)}", status, host)
    if served is not None and served.not_after is not None and served.not_after <= now:
        text = f"the service serves {served.serial_number}, which expired at {moment_text(served.not_after)}"
        return _of_service(HealthWord.EXPIRED, text, host)
    return None


def _revoked(status: CertificateStatus, host: HostKnowledge) -> Health | None:
    held, served = in_use(status), status.served
    if held is not None and (revoked := host.revoked.get(held.serial_number)) is not None:
        return _of_renewal(HealthWord.REVOKED_IN_USE, f"is in use; {_revocation(revoked)}", status, host)
    if served is not None and (revoked := host.revoked.get(served.serial_number)) is not None:
        text = f"the service serves {served.serial_number}; {_revocation(revoked)}"
        return _of_service(HealthWord.REVOKED_IN_USE, text, host)
    return None


def _foreign(status: CertificateStatus, host: HostKnowledge) -> Health | None:
    served = status.served
    own = {each.serial_number for each in (status.issued, status.installed) if each is not None}
    if served is None or served.version or served.certificate_id or served.serial_number in own:
        return None
    text = f"the service serves {served.serial_number}, which isn't this host's"
    return _of_service(HealthWord.FOREIGN_SERVED, text, host)


def _late(status: CertificateStatus, host: HostKnowledge, now: datetime) -> Health | None:
    if host.why_none and status.name != _IDENTITY:  # that one is the internal CA's to give
        remedy = "see policy.yml and `certplane-broker identity list`"
        return Health(HealthWord.WONT_HEAL, f"its host gets no certificates: {host.why_none}", remedy)
    if status.request_failures and is_persons(status.last_error):
        renewal = _of_renewal(HealthWord.WONT_HEAL, "", status, host)
        return Health(HealthWord.WONT_HEAL, status.last_error, f"fix the cause; then {renewal.remedy}")
    end = None if (held := in_use(status)) is None else held.not_after
    if end is None:
        return None
    again = status.next_attempt_time if status.request_failures or status.activation_failures else None
    if again is not None and again >= end:
        text = f"it ends at {moment_text(end)}, and the next try is at {moment_text(again)}"
        return _of_renewal(HealthWord.WONT_HEAL, text, status, host)
    late = _late_from(status)
    if late is not None and late <= now:
        return _of_renewal(HealthWord.OVERDUE, f"ends at {moment_text(end)}", status, host)
    return None


def _failing(status: CertificateStatus, host: HostKnowledge) -> Health | None:
    if status.request_failures or status.activation_failures or status.state in _ILL:
        step = status.failed_step or status.state
        return Health(HealthWord.FAILING, f"{step}: {status.last_error or 'it gave no details'}", _gone(host))
    if in_use(status) is None and not host.heard:
        return Health(HealthWord.FAILING, NONE_YET.text, _gone(host))
    return None


def _stale(status: CertificateStatus, host: HostKnowledge, now: datetime) -> Health | None:
    newest, served = status.issued or status.installed, status.served
    if newest is None or served is None or served.serial_number == newest.serial_number:
        return None
    if status.activate_time is not None and status.activate_time > now:
        return None  # a window holds it back
    if host.heard and status.state in _ACTIVATING:
        return None  # it is being done
    text = f"the service serves {served.serial_number}, and {newest.serial_number} is the newest"
    return _of_service(HealthWord.STALE_SERVED, text, host)


def _late_from(status: CertificateStatus) -> datetime | None:
    """From when on the renewal of what is in use is late; None if that can't be told.

    The host's time is that of its newest certificate: where another one is in use, or the host said none, it is what
    the rule for all gives (`certplane.pki.lifetime`).
    """
    held = in_use(status)
    if held is None or held.not_after is None:
        return None
    newest = status.issued or held
    due = status.renew_time if newest.serial_number == held.serial_number else None
    if due is None or due >= held.not_after:
        if held.not_before is None or held.not_before >= held.not_after:
            return None
        due = renew_time(held.not_before, held.not_after, None, status.name)
    return overdue_time(due, held.not_after)


def _of_renewal(word: HealthWord, text: str, status: CertificateStatus, host: HostKnowledge) -> Health:
    """One that a renewal ends."""
    error = f"; {'waits' if status.state is CertificateState.REQUESTING else 'last error'}: {status.last_error}"
    gone = _gone(host)
    if status.name == _IDENTITY:  # without one its host is down, whatever runs there
        first = gone or "check that its agent reaches the internal CA"
        remedy = f"{first}; else run `certplane-agent enroll --force` there with a new token"
    else:
        remedy = gone or f"`certplane-agent renew {status.name}` there tries at once and says why it fails"
    return Health(word, f"{text}{_silence(host)}{error if status.last_error else ''}", remedy)


def _of_service(word: HealthWord, text: str, host: HostKnowledge) -> Health:
    """One that the host's service has to end."""
    return Health(word, f"{text}{_silence(host)}", REMEDY_FOR_SERVICE)


def _silence(host: HostKnowledge) -> str:
    if host.heard:
        return ""
    return "; its host is down" + (f", last heard at {moment_text(host.last_heard)}" if host.last_heard else "")


def _gone(host: HostKnowledge) -> str:
    return "" if host.heard else "check that the host and its certplane-agent run"


def _revocation(revoked: RevokedCertificate) -> str:
    reason = f": {revoked.reason}" if revoked.reason else ""
    return f"it was revoked at {moment_text(revoked.revoke_time)}{reason}"
