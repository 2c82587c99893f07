"""A command as a value, and the options that many share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from certplane.config.durations import DurationError, parse_span
from certplane.ctl.formats import Format
from certplane.runtime.health import HealthWord

Add = Callable[[argparse.ArgumentParser], None]

MESSAGES: Final = tuple(Format)
"""Formats of a command that shows messages with a name each."""
NAMELESS: Final = (Format.TABLE, Format.WIDE, Format.JSON, Format.YAML)
"""Of one that shows what has no name."""


def _nothing(_: argparse.ArgumentParser) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: As typed: `fleet`, or `policy show` for one of a group.
        help: What it does, in a line.
        run: Where that is done, `module:function` below `certplane.ctl`.
        add: Adds its arguments.
        more: What else its help says, in sentences.
        examples: Commands to type, each with what it shows.
        footer: What stands below those, in lines of its own.
        formats: Of its results; empty for one that has none.
        offline: Whether it needs no broker.
    """

    name: str
    help: str
    run: str
    add: Add = _nothing
    more: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    formats: tuple[Format, ...] = MESSAGES
    offline: bool = False
    footer: str = ""


def add_output(parser: argparse.ArgumentParser, formats: tuple[Format, ...]) -> None:
    """`-o` and its short form for programs."""
    if not formats:
        return
    names = [each.value for each in formats]
    parser.add_argument(
        "-o",
        "--output",
        choices=names,
        default=argparse.SUPPRESS,  # before a command's own command it counts too
        metavar="FORMAT",
        help=f"{', '.join(names)}; table on a terminal, else json: the broker's messages, an object a line",
    )
    parser.add_argument(
        "--json",
        dest="output",
        action="store_const",
        const="json",
        default=argparse.SUPPRESS,
        help="the same as -o json",
    )


def repeated(
    parser: argparse._ActionsContainer,
    option: str,
    metavar: str,
    text: str,
    words: Iterable[str] = (),
    *,
    dest: str | None = None,
) -> None:
    """An option that may be given several times; `words` are what the shell offers, of those that are known here."""
    action = parser.add_argument(
        option, action="append", default=[], metavar=metavar, help=f"{text}; may be repeated", dest=dest
    )
    offered = tuple(words)
    if offered:
        action.completer = lambda **_: offered  # type: ignore[attr-defined]  # argcomplete's way


def span(text: str) -> timedelta:
    """A span of time, for argparse."""
    try:
        return parse_span(text)
    except DurationError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a span of time; write it like 30m, 24h or 7d") from error


def count(text: str) -> int:
    """A number from 1 on, for argparse."""
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def add_reason(parser: argparse.ArgumentParser, readers: str) -> None:
    """Why something is done, which is audited."""
    parser.add_argument("--reason", required=True, metavar="TEXT", help=f"the reason, for {readers}")


def add_yes(parser: argparse.ArgumentParser) -> None:
    """A question may be left out."""
    parser.add_argument("--yes", action="store_true", help="don't ask for confirmation")


def add_file(parser: argparse.ArgumentParser, text: str) -> None:
    """A file of this machine."""
    parser.add_argument("file", type=Path, metavar="FILE", help=f"{text}, here; - is standard input")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Which certificates of the fleet; `certplane.ctl.filters.selection` reads what is given."""
    group = parser.add_argument_group(
        "selection", "All kinds that are given must match, and of one that is repeated any of its values."
    )
    group.add_argument("--all", action="store_true", help="every certificate in force")
    repeated(group, "--host", "NAME", "of this host, by name or label")
    repeated(group, "--label", "KEY=VALUE", "of hosts with this label in the policy")
    repeated(group, "--profile", "PROFILE", "of this policy profile")
    repeated(group, "--issuer", "ISSUER", "from this issuer")
    repeated(group, "--certificate", "ID", "this certificate, by the broker's id")
    repeated(group, "--name", "DNS-NAME", "with this DNS name")
    repeated(group, "--serial", "SERIAL", "with this serial number")
    repeated(group, "--key", "SHA256", "with this key, by the SHA-256 of its SubjectPublicKeyInfo")
    group.add_argument(
        "--issued-before", metavar="WHEN", help="issued before then: a span before now, such as 7d, or a time in UTC"
    )
    group.add_argument("--window-open", action="store_true", help="that its CA wants replaced now")
    group.add_argument("--incident", metavar="ID", help="of this incident, as `certplanectl incident list` has it")


STATES: Final = (
    "absent", "waiting", "due", "requesting", "issued", "installing", "reloading", "verifying", "serving", "failed",
    "degraded",
)  # fmt: skip
"""Of certificates, as `show.words` reads them from the messages: written out, since `--help` loads no message."""


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Which hosts, by themselves or by a certificate of theirs; `certplane.ctl.filters` reads what is given."""
    group = parser.add_argument_group(
        "filters", "All kinds that are given must match, and of one that is repeated any of its values."
    )
    repeated(group, "--host", "NAME", "this host or service, by name or label")
    repeated(group, "--label", "KEY=VALUE", "with this label in the policy")
    repeated(group, "--kind", "KIND", "host or service", ("host", "service"))
    healths, states = map(str.lower, HealthWord), STATES
    repeated(group, "--health", "HEALTH", "with a certificate of this health, such as expired or wont_heal", healths)
    repeated(group, "--state", "STATE", "with a certificate in this state, such as failed or degraded", states)
    repeated(group, "--cause", "CAUSE", "with a certificate whose health has this cause, as `summary` shows it")
    repeated(group, "--profile", "PROFILE", "with a certificate of this policy profile")
    repeated(group, "--issuer", "ISSUER", "with a certificate from this issuer")
    repeated(group, "--name", "DNS-NAME", "with a certificate for this DNS name")
    repeated(group, "--serial", "SERIAL", "with this serial number, issued, installed or served")
    repeated(group, "--key", "SHA256", "with this key, by the SHA-256 of its SubjectPublicKeyInfo")
    repeated(group, "--agent-version", "VERSION", "with this version of the agent")
    group.add_argument(
        "--expiring-within", type=span, metavar="SPAN", help="what is in use ends within this time, or has ended"
    )
    group.add_argument("--renewing-within", type=span, metavar="SPAN", help="to be renewed within this time, or now")
    group.add_argument("--unheard-for", type=span, metavar="SPAN", help="not heard for so long, or never")
    group.add_argument(
        "--lacks-root", metavar="SHA256", help="whose agent doesn't say that it knows its broker by this root"
    )
    group.add_argument("--disconnected", action="store_true", help="without a connection to any broker")
    group.add_argument("--blocked", action="store_true", help="denied, contested, or no longer in the policy")
    repeated(group, "--filter", "KEY=VALUE", "any of these, such as health=expired,overdue or unheard-for=2d")


SORTS: Final = ("health", "name", "expires", "renews", "last-seen")
"""The worst first, or as the broker's `FleetOrder` has it."""


def add_sort(parser: argparse.ArgumentParser) -> None:
    """The order of a list of the fleet."""
    parser.add_argument(
        "--sort",
        choices=SORTS,
        default="health",
        metavar="ORDER",
        help=f"one of {', '.join(SORTS)} (default: health, the worst first)",
    )
