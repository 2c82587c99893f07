"""What the issuers are not to be asked for now: known to every broker of the fleet, and after a restart.

Rules:

- When a CA says that something has to wait (a rate limit), nobody asks for that before, and everybody else does: a
  limit of one domain holds up no other, one of the account holds up all.
- An issuer that can't be reached is suspected: where a profile has another issuer, its orders go there meanwhile. The
  first certificate that it issues, to whichever broker, ends that.
- A hold whose length is a guess of ours (the CA wants something of a person), and a suspicion whose length the issuer
  hasn't said, end with the retry epoch, since the cause may be mended.

Asked for on each order, so all of it is in memory: what this broker is told holds here at once, is written as rows
(`HoldStore`), and holds at the others when their change feeds have told them. While the store can't be written, or
read, what is known here stays in force, and is written later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Protocol, TypeAlias

from typing_extensions import override

from certplane.broker.issuance.outcome import is_told
from certplane.broker.issuance.queue import Lane
from certplane.broker.issuance.waiting import undisturbed
from certplane.broker.model import Scope, ScopeKind
from certplane.broker.ports import ChangeFollower
from certplane.errors import Refusal, RefusalError
from certplane.pki.names import names_sha256

logger = logging.getLogger(__name__)

_SUSPECT_FOR: Final = timedelta(minutes=5)

LONGEST_HOLD: Final = timedelta(days=31)
"""No CA's limit lasts longer (the longest known window is a week): the clock was set back since."""

_OUT_OF_REACH: Final = "out_of_reach"
"""The scope of a suspicion: no CA's word, and so no `Scope`."""


HoldKey: TypeAlias = tuple[str, str, str, str]
"""Issuer, directory, scope, and the hash of the names."""


def key_text(key: HoldKey) -> str:
    """The key as the change feed has it: no URL, scope or hash has a space."""
    return " ".join(key)


def parse_key(text: str) -> HoldKey:
    """The key of `key_text`."""
    issuer, directory_url, scope, names = text.rsplit(" ", 3)
    return issuer, directory_url, scope, names


@dataclass(frozen=True, slots=True)
class IssuerHold:
    """What `issuer` is not to be asked for before `until`, since it said `refusal`.

    Attributes:
        issuer: Its name in the configuration.
        directory_url: Which CA that was: what a staging CA said holds up nobody once the name is another CA's.
        scope: The text of a `Scope`, or that the issuer is out of reach.
        names_sha256: For a set of names, which one; else empty.
        until: When it ends, by the clock of the broker that was told.
        refusal: What the CA said, or what was seen of it.
        retry_epoch: With which epoch it ends; empty if the issuer named the time, which stands.
    """

    issuer: str
    directory_url: str
    scope: str
    names_sha256: str
    until: datetime
    refusal: Refusal
    retry_epoch: str

    @property
    def key(self) -> HoldKey:
        """What makes it the same hold: a longer one takes its place."""
        return (self.issuer, self.directory_url, self.scope, self.names_sha256)

    def stands(self, now: datetime, epoch: str) -> bool:
        """Whether it counts at `now`, in this retry epoch."""
        return now < self.until < now + LONGEST_HOLD and self.retry_epoch in ("", epoch)


class HoldStore(Protocol):
    """Holds in the database, which other brokers read; the rules of `certplane.broker.ports` hold here."""

    async def holds(self) -> Sequence[IssuerHold]:
        """All of them, those that have ended perhaps too.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def find_hold(self, key: HoldKey) -> IssuerHold | None:
        """The one of this key.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def write_holds(self, holds: Collection[IssuerHold], ended: Collection[IssuerHold], now: datetime) -> None:
        """Keep `holds`, and remove those that have `ended` before their time, durable; twice is as good as once.

        A hold takes the place of one that is shorter, of another retry epoch, or of a clock that was set back; another
        one stays. What has ended by itself is removed on the way.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class IssuerHolds(ChangeFollower):
    """Remembers them. For the event loop's thread."""

    def __init__(self, store: HoldStore, directories: Mapping[str, str], epoch: Callable[[], str]) -> None:
        """None are known before `reread`; `directories` has each issuer's URL, and `epoch` says the retry epoch."""
        self._store = store
        self._directories = directories
        self._epoch = epoch
        self._holds: dict[HoldKey, IssuerHold] = {}
        self._unsaved: dict[HoldKey, IssuerHold] = {}
        """Of these, what is not known to be durable."""
        self._ended: dict[HoldKey, IssuerHold] = {}
        """What others may still hold to be in force."""
        self._saves = 0
        self._failing = False

    def hold(self, lane: Lane, scopes: Iterable[Scope], until: datetime, refusal: Refusal, now: datetime) -> bool:
        """Nobody should ask the issuer of `lane` for what falls under `scopes` before `until`; `save` is to follow.

        Args:
            lane: whose order was refused.
            scopes: what the refusal is about.
            until: when it ends; an earlier end than one that is known changes nothing.
            refusal: what the CA said.
            now: the time.

        Returns:
            Whether anything is held now, or for longer, that was not before.
        """
        news = False
        for key in self._keys(lane, scopes):
            news = self._add(key, until, refusal, now) or news
        return news

    def held(self, lane: Lane, now: datetime) -> tuple[datetime, Refusal] | None:
        """Until when, and why, `lane` must not ask the CA; None if it may."""
        if not self._holds:
            return None
        epoch = self._epoch()
        found = filter(None, map(self._holds.get, self._keys(lane, Scope.over(lane.dns_names))))
        covering = [hold for hold in found if hold.stands(now, epoch)]
        if not covering:
            return None
        longest = max(covering, key=lambda hold: hold.until)
        return longest.until, longest.refusal

    def suspect(self, issuer: str, now: datetime, refusal: Refusal) -> None:
        """The issuer can't be reached, as `refusal` says: it is left alone for as long as that says, or a while.

        `save` is to follow.
        """
        until = now + max(refusal.retry_after or timedelta(), _SUSPECT_FOR)
        self._add(self._suspicion(issuer), until, refusal, now)

    def suspected(self, issuer: str, now: datetime) -> tuple[datetime, Refusal] | None:
        """Until when, and why, the issuer is thought to be out of reach; None if it isn't."""
        suspicion = self._holds.get(self._suspicion(issuer))
        if suspicion is None or not suspicion.stands(now, self._epoch()):
            return None
        return suspicion.until, suspicion.refusal

    def works(self, issuer: str) -> None:
        """The issuer has issued: it isn't suspected any more. `save` is to follow."""
        suspicion = self._holds.pop(key := self._suspicion(issuer), None)
        if suspicion is not None:
            self._unsaved.pop(key, None)
            self._ended[key] = suspicion

    async def save(self, now: datetime) -> None:
        """Tell the other brokers what this one was told; what can't be written is, the next time. Never raises."""
        holds, ended = list(self._unsaved.values()), list(self._ended.values())
        if not (holds or ended):
            return
        try:
            await self._store.write_holds(holds, ended, now)
        except RefusalError as error:
            if not self._failing:
                logger.warning("what issuers are not to be asked for could not be stored; will retry: %s", error)
            self._failing = True
            return
        self._failing = False
        self._saves += 1
        for waiting, written in ((self._unsaved, holds), (self._ended, ended)):
            for hold in written:
                if waiting.get(hold.key) is hold:
                    del waiting[hold.key]

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for key in map(parse_key, keys):
            found = await undisturbed(partial(self._store.find_hold, key), lambda: self._saves)
            if key in self._unsaved or key in self._ended:
                continue
            known = self._holds.pop(key, None)
            if found is not None:
                self._holds[key] = found
                if found != known:
                    _tell(found)

    @override
    async def reread(self, since: datetime) -> None:
        rows = await undisturbed(self._store.holds, lambda: self._saves)
        found = {hold.key: hold for hold in rows if hold.key not in self._ended}
        self._holds = {**found, **self._unsaved}

    def _add(self, key: HoldKey, until: datetime, refusal: Refusal, now: datetime) -> bool:
        epoch = self._epoch()
        self._holds = {known: hold for known, hold in self._holds.items() if now < hold.until < now + LONGEST_HOLD}
        known = self._holds.get(key)
        if known is not None and known.stands(now, epoch) and until <= known.until:
            return False
        hold = IssuerHold(*key, until, refusal, "" if is_told(refusal) else epoch)
        self._holds[key] = self._unsaved[key] = hold
        self._ended.pop(key, None)
        return True

    def _keys(self, lane: Lane, scopes: Iterable[Scope]) -> Iterator[HoldKey]:
        """The holds of these scopes, where they are about an order of `lane`."""
        directory_url = self._directories.get(lane.issuer, "")
        for scope in scopes:
            names = names_sha256(lane.dns_names) if scope.kind is ScopeKind.NAME_SET else ""
            yield lane.issuer, directory_url, str(scope), names

    def _suspicion(self, issuer: str) -> HoldKey:
        return issuer, self._directories.get(issuer, ""), _OUT_OF_REACH, ""


def _tell(hold: IssuerHold) -> None:
    """What another broker was told: an order that doesn't ask needs no other explanation in this one's log."""
    fields = {"issuer": hold.issuer, "scope": hold.scope, "until": f"{hold.until:%Y-%m-%dT%H:%M:%SZ}"}
    logger.info("another broker was refused by an issuer: %s", hold.refusal.message, extra={"fields": fields})
