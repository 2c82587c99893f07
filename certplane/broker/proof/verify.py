"""What does not hold in an audit log: events that were changed, removed, moved or added, ends that were cut off.

The log is read once, in its order. Of each chain it is known how far it has been followed, and each event is held
against the one before it. Where a chain does not go on, what follows is still held against what stands there, so that
one finding does not make a thousand.

What can't be found is told in docs/monitoring.md: events after a chain's last checkpoint whose removal left the rest as
it was, and what a holder of the key has signed anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

from certplane.broker.proof.chain import Chain, LoggedEvent, next_hash
from certplane.broker.proof.checkpoints import Checkpoint, Verifier
from certplane.broker.proof.signatures import LATE, Signatures

_MICROSECOND: Final = timedelta(microseconds=1)
_OVERLAP: Final = timedelta(days=1) // _MICROSECOND
"""For so long a release without chains may write beside one with them."""


class FindingKind(StrEnum):
    """What is wrong."""

    CHANGED = "changed"
    MISSING = "missing"
    MOVED = "moved"
    DOUBLED = "doubled"
    ADDED = "added"
    TRUNCATED = "truncated"
    CHECKPOINT_INVALID = "checkpoint_invalid"
    CHECKPOINT_KEY_UNKNOWN = "checkpoint_key_unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold: of which event (`sequence` 0: of none), and what is wrong, for people."""

    kind: FindingKind
    sequence: int
    event_id: str
    text: str


@dataclass(slots=True)
class Verified:
    """What came of it."""

    event_count: int = 0
    chain_count: int = 0
    checkpoint_count: int = 0
    """Signed checkpoints that hold."""
    finding_count: int = 0
    signed_sequence: int = 0
    """The newest event that one of them covers."""
    unchained_event_count: int = 0
    """Events in no chain: of releases without chains, and not proven."""


@dataclass(slots=True)
class _Gap:
    """Events of a chain that did not stand before a later one; those that stand after it were `moved`."""

    first: int
    last: int
    before: LoggedEvent
    moved: set[int] = field(default_factory=set)

    def finding(self) -> Finding | None:
        """What is missing after all; None if nothing is."""
        count = self.last - self.first + 1 - len(self.moved)
        if not count:
            return None
        which = f"event {self.first}" if self.first == self.last else f"{count} of events {self.first} to {self.last}"
        text = f"{which} of chain {self.before.chain_id} missing before event {self.before.number}"
        return Finding(FindingKind.MISSING, self.before.sequence, self.before.event_id, text)


class _Followed:
    """A chain, as far as it was read."""

    def __init__(self, chain: Chain, checkpoints: dict[int, Checkpoint]) -> None:
        self.chain = chain
        self.checkpoints = checkpoints
        self.sequence = 0
        """Of the last event; 0 before the first one."""
        self.gaps: list[_Gap] = []
        self.signed = False
        """Whether one of its checkpoints was."""
        self.first = 0
        """Place of its first event that was read."""
        self.unsigned = 0
        """Place of the first event that no signed checkpoint that holds has covered yet; 0 if all have one."""
        self.number = 0
        self.hash: bytes | None = chain.start.genesis
        """Of the last event; None where it isn't known."""
        self.skip_pruned()

    def skip_pruned(self) -> None:
        """Go on after what retention has removed."""
        if (pruned := self.chain.pruned_number) > self.number:
            head = self.checkpoints.get(pruned)
            self.number, self.hash = pruned, head.hash if head is not None else None

    def learn(self, checkpoint: Checkpoint) -> None:
        """One of its checkpoints: what retention has left begins there, perhaps."""
        self.checkpoints[checkpoint.number] = checkpoint
        if not self.sequence and checkpoint.number == self.chain.pruned_number:
            self.hash = checkpoint.hash

    def begin(self, number: int) -> None:
        """The first event that is there has this number, and nothing is known of what was before it."""
        self.number, self.hash = number - 1, None

    def go_to(self, event: LoggedEvent, number: int) -> None:
        """The event is the last one that was read."""
        self.number, self.hash, self.sequence = number, event.hash, event.sequence
        self.first = self.first or event.sequence
        self.unsigned = self.unsigned or event.sequence


class Verification:
    """The reader of one log: `read` each event in its order, then `end`."""

    def __init__(
        self, chains: Iterable[Chain], checkpoints: Iterable[Checkpoint], verifier: Verifier, *, partial: bool = False
    ) -> None:
        """Begin.

        Args:
            chains: Those of the log.
            checkpoints: Of all of them.
            verifier: Knows the keys; where it has none, signatures are not looked at.
            partial: The log is a part: chains may begin and end anywhere in it.
        """
        self._partial = partial
        self._verifier = verifier
        self._first_chained = 0
        self._last_chained = 0
        self._signatures = Signatures()
        self._chains: dict[int, _Followed] = {}
        self._begun_after: dict[tuple[int, int], list[Chain]] = {}
        self.result = Verified()
        for chain in chains:
            self.add(chain, ())
        self.learn(checkpoints)

    def knows(self, chain_id: int) -> bool:
        """Whether a chain was added."""
        return chain_id in self._chains

    def learn(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Checkpoints of chains that were added, before their events are read; of others they are passed over."""
        for each in checkpoints:
            followed = self._chains.get(each.chain_id)
            if followed is not None:
                followed.learn(each)

    def gap(self, event: LoggedEvent) -> int | None:
        """After which place in the log events of the chain are missing before this one; None if none is.

        They may only have come into the log while it was read: then they are to be read before it.
        """
        followed = self._chains.get(event.chain_id or 0)
        if followed is None or event.number is None or (self._partial and not followed.sequence):
            return None
        missing = event.number > followed.number + 1
        return (followed.sequence or followed.chain.first_sequence - 1) if missing else None

    def add(self, chain: Chain, checkpoints: Sequence[Checkpoint]) -> None:
        """A chain of the log; one that is known already may have been pruned since."""
        start = chain.start
        known = {each.number: each for each in checkpoints}
        followed = self._chains.get(start.chain_id)
        if followed is not None:
            followed.chain = chain
            followed.checkpoints |= known
            followed.skip_pruned()
            return
        self.result.chain_count += 1
        self._chains[start.chain_id] = _Followed(chain, known)
        self._begun_after.setdefault((start.after_chain_id, start.after_number), []).append(chain)

    def read(self, event: LoggedEvent) -> list[Finding]:
        """What is wrong with the next event of the log."""
        found = [Finding(kind, event.sequence, event.event_id, text) for kind, text in self._read(event)]
        self.result.event_count += 1
        self.result.finding_count += len(found)
        return found

    def _read(self, event: LoggedEvent) -> Iterator[tuple[FindingKind, str]]:
        number = event.number
        if event.chain_id is None or number is None or event.hash is None:
            self.result.unchained_event_count += 1
            if self._first_chained and event.create_time > self._first_chained + _OVERLAP:
                yield FindingKind.ADDED, "is in no chain, more than a day after others were"
            return
        followed = self._chains.get(event.chain_id)
        if followed is None:
            yield FindingKind.ADDED, f"is of chain {event.chain_id}, which is not there"
            return
        self._first_chained = self._first_chained or event.create_time
        self._last_chained = max(self._last_chained, event.create_time)
        if not followed.sequence and (self._partial or number <= followed.number):
            followed.begin(number)  # what retention has not removed yet is there to its end
        if number <= followed.number:
            yield self._again(followed, event, number)
            return
        if number > followed.number + 1:
            followed.gaps.append(_Gap(followed.number + 1, number - 1, event))
        elif followed.hash is not None and next_hash(followed.hash, number, event) != event.hash:
            what = f"event {number} of chain {event.chain_id} was changed, or the hash of the one before it"
            yield FindingKind.CHANGED, what
        followed.go_to(event, number)
        yield from self._checked(followed, event, number)
        for chain in self._begun_after.get((event.chain_id, number), ()):
            if chain.start.after_hash != event.hash:
                yield FindingKind.CHANGED, f"chain {chain.start.chain_id} began after it, and it had another hash then"

    @staticmethod
    def _again(followed: _Followed, event: LoggedEvent, number: int) -> tuple[FindingKind, str]:
        """An event that stands after later ones of its chain."""
        what = f"event {number} of chain {event.chain_id}"
        for gap in followed.gaps:
            if gap.first <= number <= gap.last and number not in gap.moved:
                gap.moved.add(number)
                return FindingKind.MOVED, f"{what} stands after event {followed.number}"
        return FindingKind.DOUBLED, f"{what} was there before"

    def _checked(self, followed: _Followed, event: LoggedEvent, number: int) -> Iterator[tuple[FindingKind, str]]:
        checkpoint = followed.checkpoints.get(number)
        if checkpoint is None:
            return
        wrong = self._wrong(checkpoint)
        if checkpoint.signature is None and followed.signed:
            what = f"the checkpoint of event {number} of chain {event.chain_id}"
            wrong = FindingKind.CHECKPOINT_INVALID, f"{what} is not signed, and one before it is"
        followed.signed = followed.signed or checkpoint.signature is not None
        if wrong is not None:
            yield wrong
        elif checkpoint.hash != event.hash:
            what = f"event {number} of chain {event.chain_id} has another hash than its checkpoint"
            yield FindingKind.CHANGED, f"{what}: it or one since the checkpoint before was changed"
        elif self._verifier.holds(checkpoint):
            self.result.checkpoint_count += 1
            self.result.signed_sequence = max(self.result.signed_sequence, event.sequence)
            self._signatures.add(followed.unsigned, event, checkpoint)
            followed.unsigned = 0

    def _wrong(self, checkpoint: Checkpoint) -> tuple[FindingKind, str] | None:
        """What is wrong with a checkpoint's signature; nothing where it has none, which proves nothing either."""
        what = f"the checkpoint of event {checkpoint.number} of chain {checkpoint.chain_id}"
        if not self._verifier.names or checkpoint.signature is None or self._verifier.holds(checkpoint):
            return None
        if not self._verifier.knows(checkpoint.key_id):
            text = f"{what} is signed with the key {checkpoint.key_id}, which is none of those that are trusted"
            return FindingKind.CHECKPOINT_KEY_UNKNOWN, text
        return FindingKind.CHECKPOINT_INVALID, f"{what} was changed: its signature does not hold"

    def end(self) -> list[Finding]:
        """What is wrong when all events were read."""
        found = list(self._end())
        self.result.finding_count += len(found)
        return found

    def _end(self) -> Iterator[Finding]:
        if self._verifier.names and not self._partial:
            yield from self._unsigned()
        for chain_id, followed in self._chains.items():
            yield from filter(None, (gap.finding() for gap in followed.gaps))
            if pruned := followed.chain.pruned_number:
                head = followed.checkpoints.get(pruned)
                wrong = self._wrong(head) if head is not None else None
                if head is None:
                    text = (
                        f"the events up to {pruned} of chain {chain_id} were removed, and no checkpoint has their end"
                    )
                    wrong = FindingKind.CHECKPOINT_INVALID, text
                if wrong is not None:
                    yield Finding(wrong[0], 0, "", wrong[1])
            if self._partial:
                continue
            last = max(followed.checkpoints, default=0)
            if last > followed.number:
                text = f"chain {chain_id} ends with event {followed.number}, and a checkpoint has its event {last}"
                yield Finding(FindingKind.TRUNCATED, followed.sequence, "", text)
            yield from self._before(followed.chain)

    def _unsigned(self) -> Iterator[Finding]:
        """Signatures that were taken away with their checkpoints, and ones that brokers were made to give."""
        signed = self._signatures
        heads = (each.checkpoints.get(each.chain.pruned_number) for each in self._chains.values())
        if not signed.first and not any(head is not None and self._verifier.holds(head) for head in heads):
            # Signatures that don't hold have been told, each.
            told = any(each.signed for each in self._chains.values())
            if not told and self._last_chained > self._first_chained + LATE:
                why = "with a new key the first one comes within minutes of a broker's start"
                text = f"no checkpoint is signed with a key that is trusted; {why}"
                yield Finding(FindingKind.CHECKPOINT_INVALID, 0, "", text)
            return
        for event in signed.late():
            text = (
                f"the checkpoint of event {event.number} of chain {event.chain_id} was signed hours after brokers had "
                "signed what stands behind: those that it had were taken out, or a clock went ahead"
            )
            yield Finding(FindingKind.CHECKPOINT_INVALID, event.sequence, event.event_id, text)
        for chain_id, followed in self._chains.items():
            # A key that came later: programs that ran then are ended one after the other.
            exempt = not followed.signed and signed.early(followed.first, followed.sequence)
            if not exempt and followed.unsigned and signed.overdue(followed.unsigned):
                text = (
                    f"events of chain {chain_id} from here on have no signed checkpoint, and brokers have signed what "
                    "stands behind for hours: theirs were taken out, or not made (the log of that broker says why)"
                )
                yield Finding(FindingKind.CHECKPOINT_INVALID, followed.unsigned, "", text)

    def _before(self, chain: Chain) -> Iterator[Finding]:
        """Whether the event that a chain began after is still there."""
        start = chain.start
        before = self._chains.get(start.after_chain_id)
        what = f"chain {start.chain_id} began after event {start.after_number} of chain {start.after_chain_id}"
        if start.after_chain_id and before is None:
            yield Finding(FindingKind.TRUNCATED, 0, "", f"{what}, and that chain is not there")
        elif before is not None and before.number < start.after_number:
            yield Finding(FindingKind.TRUNCATED, before.sequence, "", f"{what}, which ends with {before.number}")
