"""The values of incidents. Frozen; times are aware UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Figures:
    """How far an incident is: of its certificates.

    Attributes:
        certificate_count: How many it has.
        holder_count: Of how many hosts and services.
        replaced_count: Whose successor is on its host's disk, or in use.
        in_use_count: Whose successor is in use.
        hurt_count: That were revoked or have expired without a successor in use.
        failing_count: Whose replacement fails, as their hosts say.
        withdrawn_count: Whose window the CA has put off again before they were replaced.
        gone_count: That their hosts no longer have.
        open_count: Of which something is still to come.
        hosts: Some of the hosts of those, those that are hurt or fail first: at most 20.
    """

    certificate_count: int = 0
    holder_count: int = 0
    replaced_count: int = 0
    in_use_count: int = 0
    hurt_count: int = 0
    failing_count: int = 0
    withdrawn_count: int = 0
    gone_count: int = 0
    open_count: int = 0
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Incident:
    """Many certificates that one CA wants replaced.

    Attributes:
        incident_id: `ISSUER-YYYYMMDD` of the day on which it was seen, with a number where there were several.
        issuer: The CA, by its name in the broker's configuration.
        open_time: When it was seen.
        version: How often it was written: who writes it again has read this one.
        deadline: By when all should be replaced: the soonest end of the CA's windows that isn't past, else the soonest
            end of validity, of the certificates without a successor in use. None when there is none, and at first.
        explanation_url: Where the CA explains it; empty if it doesn't.
        close_time: When it ended; None before.
        rollout_id: The newest rollout that answers it; empty without one.
        rollout_count: How many were begun for it: certificates that come later go into another one.
        trouble: Why no rollout answers it though policy wants one, for people; empty where one does, or none is wanted.
        figures: How far it is.
    """

    incident_id: str
    issuer: str
    open_time: datetime
    version: int = 1
    deadline: datetime | None = None
    explanation_url: str = ""
    close_time: datetime | None = None
    rollout_id: str = ""
    rollout_count: int = 0
    trouble: str = ""
    figures: Figures = Figures()


@dataclass(frozen=True, slots=True)
class Member:
    """A certificate of an incident, and what the database has of it now.

    Attributes:
        certificate_id: Which.
        host: Its holder.
        move_time: When the broker heard that its window was moved.
        window_end: End of the window that its CA named last.
        forward: Whether the CA still wants it replaced sooner, as in `WindowMove`.
        rollout_id: The rollout that it was given to; empty if to none.
        in_force: Whether it is in force: not expired, revoked or replaced.
        new_certificate_id: What was issued in its place; empty if nothing was.
        not_after: End of its validity; None if the certificate is no longer kept.
        revoke_time: When it was revoked, as far as the broker knows.
        serial_number: Lower-case hexadecimal.
        profile: Of the policy.
        dns_names: Its names.
    """

    certificate_id: str
    host: str
    move_time: datetime
    window_end: datetime
    forward: bool = True
    rollout_id: str = ""
    in_force: bool = False
    new_certificate_id: str = ""
    not_after: datetime | None = None
    revoke_time: datetime | None = None
    serial_number: str = ""
    profile: str = ""
    dns_names: tuple[str, ...] = ()
