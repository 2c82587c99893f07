# ruff: noqa: PLC0415 - each command imports what it needs, so that --help and --version answer at once
"""`certplane-broker`: arguments, output and exit statuses; what it does is `certplane.broker.app`'s.

Everything heavy is imported by the command that needs it, so that `--help` and `--version` answer at once. A user's
mistake is one line with its remedy, never a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from certplane import __version__
from certplane.broker.account_cli import add_account_commands
from certplane.broker.audit_cli import add_audit_commands
from certplane.broker.backup_cli import add_backup_command
from certplane.broker.command_line import (
    DEFAULT_CONFIG,
    print_json,
    print_record,
    print_rows,
    settings_of,
)
from certplane.broker.init.parser import add_init_commands
from certplane.broker.notify_cli import add_notify_commands
from certplane.broker.policy_cli import add_policy_commands
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime import command
from certplane.runtime.command import say, wants_json
from certplane.runtime.logging import escape, setup
from certplane.runtime.text import counted

if TYPE_CHECKING:  # a command loads no more than it needs
    from certplane.broker.model import DenyEntry

_EPILOG: Final = """\
exit statuses:
  0  done (serve: stopped as asked)
  1  failed: the store, a port or another running broker prevents it (preflight: a check has failed; policy test: a
     case has failed; notify test: one has not arrived; store check: the database is damaged;
     audit verify: the log was changed; account persist-records --check: one isn't there)
  2  the configuration, the policy or an argument is wrong; each problem is a line on standard error

With output that isn't a terminal, or with --json, lists are JSON, one object a line.
Signals of `serve`: TERM and INT stop it, HUP reads policy, server certificate and agent CA bundle again; `reload` does
the same, and prints the result.
"""

_ENTRY_COLUMNS: Final = ("name", "issuer", "serial_number", "since", "reason")
_IDENTITY_COLUMNS: Final = ("state", "name", "issuer", "serial_number", "since", "source_ip", "reason")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.main("certplane-broker", arguments, _parser, lambda options: int(options.run(options)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="certplane-broker",
        description="Issues public TLS certificates to enrolled hosts, by policy, over mTLS gRPC.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"certplane-broker {__version__}")
    parser.add_argument(
        "-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"default: {DEFAULT_CONFIG}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    common = argparse.ArgumentParser(add_help=False)
    # Without a default, so that what stands before the command isn't overwritten.
    common.add_argument(
        "-c", "--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help=f"default: {DEFAULT_CONFIG}"
    )
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, one object a line")

    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(to: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = to.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(run=run)
        return made

    def group(name: str, text: str) -> Any:
        made = commands.add_parser(name, help=text, description=text, parents=[common])
        return made.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add_init_commands(commands, command)
    command(commands, "serve", _serve, "run the broker until it is told to stop")
    text = "check the configuration, every file that it names and the CAs' directories; changes nothing"
    checking = command(commands, "check", _check, text)
    checking.add_argument("--offline", action="store_true", help="don't fetch the CAs' directories")

    text = "make the running broker reload its files, and show what it loaded and what it refused"
    reloading = command(commands, "reload", _reload, text)
    reloading.add_argument(
        "--confirm",
        action="store_true",
        help="also take a policy that removes many hosts or grants, and a bundle that shuts out connected hosts",
    )

    looking = command(commands, "preflight", _preflight, "check what the orders of profiles need; changes nothing")
    looking.add_argument("--profile", metavar="NAME", help="only this profile of the policy; default: all of them")

    add_backup_command(commands, command)
    add_policy_commands(group, command)
    add_notify_commands(group, command)
    add_account_commands(group, command)
    _add_certificates(group, command)

    add_audit_commands(group, command, _positive)

    store = group("store", "check the database, or copy it into another one")
    text = "read the database from end to end and show what is damaged; changes nothing, and the broker may run"
    reading = command(store, "check", _check_store, text)
    reading.add_argument("--full", action="store_true", help="also compare indexes with their tables; takes longer")
    text = (
        "copy every row into the empty database of another configuration: from SQLite to PostgreSQL, or back. Both "
        "brokers must be stopped. If interrupted, the target is empty as before."
    )
    copying = command(store, "copy", _copy_store, text)
    copying.add_argument(
        "--to", type=Path, required=True, metavar="CONFIG", help="the broker.yml whose `store` is the target"
    )

    identity = group("identity", "deny identities, or allow them again")
    deny = command(
        identity, "deny", _deny, "deny an identity, or one of its certificates; takes effect within a second"
    )
    _add_identity(deny)
    deny.add_argument("--reason", default="", metavar="TEXT", help="the reason; stored and audited")
    text = "undo `identity deny` for the same identity, or settle a contested one"
    _add_identity(command(identity, "allow", _allow, text))
    identities = command(identity, "list", _list_identities, "list denied and contested identities")
    identities.add_argument("--all", action="store_true", help="also list the identity certificate that each host uses")
    return parser


def _add_certificates(group: Callable[[str, str], Any], command: Callable[..., argparse.ArgumentParser]) -> None:
    certificates = group("certs", "list, show or revoke certificates")
    listing = command(certificates, "list", _list_certificates, "list the newest certificates")
    listing.add_argument(
        "--limit", type=_positive, default=50, metavar="N", help="number of certificates (default: 50)"
    )

    text = "show a certificate; with --pem or --chain in PEM, for a file"
    showing = command(certificates, "show", _show_certificate, text)
    showing.add_argument("certificate_id", metavar="ID", help="its certificate_id, as `certs list` shows it")
    form = showing.add_mutually_exclusive_group()
    form.add_argument("--pem", action="store_true", help="the certificate alone, PEM")
    form.add_argument("--chain", action="store_true", help="the certificate and its issuers, PEM, leaf first")

    text = "revoke a certificate at the CA, with the account's key or its own. If interrupted, run again to finish."
    revoke = command(certificates, "revoke", _revoke_certificate, text)
    revoke.add_argument("certificate_id", metavar="ID", help="its certificate_id, as `certs list` shows it")
    revoke.add_argument(
        "--reason",
        default="",
        metavar="REASON",
        help="unspecified, keyCompromise, affiliationChanged, superseded or cessationOfOperation"
        " (default: unspecified, with --key: keyCompromise)",
    )
    revoke.add_argument(
        "--key", type=Path, metavar="FILE", help="the certificate's own private key, PEM; - is standard input"
    )


def _add_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="", help="the identity: a DNS name or a URI, as in the policy")
    parser.add_argument("--issuer", default="", metavar="DN", help="a certificate's issuer (RFC 4514), with --serial")
    parser.add_argument("--serial", default="", metavar="HEX", help="a certificate's serial number, hexadecimal")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 100000, not {text[:20]!r}")
    return int(text)


def _serve(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    setup(settings.logging.level, settings.logging.format, settings.logging.destination)
    from certplane.broker.serving import serve
    from certplane.rpc.otlp import traced
    from certplane.runtime.lookups import service_loop

    with traced(settings.tracing.collector, "certplane-broker"), asyncio.Runner(loop_factory=service_loop()) as runner:
        runner.run(serve(settings))
    return 0


def _check(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    from certplane.broker.checking import check
    from certplane.broker.trust_checks import trust_fields

    prepared, doubts = asyncio.run(check(settings, offline=options.offline))
    for notice in (*settings.notices, *doubts):
        say(notice)
    row = {
        "configuration": str(options.config),
        "configuration_hash": settings.hash,
        "policy_hash": prepared.policy.current.hash,
        **trust_fields(prepared.trust),
    }
    return print_record(options, row)


def _check_store(options: argparse.Namespace) -> int:
    from certplane.broker import store_commands

    # SQLite reads in one piece, in which Python hears no signal; a command that only reads may end anywhere.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    rows = asyncio.run(store_commands.check_store(settings_of(options), full=options.full))
    print_rows(options, rows, store_commands.COLUMNS)
    if store_commands.damaged(rows):
        say(f"certplane-broker: the database is damaged: {store_commands.REMEDY}")
        return 1
    return 0


def _copy_store(options: argparse.Namespace) -> int:
    from certplane.broker import copy_command
    from certplane.broker.settings import load_settings

    source = asyncio.run(copy_command.place(settings_of(options)))
    target = asyncio.run(copy_command.place(load_settings(options.to)))
    rows = copy_command.copy_store(source, target, lambda line: say(f"certplane-broker: {line}"))
    return print_rows(options, rows, copy_command.COLUMNS)


def _reload(options: argparse.Namespace) -> int:
    from certplane.broker.control import control_socket, request_reload
    from certplane.broker.surroundings import state_folder_of

    try:
        folder = settings_of(options).spill_path.parent
    except ConfigurationError:
        # The running broker says what it refuses of the file, and takes everything else, such as a renewed certificate.
        found = state_folder_of(options.config)
        if found is None or not os.path.lexists(control_socket(found, options.config)):
            raise
        folder = found
    result = asyncio.run(request_reload(control_socket(folder, options.config), confirm=options.confirm))
    if wants_json(options):
        print_json([{"ok": result.ok, "lines": result.lines}])
    elif result.ok:
        for line in result.lines:
            print(escape(line))
    if not result.ok:
        for line in result.lines:
            say(line)
    return 0 if result.ok else 1


def _preflight(options: argparse.Namespace) -> int:
    from certplane.broker import preflight

    checks = asyncio.run(preflight.preflight(settings_of(options), options.profile))
    print_rows(options, preflight.rows(checks), preflight.COLUMNS)
    return 1 if preflight.failed(checks) else 0


def _list_certificates(options: argparse.Namespace) -> int:
    from certplane.broker.commands import newest_certificates

    rows, more = asyncio.run(newest_certificates(settings_of(options), options.limit))
    columns = ("certificate_id", "identity", "state", "not_after", "dns_names", "profile", "renew", "serial_number")
    print_rows(options, rows, columns, cut=("identity", "dns_names"))
    if more:
        print(f"the newest {counted(len(rows), 'certificate')}; --limit N shows more", file=sys.stderr)
    return 0


def _show_certificate(options: argparse.Namespace) -> int:
    from certplane.broker.commands import certificate_of

    record, row = asyncio.run(certificate_of(settings_of(options), options.certificate_id))
    pem = record.certificate_pem + (record.chain_pem if options.chain else "")
    if options.pem or options.chain:
        sys.stdout.write(pem)
        return 0
    if wants_json(options):
        row |= {"certificate_pem": record.certificate_pem, "chain_pem": record.chain_pem}
    return print_record(options, row)


def _revoke_certificate(options: argparse.Namespace) -> int:
    from certplane.broker.account_commands import RevocationCommand, revoke_certificate
    from certplane.broker.model import RevocationReason

    text = options.reason or ("unspecified" if options.key is None else "keyCompromise")
    if text not in set(RevocationReason):
        wanted = f"is {text[:40]!a}, must be one of {', '.join(RevocationReason)}"
        raise ConfigurationError([ConfigurationProblem("certplane-broker", None, "--reason", wanted)])
    revocation = RevocationCommand(options.certificate_id, RevocationReason(text), options.key)
    rows, was_revoked = asyncio.run(revoke_certificate(settings_of(options), revocation))
    if was_revoked:
        say("certplane-broker: it had been revoked before; its time and reason stay as they are")
    if rows[1:]:
        say("certplane-broker: the key is compromised, so that its other certificates are revoked too")
    return print_rows(options, rows, ("certificate_id", "identity", "profile", "serial_number", "revoked", "state"))


def _deny(options: argparse.Namespace) -> int:
    from certplane.broker.identity_commands import deny_identity, is_stranger, known_issuer

    settings, entry = settings_of(options), _identity_entry(options)
    entry, others = asyncio.run(known_issuer(settings, entry))
    row = asyncio.run(deny_identity(settings, entry))
    if others:
        notice = f"denied, but no certificate in use and no CA of the bundle has the issuer {entry.issuer}"
        say(f"certplane-broker: {notice}: the entry may match nobody; known issuers: {'; '.join(others)}")
    if entry.name and is_stranger(settings, entry.name):
        notice = f"denied, but the policy knows no identity {entry.name}: check that it is the one you mean"
        say(f"certplane-broker: {notice}")
    if valid := row["valid_certificates"]:
        notice = f"its certificates stay valid until they are revoked: {' '.join(valid)}"
        say(f"certplane-broker: {notice}; `certplane-broker certs revoke ID --reason keyCompromise`")
    if orders := row["orders_at_the_ca"]:
        notice = f"the CA may issue for orders that it has already: {' '.join(orders)}"
        remedy = "the broker hands such a certificate to nobody; revoke it once `certplane-broker certs list` shows it"
        say(f"certplane-broker: {notice}; {remedy}")
    return print_rows(options, [row], _ENTRY_COLUMNS)


def _allow(options: argparse.Namespace) -> int:
    from certplane.broker.identity_commands import allow_identity, known_issuer

    settings = settings_of(options)
    entry, _ = asyncio.run(known_issuer(settings, _identity_entry(options), listed=True))
    row = asyncio.run(allow_identity(settings, entry))
    return print_rows(options, [row], (*_ENTRY_COLUMNS[:3], "result"))


def _list_identities(options: argparse.Namespace) -> int:
    from certplane.broker.identity_commands import listed_identities

    rows = asyncio.run(listed_identities(settings_of(options), everything=options.all))
    columns = (*_IDENTITY_COLUMNS, "displaced_streams") if options.all else _IDENTITY_COLUMNS
    status = print_rows(options, rows, columns)
    if not wants_json(options):
        for row in rows:
            if "remedy" in row:
                print(f"\n{escape(row['state'])}: {escape(row['remedy'])}")
    return status


def _identity_entry(options: argparse.Namespace) -> DenyEntry:
    from certplane.broker.identity_commands import identity_entry

    try:
        return identity_entry(
            name=options.name,
            issuer=options.issuer,
            serial_number=options.serial,
            reason=getattr(options, "reason", ""),
        )
    except ValueError as error:
        raise ConfigurationError([ConfigurationProblem("certplane-broker", None, "identity", str(error))]) from error


if __name__ == "__main__":
    sys.exit(main())
