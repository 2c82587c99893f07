"""Commands about rollouts and incidents."""

from __future__ import annotations

import argparse
from typing import Final

from certplane.ctl.arguments.command import (
    NAMELESS,
    Command,
    add_reason,
    add_selection,
    add_yes,
    count,
    repeated,
    span,
)
from certplane.ctl.arguments.fleet import REVOCATION_REASONS
from certplane.ctl.formats import Format

ROLLOUT_STATES: Final = (
    "awaiting_approval", "running", "paused", "halted", "finishing", "completed", "aborted",
)  # fmt: skip
ITEM_STATES: Final = ("waiting", "requested", "held", "released", "done", "failed", "silent", "skipped")
_ID: Final = "as `certplanectl rollout list` has it"
_RINGS: Final = """\
rings:
  --rings names them in order, with commas between; a host belongs to the first one that picks it:
  canary          hosts with the label ring=canary
  dc=fra1         hosts with this label; dc=fra1+tier=web with both
  10%             so many percent of all hosts of the rollout, of those that no ring before has
  rest            all that no ring before has
  canary:1h       any of them with how long it bakes: after its last host is done, before the next one begins
"""


def percent(text: str) -> int:
    """1 to 100, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100")
    return int(text)


def _spec(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    what = parser.add_argument_group("what becomes of them", "Without one of these, a new certificate each.")
    one = what.add_mutually_exclusive_group()
    one.add_argument(
        "--rekey", action="store_true", help="a new key each, even where hosts keep theirs; the old one is blocked"
    )
    one.add_argument("--move-to", metavar="ISSUER", help="from this issuer, which their profiles allow")
    what.add_argument(
        "--revoke",
        choices=("never", "after-served"),
        default="never",
        help="whether what is replaced is revoked: after-served, each once its successor is in use (default: never)",
    )
    what.add_argument(
        "--as",
        dest="revocation_reason",
        choices=REVOCATION_REASONS,
        default=None,
        metavar="REASON",
        help=f"of --revoke, for the CA: {', '.join(REVOCATION_REASONS)} (default: unspecified)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--rings", metavar="RINGS", help="in turn, as below, such as canary:1h,10%%,rest; else all at once"
    )
    how.add_argument(
        "--success",
        choices=("served", "installed"),
        default="served",
        help="when a host is done: served, where it verifies, or installed and reloaded (default: served)",
    )
    how.add_argument(
        "--max-percent-of-name", type=percent, metavar="N", help="at most so many percent of one name's hosts at a time"
    )
    how.add_argument(
        "--halt-after", type=count, metavar="N", help="halt when so many hosts of one ring have failed (default: 1)"
    )
    how.add_argument(
        "--halt-percent", type=percent, metavar="N", help="halt when so many percent of a ring's hosts have failed"
    )
    how.add_argument(
        "--silent-after",
        type=span,
        metavar="SPAN",
        help="a released host that isn't heard for so long has failed (default: 10m)",
    )
    how.add_argument(
        "--deadline",
        metavar="WHEN",
        help="by then all should be done, in 36h or at a time in UTC: bake times are cut for it, and no ring left out",
    )


def _plan(parser: argparse.ArgumentParser) -> None:
    _spec(parser)
    parser.add_argument("--reason", default="a plan", metavar="TEXT", help="as of `rollout start`")


def _start(parser: argparse.ArgumentParser) -> None:
    _spec(parser)
    add_reason(parser, "the hosts' logs and the audit log")
    _wait(parser, "follow it until it has ended, or an operator is needed; 1 if a host failed")
    add_yes(parser)


def _wait(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--wait", action="store_true", help=text)
    _timeout(parser, "with --wait: give up after this time, with status 1; the rollout goes on")


def _timeout(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--timeout", type=span, default=None, metavar="SPAN", help=text)


def _list(parser: argparse.ArgumentParser) -> None:
    repeated(parser, "--state", "STATE", "in this state, such as running or halted", ROLLOUT_STATES)
    parser.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many (default: 50)")


def _id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help=_ID)


def _show(parser: argparse.ArgumentParser) -> None:
    _id(parser)
    parser.add_argument("--certificates", action="store_true", help="its certificates instead, those that failed first")
    repeated(parser, "--state", "STATE", "of the certificates those in this state, such as failed", ITEM_STATES)
    parser.add_argument("--ring", default="", metavar="RING", help="of the certificates those of this ring")


def _watch(parser: argparse.ArgumentParser) -> None:
    _id(parser)
    parser.add_argument("--json", action="store_true", help="the broker's messages, one JSON object a line")
    parser.add_argument("--plain", action="store_true", help="a line for each change, until it has ended")
    _timeout(parser, "in lines: give up after this time, with status 1")


def _change(parser: argparse.ArgumentParser) -> None:
    _id(parser)
    add_reason(parser, "the audit log")


def _asked(parser: argparse.ArgumentParser) -> None:
    _change(parser)
    add_yes(parser)


def _resume(parser: argparse.ArgumentParser) -> None:
    _change(parser)
    _wait(parser, "follow it until it has ended, or an operator is needed; 1 if a host failed")


def _finish(parser: argparse.ArgumentParser) -> None:
    _asked(parser)
    parser.add_argument(
        "--revoke-remaining",
        action="store_true",
        help="revoke what it still has to revoke, though hosts may serve it",
    )


def _incidents(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--open", action="store_true", help="only those that haven't ended")
    parser.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many (default: 50)")


def _incident(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="as `certplanectl incident list` has it")


GROUPS: Final = {
    "rollout": "new certificates for many hosts, ring by ring",
    "incident": "what a CA wants of many certificates at once",
}

_EXAMPLE: Final = (
    "certplanectl rollout start --issuer letsencrypt --issued-before 2026-11-20 --rekey --rings canary,10%,rest "
    "--revoke after-served --reason 'ticket 4711'"
)

COMMANDS: Final = (
    Command(
        "rollout plan",
        "what a rollout would be: its rings, how long the CA's limits make it, what is in its way; changes nothing",
        "commands.rollouts:plan",
        _plan,
        more="The exit status is 1 where `rollout start` would be refused.",
        examples=(("certplanectl rollout plan --profile web --rings canary:1h,10%:4h,rest", "who is in which ring"),),
        formats=NAMELESS,
        footer=_RINGS,
    ),
    Command(
        "rollout start",
        "begin a rollout, once its plan was shown and agreed to",
        "commands.rollouts:start",
        _start,
        more="All certificates are ordered at once, as the CA's limits allow, and used ring by ring.",
        examples=(
            (_EXAMPLE, "keys that are out: new ones everywhere, and the old certificates revoked, each after its time"),
            (
                "certplanectl rollout start --issuer a --move-to b --rings canary:1d,rest --reason leaving",
                "another CA",
            ),
            (
                "certplanectl rollout start --incident le-20260319 --rings canary,rest --reason 'the CA revokes'",
                "in time",
            ),
        ),
        formats=(*NAMELESS, Format.NAME),
        footer=_RINGS,
    ),
    Command(
        "rollout list",
        "rollouts: those that run first, then the newest",
        "commands.rollouts:list_rollouts",
        _list,
        examples=(("certplanectl rollout list --state halted", "what waits for an operator"),),
    ),
    Command(
        "rollout show",
        "how far a rollout is: failed hosts, rings, forecast; ends with 1 if it halted or a host failed",
        "commands.rollouts:show",
        _show,
        examples=(
            ("certplanectl rollout show r-7f3a", "what halted it, and what to do"),
            ("certplanectl rollout show r-7f3a --certificates --state failed --state silent", "all that failed"),
        ),
    ),
    Command(
        "rollout watch",
        "a rollout, live: rings as bars, failed hosts on top, forecast, what the CA's limits leave",
        "commands.rollouts:watch",
        _watch,
        more="A full screen as of `watch`, where Enter opens a host; in lines without a terminal, with NO_COLOR or "
        "TERM=dumb, and without the package textual. In lines it ends with the rollout, or where an operator is "
        "needed: with 0 if all went well.",
        formats=(),
    ),
    Command(
        "rollout pause",
        "release no further host; certificates that are ordered go on",
        "commands.rollouts:pause",
        _change,
        formats=NAMELESS,
    ),
    Command(
        "rollout resume",
        "go on with a rollout that is paused or halted; what failed is tried again",
        "commands.rollouts:resume",
        _resume,
        formats=NAMELESS,
    ),
    Command(
        "rollout abort",
        "end a rollout: each host stays with what works there, and nothing is revoked any more",
        "commands.rollouts:abort",
        _asked,
        formats=NAMELESS,
    ),
    Command(
        "rollout approve",
        "let a rollout begin that another operator created",
        "commands.rollouts:approve",
        _asked,
        formats=NAMELESS,
    ),
    Command(
        "rollout finish",
        "end a rollout whose last hosts don't come",
        "commands.rollouts:finish",
        _finish,
        examples=(
            (
                "certplanectl rollout finish r-7f3a --revoke-remaining --reason 'decommissioned'",
                "and revoke what they may serve still",
            ),
        ),
        formats=NAMELESS,
    ),
    Command(
        "incident list",
        "incidents, the open ones first: how many certificates, by when, how far",
        "commands.incidents:list_incidents",
        _incidents,
        examples=(("certplanectl incident list --open", "what a CA wants now"),),
    ),
    Command(
        "incident show",
        "an incident in full, and what to do",
        "commands.incidents:show",
        _incident,
    ),
)
