"""Commands about orders, the audit log, the policy, the brokers and certplanectl itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from certplane.ctl.arguments.command import NAMELESS, Command, add_file, add_reason, add_yes, count, repeated, span

ORDER_STATES: Final = ("pending", "authorized", "validating", "finalizing", "issued", "failed")


def _orders(parser: argparse.ArgumentParser) -> None:
    repeated(parser, "--id", "ID", "this order")
    repeated(parser, "--state", "STATE", "in this state, such as failed", ORDER_STATES)
    parser.add_argument("--open", action="store_true", help="only those that haven't ended")
    repeated(parser, "--identity", "NAME", "of this host or service, by name or label")
    repeated(parser, "--profile", "PROFILE", "of this policy profile")
    repeated(parser, "--issuer", "ISSUER", "at this issuer")
    repeated(parser, "--name", "DNS-NAME", "with this DNS name")
    repeated(parser, "--error", "REASON", "that failed, or whose step fails, for this reason, such as DNS_REJECTED")
    parser.add_argument("--within", type=span, metavar="SPAN", help="created or changed within this time")
    parser.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many (default: 50)")
    parser.add_argument("--watch", action="store_true", help="the open ones, and then each change, until Ctrl-C")


def _audit_filter(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "filters", "All kinds that are given must match, and of one that is repeated any of its values."
    )
    group.add_argument("--since", metavar="WHEN", help="from then on: a span before now, such as 7d, or a time in UTC")
    group.add_argument("--until", metavar="WHEN", help="before then, written in the same way")
    repeated(group, "--identity", "NAME", "whose event it is, by name or label")
    repeated(group, "--name", "DNS-NAME", "with this DNS name among those asked for or issued")
    repeated(group, "--serial", "SERIAL", "about this serial number")
    repeated(group, "--type", "TYPE", "of this event type, such as certificate_issued")
    repeated(group, "--error", "REASON", "with this reason code, such as RATE_LIMITED")
    repeated(group, "--id", "ID", "of the call, order, certificate, renewal or rollout with this id")
    repeated(group, "--profile", "PROFILE", "of this policy profile")
    group.add_argument("--severity", choices=("info", "warning", "error"), help="at least so bad")


def _audit_list(parser: argparse.ArgumentParser) -> None:
    _audit_filter(parser)
    parser.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many (default: 50)")
    parser.add_argument("--oldest-first", action="store_true", help="from the oldest on")


def _audit_tail(parser: argparse.ArgumentParser) -> None:
    _audit_filter(parser)
    parser.add_argument(
        "-n", "--lines", type=count, default=20, metavar="N", help="how many of the past (default: 20, at most 500)"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="then each new one, until Ctrl-C")


def _audit_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", metavar="WHEN", help="from then on: a span before now, such as 7d, or a time in UTC")
    parser.add_argument("--until", metavar="WHEN", help="before then, written in the same way")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FILE",
        help="a new file, 0600, that is there only once it is whole; standard output without it",
    )


def _policy_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hash", nargs="?", default="", metavar="HASH", help="an earlier one, by its hash in `history`")
    parser.add_argument("--text", action="store_true", help="the policy's text, and nothing else")


def _policy_plan(parser: argparse.ArgumentParser) -> None:
    add_file(parser, "the policy file")


def _confirm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--confirm", action="store_true", help="take it even if it removes many hosts or grants")


def _broker_reload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("broker", nargs="*", metavar="BROKER", help="by id or name, as `certplanectl brokers` has them")
    parser.add_argument("--all", action="store_true", help="all brokers of the fleet")
    parser.add_argument(
        "--confirm",
        action="store_true",
        help="also take a policy that removes many hosts or grants, and a bundle that shuts out connected hosts",
    )


def _broker_drain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("broker", metavar="BROKER", help="by id or name, as `certplanectl brokers` has them")
    parser.add_argument("--undo", action="store_true", help="have it serve again")
    add_reason(parser, "the hosts and the audit log")
    add_yes(parser)


def _trust_plan(parser: argparse.ArgumentParser) -> None:
    add_file(parser, "the agent CA bundle, PEM")


def _use(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="as in `contexts` of ctl.yml")


GROUPS: Final = {
    "audit": "show, verify and export the audit log of the fleet",
    "policy": "show, plan and reload the policy of the broker that is asked",
    "broker": "have brokers read their files again, and drain them",
    "trust": "plan a change of the CAs of hosts and operators",
    "context": "show and choose the fleet that commands are for",
}
"""What the commands of two words have in common."""
OWN_POLICY: Final = "each broker has its own policy; `certplanectl brokers` shows whether they differ"

COMMANDS: Final = (
    Command(
        "orders",
        "orders at the CAs, the open ones first: step, tries, and what each waits for",
        "commands.orders:orders",
        _orders,
        examples=(
            ("certplanectl orders --open", "what is under way, and what holds it up"),
            ("certplanectl orders --watch", "live"),
            ("certplanectl orders --state failed --within 1d", "what failed today, and why"),
        ),
    ),
    Command(
        "audit list",
        "events, the newest first",
        "commands.audit:list_events",
        _audit_list,
        examples=(
            ("certplanectl audit list --name api.example.net --type certificate_issued --since 7d", "who got one"),
            ("certplanectl audit list --id 01J... --oldest-first", "all that became of a call or an order"),
        ),
    ),
    Command(
        "audit tail",
        "the last events, the oldest first",
        "commands.audit:tail",
        _audit_tail,
        examples=(("certplanectl audit tail -f --severity warning", "live, what went wrong"),),
    ),
    Command(
        "audit verify",
        "prove that the log is whole: its hash chains and signed checkpoints; ends with 1 if not",
        "commands.audit:verify",
        formats=NAMELESS,
    ),
    Command(
        "audit export",
        "events with their chain, as `certplane-broker audit verify FILE` reads them",
        "commands.audit:export",
        _audit_export,
        examples=(("certplanectl audit export --since 2026-01-01 --to audit.jsonl", "a year's, for the archive"),),
        formats=(),
    ),
    Command(
        "policy show",
        "what is in force: its hash, since when, and by whom",
        "commands.policy:show",
        _policy_show,
        formats=NAMELESS,
    ),
    Command(
        "policy plan",
        "what another policy would change for the fleet; changes nothing",
        "commands.policy:plan",
        _policy_plan,
        more="Compares a file with the policy in force, and with what hosts last asked for. The exit status is 1 where "
        "the file doesn't load.",
        formats=NAMELESS,
    ),
    Command(
        "policy history",
        "the policies that were in force, the newest first",
        "commands.policy:history",
    ),
    Command(
        "policy reload",
        "make the broker read its policy file again, and show what it did",
        "commands.policy:reload",
        _confirm,
        more="The exit status is 1 where it was refused.",
        formats=NAMELESS,
    ),
    Command(
        "brokers",
        "the brokers of the fleet; ends with 1 if they differ",
        "commands.brokers:brokers",
        more="Shows the brokers that serve the fleet together. What differs though it should be alike is marked with "
        "*, and explained below; the exit status is 1 then.",
    ),
    Command(
        "broker reload",
        "make brokers read policy, certificate, agent CA bundle and limits again",
        "commands.brokers:reload",
        _broker_reload,
        more="Without a name, the broker that answers. The exit status is 1 where one refuses something, or is silent.",
        examples=(("certplanectl broker reload --all", "after the files were brought to all machines"),),
        formats=NAMELESS,
    ),
    Command(
        "broker drain",
        "make a broker send its hosts to others, before it is stopped",
        "commands.brokers:drain",
        _broker_drain,
        more="It lasts until that broker is started again. The last one that serves refuses.",
        examples=(
            ("certplanectl broker drain broker2 --reason upgrade", "before its machine is taken down"),
            ("certplanectl broker drain broker2 --reason 'no upgrade' --undo", "after all"),
        ),
        formats=NAMELESS,
    ),
    Command(
        "trust plan",
        "which CAs come and go with an agent CA bundle, and whom it shuts out; changes nothing",
        "commands.trust:plan",
        _trust_plan,
        more="The exit status is 1 where the bundle can't be used, or a reload with it would have to be confirmed.",
        formats=NAMELESS,
    ),
    Command(
        "health",
        "whether each broker of ctl.yml is reached, serves, and knows this identity; ends with 1 if not",
        "commands.health:health",
        formats=NAMELESS,
    ),
    Command(
        "context list",
        "the contexts of ctl.yml, and which is in use",
        "commands.contexts:list_contexts",
        offline=True,
    ),
    Command(
        "context use",
        "choose a context for the commands to come, of this user",
        "commands.contexts:use",
        _use,
        formats=(),
        offline=True,
    ),
)
