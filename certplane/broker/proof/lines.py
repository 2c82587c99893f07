"""A log as lines of JSON, which is proven without the database it came from.

    {"certplaneAuditLog": 1, "partial": false}
    {"chain": {"chainId": 1, "writerId": "...", "startTime": 0, ..., "prunedNumber": 0}}
    {"event": {...the public format...}, "sequence": 7, "chainId": 1, "number": 3, "hash": "...", "stored": "..."}
    {"checkpoint": {"chainId": 1, "number": 3, "time": 0, "hash": "...", "keyId": "...", "signature": "..."}}
    {"end": {"eventCount": 1}}

Chains and checkpoints stand before the events. `stored` is what the chain proves, base64: what a person reads in
`event` follows from it, and is held against it. Times are microseconds since 1970 UTC, `hash` is hexadecimal.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from certplane.broker.proof.chain import Chain, ChainStart, LoggedEvent
from certplane.broker.proof.checkpoints import Checkpoint, Verifier
from certplane.broker.proof.verify import Finding, FindingKind, Verification, Verified
from certplane.runtime.text import counted

_VERSION: Final = 1
_MOST: Final = 1_000_000
"""Characters of a line; an event has some thousand at most."""

Reads = Callable[[str, int, str, bytes | None], str]
"""The public format of what is stored of an event: its id, time, text, octets."""


class LinesError(ValueError):
    """It isn't a log that was exported."""


def head_line(*, partial: bool) -> str:
    """The first line."""
    return _line({"certplaneAuditLog": _VERSION, "partial": partial})


def end_line(count: int) -> str:
    """The last line: without it, the file was cut off."""
    return _line({"end": {"eventCount": count}})


def chain_line(chain: Chain) -> str:
    """A chain."""
    start = chain.start
    return _line(
        {
            "chain": {
                "chainId": start.chain_id,
                "writerId": start.writer_id,
                "startTime": start.start_time,
                "afterChainId": start.after_chain_id,
                "afterNumber": start.after_number,
                "afterHash": start.after_hash.hex(),
                "firstSequence": chain.first_sequence,
                "prunedNumber": chain.pruned_number,
            }
        }
    )


def checkpoint_line(checkpoint: Checkpoint) -> str:
    """A checkpoint."""
    signature = checkpoint.signature
    return _line(
        {
            "checkpoint": {
                "chainId": checkpoint.chain_id,
                "number": checkpoint.number,
                "sequence": checkpoint.sequence,
                "time": checkpoint.time,
                "hash": checkpoint.hash.hex(),
                "keyId": checkpoint.key_id,
                "signature": None if signature is None else _base64(signature),
            }
        }
    )


def event_line(event: LoggedEvent, read: Reads) -> str:
    """An event; one that this release can't read has no public format."""
    try:
        public = json.loads(read(event.event_id, event.create_time, event.record, event.body))
    except ValueError:
        public = None
    said: dict[str, Any] = {
        "event": public,
        "sequence": event.sequence,
        "eventId": event.event_id,
        "time": event.create_time,
        "chainId": event.chain_id,
        "number": event.number,
        "hash": None if event.hash is None else event.hash.hex(),
    }
    said |= {"record": event.record} if event.body is None else {"stored": _base64(event.body)}
    return _line(said)


class LinesVerification:
    """Proves a file of such lines."""

    def __init__(self, verifier: Verifier, read: Reads) -> None:
        self._verifier = verifier
        self._read = read
        self._partial = True
        self._chains: list[Chain] = []
        self._checkpoints: list[Checkpoint] = []
        self._begun: Verification | None = None
        self._count: int | None = None

    @property
    def result(self) -> Verified:
        """As far as it has come."""
        return self._log.result

    @property
    def _log(self) -> Verification:
        """Begun with the first event, before which chains and checkpoints stand."""
        if self._begun is None:
            self._begun = Verification(self._chains, self._checkpoints, self._verifier, partial=self._partial)
        return self._begun

    def run(self, lines: Iterable[str]) -> Iterator[Finding]:
        """What is wrong.

        Raises:
            LinesError: it is no exported log, or a line of it can't be read: its number is told.
        """
        number = 0
        for number, line in enumerate(lines, 1):
            said = _said(line, number)
            if number == 1 and said.get("certplaneAuditLog") != _VERSION:
                raise LinesError("this is no audit log that `certplane-broker audit export` has written")
            try:
                found = self._take(said)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise LinesError(f"line {number} is none of an exported audit log") from error
            yield from found
        if not number:
            raise LinesError("the file is empty")
        yield from self._log.end()
        if self._count != self.result.event_count:
            end = "has no end" if self._count is None else f"had {counted(self._count, 'event')} when it was written"
            yield self._count_in(
                Finding(FindingKind.TRUNCATED, 0, "", f"it {end}, and has {self.result.event_count} now")
            )

    def _take(self, said: dict[str, Any]) -> Sequence[Finding]:
        if "certplaneAuditLog" in said:
            self._partial = bool(said["partial"])
        elif "chain" in said:
            self._chains.append(_chain(said["chain"]))
        elif "checkpoint" in said:
            self._checkpoints.append(_checkpoint(said["checkpoint"]))
        elif "end" in said:
            self._count = int(said["end"]["eventCount"])
        else:
            event = _event(said)
            return [*self._log.read(event), *self._shown(event, said["event"])]
        return ()

    def _count_in(self, finding: Finding) -> Finding:
        self.result.finding_count += 1
        return finding

    def _shown(self, event: LoggedEvent, public: object) -> Iterator[Finding]:
        """Whether people are shown what the chain proves."""
        try:
            proven = json.loads(self._read(event.event_id, event.create_time, event.record, event.body))
        except ValueError:
            return
        if public != proven:
            text = "is shown otherwise than it was stored"
            yield self._count_in(Finding(FindingKind.CHANGED, event.sequence, event.event_id, text))


def _said(line: str, number: int) -> dict[str, Any]:
    try:
        said = json.loads(line) if len(line) < _MOST else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise LinesError(f"line {number} is no JSON object of an exported audit log")
    return said


def _chain(said: dict[str, Any]) -> Chain:
    start = ChainStart(
        int(said["chainId"]),
        str(said["writerId"]),
        int(said["startTime"]),
        int(said["afterChainId"]),
        int(said["afterNumber"]),
        bytes.fromhex(said["afterHash"]),
    )
    return Chain(start, int(said["firstSequence"]), int(said["prunedNumber"]))


def _checkpoint(said: dict[str, Any]) -> Checkpoint:
    signature = said["signature"]
    return Checkpoint(
        int(said["chainId"]),
        int(said["number"]),
        int(said["sequence"]),
        int(said["time"]),
        bytes.fromhex(said["hash"]),
        str(said["keyId"]),
        None if signature is None else base64.b64decode(signature, validate=True),
    )


def _event(said: dict[str, Any]) -> LoggedEvent:
    stored = said.get("stored")
    chain_id, number, digest = said["chainId"], said["number"], said["hash"]
    return LoggedEvent(
        int(said["sequence"]),
        str(said["eventId"]),
        int(said["time"]),
        str(said.get("record", "{}")),
        None if stored is None else base64.b64decode(stored, validate=True),
        None if chain_id is None else int(chain_id),
        None if number is None else int(number),
        None if digest is None else bytes.fromhex(digest),
    )


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _line(said: dict[str, Any]) -> str:
    return json.dumps(said, separators=(",", ":"))
