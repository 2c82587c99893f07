"""`certplanectl policy`: the policy of the broker that is asked, and those of the fleet before it."""

from __future__ import annotations

import argparse

from certplane.config.document import MAX_BYTES
from certplane.config.files import is_input, read_argument
from certplane.ctl.session import Session, misuse
from certplane.ctl.show.policy import (
    VERSIONS,
    change_columns,
    count_columns,
    loaded_facts,
    mismatch_columns,
    problem_line,
    summary_lines,
)
from certplane.runtime.command import FAILED, OK, say
from certplane.runtime.logging import escape
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted

_SHA256 = 64


async def show(options: argparse.Namespace, session: Session) -> int:
    """What is in force, or an earlier one."""
    async with session.client() as client:
        wanted = options.hash.lower()
        if wanted and len(wanted) < _SHA256:
            found = sorted({v.policy_hash for v in await client.policy_versions() if v.policy_hash.startswith(wanted)})
            if len(found) != 1:
                raise misuse(
                    f"{options.hash}: {'no policy has' if not found else 'several policies have'} such a hash",
                    f"see `{session.command('policy history -o wide')}`",
                )
            (wanted,) = found
        loaded, text = await client.policy(with_text=options.text, policy_hash=wanted)
    out = session.out
    if options.text:
        out.raw(text)
    elif out.for_people:
        out.facts(loaded_facts(loaded))
    else:
        out.message(loaded)
    return OK


async def plan(options: argparse.Namespace, session: Session) -> int:
    """What another policy would change."""
    content = read_argument(options.file, max_bytes=MAX_BYTES)
    async with session.client() as client:
        found = await client.plan_policy(content)
    out = session.out
    if found.problems:
        if not out.for_people:
            for problem in found.problems:
                out.message(problem)
        file = "standard input" if is_input(options.file) else str(options.file)
        for problem in found.problems:
            say(problem_line(problem, file))
        return FAILED
    if not out.for_people:
        for message in (found.summary, *found.changes, *found.mismatches):
            out.message(message)
        return OK
    if found.changes:
        out.table(change_columns(), found.changes)
        out.lines([""])
    if found.mismatches:
        out.lines(["hosts that ask for what would be refused, as they last reported it:"])
        out.table(mismatch_columns(), found.mismatches)
        out.lines([""])
    out.table(count_columns(), found.summary.counts)
    out.lines([""])
    for line in summary_lines(found):
        out.line(line, folded=True)
    return OK


async def reload(options: argparse.Namespace, session: Session) -> int:
    """Have the broker read its file again."""
    async with session.client() as client:
        answer = await client.reload_policy(confirm=options.confirm)
    out = session.out
    if not out.for_people:
        out.message(answer)
    elif answer.loaded:
        for line in answer.lines:
            out.line(line, folded=True)
        out.lines([""])
        out.facts(loaded_facts(answer.policy))
    if answer.loaded:
        return OK
    for line in answer.lines:
        session.say(escape(line))
    if answer.confirmation_required:
        session.say(f"if this is intended: {session.command('policy reload --confirm')}")
        if len(session.context.settings.broker.all_urls) > 1:
            name, seen = answer.policy.broker_name or answer.policy.broker_id, session.command("brokers")
            session.say(f"{name} has refused it, and another broker may take it: `{seen}` shows whose policy differs")
    return FAILED


async def history(_: argparse.Namespace, session: Session) -> int:
    """The policies that were in force."""
    async with session.client() as client:
        versions = await client.policy_versions()
    out = session.out
    if not out.for_people:
        for version in versions:
            out.message(version, version.policy_hash)
        return OK
    if versions:
        out.table(VERSIONS, versions)
    out.line(counted(len(versions), "policy", "policies"), Style.DIM)
    return OK
