"""Commands about machines: a new one, one that is gone, one in another's place, and tokens for them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from typing_extensions import override

from certplane.ctl.arguments.command import NAMELESS, Command, add_reason, add_yes, repeated, span

SERVICES: Final = ("nginx", "haproxy", "postfix", "apache", "dovecot")
"""What `certplane-agent init --service` knows."""
_STATUSES: Final = (
    "exit statuses of its own:\n  3  the policy has to be changed first, as it is shown; then type it again"
)


class _ServiceOf(argparse.Action):
    """`--service KIND`, of the --profile before it."""

    @override
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if not namespace.profile or namespace.profile[-1] in namespace.service:
            parser.error("argument --service: stands after a --profile, once: what serves the certificate of it")
        namespace.service = {**namespace.service, namespace.profile[-1]: str(values)}


def _show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the host's identity name, or its label in the policy")


def _lifetime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lifetime", type=span, default=None, metavar="SPAN", help="of the token, such as 2m; at most the broker's own"
    )


def _fingerprint(text: str) -> str:
    from certplane.config.values import Fingerprint  # noqa: PLC0415 - `--help` doesn't wait for it

    try:
        return Fingerprint.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="check all of it and show it; change and make nothing")


def _machine(parser: argparse.ArgumentParser) -> None:
    """What the command for the new machine says."""
    group = parser.add_argument_group("the new machine")
    repeated(group, "--profile", "PROFILE", "a certificate of this policy profile; without any, of all that it has")
    group.add_argument(
        "--service",
        action=_ServiceOf,
        choices=SERVICES,
        default={},
        metavar="KIND",
        help=f"what serves the certificate of the --profile before it: {', '.join(SERVICES)}",
    )
    repeated(group, "--broker", "URL", "where it calls the brokers; without any, where this command does")
    group.add_argument("--ca-url", default="", metavar="URL", help="where the identity CA is, if the broker can't say")
    group.add_argument(
        "--ca-fingerprint", type=_fingerprint, metavar="SHA256", help="of its root, if the broker can't say"
    )
    _lifetime(group)  # type: ignore[arg-type]  # a group takes arguments as a parser does


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="its identity name, web1.example.net; or its label in the policy")
    parser.add_argument("--identity", default="", metavar="NAME", help="its identity name, where NAME is its label")
    _machine(parser)
    _dry_run(parser)


def _retire(parser: argparse.ArgumentParser) -> None:
    _show(parser)
    add_reason(parser, "the deny-list and the audit log")
    _dry_run(parser)
    add_yes(parser)


def _replace(parser: argparse.ArgumentParser) -> None:
    _show(parser)
    add_reason(parser, "the deny-list and the audit log")
    parser.add_argument(
        "--serial",
        default="",
        metavar="SERIAL",
        help="of the identity certificate in use, to replace a machine that has just replaced another",
    )
    _machine(parser)
    _dry_run(parser)
    add_yes(parser)


def _token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="identity name of a host or service, or a host's label")
    _lifetime(parser)
    _dry_run(parser)


GROUPS: Final = {"host": "one host: all that is known of it; new, retired and replaced machines"}
"""What the commands of two words have in common."""

NAMED: Final = {"host": "show"}
"""Groups whose commands are also typed as the group and a name alone, and which command that is."""

COMMANDS: Final = (
    Command(
        "host show",
        "all that the broker knows of one host; `certplanectl host NAME` is the same",
        "commands.host:host",
        _show,
        examples=(("certplanectl host web1", "its link, certificates, errors, and what it is to be told"),),
    ),
    Command(
        "host add",
        "set a new host up: what the policy lacks, or else a one-time token and the command for the machine",
        "commands.machines:add",
        _add,
        more="Changes no policy: shows the lines that are missing, as a diff. The token needs the role admin.",
        examples=(
            ("certplanectl host add web1.example.net --profile web --service nginx", "with nginx in front"),
            ("certplanectl host add edge --identity edge1.example.net --profile web --dry-run", "under another label"),
        ),
        footer=_STATUSES,
        formats=NAMELESS,
    ),
    Command(
        "host retire",
        "a host is gone for good: shut it out, take it out of the policy, forget it",
        "commands.machines:retire",
        _retire,
        more="Shuts out first, shows what is to be removed from the policy, and, once that is done, has the host "
        "forgotten. Needs the role admin.",
        examples=(
            ("certplanectl host retire web1 --reason 'the machine was sold'", "twice: before and after the policy"),
        ),
        footer=_STATUSES,
        formats=NAMELESS,
    ),
    Command(
        "host replace",
        "another machine takes a host's place: shut the old one out, set the new one up",
        "commands.machines:replace_machine",
        _replace,
        more="Denies the identity certificates of the old machine, so that nothing is contested, and not the name. "
        "Needs the role admin.",
        examples=(("certplanectl host replace web1 --reason 'a new machine' --profile web", "and type what it shows"),),
        formats=NAMELESS,
    ),
    Command(
        "token",
        "a one-time token, with which a new host or service gets its identity",
        "commands.token:token",
        _token,
        more="Each is another one. Needs the role admin, and a broker with `bootstrap`.",
        examples=(
            ("certplanectl token web1", "the token alone, with what it is for on standard error"),
            ("certplanectl token web1 --lifetime 2m -o name", "the token and nothing else, for the next command"),
        ),
    ),
)
