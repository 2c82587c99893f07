"""Which limits an issuer has: those of broker.yml, those that its CA has published, or none that are known.

What CAs have published is data: a file of `limits` each, with where and when it was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import ClassVar, Final

from certplane.broker.budget.model import Exemption, IssuerLimits, Limit, LimitScope
from certplane.config.decoding import KeyProblem, decode
from certplane.config.document import Document
from certplane.config.values import HttpsUrl, NonEmptyText, PositiveNumber, PositiveSpan

_DATA: Final = Path(__file__).with_name("limits") / "letsencrypt.yml"
_LONGEST: Final = timedelta(days=366)
_MOST: Final = 1_000_000


class LimitModel(StrEnum):
    """Limits that have a name."""

    LETSENCRYPT = "letsencrypt"
    """Those that Let's Encrypt has published: of the directory, or of production for another one's URL."""
    NONE = "none"
    """Nothing is counted; what the CA refuses is waited out."""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """One limit as it is written: at most `amount` in `per`."""

    name: NonEmptyText
    scope: LimitScope
    amount: PositiveNumber
    per: PositiveSpan
    exempt: tuple[Exemption, ...] = ()

    def problems(self) -> Iterator[KeyProblem]:
        """What no CA means, and no clock counts."""
        if self.amount > _MOST:
            yield KeyProblem("amount", f"is more than {_MOST}", "leave out a limit that nobody reaches")
        if not timedelta(seconds=1) <= self.per <= _LONGEST:
            yield KeyProblem("per", "must be from 1s to 8784h", "write the time in which the whole amount comes back")
        if self.scope is LimitScope.NAMES and Exemption.SAME_NAMES in self.exempt:
            problem = "has same_names, which would exempt all that a limit of the same names counts, but the first"
            yield KeyProblem("exempt", problem, "leave same_names out")

    @property
    def limit(self) -> Limit:
        """The value."""
        return Limit(self.name, self.scope, self.amount, self.per, frozenset(self.exempt))


@dataclass(frozen=True, slots=True)
class LimitsSettings:
    """The key `limits` of an issuer: a word, or a list of its own; not written: by its directory."""

    shorthand: ClassVar[str] = "model"
    listed: ClassVar[str] = "own"
    model: LimitModel | None = None
    own: tuple[LimitSettings, ...] = ()

    def problems(self) -> Iterator[KeyProblem]:
        """A word or a list, and each limit once."""
        if self.model is not None and self.own:
            yield KeyProblem("own", "stands beside `model`", "leave one of the two out")
        names = [limit.name for limit in self.own]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield KeyProblem("own", f"has {name!r} twice", "give each limit a name of its own")


@dataclass(frozen=True, slots=True)
class _Ca:
    directory_url: HttpsUrl
    limits: tuple[LimitSettings, ...]


@dataclass(frozen=True, slots=True)
class _Published:
    source: HttpsUrl
    date: NonEmptyText
    cas: tuple[_Ca, ...]


@cache
def published() -> Mapping[str, tuple[Limit, ...]]:
    """The limits that are known, by directory URL, production's first."""
    data = decode(Document.read(_DATA), _Published)
    return {ca.directory_url: tuple(limit.limit for limit in ca.limits) for ca in data.cas}


def limits_of(issuer: str, directory_url: str, said: LimitsSettings | None = None) -> IssuerLimits:
    """The limits of a configured issuer; `said` is what broker.yml says of them; None: nothing."""
    known, model = published(), None if said is None else said.model
    if said is not None and said.own:
        return IssuerLimits(issuer, directory_url, "configuration", tuple(limit.limit for limit in said.own))
    if model is LimitModel.NONE or (model is None and directory_url not in known):
        return IssuerLimits(issuer, directory_url, LimitModel.NONE.value)
    limits = known.get(directory_url) or next(iter(known.values()))
    return IssuerLimits(issuer, directory_url, LimitModel.LETSENCRYPT.value, limits)
