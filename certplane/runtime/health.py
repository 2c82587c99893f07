"""How bad it is with a certificate, in the words that agent, broker and operators share: worst first."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from certplane.errors import Reason


class HealthWord(StrEnum):
    """Whether anybody is hurt, or will be; values are shown. In this order the first that is true is the one."""

    EXPIRED = "EXPIRED"
    REVOKED_IN_USE = "REVOKED_IN_USE"
    FOREIGN_SERVED = "FOREIGN_SERVED"
    WONT_HEAL = "WONT_HEAL"
    OVERDUE = "OVERDUE"
    FAILING = "FAILING"
    STALE_SERVED = "STALE_SERVED"
    MISMATCHED = "MISMATCHED"
    UNHEARD = "UNHEARD"
    OK = "OK"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return _RANKS[self]


_RANKS: Final = {word: rank for rank, word in enumerate(HealthWord)}


class Severity(StrEnum):
    """What a monitor makes of it: `critical` needs a person now, a `warning` may pass by itself."""

    CRITICAL = "critical"
    WARNING = "warning"
    OK = "ok"


class HealthActor(StrEnum):
    """Who can act on a health; values are shown."""

    NOBODY = "nobody"
    """Nobody needs to: it heals by itself."""
    HOST = "host"
    """Whoever keeps the host."""
    OPERATOR = "operator"
    """Whoever keeps the broker and its policy."""
    DNS = "dns"
    """Whoever keeps the DNS of the names."""
    ISSUER = "issuer"
    """The CA."""


@dataclass(frozen=True, slots=True)
class Health:
    """The worst of what is wrong: `text` says what it is, `remedy` what a person can do. Both may be empty for OK.

    Attributes:
        word: How bad it is.
        text: What it is, for a person.
        remedy: What a person can do.
        cause: What causes it, the same text wherever one cause does: a `Reason` or the step that fails, in upper case,
            and after a space what it is about where that is known ("DNS_UNAVAILABLE ns2.example.org"). At most
            `MOST_CAUSE` characters, empty for OK.
        actor: Who can act.
        since: Since when it is so; None where that isn't known.
    """

    word: HealthWord
    text: str = ""
    remedy: str = ""
    cause: str = ""
    actor: HealthActor = HealthActor.NOBODY
    since: datetime | None = None

    @property
    def severity(self) -> Severity:
        """How bad that is."""
        if self.word is HealthWord.OK:
            return Severity.OK
        return Severity.CRITICAL if self.word.rank <= HealthWord.OVERDUE.rank else Severity.WARNING


MOST_CAUSE: Final = 200

NONE_YET: Final = Health(HealthWord.OK, "there is none yet", "the agent asks for it once it runs")
"""Of a certificate that nothing has failed for, and nobody serves: before the first run that is as it should be."""

PERSONS_REASONS: Final = frozenset(
    {
        Reason.IDENTITY_EXPIRED,
        Reason.IDENTITY_REVOKED,
        Reason.IDENTITY_RETIRED,
        Reason.IDENTITY_CONTESTED,
        Reason.IDENTITY_UNKNOWN,
        Reason.PROFILE_NOT_ALLOWED,
        Reason.NAMES_NOT_ALLOWED,
        Reason.KEY_REUSED,
        Reason.ROLE_REQUIRED,
        Reason.CSR_INVALID,
        Reason.KEY_WEAK,
        Reason.REQUEST_INVALID,
    }
)
"""Refusals of a request that stand until a person has changed policy, identity or request."""

REMEDY_FOR_SERVICE: Final = "check that the service reads the configured files, and reload it"


def is_persons(error: str) -> bool:
    """Whether a host's `<reason>: <message>` of a request that failed has one of `PERSONS_REASONS`."""
    return error.partition(":")[0] in PERSONS_REASONS


def overdue_time(due: datetime, not_after: datetime) -> datetime:
    """When a renewal that is due at `due` counts as late, unless configured: half-way from there to the end."""
    return due + max(timedelta(), not_after - due) / 2


def moment_text(time: datetime) -> str:
    """A moment in a text about health."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
