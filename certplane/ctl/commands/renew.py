"""`certplanectl renew` and `renewal`: asking for renewals, and seeing them done."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta
from typing import Final

from certplane.config.durations import DurationError, parse_span
from certplane.ctl.calls import request_id
from certplane.ctl.client import Client
from certplane.ctl.filters import newer_part, selection
from certplane.ctl.session import Session, misuse
from certplane.ctl.show import renewals
from certplane.ctl.show.words import time_or_first
from certplane.errors import OF_ONE_BROKER, OperationError, RefusalError
from certplane.runtime.command import FAILED, OK
from certplane.runtime.terminal import Style
from certplane.v1 import fleet_pb2

_POLL: Final = timedelta(seconds=1)
_SLOW_POLL: Final = timedelta(seconds=15)
"""Between two looks at a renewal whose next step is far off."""


async def renew(options: argparse.Namespace, session: Session) -> int:
    """Have certificates or identities renewed; with --wait, see it done."""
    chosen = _selection(options, session.now())
    try:
        spread = parse_span(options.spread)
    except DurationError as error:
        raise misuse(f"--spread {options.spread}: is not a span of time", "write it like 30m, 24h or 1h30m") from error
    request = fleet_pb2.RequestRenewalRequest(request_id=request_id(), selection=chosen, reason=options.reason)
    request.spread_duration.FromTimedelta(spread)
    said = _Said(session, identities=options.identity)
    async with session.client() as client:
        await _require_understood(client, request)
        if not options.dry_run and not options.yes:
            foreseen = await _ask(client, request, dry_run=True)
            question = said.line(foreseen, dry_run=True)
            if foreseen.changed_count and not await session.agreed(
                question, "--dry-run to only show what would be renewed"
            ):
                session.say("nothing was renewed")
                return FAILED
        answer = await _ask(client, request, dry_run=options.dry_run)
        said.answer(answer, dry_run=options.dry_run)
        if not answer.certificate_count:
            line = said.line(answer, dry_run=True)
            session.say(f"{line}; compare the selection with `{session.command('fleet')}`")
            return FAILED
        if options.wait and not options.dry_run and answer.changed_count:
            return await _wait(session, client, answer.renewal_request_id, options.timeout)
    return OK


async def renewal(options: argparse.Namespace, session: Session) -> int:
    """How far a renewal is."""
    async with session.client() as client:
        if options.wait:
            return await _wait(session, client, options.id, options.timeout)
        answer = await client.renewal_request(options.id)
    out = session.out
    if out.for_people:
        out.facts(renewals.facts(answer, options.id))
        if answer.items:
            out.lines([""])
            out.table(renewals.item_columns(session.now()), answer.items)
    else:
        out.message(answer)
    return FAILED if renewals.failed(answer) else OK


class _Said:
    """What is said of a request's answer."""

    def __init__(self, session: Session, *, identities: bool) -> None:
        self._session = session
        self._identities = identities

    def line(self, answer: fleet_pb2.RequestRenewalResponse, *, dry_run: bool) -> str:
        return renewals.renewal_line(answer, dry_run=dry_run, identities=self._identities)

    def answer(self, answer: fleet_pb2.RequestRenewalResponse, *, dry_run: bool) -> None:
        out = self._session.out
        if not out.for_people:
            out.message(answer)
        elif answer.certificate_count:
            for line in (self.line(answer, dry_run=dry_run), *renewals.held_up_lines(answer, dry_run=dry_run)):
                out.line(line, folded=True)
            if not dry_run and answer.changed_count and answer.renewal_request_id:
                again = self._session.command(f"renewal {answer.renewal_request_id}")
                out.lines([f"how far it is: {again}"])


async def _require_understood(client: Client, request: fleet_pb2.RequestRenewalRequest) -> None:
    """An older broker passes over some fields of a selection, and would renew more than was meant.

    Of these alone it picks nothing; so the others aren't asked for where nothing is picked by these.

    Raises:
        OperationError: nothing was.
    """
    part = newer_part(request.selection)
    if part.ByteSize() and part != request.selection:
        probe = fleet_pb2.RequestRenewalRequest(request_id=request_id(), selection=part, reason=request.reason)
        if not (await _ask(client, probe, dry_run=True)).certificate_count:
            fields = ", ".join(field.name for field, _ in part.ListFields())
            raise OperationError(
                f"no certificate in force matches {fields} of the selection",
                remedy="compare it with `certplanectl certs`; an older broker knows none of these",
            )


async def _ask(
    client: Client, request: fleet_pb2.RequestRenewalRequest, *, dry_run: bool
) -> fleet_pb2.RequestRenewalResponse:
    request.dry_run = dry_run
    return await client.request_renewal(request)


async def _wait(session: Session, client: Client, renewal_request_id: str, timeout: timedelta | None) -> int:
    """Until all certificates have ended, or the time is up; programs get the last message.

    A broker that is away for a while is waited for: the renewal goes on without it.
    """
    out, shown = session.out, _Shown(session)
    end = None if timeout is None else session.now() + timeout
    answer: fleet_pb2.GetRenewalRequestResponse | None = None
    while True:
        try:
            answer = await client.renewal_request(renewal_request_id)
        except (OperationError, RefusalError) as error:
            if answer is None or (isinstance(error, RefusalError) and error.refusal.reason not in OF_ONE_BROKER):
                raise
            session.say(f"{error}; asking again")
        else:
            shown.show(answer)
        if answer.done:
            break
        wait = _pause(answer, session.now())
        if end is not None and session.now() + wait > end:
            again = session.command(f"renewal {renewal_request_id}")
            session.say(f"the time is up: {shown.line}; see `{again}`")
            return FAILED
        await session.clock.sleep(wait)
    if not out.for_people:
        out.message(answer)
    return FAILED if renewals.failed(answer) else OK


class _Shown:
    """What a person has seen of a renewal: each change is a line, and so is each other count."""

    def __init__(self, session: Session) -> None:
        self._out = session.out
        self._items: dict[tuple[str, str, str], tuple[int, str]] = {}
        self.line = ""

    def show(self, answer: fleet_pb2.GetRenewalRequestResponse) -> None:
        for item in answer.items:
            key, now = (item.host, item.certificate_name, item.certificate_id), (int(item.progress), item.reason)
            if self._items.get(key) != now and self._out.for_people:
                self._out.line(renewals.item_line(item), renewals.style_of(item), folded=True)
            self._items[key] = now
        line = renewals.progress_line(answer)
        if line != self.line and self._out.for_people:
            self._out.line(line, Style.STRONG)
        self.line = line


def _pause(answer: fleet_pb2.GetRenewalRequestResponse, now: datetime) -> timedelta:
    """Till the next look: short while something is under way."""
    waiting = (renewals.PLANNED, renewals.UNHEARD, *renewals.ENDED)
    return _SLOW_POLL if all(item.progress in waiting and _far(item, now) for item in answer.items) else _POLL


def _far(item: renewals.Item, now: datetime) -> bool:
    """Whether nothing can come of it soon."""
    if item.progress != renewals.PLANNED:
        return True
    return time_or_first(item.renew_time) > now + _SLOW_POLL


def _selection(options: argparse.Namespace, now: datetime) -> fleet_pb2.Selection:
    chosen = selection(options, "renew", now)
    if options.identity:
        if any(field.name not in ("all", "hosts") for field, _ in chosen.ListFields()):
            raise misuse("renew: --identity goes with --host or --all alone", "drop what picks certificates")
        chosen.identities = True
    return chosen
