"""The pages of rollouts and incidents: hosts that failed on top, rings as bars, the forecast, the CAs' limits."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from certplane.ctl.show import incidents
from certplane.ctl.show import rollout_words as words
from certplane.ctl.show.rollouts import baking, end_off, facts, late_by, remedies
from certplane.ctl.show.words import off
from certplane.ctl.watch.detail import messages_of, preface
from certplane.ctl.watch.known import Answer, Known
from certplane.ctl.watch.page import Line, Page, PageKind, Question, Topic, cut, line, padded, wrapped
from certplane.ctl.watch.page import facts as fact_lines
from certplane.ctl.watch.table import until
from certplane.rpc.times import span_of, time_of
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style, text_width
from certplane.runtime.text import counted, printable
from certplane.v1 import budget_pb2, incident_pb2, rollout_pb2

_NAME: Final = 14
_STATE: Final = 9
_BAR: Final = 30
_LEAST_BAR: Final = 10
_LONGEST_BAR: Final = 60
_ABOVE: Final = ("rollout", "state", "progress", "deadline")
"""Facts that stand in the lines above the others, or in the bars."""
_SAID: Final = ("incident", "state", "progress")


def page_lines(known: Known, page: Page, now: datetime, width: int) -> list[Line]:
    """One of these pages."""
    match page.kind:
        case PageKind.ROLLOUT:
            return rollout_page(known, page, now, width)
        case PageKind.INCIDENTS:
            return incidents_page(known, now, width)
        case _:
            return rollouts_page(known, now, width)


def rollouts_page(known: Known, now: datetime, width: int) -> list[Line]:
    """All rollouts, those that run first; Enter opens one."""
    answer = known.answers.get(Question(Topic.ROLLOUTS))
    lines = preface(answer, width)
    for rollout in messages_of(answer, rollout_pb2.Rollout):
        name, state = printable(rollout.rollout_id, 64), words.STATES.get(rollout.state, f"state {rollout.state}")
        ends = end_off(rollout, now)
        said = ", ".join(filter(None, (words.counts_text(rollout.item_counts), f"ends {ends}" if ends else "")))
        spans = (
            (f"  {name}  ", Style.STRONG),
            (f"{state}  ", words.state_style(rollout)),
            (f"{said}  {printable(rollout.spec.reason, 500)}", Style.PLAIN),
        )
        lines.append(Line(spans, Page(PageKind.ROLLOUT, rollout=name), f"rollout {name}"))
    return lines


def rollout_page(known: Known, page: Page, now: datetime, width: int) -> list[Line]:
    """One rollout; Enter on a host that failed opens it."""
    answer = known.answers.get(Question(Topic.ROLLOUT, rollout=page.rollout))
    lines = preface(answer, width)
    for rollout in messages_of(answer, rollout_pb2.Rollout):
        lines += [line(text, words.state_style(rollout)) for text in wrapped(words.state_text(rollout), width)]
        lines += [
            line(f"  {text}", Style.DIM)
            for each in remedies(rollout, "certplanectl rollout")
            for text in wrapped(each, max(width - 2, 1))
        ]
        if late := late_by(rollout):
            said = f"LATE by {late}: the deadline is {off(rollout.spec.deadline, now)}"
            lines += [line(text, Style.BAD) for text in wrapped(said, width)]
        lines += _failed(rollout)
        lines += [line(""), line("Rings", Style.STRONG)]
        lines += _rings(rollout.rings, now, width)
        lines += [line(text, Style.DIM) for text in wrapped(f"  {words.LEGEND}", width)]
        lines += [line(""), *fact_lines([each for each in facts(rollout, now) if each[0] not in _ABOVE], width)]
    return lines + budget_lines(known.answers.get(Question(Topic.BUDGET)), now, width)


def incidents_page(known: Known, now: datetime, width: int) -> list[Line]:
    """All incidents, open ones first, each in full; Enter opens the rollout that answers one."""
    answer = known.answers.get(Question(Topic.INCIDENTS))
    lines = preface(answer, width)
    for number, each in enumerate(messages_of(answer, incident_pb2.Incident)):
        name, rollout = printable(each.incident_id, 64), printable(each.rollout_id, 64)
        opens = Page(PageKind.ROLLOUT, rollout=rollout) if rollout else None
        said = f"{name} {incidents.state_of(each)}: {incidents.progress_text(each)}"
        lines += [line("")] if number else []
        lines.append(line(cut(said, width), incidents.style_of(each), opens=opens, key=f"incident {name}"))
        lines += fact_lines([fact for fact in incidents.facts(each, now) if fact[0] not in _SAID], width)
    return lines


def budget_lines(answer: Answer | None, now: datetime, width: int) -> list[Line]:
    """What the limits leave: of each, its fullest bucket; nothing where nothing is known or taken."""
    lines: list[Line] = []
    for issuer in (each for found in messages_of(answer, budget_pb2.GetBudgetResponse) for each in found.issuers):
        lines += [line(text, style) for said, style in _budget(issuer, now) for text in wrapped(f"  {said}", width)]
    if answer is not None and answer.error and not lines:
        lines = [line(f"  {text}", Style.DIM) for text in wrapped(answer.error, max(width - 2, 1))]
    return [line(""), line("Limits of the CAs", Style.STRONG), *lines] if lines else []


def _budget(issuer: budget_pb2.IssuerBudget, now: datetime) -> Iterable[tuple[str, Style]]:
    name = printable(issuer.issuer, 255)
    if issuer.HasField("hold_until_time"):
        held = until(time_of(issuer.hold_until_time), now)
        yield f"{name}: held by its CA for {held}: {printable(issuer.hold_reason, 500)}", Style.BAD
    if issuer.waiting_order_count:
        waits = issuer.HasField("waiting_until_time")
        last = f", the last {off(issuer.waiting_until_time, now)}" if waits else ""
        yield f"{name}: {counted(issuer.waiting_order_count, 'order')} waiting{last}", Style.WARNING
    for limit in issuer.budgets:
        for bucket in limit.buckets[:1]:
            of = f" of {printable(bucket.subject, 255)}" if bucket.subject else ""
            after = until(time_of(bucket.next_place_time), now) if bucket.HasField("next_place_time") else ""
            span = span_of(limit.per)
            per = f" per {span_text(span)}" if span else ""
            said = f"{name} {printable(limit.name, 255)}{of}: {bucket.left} of {limit.amount}{per} left"
            yield f"{said}{f', the next in {after}' if after else ''}", Style.PLAIN if bucket.left else Style.WARNING


def _failed(rollout: rollout_pb2.Rollout) -> list[Line]:
    if not rollout.failed:
        return []
    there = sum(each.certificate_count for each in rollout.item_counts if each.state in words.BAD_ITEMS)
    lines = [line(""), line(f"Failed: {max(there, len(rollout.failed))}", Style.BAD)]
    for each in rollout.failed:
        host, name = printable(each.host, 255), printable(each.certificate_name or each.certificate_id, 255)
        spans = (
            (f"  {words.item_word(each.state):<7} ", words.item_style(each.state)),
            (f"{host} {name}", Style.STRONG),
            (f"  {printable(each.reason, 2000)}", Style.PLAIN),
        )
        lines.append(Line(spans, Page(PageKind.HOST, each.host), f"failed {host} {each.certificate_id}"))
    return lines


def _rings(rings: Sequence[rollout_pb2.Rollout.Ring], now: datetime, width: int) -> list[Line]:
    """A line each, with bars of one length; where there is no room, bar and numbers below the name."""
    lines: list[Line] = []
    said = [", ".join(filter(None, (words.counts_text(ring.item_counts), baking(ring, now)))) for ring in rings]
    room = min(_BAR, width - _NAME - _STATE - 5 - max(map(text_width, said), default=0))
    for ring, counts in zip(rings, said, strict=True):
        name, state, style = printable(ring.name, 64), words.ring_word(ring), words.ring_style(ring)
        if room >= _LEAST_BAR:
            head = ((f"  {padded(name, _NAME)} ", Style.PLAIN), (f"{padded(state, _STATE)} ", style))
            spans = (*head, *words.bar(ring.item_counts, room), (f" {counts}", Style.PLAIN))
            lines.append(Line(spans, key=f"ring {name}"))
            continue
        title = f"{cut(name, width - text_width(state) - 1)} "
        lines.append(Line(((title, Style.PLAIN), (state, style)), key=f"ring {name}"))
        lines.append(Line(tuple(words.bar(ring.item_counts, min(width, _LONGEST_BAR)))))
        lines += [line(text, Style.DIM) for text in wrapped(counts, width)]
    return lines
