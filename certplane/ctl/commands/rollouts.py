"""`certplanectl rollout ...`: planning, starting, showing, following and steering rollouts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from certplane.ctl.calls import PAGE, request_id
from certplane.ctl.client import Client
from certplane.ctl.commands.watch import show_full_screen, wants_full_screen
from certplane.ctl.filters import words_of
from certplane.ctl.formats import Format
from certplane.ctl.output import Output
from certplane.ctl.rollout_spec import spec_of
from certplane.ctl.session import Session
from certplane.ctl.show import rollout_words as words
from certplane.ctl.show import rollouts as shown
from certplane.ctl.watch.page import Page, PageKind
from certplane.ctl.watch.rollout_lines import follow
from certplane.errors import OperationError
from certplane.runtime.command import FAILED, OK
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import rollout_pb2

_STATES: Final = {word.replace(" ", "_"): number for number, word in words.STATES.items()}
_ITEM_STATES: Final = {word: number for number, word in words.ITEM_STATES.items()}


async def plan(options: argparse.Namespace, session: Session) -> int:
    """What a rollout would be."""
    spec = spec_of(options, "rollout plan", session.now())
    async with session.client() as client:
        found = await client.plan_rollout(spec)
    if not session.out.for_people:
        session.out.message(found)
    elif found.rings or not found.refusal:  # what is refused for its rings has none
        _show_plan(session, session.out, spec, found)
    return _refused(session, found)


async def start(options: argparse.Namespace, session: Session) -> int:
    """Begin one, once a person has seen its plan; with --wait, see it end."""
    spec = spec_of(options, "rollout start", session.now())
    out, name = session.out, request_id()
    async with session.client() as client:
        found = await client.plan_rollout(spec)
        if options.yes:
            for line, style in shown.plan_lines(found, session.now()):
                if style is not Style.PLAIN:
                    session.say(line)
        elif not found.refusal:
            # A program reads standard output: the person at the terminal sees the plan all the same.
            _show_plan(session, out if out.for_people else Output(sys.stderr, Format.TABLE), spec, found)
        if _refused(session, found) == FAILED:
            return FAILED
        question = shown.plan_line(found, spec)
        if not options.yes and not await session.agreed(question, "use `rollout plan` to only show it"):
            session.say("nothing was begun")
            return FAILED
        try:
            rollout = await client.create_rollout(name, spec)
        except OperationError:  # no broker's word: one may have begun it, and only its answer was lost
            session.say(f"it may have begun: look at `{session.command('rollout list')}` before it is started again")
            raise
    if options.wait:
        if out.for_people:
            _next_steps(session, rollout)
        return await follow(session, rollout.rollout_id, options.timeout)
    _show_change(session, rollout)
    return OK


async def list_rollouts(options: argparse.Namespace, session: Session) -> int:
    """Those that run first."""
    states = words_of("state", options.state, _STATES)
    request = rollout_pb2.ListRolloutsRequest(states=states, page_size=min(PAGE, options.limit))
    found: list[rollout_pb2.Rollout] = []
    more = False
    async with session.client() as client:
        async for page in client.rollouts(request):
            left = options.limit - len(found)
            found += page.rollouts[:left]
            more = bool(page.next_page_token) or len(page.rollouts) > left
            if len(found) >= options.limit:
                break
    out = session.out
    if not out.for_people:
        for each in found:
            out.message(each, each.rollout_id)
    elif found:
        out.table(shown.columns(session.now()), found)
    else:
        out.lines(["no rollout matches" if states else "there is no rollout"])
    if more:
        session.say("there are more rollouts, shown with a larger --limit")
    return OK


async def show(options: argparse.Namespace, session: Session) -> int:
    """How far one is, or its certificates."""
    out = session.out
    if options.certificates or options.state or options.ring:
        return await _items(options, session)
    async with session.client() as client:
        rollout = await client.rollout(options.id)
    if not out.for_people:
        out.message(rollout, rollout.rollout_id)
        return FAILED if words.went_wrong(rollout) else OK
    now = session.now()
    styles = {"state": words.state_style(rollout)}
    if shown.late_by(rollout):
        styles["deadline"] = Style.BAD
    out.facts(shown.facts(rollout, now), styles)
    if rollout.failed:
        out.lines([""])
        out.table(shown.item_columns(now), rollout.failed)
    if rollout.rings:
        out.lines([""])
        out.table(shown.ring_columns(now), rollout.rings)
        out.line(words.LEGEND, Style.DIM, folded=True)
    _next_steps(session, rollout)
    return FAILED if words.went_wrong(rollout) else OK


async def watch(options: argparse.Namespace, session: Session) -> int:
    """Until it has ended; on a terminal until somebody leaves."""
    async with session.client() as client:
        rollout = await client.rollout(options.id)  # one that isn't there is an error, and no empty screen
    if wants_full_screen(options, session):
        return await show_full_screen(session, (), Page(PageKind.ROLLOUT, rollout=rollout.rollout_id))
    json = options.json or not sys.stdout.isatty()
    return await follow(session, rollout.rollout_id, options.timeout, json=json)


async def pause(options: argparse.Namespace, session: Session) -> int:
    """At once: nobody is asked who wants to stop something."""
    return await _change(session, lambda client: client.pause_rollout(options.id, options.reason))


async def resume(options: argparse.Namespace, session: Session) -> int:
    """Go on."""
    call = partial(Client.resume_rollout, rollout_id=options.id, reason=options.reason)
    status = await _change(session, call, quiet=options.wait)
    return await follow(session, options.id, options.timeout) if options.wait else status


async def abort(options: argparse.Namespace, session: Session) -> int:
    """End it where it is."""

    def question(rollout: rollout_pb2.Rollout) -> str:
        return f"{_told(rollout)}: each host stays with what works there, and nothing is revoked any more"

    return await _change(session, lambda client: client.abort_rollout(options.id, options.reason), options, question)


async def approve(options: argparse.Namespace, session: Session) -> int:
    """Let one begin, having seen what it is."""

    def question(rollout: rollout_pb2.Rollout) -> str:
        spec = rollout.spec
        what = f"{words.rings_text(spec.rings)}: {words.action_text(spec)}"
        return f"{_told(rollout)} by {rollout.created_by}, {what} ({spec.reason})"

    return await _change(session, lambda client: client.approve_rollout(options.id, options.reason), options, question)


async def finish(options: argparse.Namespace, session: Session) -> int:
    """End one without those that don't come."""

    def question(rollout: rollout_pb2.Rollout) -> str:
        left = counted(rollout.unrevoked_count, "certificate")
        said = f"{left} revoked though hosts may serve them" if options.revoke_remaining else f"{left} left unrevoked"
        return f"{_told(rollout)}: ended{f', {said}' if rollout.unrevoked_count else ''}"

    async def call(client: Client) -> rollout_pb2.Rollout:
        return await client.finish_rollout(options.id, options.reason, revoke_remaining=options.revoke_remaining)

    return await _change(session, call, options, question)


async def _change(
    session: Session,
    call: Callable[[Client], Awaitable[rollout_pb2.Rollout]],
    options: argparse.Namespace | None = None,
    question: Callable[[rollout_pb2.Rollout], str] | None = None,
    *,
    quiet: bool = False,
) -> int:
    """Do one thing to a rollout, where `question` is set after a yes."""
    async with session.client() as client:
        if options is not None and question is not None and not options.yes:
            asked = question(await client.rollout(options.id))
            if not await session.agreed(asked):
                session.say("nothing was changed")
                return FAILED
        rollout = await call(client)
    if not quiet:
        _show_change(session, rollout)
    return OK


async def _items(options: argparse.Namespace, session: Session) -> int:
    out = session.out
    request = rollout_pb2.ListRolloutItemsRequest(
        rollout_id=options.id, states=words_of("state", options.state, _ITEM_STATES), ring=options.ring
    )
    rows: list[rollout_pb2.RolloutItem] = []
    bad = False
    async with session.client() as client:
        async for page in client.rollout_items(request):
            bad = bad or any(each.state in words.BAD_ITEMS for each in page.items)
            if out.for_people:
                rows += page.items
                continue
            for each in page.items:
                out.message(each, each.certificate_id)
    if out.for_people:
        if rows:
            out.table(shown.item_columns(session.now()), rows)
        out.lines([counted(len(rows), "certificate") if rows else "no certificate matches"])
    return FAILED if bad else OK


def _show_plan(
    session: Session, out: Output, spec: rollout_pb2.RolloutSpec, found: rollout_pb2.PlanRolloutResponse
) -> None:
    out.line(shown.plan_line(found, spec), Style.STRONG, folded=True)
    if found.rings:
        out.table(shown.plan_columns(), found.rings)
    for line, style in shown.plan_lines(found, session.now()):
        out.line(line, style, folded=True)


def _refused(session: Session, found: rollout_pb2.PlanRolloutResponse) -> int:
    if not found.refusal:
        return OK
    session.say(f"it would be refused: {found.refusal}{f'; {found.remedy}' if found.remedy else ''}")
    return FAILED


def _show_change(session: Session, rollout: rollout_pb2.Rollout) -> None:
    out = session.out
    if not out.for_people:
        out.message(rollout, rollout.rollout_id)
        return
    out.line(f"{_told(rollout)}: {words.state_text(rollout)}", words.state_style(rollout), folded=True)
    _next_steps(session, rollout)


def _next_steps(session: Session, rollout: rollout_pb2.Rollout) -> None:
    for line in shown.remedies(rollout, session.command("rollout")):
        session.out.line(line, folded=True)
    if rollout.state not in words.ENDED:
        session.out.line(f"how far it is: {session.command(f'rollout watch {rollout.rollout_id}')}", folded=True)


def _told(rollout: rollout_pb2.Rollout) -> str:
    """Which one, and of how many."""
    return f"rollout {rollout.rollout_id} of {counted(rollout.host_count, 'host')}"
