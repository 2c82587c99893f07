"""The pages below the list of hosts: a cause, a host, a certificate with its orders and audit events, and the keys."""

from datetime import datetime
from typing import Final, TypeVar

from google.protobuf.message import Message

from certplane.ctl.show import audit, orders
from certplane.ctl.show.host import certificate_facts, host_facts, renewal_facts
from certplane.ctl.show.words import by_health, health_word
from certplane.ctl.watch.fleet import CertificateRow, certificate_row
from certplane.ctl.watch.known import Answer, Known
from certplane.ctl.watch.page import Line, Page, PageKind, Question, Topic, facts, line, wrapped
from certplane.ctl.watch.summary import Summary, cause_facts
from certplane.ctl.watch.table import ending, style_of, until
from certplane.rpc.times import time_of
from certplane.runtime.health import HealthWord
from certplane.runtime.terminal import Style, text_width
from certplane.runtime.text import printable
from certplane.v1 import audit_pb2, order_pb2, renewal_pb2

M = TypeVar("M", bound=Message)

KEYS: Final = (
    ("up, down, j, k", "to another line; PageUp, PageDown, Home, End too"),
    ("Enter", "open what the line is about"),
    ("Esc, Backspace", "back"),
    ("s", "summary: the five questions of an operator at night"),
    ("f", "the fleet: all hosts"),
    ("R", "rollouts: rings, failed hosts, forecast; i: incidents"),
    ("/", "filter: lines with all the words that are typed; Esc clears it"),
    ("o", "another order of the hosts; O: the other way round"),
    ("a", "audit events of the host or certificate; on the other pages of all"),
    ("r", "orders of the host or certificate; on the other pages all open ones"),
    ("p, Space", "pause: what is shown stands still; again to go on"),
    ("Ctrl-R", "ask the broker now; while it is away, try to reach it now"),
    ("?", "these keys"),
    ("q, Ctrl-C", "leave; the last state stays on the terminal"),
)

_NONE: Final = "none"
_WAITING: Final = "asking the broker ..."


def help_lines(width: int) -> list[Line]:
    """The keys."""
    return facts(KEYS, width)


def cause_lines(summary: Summary, page: Page, now: datetime, width: int) -> list[Line]:
    """What is known of a cause; the hosts that it affects stand below."""
    found = [
        each
        for each in summary.causes
        if (health_word(each.health), printable(each.cause, 500)) == (page.health, page.cause)
    ]
    pairs = cause_facts(found[0], now) if found else [("cause", f"{page.cause or 'none'}: no certificate has it now")]
    return facts([("health", page.health), *pairs], width)


def host_page(known: Known, page: Page, now: datetime, width: int) -> list[Line]:
    """A host: what is known of it, and its certificates, which Enter opens."""
    host, lines = _host(known, page, width)
    if host is None:
        return lines
    lines += facts(host_facts(host, now), width)
    rows = [certificate_row(each) for each in by_health(host.certificates)]
    lines += [line(""), line("Certificates", Style.STRONG)]
    for row in rows:
        lines.append(_certificate_line(host.name, row, now))
        if row.rank < HealthWord.OK.rank:
            lines += _below(row.reason or row.cause, width)
    lines += [line("  none") for _ in range(not rows)]
    for renewal in host.pending_renewals:
        lines += [line(""), *facts(renewal_facts(renewal, now), width)]
    return lines


def certificate_page(known: Known, page: Page, now: datetime, width: int) -> list[Line]:
    """A certificate: what is known of it, its orders, its audit events."""
    status, lines = _certificate(known, page, width)
    if status is not None:
        lines += facts(certificate_facts(status, now), width)
    for title, topic, made in (("Orders", Topic.ORDERS, order_lines), ("Audit events", Topic.EVENTS, event_lines)):
        lines += [line(""), line(title, Style.STRONG)]
        lines += made(known.answers.get(Question(topic, page.host, page.profile)), now, width)
    return lines


def order_lines(answer: Answer | None, now: datetime, width: int, *, of_all: bool = False) -> list[Line]:
    """Orders, with what each waits for below; `of_all` says whose each is, too."""
    lines = preface(answer, width)
    for order in messages_of(answer, order_pb2.OrderStatus):
        names = printable(" ".join(order.order.dns_names), 255)
        whose = f"{printable(order.identity, 255)} " if of_all else ""
        text = f"  {_short(time_of(order.order.create_time), now)} {orders.state_of(order):<10} {whose}{names}"
        lines.append(line(text, orders.style_of(order), key=order.order.order_id))
        attempt = time_of(order.next_attempt_time) if order.HasField("next_attempt_time") else None
        said = [order.step, orders.why(order), f"next try {until(attempt, now)}" if attempt else "", order.budget]
        lines += _below("; ".join(filter(None, said)), width)
    return lines


def event_lines(answer: Answer | None, now: datetime, width: int, *, of_all: bool = False) -> list[Line]:
    """Audit events, the newest first; `of_all` says whose each is, too."""
    lines = preface(answer, width)
    for event in messages_of(answer, audit_pb2.AuditEvent):
        head = f"  {_short(time_of(event.event_time), now)} {printable(event.event_type, 64)}"
        whose = event.record.fields["identity"].string_value if of_all else ""
        said = printable("; ".join(filter(None, (whose, audit.why(event), audit.names_of(event)))), 4000)
        fits = text_width(head) + 2 + text_width(said) <= width
        lines.append(line(f"{head}  {said}" if said and fits else head, audit.style_of(event), key=event.event_id))
        lines += [] if fits else _below(said, width)
    return lines


def _below(text: str, width: int) -> list[Line]:
    """A text under what it is about."""
    return [line(f"    {each}", Style.DIM) for each in wrapped(text, width - 4) if each]


def preface(answer: Answer | None, width: int) -> list[Line]:
    """What stands before the messages of an answer: why there are none, or only old ones."""
    if answer is None:
        return [line(f"  {_WAITING}", Style.DIM)]
    lines = [line(f"  {text}", Style.WARNING) for text in wrapped(answer.error, width - 2) if text]
    return lines or ([] if answer.messages else [line(f"  {_NONE}", Style.DIM)])


def messages_of(answer: Answer | None, kind: type[M]) -> list[M]:
    """Those of an answer; none where there is none yet."""
    return [each for each in (answer.messages if answer else ()) if isinstance(each, kind)]


def _host(known: Known, page: Page, width: int) -> tuple[renewal_pb2.Host | None, list[Line]]:
    answer = known.answers.get(Question(Topic.HOST, page.host))
    hosts = messages_of(answer, renewal_pb2.Host)
    return (hosts[0] if hosts else None), preface(answer, width)


def _certificate(known: Known, page: Page, width: int) -> tuple[renewal_pb2.CertificateStatus | None, list[Line]]:
    """The certificate as the host's answer has it; of a service, which is no host, as the summary does."""
    host, lines = _host(known, page, width)
    for status in host.certificates if host is not None else ():
        if printable(status.name, 255) == page.certificate:
            return status, lines
    for held in (*known.summary.hurt, *known.summary.next) if known.summary is not None else ():
        if (held.host, printable(held.certificate.name, 255)) == (page.host, page.certificate):
            return held.certificate, []
    if host is not None:
        lines.append(line(f"  {page.host} no longer has it", Style.WARNING))
    return None, lines


def _certificate_line(host: str, row: CertificateRow, now: datetime) -> Line:
    ends = f", {ending(row.not_after, now)}" if row.not_after else ""
    tried = f", next try {until(row.next_attempt, now)}" if row.next_attempt else ""
    spans = (
        (f"  {row.health or '-':<14} ", style_of(row.rank)),
        (f"{row.name} ", Style.STRONG),
        (f"{row.state}{ends}{tried}", Style.PLAIN),
    )
    return Line(spans, Page(PageKind.CERTIFICATE, host, row.name, row.profile), f"certificate {row.name}")


def _short(moment: datetime | None, now: datetime) -> str:
    if moment is None:
        return "-"
    return f"{moment:%H:%M:%S}Z" if moment.date() == now.date() else f"{moment:%m-%d %H:%M}Z"
