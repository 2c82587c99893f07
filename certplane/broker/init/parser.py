"""The arguments of `certplane-broker init` and `renew-certificate`, without what `--help` would wait for."""

# ruff: noqa: PLC0415 - as in `certplane.broker.cli`
from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certplane.broker.init.wanted import DIRECTORIES, SECRET_KEYS


def add_init_commands(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both to the commands of certplane-broker."""
    text = "set this machine up: folders, the broker's certificate, broker.yml, policy.yml; may be run again"
    parser = command(commands, "init", _init, text)
    parser.description = (
        "Sets this machine up: makes the folders, fetches the internal CA's root, gets the broker's own certificate "
        "with a one-time token, writes broker.yml and a policy.yml to fill in, and runs `check`. What is missing is "
        "asked for on a terminal. Run again, it goes on where it stopped, and changes nothing that is there."
    )
    who = parser.add_argument_group("this broker")
    who.add_argument("--name", metavar="NAME", help="its DNS name, which hosts call: broker.example.net")
    who.add_argument("--address", default=":8443", metavar="ADDRESS", help="where it listens (%(default)s)")
    who.add_argument("--user", metavar="USER", help="whose broker it is; run by root: certplane-broker")
    state = Path("/var/lib/certplane")
    who.add_argument("--state-dir", type=Path, default=state, metavar="DIR", help="(%(default)s)")
    who.add_argument(
        "--store", default="", metavar="URL", help="postgresql://user@host:5432/database (SQLite in the state's folder)"
    )
    who.add_argument(
        "--operator",
        action="append",
        default=[],
        metavar="NAME",
        help="an operator's identity, your own say, which gets the role admin in policy.yml; may be given again",
    )
    ca = parser.add_argument_group("the internal CA")
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
        "--provisioner", default="", metavar="NAME", help="a JWK provisioner of the CA, to make tokens for hosts by"
    )
    ca.add_argument(
        "--provisioner-key", type=Path, metavar="FILE", help="its private key, which is copied to the secrets"
    )
    acme = parser.add_argument_group("the public CA and the DNS")
    acme.add_argument("--directory-url", metavar="URL", help=f"of the ACME directory, or {' or '.join(DIRECTORIES)}")
    acme.add_argument("--email", default="", metavar="ADDRESS", help="of the account there")
    acme.add_argument("--acme-ca", type=Path, metavar="FILE", help="what a private ACME server's HTTPS leads to, PEM")
    acme.add_argument("--dns-provider", choices=[*SECRET_KEYS], help="who writes the TXT records")
    acme.add_argument(
        "--dns",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the DNS provider's section: --dns server=192.0.2.53:53 --dns tsig_name=certplane",
    )
    acme.add_argument(
        "--dns-secret", type=Path, metavar="FILE", help="the DNS provider's secret, which is copied to the secrets"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    how.add_argument(
        "--replace", action="store_true", help="write over files that differ, and keep them as NAME.before-init"
    )
    how.add_argument("--offline", action="store_true", help="`check` fetches no CA's directory")

    text = "renew the broker's own certificate at the internal CA, if it is due"
    renewing = command(commands, "renew-certificate", _renew, text)
    renewing.add_argument("--now", action="store_true", help="whether it is due or not")


def _init(options: argparse.Namespace) -> int:
    from certplane.broker.init.command import run

    return run(options, Path(os.path.abspath(options.config)))  # noqa: PTH100 - resolve() would follow links


def _renew(options: argparse.Namespace) -> int:
    from certplane.broker.command_line import print_record, settings_of
    from certplane.broker.init.renewal import renew_certificate
    from certplane.runtime.clock import SystemClock

    done = renew_certificate(settings_of(options), SystemClock(), now=options.now)
    return print_record(options, {"certificate": done})
