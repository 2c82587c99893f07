"""`certplanectl brokers` and `broker`: who serves, and what differs; reload and drain."""

from __future__ import annotations

import argparse

from certplane.ctl.client import Client
from certplane.ctl.session import Session, misuse
from certplane.ctl.show.brokers import broker_columns, difference_lines, reload_lines
from certplane.errors import OperationError
from certplane.runtime.command import FAILED, OK
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import fleet_pb2


async def brokers(_: argparse.Namespace, session: Session) -> int:
    """All brokers, and in what they differ."""
    async with session.client() as client:
        answer = await client.brokers()
    out = session.out
    if out.for_people:
        out.table(broker_columns(session.now()), answer.brokers)
        if answer.differences:
            out.lines([""])
            for line in difference_lines(answer.differences):
                out.line(line, Style.WARNING, folded=True)
    else:
        for broker in answer.brokers:
            out.message(broker, broker.broker_id)
        for difference in answer.differences if out.format is not out.format.NAME else ():
            out.message(difference)
    return FAILED if answer.differences else OK


async def reload(options: argparse.Namespace, session: Session) -> int:
    """Have brokers read their files again; what each said."""
    if options.all and options.broker:
        raise misuse("broker reload: names and --all exclude each other", "drop one of them")
    async with session.client() as client:
        ids = [(await _broker(client, name)).broker_id for name in options.broker]
        answer = await client.reload_brokers(ids, everywhere=options.all, confirm=options.confirm)
    out = session.out
    for each in answer.reloads:
        if not out.for_people:
            out.message(each)
            continue
        for line in reload_lines(each, answer.reloads):
            out.line(line, Style.PLAIN if each.done else Style.BAD, folded=True)
    if any(each.confirmation_required for each in answer.reloads):
        # By their ids: without a name any broker would answer, and be confirmed what another refused.
        refused = [each.broker_id for each in answer.reloads if each.confirmation_required]
        which = "--all" if options.all else " ".join(refused)
        session.say(f"if this is intended: {session.command(f'broker reload {which} --confirm')}")
    return OK if answer.reloads and all(each.done for each in answer.reloads) else FAILED


async def drain(options: argparse.Namespace, session: Session) -> int:
    """Take a broker out of service, or back into it."""
    async with session.client() as client:
        broker = await _broker(client, options.broker)
        if not options.undo and not options.yes:
            streams = counted(broker.stream_count, "host")
            question = (
                f"{broker.name} ({broker.address}) sends {streams} to other brokers and opens no order of its own"
            )
            if not await session.agreed(question):
                session.say("nothing was drained")
                return FAILED
        answer = await client.drain_broker(broker.broker_id, options.reason, undo=options.undo)
    out = session.out
    if out.for_people:
        left = f"{counted(answer.stream_count, 'stream')} and {counted(answer.order_count, 'order')} left"
        out.lines([f"{broker.name}: {'drains' if answer.draining else 'serves'}, {left}"])
    else:
        out.message(answer)
    return OK


async def _broker(client: Client, name: str) -> fleet_pb2.Broker:
    """The broker of this id, name, or name and address.

    Raises:
        OperationError: there is none, or there are several of that name.
    """
    answer = await client.brokers()
    found = [each for each in answer.brokers if name in (each.broker_id, each.name, f"{each.name} {each.address}")]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{each.name} {each.address} ({each.broker_id})" for each in found or answer.brokers)
    what = "several brokers have the name" if found else "there is no broker"
    raise OperationError(f"{what} {name}", remedy=f"use the id of one of: {known}")
