# ruff: noqa: PLC0415 - a command loads no more than it needs
"""`certplane-broker account`: what may be typed, and what is printed."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certplane.broker.command_line import print_record, print_rows, settings_of
from certplane.runtime.command import say


def add_account_commands(group: Callable[[str, str], Any], command: Callable[..., argparse.ArgumentParser]) -> None:
    """The group `account`."""
    text = "show the account at the public CA, change or move its key, and print the records that name it"
    account = group("account", text)
    show = command(account, "show", _show_account, "show the account as the CA knows it, and what the CA offers")
    text = (
        "give the account a new key (RFC 8555 7.3.5). Running brokers pick it up. If interrupted, run again to finish."
    )
    rollover = command(account, "rollover", _change_account_key, text)
    text = "take the account's key from a PEM file into the database, sealed (`account_key: {store: true}`)"
    importing = command(account, "import", _import_account_key, text)
    importing.add_argument("file", type=Path, metavar="FILE", help="the key's file; - is standard input")
    text = "put the account's key from the database into a new file, 0600, unsealed"
    exporting = command(account, "export", _export_account_key, text)
    exporting.add_argument("file", type=Path, metavar="FILE", help="the new file")
    text = "seal the keys in the database anew, with the first key of the secret of `store.seal_secret`"
    command(account, "reseal", _reseal_account_keys, text)
    text = (
        "print the TXT records by which the owners of a profile's names let the account have certificates for them "
        "(dns-persist-01), or look whether they are there. Makes the account if the CA has none for the key yet."
    )
    records = command(account, "persist-records", _persist_records, text)
    records.add_argument("--profile", metavar="NAME", help="only this profile of the policy; default: all of them")
    records.add_argument("--check", action="store_true", help="look for them at every authoritative server")
    records.add_argument("--until", metavar="TIME", help="when they end: 2027-01-02 or 2027-01-02T03:04:05Z")
    records.add_argument("--issuer", default="", metavar="NAME", help="only those for this issuer; default: all")
    for each in (show, rollover, importing, exporting):
        each.add_argument("--issuer", default="", metavar="NAME", help="one of `issuers` (default: `issuer`)")


def _show_account(options: argparse.Namespace) -> int:
    from certplane.broker.account_commands import account_row

    return print_record(options, asyncio.run(account_row(settings_of(options), options.issuer)))


def _change_account_key(options: argparse.Namespace) -> int:
    from certplane.broker.account_commands import change_account_key

    row, notice = asyncio.run(change_account_key(settings_of(options), options.issuer))
    _warn(notice)
    return print_record(options, row)


def _import_account_key(options: argparse.Namespace) -> int:
    from certplane.broker.account_key_commands import import_account_key

    row, notice = asyncio.run(import_account_key(settings_of(options), options.file, options.issuer))
    _warn(notice)
    return print_record(options, row)


def _export_account_key(options: argparse.Namespace) -> int:
    from certplane.broker.account_key_commands import export_account_key

    return print_record(options, asyncio.run(export_account_key(settings_of(options), options.file, options.issuer)))


def _reseal_account_keys(options: argparse.Namespace) -> int:
    from certplane.broker.account_key_commands import RESEAL_COLUMNS, reseal_account_keys

    return print_rows(options, asyncio.run(reseal_account_keys(settings_of(options))), RESEAL_COLUMNS)


def _persist_records(options: argparse.Namespace) -> int:
    from certplane.broker import standing_commands

    until = standing_commands.end_of_records(options.until)
    wanted = standing_commands.Wanted(options.profile, options.issuer, until)
    settings = settings_of(options)
    if not options.check:
        rows = asyncio.run(standing_commands.records(settings, wanted))
        return print_rows(options, rows, standing_commands.COLUMNS)
    rows = asyncio.run(standing_commands.checked(settings, wanted))
    print_rows(options, rows, standing_commands.CHECK_COLUMNS)
    return 1 if standing_commands.failed(rows) else 0


def _warn(notice: str) -> None:
    if notice:
        say(f"certplane-broker: {notice}")
