"""What is typed of a rollout, as the broker's message. Pure.

`--rings canary:1h,dc=fra1+tier=web,10%:4h,rest`: rings in their order, each with what picks its hosts and how long it
bakes. A word alone is the label `ring=WORD`.
"""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta
from typing import Final

from certplane.config.durations import DurationError, parse_span, parse_time
from certplane.ctl.filters import REVOCATIONS, label_of, selection
from certplane.ctl.session import misuse
from certplane.errors import ConfigurationError
from certplane.rpc.times import put_time
from certplane.v1 import rollout_pb2

_Spec = rollout_pb2.RolloutSpec

_WORD: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
"""What a ring may be called (proto/certplane/v1/rollout.proto)."""
_OTHER: Final = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)
_PERCENT: Final = re.compile(r"(\d{1,3})%", re.ASCII)
_LONGEST_NAME: Final = 64
_GRAMMAR: Final = "write rings like canary:1h,dc=fra1,10%,rest"


def spec_of(options: argparse.Namespace, command: str, now: datetime) -> _Spec:
    """The rollout that the options of `rollout plan` and `rollout start` describe.

    Raises:
        ConfigurationError: something can't be understood, or goes with nothing else.
    """
    spec = _Spec(
        selection=selection(options, command, now),
        action=_Spec.ACTION_REKEY if options.rekey else _Spec.ACTION_MOVE if options.move_to else _Spec.ACTION_RENEW,
        issuer=options.move_to or "",
        rings=() if options.rings is None else rings_of(options.rings),
        success=_Spec.SUCCESS_INSTALLED if options.success == "installed" else _Spec.SUCCESS_SERVED,
        max_percent_of_name=options.max_percent_of_name or 0,
        revoke=_Spec.REVOKE_AFTER_SERVED if options.revoke == "after-served" else _Spec.REVOKE_NEVER,
        reason=options.reason,
    )
    if options.revocation_reason is not None:
        if spec.revoke == _Spec.REVOKE_NEVER:
            raise misuse(f"{command}: --as is of a revocation, and nothing is revoked", "add --revoke after-served")
        spec.revocation_reason = REVOCATIONS[options.revocation_reason]
    if options.halt_after is not None:
        spec.halt.failed_hosts = options.halt_after
    if options.halt_percent is not None:
        spec.halt.failed_percent = options.halt_percent
    if options.silent_after is not None:
        spec.halt.silent_after.FromTimedelta(options.silent_after)
    if options.deadline is not None:
        put_time(deadline_of(options.deadline, now), spec.deadline)
    return spec


def rings_of(text: str) -> list[rollout_pb2.RingSpec]:
    """The rings that are typed, each with a name of its own.

    Raises:
        ConfigurationError: one can't be understood, or comes behind `rest`, which leaves it nothing.
    """
    rings: list[rollout_pb2.RingSpec] = []
    for piece in text.split(","):
        if rings and rings[-1].rest:
            raise misuse(f"--rings {text}: behind rest there is nobody left", "put rest at the end")
        pick, colon, bake = piece.strip().partition(":")
        ring = _ring(pick, text)
        ring.name = _unique(ring.name, {each.name for each in rings})
        if colon:
            ring.bake_duration.FromTimedelta(_bake(bake, text))
        rings.append(ring)
    return rings


def deadline_of(text: str, now: datetime) -> datetime:
    """A time to come: in a span (`36h`), on a day, or at a time (RFC 3339), in UTC unless it says otherwise.

    Raises:
        ConfigurationError: it is none, or is past.
    """
    try:
        moment = now + parse_span(text)
    except (DurationError, OverflowError):
        try:
            moment = parse_time(text)
        except (ValueError, OverflowError) as error:
            remedy = "write it like 36h, 2026-01-02 or 2026-01-02T03:04:05Z"
            raise misuse(f"--deadline {text}: is neither a span nor a time", remedy) from error
    if moment <= now:
        raise misuse(f"--deadline {text}: is past", "name a time to come, or leave it out")
    return moment


def _ring(pick: str, text: str) -> rollout_pb2.RingSpec:
    """What picks its hosts, and what it is called unless another ring is called so."""
    share = _PERCENT.fullmatch(pick)
    if share is not None:
        number = int(share[1])
        if not 1 <= number <= 100:
            raise misuse(f"--rings {text}: {pick} is no share", "write 1% to 100%")
        return rollout_pb2.RingSpec(name=f"{number}-percent", percent=number)
    if pick == "rest":
        return rollout_pb2.RingSpec(name="rest", rest=True)
    if "=" in pick:
        labels = [_label(each, text) for each in pick.split("+")]
        name = "-".join(_OTHER.sub("-", each) for each in labels)[:_LONGEST_NAME]
        return rollout_pb2.RingSpec(name=name, labels=labels)
    if _WORD.fullmatch(pick):
        return rollout_pb2.RingSpec(name=pick, labels=[f"ring={pick}"])
    raise misuse(f"--rings {text}: {pick or 'an empty ring'} can't be understood", _GRAMMAR)


def _label(word: str, text: str) -> str:
    try:
        return label_of(word)
    except ConfigurationError as error:
        raise misuse(f"--rings {text}: {word or 'an empty label'} is no label", _GRAMMAR) from error


def _unique(name: str, taken: set[str]) -> str:
    number, made = 1, name
    while made in taken:
        number += 1
        made = f"{name[: _LONGEST_NAME - len(str(number)) - 1]}-{number}"
    return made


def _bake(word: str, text: str) -> timedelta:
    try:
        return parse_span(word)
    except DurationError as error:
        raise misuse(f"--rings {text}: {word or 'nothing'} is no time to bake", "write it like canary:1h") from error
