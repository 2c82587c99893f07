"""What a step of an order came to (`steps`); what follows from each is decided by `execution` alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from certplane.broker.budget.model import Shortage, Urgency
from certplane.broker.issuance.outcome import End
from certplane.errors import Refusal


@dataclass(frozen=True, slots=True)
class Failed:
    """The step failed and may be tried again.

    `unreached_since` is when the CA was asked that gave no answer (monotonic); None if it was not the CA that failed.
    """

    refusal: Refusal
    unreached_since: float | None = None


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The CA's order can't be used, and was not finalised by us: another one can take its place."""

    why: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The issuer was not asked: others found it out of reach, as `refusal` says. `issuer` is the next one."""

    issuer: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class OutOfBudget:
    """The CA's limits have no place for the order now, by the ledger or, if it `refused`, by the CA's own word."""

    shortage: Shortage
    urgency: Urgency
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Over:
    """The order can't go on.

    `left_open` says whether the CA still holds an order that was never finalised; `unaccounted`, that the CA may have
    issued what is not stored: a person should look, and the key is spent. `counted` says that somebody else may have
    finalised it, so that the CA counts it.
    """

    end: End
    left_open: bool = False
    unaccounted: bool = False
    counted: bool = False


Outcome: TypeAlias = "Failed | Abandoned | Elsewhere | OutOfBudget | Over | None"
"""None: the order is a step further."""
