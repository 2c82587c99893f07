"""Commands about hosts, services and their certificates."""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Final

from certplane.ctl.arguments.command import (
    NAMELESS,
    Command,
    add_filter,
    add_reason,
    add_selection,
    add_sort,
    add_yes,
    span,
)
from certplane.ctl.formats import Format

_CHECK: Final = "end with 1 if a certificate shown is EXPIRED, REVOKED_IN_USE, FOREIGN_SERVED, WONT_HEAL or OVERDUE"


def _fleet(parser: argparse.ArgumentParser) -> None:
    add_filter(parser)
    add_sort(parser)
    parser.add_argument("--check", action="store_true", help=_CHECK)


def _certs(parser: argparse.ArgumentParser) -> None:
    _fleet(parser)
    parser.add_argument("--identities", action="store_true", help="also the hosts' identities")


def _summary(parser: argparse.ArgumentParser) -> None:
    add_filter(parser)
    parser.add_argument(
        "--period",
        type=span,
        default=timedelta(days=1),
        metavar="SPAN",
        help="what ends within it is next, what changed within it is shown (default: 24h, at most 7d)",
    )
    parser.add_argument(
        "--check", action="store_true", help="end with 1 if anybody is hurt, or will be without a person"
    )


def _watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the broker's messages, one JSON object a line")
    parser.add_argument("--plain", action="store_true", help="the table once and then a line for each change")
    parser.add_argument("hosts", nargs="*", metavar="HOST", help="only these hosts, by name or label")


def _renew(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument(
        "--identity", action="store_true", help="the identities of the hosts selected, at the internal CA, instead"
    )
    add_reason(parser, "the hosts' logs and the audit log")
    parser.add_argument(
        "--spread", default="0s", metavar="DURATION", help="spread the renewals over this time, such as 30m or 24h"
    )
    parser.add_argument(
        "--wait", action="store_true", help="show how far they are until all have ended; 1 if one failed"
    )
    parser.add_argument(
        "--timeout", type=span, default=None, metavar="SPAN", help="with --wait: give up after this time, with status 1"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be renewed; change nothing")
    add_yes(parser)


def _renewal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="as `certplanectl renew` answered")
    parser.add_argument("--wait", action="store_true", help="show how far it is until all have ended; 1 if one failed")
    parser.add_argument(
        "--timeout", type=span, default=None, metavar="SPAN", help="with --wait: give up after this time, with status 1"
    )


def _revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "id", metavar="ID", help="the broker's name for the certificate, as `certplanectl certs -o wide` has it"
    )
    parser.add_argument(
        "--as",
        dest="revocation_reason",
        choices=REVOCATION_REASONS,
        default="unspecified",
        metavar="REASON",
        help=f"for the CA: {', '.join(REVOCATION_REASONS)} (default: unspecified)",
    )
    add_reason(parser, "its holder and the audit log")
    add_yes(parser)


def _forget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the host's identity name")
    add_reason(parser, "the audit log")
    add_yes(parser)


REVOCATION_REASONS: Final = ("unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation")
"""As the CAs' public format has them (RFC 5280 5.3.1), of those that a subscriber may give."""

COMMANDS: Final = (
    Command(
        "summary",
        "the fleet at a glance: who is hurt, who is next, why, what changed, who is missing",
        "commands.summary:summary",
        _summary,
        examples=(
            ("certplanectl summary", "the five questions of a night"),
            ("certplanectl summary --profile web --period 7d", "of one profile, and a week ahead"),
        ),
        formats=NAMELESS,
    ),
    Command(
        "fleet",
        "all hosts, the worst first, with what is wrong and why",
        "commands.fleet:fleet",
        _fleet,
        more="A row for each host, and one for each further certificate of it that isn't well.",
        examples=(
            ("certplanectl fleet", "everybody, the worst first"),
            ("certplanectl fleet --health expired --health wont_heal", "who needs a person"),
            ("certplanectl fleet --unheard-for 2d --sort last-seen", "who is silent"),
            ("certplanectl fleet --check -o name", "for a monitor: status 1, and whose fault"),
        ),
    ),
    Command(
        "certs",
        "the certificates of hosts and services, the worst first",
        "commands.certificates:certificates",
        _certs,
        examples=(
            ("certplanectl certs --expiring-within 14d --sort expires", "what ends soon"),
            ("certplanectl certs --renewing-within 1d --sort renews", "what is renewed tomorrow"),
            ("certplanectl certs --serial 0a1b2c -o wide", "who has a certificate, by its serial number"),
        ),
    ),
    Command(
        "watch",
        "the fleet, live: a full screen with summary, causes, hosts, certificates; ? shows the keys",
        "commands.watch:watch",
        _watch,
        more="In lines without a terminal, with NO_COLOR or TERM=dumb, and without the package textual.",
        examples=(
            ("certplanectl watch", "who is hurt, who is next, by what cause, what changed, who is missing"),
            ("certplanectl watch web1 web2 --plain", "two hosts, a line for each change"),
            ("certplanectl watch --json | jq .certificateChange", "for programs"),
        ),
        formats=(),
    ),
    Command(
        "renew",
        "have certificates renewed",
        "commands.renew:renew",
        _renew,
        more="Renews the certificates that match every kind of option given.",
        examples=(
            ("certplanectl renew --host web1 --reason 'key rotation' --wait", "one host's, and see it done"),
            ("certplanectl renew --issuer default --spread 24h --reason 'CA incident'", "a CA's, over a day"),
            ("certplanectl renew --all --identity --spread 6h --reason 'new internal CA'", "all identities"),
        ),
        formats=NAMELESS,
    ),
    Command(
        "renewal",
        "how far a renewal is that was asked for",
        "commands.renew:renewal",
        _renewal,
        formats=NAMELESS,
    ),
    Command(
        "revoke",
        "revoke a certificate, of whomever, and have it renewed",
        "commands.revoke:revoke",
        _revoke,
        examples=(
            ("certplanectl revoke 01J... --as keyCompromise --reason 'laptop stolen'", "its holder is told at once"),
        ),
        formats=NAMELESS,
    ),
    Command(
        "forget",
        "have the broker forget a host that is gone",
        "commands.forget:forget",
        _forget,
        more="Refused while the host is connected, or the policy has it. Its certificates and audit events stay.",
        examples=(("certplanectl forget old7.example.net --reason decommissioned", "once it is out of the policy"),),
        formats=(Format.TABLE, Format.WIDE, Format.JSON, Format.YAML),
    ),
)
