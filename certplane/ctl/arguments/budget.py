"""Commands about the CAs' limits."""

from __future__ import annotations

import argparse
from typing import Final

from certplane.ctl.arguments.command import NAMELESS, Command, add_selection, repeated


def _budget(parser: argparse.ArgumentParser) -> None:
    # Names of their own: what stands before `forecast` would else be replaced by that one's defaults, unsaid.
    for option, metavar, text in (
        ("--name", "DNS-NAME", "only what a certificate with this name needs"),
        ("--issuer", "ISSUER", "only this issuer's"),
    ):
        repeated(parser, option, metavar, text, dest=f"of_{option.removeprefix('--')}")


def _forecast(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("--at", default="", metavar="ISSUER", help="at this issuer instead of their profiles' own")


GROUPS: Final = {"budget": "what the CAs' limits leave, and how long orders take by them"}

COMMANDS: Final = (
    Command(
        "budget",
        "what the CAs' limits leave, and how many orders wait; `budget forecast` how long others would take",
        "commands.budget:budget",
        _budget,
        more="Of each limit the fullest budgets are shown: an account's, or those of the registered domains, names and "
        "sets of names of which most is taken; -o wide shows up to twenty.",
        examples=(
            ("certplanectl budget", "what is left, and what waits"),
            ("certplanectl budget --name www.example.org -o wide", "all that an order for this name needs a place in"),
        ),
        formats=NAMELESS,
    ),
    Command(
        "budget forecast",
        "when the last of a selection would be ordered if all were asked for now; changes nothing",
        "commands.budget:forecast",
        _forecast,
        more="By the limits alone, beside what waits already: what the CA and the hosts need comes on top. Renewals in "
        "the window that the CA has named take no place.",
        examples=(
            ("certplanectl budget forecast --all", "how long the whole fleet would take"),
            ("certplanectl budget forecast --issuer a --at b", "how long it takes to leave a CA for another one"),
        ),
        formats=NAMELESS,
    ),
)
