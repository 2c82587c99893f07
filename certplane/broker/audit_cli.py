# ruff: noqa: PLC0415 - a command loads no more than it needs
"""`certplane-broker audit`: what may be typed, and what is printed."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from certplane.broker.command_line import print_documents, print_json, print_record, print_rows, settings_of
from certplane.runtime.command import say, wants_json

_TAIL_COLUMNS: Final = (
    "timestamp", "event_type", "identity", "reason_code", "csr_dns_names", "reason", "profile_name", "request_id",
)  # fmt: skip
_TAIL_CUT: Final = ("identity", "csr_dns_names", "reason")
_FINDING_COLUMNS: Final = ("kind", "sequence", "event_id", "text")


def add_audit_commands(
    group: Callable[[str, str], Any],
    command: Callable[..., argparse.ArgumentParser],
    positive: Callable[[str], int],
) -> None:
    """The group `audit`."""
    audit = group("audit", "show the audit log, prove that it is whole, and export it")
    tail = command(audit, "tail", _tail, "show the last audit events, oldest first")
    tail.add_argument("--limit", type=positive, default=20, metavar="N", help="number of events (default: 20)")
    for option, metavar, text in (
        ("identity", "NAME", "of this identity, by its name"),
        ("name", "DNS-NAME", "with this name among those asked for"),
        ("serial", "SERIAL", "about this serial number"),
        ("type", "TYPE", "of this event_type"),
        ("error", "CODE", "with this reason_code"),
        ("id", "ID", "of this request, order, certificate, event, or request for renewals"),
        ("profile", "NAME", "of this profile"),
    ):
        more = f"{text}; several may be given"
        tail.add_argument(f"--{option}", action="append", default=[], metavar=metavar, help=more)
    tail.add_argument("--severity", choices=("info", "warning", "error"), default="info", help="at least so bad")
    tail.add_argument("--follow", action="store_true", help="then show each new event, until interrupted")
    text = "find what was changed in the audit log of the database, or in an exported one; status 1 if something was"
    verify = command(audit, "verify", _verify, text)
    verify.add_argument("file", nargs="?", type=Path, metavar="FILE", help="as `audit export` wrote it")
    verify.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="KEY",
        help="trust this public key, and not the configuration's; several may be given",
    )
    export = command(audit, "export", _export, "write the audit log with its chains and checkpoints, a line each")
    for parser in (tail, export):
        parser.add_argument("--since", metavar="TIME", help="from then on: 7d, 2026-01-02 or 2026-01-02T03:04:05Z")
        parser.add_argument("--until", metavar="TIME", help="before then")
    command(audit, "keys", _keys, "show the public keys that are trusted to have signed checkpoints")


def _tail(options: argparse.Namespace) -> int:
    from certplane.broker import audit_commands

    wanted = audit_commands.filter_of(options)
    settings = settings_of(options)
    if options.follow:
        asyncio.run(
            audit_commands.follow(
                settings, wanted, options.limit, lambda rows: print_documents(options, rows, _TAIL_COLUMNS, _TAIL_CUT)
            )
        )
        return 0
    rows, more = asyncio.run(audit_commands.last_events(settings, wanted, options.limit))
    status = print_documents(options, rows, _TAIL_COLUMNS, _TAIL_CUT)
    if more:
        say(f"certplane-broker: there are earlier events that match; --limit {10 * options.limit} shows more")
    return status


def _verify(options: argparse.Namespace) -> int:
    from certplane.broker import audit_commands

    if options.file is None:
        found, result = asyncio.run(audit_commands.verify_store(settings_of(options), options.key, say))
    elif options.key:
        found, result = audit_commands.verify_file(options.file, options.key)
    else:
        keys = asyncio.run(audit_commands.public_keys(settings_of(options)))
        found, result = audit_commands.verify_file(options.file, [each["public_key"] for each in keys])
    if wants_json(options):
        print_json([*found, result])
    else:
        if found:
            print_rows(options, found, _FINDING_COLUMNS)
        print_record(options, result)
    return 0 if result["result"] == "whole" else 1


def _export(options: argparse.Namespace) -> int:
    from certplane.broker import audit_commands

    def write(line: str) -> None:
        sys.stdout.write(f"{line}\n")

    asyncio.run(audit_commands.export_store(settings_of(options), audit_commands.filter_of(options), write))
    sys.stdout.flush()
    return 0


def _keys(options: argparse.Namespace) -> int:
    from certplane.broker import audit_commands

    rows = asyncio.run(audit_commands.public_keys(settings_of(options)))
    return print_rows(options, rows, ("key_id", "public_key", "use"))
