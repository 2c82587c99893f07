"""The arguments of `certplane-agent init`. Nothing is imported that `--help` of another command would wait for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from certplane.agent.init.presets import Service

CLIENTS = ("certbot", "acme.sh", "lego")


class _Profile(argparse.Action):
    """`--profile NAME`, and `--service KIND` of the profile before it."""

    @override
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        chosen: list[tuple[str, str]] = list(namespace.profiles)
        if option_string == "--profile":
            chosen.append((str(values), ""))
        elif not chosen or chosen[-1][1]:
            parser.error("argument --service: stands after a --profile, once: the service that serves its certificate")
        else:
            chosen[-1] = (chosen[-1][0], str(values))
        namespace.profiles = chosen


def add_parser(commands: Any, parents: Sequence[argparse.ArgumentParser]) -> None:
    """Add `init` to the commands of certplane-agent."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "init",
        parents=parents,
        help="set this host up: folders, the internal CA's root, the identity, agent.yml; may be run again",
        description="Sets this host up: makes the folders, fetches the internal CA's root, gets the identity with a "
        "one-time token, and writes agent.yml with the names that the broker's policy has. What is missing is asked "
        "for on a terminal. Run again, it goes on where it stopped, and changes nothing that is there.",
    )
    parser.set_defaults(profiles=[])
    who = parser.add_argument_group("this host")
    who.add_argument("--name", metavar="NAME", help="its identity, as policy.yml has it: web1.example.net")
    who.add_argument("--user", metavar="USER", help="whose agent it is; run by root: certplane-agent")
    who.add_argument(
        "--state-dir", type=Path, default=Path("/var/lib/certplane/agent"), metavar="DIR", help="(%(default)s)"
    )
    ca = parser.add_argument_group("the internal CA and the broker")
    ca.add_argument("--ca-url", metavar="URL", help="step-ca: https://ca.example.net")
    pin = ca.add_mutually_exclusive_group()
    pin.add_argument("--ca-fingerprint", metavar="SHA256", help="of its root; the root itself is fetched")
    pin.add_argument("--ca-bundle", type=Path, metavar="FILE", help="its root, PEM")
    ca.add_argument(
        "--token",
        type=Path,
        metavar="FILE",
        help="the one-time token's file, which is removed once it is used; - for standard input",
    )
    ca.add_argument(
        "--broker",
        action="append",
        metavar="URL",
        help="https://broker.example.net:8443; again for each broker of a fleet",
    )
    ca.add_argument(
        "--broker-ca", type=Path, metavar="FILE", help="what the broker's certificate leads to (the internal CA)"
    )
    what = parser.add_argument_group("its certificates")
    what.add_argument(
        "--profile",
        action=_Profile,
        metavar="NAME",
        help="a certificate of this profile; may be given again; without any, of all that policy gives to this host",
    )
    what.add_argument(
        "--service",
        action=_Profile,
        choices=[*Service],
        help="what serves the certificate of the --profile before it: its files, its reload, where it is looked at",
    )
    what.add_argument(
        "--from",
        dest="take",
        nargs="+",
        metavar=("CLIENT", "FOLDER"),
        help=f"take over the certificates that {', '.join(CLIENTS[:-1])} or {CLIENTS[-1]} keeps here",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    how.add_argument(
        "--replace", action="store_true", help="write over files that differ, and keep them as NAME.before-init"
    )
