"""A message in words: subject and text for people, JSON for programs, and what an operator's template is filled with.

JSON is in the dialect of certplanectl, the proto's JSON mapping: a cause has the names that it has in
SummarizeFleetResponse. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from string import Template
from typing import Any, Final

from certplane.broker.notify.model import FleetState, HealthCount, Message, MessageKind, Trouble
from certplane.runtime.health import Health, HealthActor, HealthWord, Severity, moment_text
from certplane.runtime.text import counted, printable

_SUBJECT: Final = 200
"""Octets: what mail programs and chats show of one."""

_TITLES: Final = {
    MessageKind.OPENED: "",
    MessageKind.WORSE: "worse: ",
    MessageKind.STILL: "still: ",
    MessageKind.OVER: "over: ",
}

_ACTORS: Final = {
    HealthActor.NOBODY: "nobody needs to",
    HealthActor.HOST: "whoever keeps the host",
    HealthActor.OPERATOR: "whoever keeps the broker and its policy",
    HealthActor.DNS: "whoever keeps the DNS of the names",
    HealthActor.ISSUER: "the CA",
}


def severity(message: Message) -> Severity:
    """How bad it is: of the worst trouble; what is over, a digest and a test are ok."""
    if message.kind in {MessageKind.OVER, MessageKind.DIGEST, MessageKind.TEST} or not message.troubles:
        return Severity.OK
    return Health(message.troubles[0].word).severity


def subject(message: Message) -> str:
    """One line that says it all, at most 200 octets."""
    match message.kind:
        case MessageKind.TEST:
            text = "this is a test of the notifier " + message.notifier
        case MessageKind.DIGEST:
            count = message.trouble_count
            text = f"the week's digest: {counted(count, 'trouble') if count else 'no trouble'}"
        case MessageKind.OVER if message.trouble_count == 1:
            text = f"over: {message.troubles[0].cause}"
        case MessageKind.OVER:
            text = f"over: {counted(message.trouble_count, 'trouble')}"
        case _ if message.trouble_count == 1:
            text = f"{_TITLES[message.kind]}{headline(message.troubles[0])}"
        case _:
            text = f"{_TITLES[message.kind]}{counted(message.trouble_count, 'trouble')}, the worst: "
            text += headline(message.troubles[0])
    how_bad = severity(message)
    return printable(f"[certplane] {'' if how_bad is Severity.OK else how_bad.upper() + ': '}{text}", _SUBJECT)


def headline(trouble: Trouble) -> str:
    """How many have it, and what; of a broker's own, what is wrong."""
    if trouble.is_of_broker:
        return f"{trouble.cause}: {trouble.text}" if trouble.text else trouble.cause
    certificates = counted(trouble.certificate_count, "certificate")
    services = trouble.service_count
    counts = {"host": trouble.host_count - services, "service": services}
    holders = " and ".join(counted(count, noun) for noun, count in counts.items() if count)
    return f"{certificates} of {holders or '0 hosts'} {trouble.word}: {trouble.cause}"


def body(message: Message) -> str:
    """The message for people, lines of text."""
    lines: list[str] = []
    if message.kind is MessageKind.TEST:
        lines += [f"Notifications of the notifier {message.notifier} arrive here.", ""]
    for trouble in message.troubles:
        lines += [*_trouble_lines(message.kind, trouble), ""]
    if message.trouble_count > len(message.troubles):
        lines += [f"and {counted(message.trouble_count - len(message.troubles), 'more trouble')}", ""]
    if message.kind is not MessageKind.TEST:
        lines += [*_fleet_lines(message.fleet), "", "More: certplanectl summary", ""]
    return "\n".join([*lines, f"{moment_text(message.create_time)}, message {message.message_id}", ""])


def document(message: Message) -> dict[str, Any]:
    """The message for programs; members without a value are left out."""
    members = {
        "messageId": message.message_id,
        "notifier": message.notifier,
        "kind": message.kind.value,
        "severity": severity(message).value,
        "createTime": _time(message.create_time),
        "subject": subject(message),
        "text": body(message),
        "troubleCount": message.trouble_count,
        "troubles": [_trouble(trouble) for trouble in message.troubles],
        "fleet": {
            "hostCount": message.fleet.host_count,
            "connectedHostCount": message.fleet.connected_count,
            "healthCounts": [_health_count(each) for each in message.fleet.counts],
            "endingCount": message.fleet.ending_count,
        },
    }
    return {name: value for name, value in members.items() if value not in ("", [], None)}


def fields(message: Message) -> dict[str, str]:
    """What a template may name. What is about one trouble is that of the worst one; empty in a message without any."""
    worst = message.troubles[0] if message.troubles else Trouble("", HealthWord.OK, 0, 0)
    return {
        "message_id": message.message_id,
        "notifier": message.notifier,
        "kind": message.kind.value,
        "severity": severity(message).value,
        "time": _time(message.create_time) or "",
        "subject": subject(message),
        "text": body(message),
        "cause": worst.cause,
        "health": "" if worst.is_of_broker else worst.word.value,
        "reason": worst.text,
        "remedy": worst.remedy,
        "certificate_count": str(worst.certificate_count),
        "host_count": str(worst.host_count),
        "hosts": ", ".join(worst.hosts),
        "trouble_count": str(message.trouble_count),
    }


def fill(template: str, message: Message, *, as_json: bool) -> str:
    """An operator's template (`string.Template`: `$subject`, `${cause}`, `$$` is a dollar) filled with a message.

    Args:
        template: Text; whatever it names is one of `fields`.
        message: What it is filled with.
        as_json: Whether values stand inside JSON strings: they are escaped then, so that no host's text ends one.

    Raises:
        KeyError: it names something else.
        ValueError: a `$` in it begins no name.
    """
    values: Mapping[str, str] = fields(message)
    if as_json:
        values = {name: json.dumps(value)[1:-1] for name, value in values.items()}
    return Template(template).substitute(values)


def _trouble_lines(kind: MessageKind, trouble: Trouble) -> list[str]:
    since = f"since {moment_text(trouble.since)}" if trouble.since else ""
    if kind is MessageKind.OVER:
        if trouble.is_of_broker:
            return [f"{trouble.cause} is over", f"  It was there {since}".rstrip()]
        return [f"{trouble.cause} is over", f"  It was {trouble.word} {since}".rstrip(), "  No certificate has it now."]
    more = trouble.host_count - len(trouble.hosts)
    facts = {
        "": "" if trouble.is_of_broker else trouble.text,
        "Seen at": f"{trouble.example_host} {trouble.example_certificate}".strip(),
        "Hosts": ", ".join(trouble.hosts) + (f" and {more} more" if more > 0 else ""),
        "Since": moment_text(trouble.since) if trouble.since else "",
        "Next try": moment_text(trouble.next_attempt) if trouble.next_attempt else "",
        "Soonest end": moment_text(trouble.soonest_end) if trouble.soonest_end else "",
        "Who can act": _ACTORS[trouble.actor] if trouble.actor else "",
        "What to do": trouble.remedy,
    }
    return [headline(trouble), *(f"  {name}{': ' if name else ''}{fact}" for name, fact in facts.items() if fact)]


def _fleet_lines(fleet: FleetState) -> list[str]:
    counts = ", ".join(f"{each.count} {each.word}" for each in fleet.counts)
    return [
        f"The fleet now: {counted(fleet.host_count, 'host')}, {fleet.connected_count} connected",
        f"Certificates: {counts or 'none'}; {fleet.ending_count} end within 7 days",
    ]


def _trouble(trouble: Trouble) -> dict[str, Any]:
    members = {
        "health": "" if trouble.is_of_broker else f"HEALTH_{trouble.word}",
        "cause": trouble.cause,
        "reason": trouble.text,
        "remedy": trouble.remedy,
        "actor": f"HEALTH_ACTOR_{trouble.actor.upper()}" if trouble.actor else "",
        "certificateCount": trouble.certificate_count,
        "hostCount": trouble.host_count,
        "hosts": list(trouble.hosts),
        "sinceTime": _time(trouble.since),
        "nextAttemptTime": _time(trouble.next_attempt),
        "soonestNotAfterTime": _time(trouble.soonest_end),
    }
    return {name: value for name, value in members.items() if value not in ("", [], None)}


def _health_count(count: HealthCount) -> dict[str, Any]:
    return {"health": f"HEALTH_{count.word}", "count": count.count}


def _time(time: datetime | None) -> str | None:
    return None if time is None else f"{time:%Y-%m-%dT%H:%M:%SZ}"
