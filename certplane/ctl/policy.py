"""`certplanectl policy`: the policy of the broker that is asked, for people or as the broker's messages."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from certplane.runtime.command import FAILED, OK, say, wants_json
from certplane.runtime.logging import escape

if TYPE_CHECKING:  # `--help` needs no gRPC
    from certplane.ctl.client import FleetClient
    from certplane.v1 import policy_pb2

_OWN: Final = "each broker has its own policy; `certplanectl brokers` shows whether they differ"


def add_policy_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """The command `policy` and what follows it."""
    text = "show, plan and reload the policy of the broker that is asked"
    policy = commands.add_parser("policy", help=text, description=f"{text.capitalize()}; {_OWN}.")
    actions = policy.add_subparsers(dest="action", metavar="COMMAND", required=True)

    text = "what is in force: its hash, since when, and by whom"
    show = actions.add_parser("show", parents=parents, help=text, description=text)
    show.add_argument("--text", action="store_true", help="the policy's text, and nothing else")

    text = "what another policy would change for the fleet; changes nothing"
    plan = actions.add_parser(
        "plan",
        parents=parents,
        help=text,
        description=f"{text}. Compares a file with the policy in force, and with what hosts last asked for. The exit "
        "status is 1 where the file doesn't load.",
    )
    plan.add_argument("file", type=Path, metavar="FILE", help="the policy file, here; - is standard input")

    text = "make the broker read its policy file again, and show what it did"
    reload = actions.add_parser(
        "reload", parents=parents, help=text, description=f"{text}. The exit status is 1 where it was refused."
    )
    reload.add_argument("--confirm", action="store_true", help="take it even if it removes many hosts or grants")


async def policy(options: argparse.Namespace, client: FleetClient) -> int:
    """Run one of them."""
    actions = {"show": _show, "plan": _plan, "reload": _reload}
    return await actions[options.action](options, client)


async def _show(options: argparse.Namespace, client: FleetClient) -> int:
    from certplane.ctl.view import json_line  # noqa: PLC0415 - as `--help` needs it not

    loaded, text = await client.policy(with_text=options.text)
    if options.text:
        print(text, end="")
    elif wants_json(options):
        print(json_line(loaded))
    else:
        print("\n".join(_loaded_lines(loaded)))
    return OK


async def _plan(options: argparse.Namespace, client: FleetClient) -> int:
    from certplane.config.document import MAX_BYTES  # noqa: PLC0415 - as `--help` needs it not
    from certplane.config.files import is_input, read_argument  # noqa: PLC0415
    from certplane.ctl.view import json_line  # noqa: PLC0415

    content = read_argument(options.file, max_bytes=MAX_BYTES)
    plan = await client.plan_policy(content)
    if plan.problems:
        if wants_json(options):
            print("\n".join(map(json_line, plan.problems)))
        file = "standard input" if is_input(options.file) else str(options.file)
        for problem in plan.problems:
            say(problem_line(problem, file))
        return FAILED
    if wants_json(options):
        print("\n".join(map(json_line, (plan.summary, *plan.changes, *plan.mismatches))))
    else:
        print("\n".join(plan_lines(plan)))
    return OK


async def _reload(options: argparse.Namespace, client: FleetClient) -> int:
    from certplane.ctl.view import json_line  # noqa: PLC0415 - as `--help` needs it not

    answer = await client.reload_policy(confirm=options.confirm)
    if wants_json(options):
        print(json_line(answer))
    elif answer.loaded:
        print("\n".join((*map(escape, answer.lines), "", *_loaded_lines(answer.policy))))
    if answer.loaded:
        return OK
    for line in answer.lines:
        say(f"certplanectl: {line}")
    if answer.confirmation_required:
        say("certplanectl: if this is intended: certplanectl policy reload --confirm")
    return FAILED


def problem_line(problem: policy_pb2.PolicyProblem, file: str) -> str:
    """As a broker says it of its own file."""
    place = ":".join(filter(None, (file, str(problem.line or ""))))
    text = ": ".join(filter(None, (place, problem.key_path, problem.message)))
    return f"{text}; {problem.remedy}" if problem.remedy else text


def plan_lines(plan: policy_pb2.PlanPolicyResponse) -> list[str]:
    """What would change, who would be refused, and the counts last: a long list ends with what it comes to."""
    from certplane.runtime.tables import table_lines  # noqa: PLC0415 - as `--help` needs it not

    lines: list[str] = []
    if plan.changes:
        rows = [(c.change, c.subject, c.identity, c.profile, c.name, c.detail) for c in plan.changes]
        lines += table_lines(_cells(("CHANGE", "SUBJECT", "IDENTITY", "PROFILE", "NAME", "DETAIL"), rows))
        lines.append("")
    if plan.mismatches:
        lines.append("hosts that ask for what would be refused, as they last reported it:")
        mismatches = [
            (m.host, m.certificate, m.profile, m.reason, "refused now too" if m.refused_now else "", m.message)
            for m in plan.mismatches
        ]
        lines += table_lines(_cells(("HOST", "CERTIFICATE", "PROFILE", "REASON", "NOW", "MESSAGE"), mismatches))
        lines.append("")
    summary = plan.summary
    counts = [(c.subject, str(c.before), str(c.after), str(c.gained), str(c.lost)) for c in summary.counts]
    lines += table_lines(_cells(("SUBJECT", "BEFORE", "AFTER", "GAINED", "LOST"), counts))
    lines += ["", f"certificates issued again: {summary.issued_again_count}"]
    lines.append(f"hosts' certificates that would be refused: {len(plan.mismatches)}")
    if summary.confirmation:
        lines.append(f"a reload would have to be confirmed: it {escape(summary.confirmation)}")
    lines.append(f"compared with the policy of {escape(summary.policy.broker_name)}; {_OWN}")
    return lines


def _loaded_lines(policy: policy_pb2.LoadedPolicy) -> list[str]:
    from certplane.rpc.times import time_of  # noqa: PLC0415 - as `--help` needs it not

    since = time_of(policy.load_time)
    facts = {
        "policy hash": policy.policy_hash,
        "in force since": f"{since:%Y-%m-%d %H:%M:%SZ}" if since else "",
        "loaded by": policy.loaded_by,
        "file": policy.file,
        "refused since": policy.refusal,
        "broker": f"{policy.broker_name}; {_OWN}",
    }
    return [f"{name:16}{escape(text)}" for name, text in facts.items() if text]


def _cells(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [header, *(tuple(cell or "-" for cell in row) for row in rows)]
