"""What a renewal would do, is doing, and came to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from certplane.ctl.show.words import clock_text, off
from certplane.runtime.columns import Column
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import fleet_pb2

_Answer = fleet_pb2.GetRenewalRequestResponse
Item = _Answer.Item

PROGRESS: Final[Mapping[int, str]] = {
    _Answer.PROGRESS_FAILED: "failed",
    _Answer.PROGRESS_UNHEARD: "unheard",
    _Answer.PROGRESS_PLANNED: "planned",
    _Answer.PROGRESS_REQUESTING: "requesting",
    _Answer.PROGRESS_ISSUED: "issued",
    _Answer.PROGRESS_DONE: "done",
    _Answer.PROGRESS_GONE: "gone",
    _Answer.PROGRESS_OVERTAKEN: "overtaken",
}
PLANNED: Final = _Answer.PROGRESS_PLANNED
UNHEARD: Final = _Answer.PROGRESS_UNHEARD
ENDED: Final = (_Answer.PROGRESS_DONE, _Answer.PROGRESS_GONE, _Answer.PROGRESS_OVERTAKEN)
_STYLES: Final[Mapping[int, Style]] = {
    _Answer.PROGRESS_FAILED: Style.BAD,
    _Answer.PROGRESS_UNHEARD: Style.WARNING,
    _Answer.PROGRESS_DONE: Style.GOOD,
}


def renewal_line(answer: fleet_pb2.RequestRenewalResponse, *, dry_run: bool, identities: bool = False) -> str:
    """What a renewal request did, or would do."""
    noun, plural = ("identity", "identities") if identities else ("certificate", "certificates")
    if not answer.certificate_count:
        return f"no {noun} in force matches"
    verb = "would be" if dry_run else "will be"
    matching = counted(answer.certificate_count, f"matching {noun}", f"matching {plural}")
    earlier = f"{answer.changed_count} of {matching} {verb} renewed"
    until = answer.last_renew_time
    by = f", the last at {clock_text(until)}" if answer.changed_count and until.seconds else ""
    holders = counted(answer.connected_host_count, "host")
    if answer.connected_service_count:
        holders += f" and {counted(answer.connected_service_count, 'service')}"
    told = f"; {holders} connected now, others when they come back"
    others = others_text(answer)
    return f"{earlier}{by}{others}{told if answer.changed_count else ''}"


def others_text(answer: fleet_pb2.RequestRenewalResponse) -> str:
    """Why some of those that match aren't renewed: never that they are due anyway, where something holds them up."""
    left = answer.certificate_count - answer.changed_count
    if left <= 0:
        return ""
    stuck = min(left, sum(not each.HasField("next_attempt_time") for each in answer.held_up))
    if answer.held_up_count > len(answer.held_up):
        return " (the others are due earlier anyway, or held up)"  # not all of those were told
    if stuck == left:
        return " (what holds up the others is below)"
    return " (the others are due earlier anyway" + (f", or held up: {stuck})" if stuck else ")")


def held_up_lines(answer: fleet_pb2.RequestRenewalResponse, *, dry_run: bool) -> list[str]:
    """What holds up certificates of a renewal request: until when, why, and what is done about it."""
    lines = []
    for held in answer.held_up:
        what = f"{held.host}: {held.certificate_name}" if held.certificate_name else held.host
        if held.HasField("next_attempt_time"):
            told = "would be told" if dry_run else "is told"
            until = f"waited until {clock_text(held.next_attempt_time)} and {told} to try now"
        else:
            until = "gets no certificate"
        lines.append(f"{what} {until}: {held.reason or 'no reason given'}")
    if (more := answer.held_up_count - len(answer.held_up)) > 0:
        lines.append(f"and {more} more")
    return lines


def progress_line(answer: _Answer) -> str:
    """How far all of them are: `3 done, 1 failed, 2 requesting`."""
    counts = sorted(
        answer.counts, key=lambda each: list(PROGRESS).index(each.progress) if each.progress in PROGRESS else 0
    )
    parts = [f"{each.certificate_count} {word_of(each.progress)}" for each in counts if each.certificate_count]
    return ", ".join(parts) or "nothing to renew"


def failed(answer: _Answer) -> bool:
    """Whether one of them has failed, or will not come."""
    return any(each.progress == _Answer.PROGRESS_FAILED and each.certificate_count for each in answer.counts)


def style_of(item: Item) -> Style:
    """The colour of how far it is."""
    return _STYLES.get(item.progress, Style.PLAIN)


def item_line(item: Item) -> str:
    """One certificate as it is now."""
    what = f"{item.host}: {item.certificate_name or item.certificate_id or 'identity'}: {word_of(item.progress)}"
    return f"{what}: {item.reason}" if item.reason else what


def item_columns(now: datetime) -> list[Column[Item]]:
    """The columns of a renewal's certificates."""
    return [
        Column("HOST", lambda each: each.host, 0, least=20),
        Column("CERTIFICATE", lambda each: each.certificate_name or each.certificate_id or "identity", 1, least=8),
        Column(
            "PROGRESS",
            lambda each: word_of(each.progress),
            0,
            style=style_of,
        ),
        Column("REASON", lambda each: each.reason, 2, least=16),
        Column(
            "NEXT TRY", lambda each: off(each.next_attempt_time, now) if each.HasField("next_attempt_time") else "", 3
        ),
        Column("RENEWS", lambda each: off(each.renew_time, now) if each.HasField("renew_time") else "", 4),
        Column("ID", lambda each: each.certificate_id, None),
        Column("NEW ID", lambda each: each.new_certificate_id, None),
    ]


def facts(answer: _Answer, renewal_request_id: str) -> list[tuple[str, str]]:
    """What was asked for."""
    return [
        ("renewal", renewal_request_id),
        ("asked for", f"{clock_text(answer.request_time)} by {answer.requested_by}"),
        ("reason", answer.reason),
        ("last due", clock_text(answer.last_renew_time) if answer.HasField("last_renew_time") else ""),
        ("progress", progress_line(answer)),
    ]


def word_of(progress: int) -> str:
    """How far it is, in a word."""
    return PROGRESS.get(progress, f"progress {progress}")
