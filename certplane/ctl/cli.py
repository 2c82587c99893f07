"""The command line of certplanectl.

Exit status: 0 when all is well, 1 when something failed, `fleet --check` has found what needs a person or `brokers`
what differs, 2 when the configuration or the command line is wrong. On a terminal results are tables; piped, or with
--json, they are the broker's messages, a JSON object a line. Errors are one line each on standard error, cause and
remedy, never a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from certplane import __version__
from certplane.config.durations import DurationError, parse_duration
from certplane.ctl.policy import add_policy_commands, policy
from certplane.errors import (
    ConfigurationError,
    ConfigurationProblem,
    OperationError,
    Reason,
    RefusalError,
)
from certplane.runtime import command
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import SystemClock
from certplane.runtime.command import FAILED, OK, interruptible, say, wants_json
from certplane.runtime.logging import LineHandler

if TYPE_CHECKING:  # a command loads no more than it needs
    from certplane.ctl.client import FleetClient
    from certplane.v1 import fleet_pb2

T = TypeVar("T")

_AGAIN: Final = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=30), floor=timedelta(milliseconds=200))
_PASSING: Final = frozenset(
    {
        Reason.DRAINING,
        Reason.STORE_UNAVAILABLE,
        Reason.AUDIT_UNAVAILABLE,
        Reason.POLICY_UNAVAILABLE,
        Reason.RATE_LIMITED,
    }
)
"""Refusals that a watch outlives."""

_clock = SystemClock()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # Not even gRPC's errors: `FleetClient` says the same with a remedy.
    return command.main(
        "certplanectl", arguments, _parser, lambda options: asyncio.run(_run(options)), grpc_verbosity="NONE"
    )


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-c",
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="ctl.yml ($CERTPLANECTL_CONFIG, ~/.config/certplane/ctl.yml, /etc/certplane/ctl.yml)",
    )
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="the broker's messages, one JSON object a line")
    parser = argparse.ArgumentParser(
        prog="certplanectl",
        description="Shows the hosts of a broker, renews their certificates, and shows, plans and reloads its policy.",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"certplanectl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    fleet = commands.add_parser(
        "fleet", parents=[common, output], help="all hosts, with the health and state of their certificates"
    )
    fleet.add_argument(
        "--state",
        action="append",
        default=[],
        metavar="STATE",
        help="only hosts with a certificate in this state, such as failed or degraded; may be repeated",
    )
    fleet.add_argument(
        "--health",
        action="append",
        default=[],
        metavar="HEALTH",
        help="only hosts with a certificate of this health, such as expired or wont_heal; may be repeated",
    )
    fleet.add_argument("--disconnected", action="store_true", help="only hosts without a connection to the broker")

    fleet.add_argument(
        "--check",
        action="store_true",
        help="end with 1 if a certificate shown is EXPIRED, REVOKED_IN_USE, FOREIGN_SERVED, WONT_HEAL or OVERDUE",
    )

    watch = commands.add_parser("watch", parents=[common, output], help="the fleet, live, until Ctrl-C")
    watch.add_argument("hosts", nargs="*", metavar="HOST", help="only these hosts, by name or label")

    host = commands.add_parser("host", parents=[common, output], help="all that the broker knows of one host")
    host.add_argument("name", metavar="NAME", help="the host's identity name, or its label in the policy")

    commands.add_parser(
        "brokers",
        parents=[common, output],
        help="the brokers of the fleet; ends with 1 if they differ",
        description="Shows the brokers that serve the fleet together. What differs though it should be alike is marked "
        "with *, and explained below; the exit status is 1 then.",
    )

    add_policy_commands(commands, [common, output])

    renew = commands.add_parser(
        "renew",
        parents=[common, output],
        help="have certificates renewed",
        description="Renews the certificates that match every kind of option given.",
    )
    renew.add_argument("--all", action="store_true", help="every certificate in force")
    for option, metavar, text in (
        ("host", "NAME", "of this host, by name or label"),
        ("profile", "PROFILE", "of this policy profile"),
        ("issuer", "ISSUER", "from this issuer"),
        ("certificate", "ID", "this certificate, by the broker's id"),
        ("name", "DNS-NAME", "with this DNS name"),
    ):
        renew.add_argument(f"--{option}", action="append", default=[], metavar=metavar, help=f"{text}; may be repeated")
    renew.add_argument("--reason", required=True, help="the reason, for the hosts' logs and the audit log")
    renew.add_argument(
        "--spread", default="0s", metavar="DURATION", help="spread the renewals over this time, such as 30m or 24h"
    )
    renew.add_argument("--dry-run", action="store_true", help="show what would be renewed; change nothing")
    renew.add_argument("--yes", action="store_true", help="don't ask for confirmation")
    return parser


async def _run(options: argparse.Namespace) -> int:
    # What a command needs is imported when it runs: `--help` needs no gRPC.
    from certplane.ctl.client import FleetClient  # noqa: PLC0415
    from certplane.ctl.settings import find_settings, load_settings  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="certplanectl: %(message)s", handlers=[LineHandler(sys.stderr)])
    settings = load_settings(getattr(options, "config", None) or find_settings())
    async with FleetClient(settings) as client:
        return await interruptible(_COMMANDS[options.command](options, client))


async def _fleet(options: argparse.Namespace, client: FleetClient) -> int:
    from certplane.ctl.client import HostFilter  # noqa: PLC0415 - as in `_run`
    from certplane.ctl.view import HEALTHS, STATES, alarms, fleet_rows, json_line, urgency  # noqa: PLC0415
    from certplane.runtime.tables import table_lines  # noqa: PLC0415

    other = f"or --health with one of: {', '.join(HEALTHS)}"
    states = _known("--state", options.state, STATES, "state", other)
    healths = _known("--health", options.health, HEALTHS, "health", f"or --state with one of: {', '.join(STATES)}")
    hosts, alarmed = [], False
    async for host in client.hosts(HostFilter(states, options.disconnected, healths)):
        alarmed = alarmed or (options.check and alarms(host))
        if wants_json(options):
            print(json_line(host), flush=True)
        else:
            hosts.append(host)
    if hosts:
        print("\n".join(table_lines(fleet_rows(sorted(hosts, key=urgency), _clock.now()))))
    elif not wants_json(options):
        filtered = options.state or options.health or options.disconnected
        print("no host matches" if filtered else "no host has reported yet")
    return FAILED if alarmed else OK


def _known(option: str, words: Sequence[str], known: Mapping[str, T], what: str, other: str) -> tuple[T, ...]:
    """What these words stand for.

    Raises:
        ConfigurationError: one stands for nothing.
    """
    for word in words:
        if word.lower() not in known:
            raise _misuse(f"{option} {word}: there is no such {what}", f"use one of: {', '.join(known)}; {other}")
    return tuple(known[word.lower()] for word in words)


async def _host(options: argparse.Namespace, client: FleetClient) -> int:
    from certplane.ctl.view import host_lines, json_line  # noqa: PLC0415 - as in `_run`

    host = await client.host(options.name)
    print(json_line(host) if wants_json(options) else "\n".join(host_lines(host, _clock.now())))
    return OK


async def _watch(options: argparse.Namespace, client: FleetClient) -> int:
    """Watch until a signal; a broker that restarts is waited for, a refusal that stays ends it."""
    from certplane.ctl.live import open_display  # noqa: PLC0415 - as in `_run`

    rng = random.SystemRandom()
    begun, failures = False, 0
    with open_display(sys.stdout, _say, _clock.now, as_json=options.json) as display:
        while True:
            try:
                async for message in client.watch(options.hosts):
                    begun, failures = True, 0
                    display.show(message)
                text = "the broker has ended the watch"
                wait = None
            except OperationError as error:
                if not begun:
                    raise  # it never was there: a mistake of the configuration rather than a restart
                text, wait = str(error), error.retry_after
            except RefusalError as error:
                if error.refusal.reason not in _PASSING:
                    raise
                text, wait = str(error), error.refusal.retry_after
            failures += 1
            again = max(_AGAIN.wait(failures, rng), wait or timedelta())
            display.interrupted(f"{text}; watching again in {again.total_seconds():.0f} s")
            await _clock.sleep(again)


async def _brokers(options: argparse.Namespace, client: FleetClient) -> int:
    from certplane.ctl.brokers import broker_rows, difference_lines  # noqa: PLC0415 - as in `_run`
    from certplane.ctl.view import json_line  # noqa: PLC0415
    from certplane.runtime.tables import table_lines  # noqa: PLC0415

    answer = await client.brokers()
    if wants_json(options):
        lines = [json_line(each) for each in (*answer.brokers, *answer.differences)]
    else:
        lines = table_lines(broker_rows(answer.brokers, _clock.now()))
        if answer.differences:
            lines += ["", *difference_lines(answer.differences)]
    print("\n".join(lines))
    return FAILED if answer.differences else OK


async def _renew(options: argparse.Namespace, client: FleetClient) -> int:
    from certplane.ctl.view import held_up_lines, json_line, renewal_line  # noqa: PLC0415 - as in `_run`

    selection = _selection(options)
    try:
        spread = parse_duration(options.spread)
    except DurationError as error:
        raise _misuse(f"--spread {options.spread}: is not a span of time", "write it like 30m, 24h or 1h30m") from error
    request_id = secrets.token_hex(16)

    async def request(*, dry_run: bool) -> fleet_pb2.RequestRenewalResponse:
        return await client.request_renewal(
            selection, reason=options.reason, spread=spread, request_id=request_id, dry_run=dry_run
        )

    if not options.dry_run and not options.yes:
        foreseen = await request(dry_run=True)
        if foreseen.changed_count and not await _agreed(renewal_line(foreseen, dry_run=True)):
            _say("nothing was renewed")
            return FAILED
    answer = await request(dry_run=options.dry_run)
    if wants_json(options):
        print(json_line(answer))
    elif answer.certificate_count:
        lines = [renewal_line(answer, dry_run=options.dry_run), *held_up_lines(answer, dry_run=options.dry_run)]
        print("\n".join(lines))
    if not answer.certificate_count:
        _say(f"{renewal_line(answer, dry_run=True)}; compare the selection with `certplanectl fleet`")
        return FAILED
    return OK


def _selection(options: argparse.Namespace) -> fleet_pb2.Selection:
    from certplane.v1 import fleet_pb2  # noqa: PLC0415 - as in `_run`

    selection = fleet_pb2.Selection(
        all=options.all,
        hosts=options.host,
        profiles=options.profile,
        issuers=options.issuer,
        certificate_ids=options.certificate,
        dns_names=options.name,
    )
    if not selection.ByteSize():
        raise _misuse("renew: nothing is selected", "say which with --host, --profile, ..., or --all")
    return selection


async def _agreed(question: str) -> bool:
    """Whether a person at the terminal says yes; without one nobody can."""
    if not sys.stdin.isatty():
        raise _misuse(
            f"{question}; there is no terminal to ask at", "add --yes, or --dry-run to only show what would be renewed"
        )
    print(f"{question}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    # Not on a thread: it would be waited for at the end of the program, and Ctrl-C wait for the Enter key.
    loop, typed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, typed.set)
    try:
        await typed.wait()
    finally:
        loop.remove_reader(sys.stdin)
    answer = sys.stdin.readline()  # a terminal has a whole line when it has something
    return answer.strip().lower() in ("y", "yes")


_COMMANDS: Final = {
    "fleet": _fleet,
    "watch": _watch,
    "host": _host,
    "brokers": _brokers,
    "policy": policy,
    "renew": _renew,
}


def _misuse(message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([ConfigurationProblem("certplanectl", None, "", message, remedy)])


def _say(text: str) -> None:
    say(f"certplanectl: {text}")
