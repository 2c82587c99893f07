# ruff: noqa: PLC0415 - each command imports what it needs, so that --help answers at once
"""`certplane-broker policy ...`: policy files by themselves, without a broker, as a repository's CI has them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certplane.broker.command_line import DEFAULT_CONFIG, print_json, print_table, settings_of
from certplane.config.files import is_input
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.command import say, wants_json
from certplane.runtime.logging import escape
from certplane.runtime.text import counted

if TYPE_CHECKING:
    from certplane.broker.settings import BrokerSettings


def add_policy_commands(group: Callable[[str, str], Any], command: Callable[..., argparse.ArgumentParser]) -> None:
    """The group `policy`."""
    policy = group("policy", "validate, test and compare policy files")
    text = "check a policy file, and show which identity may have which profiles"
    validate = command(policy, "validate", _validate, text)
    text = "ask a policy the cases of a file: who may have what, and who may not; status 1 if it answers otherwise"
    test = command(policy, "test", _test, text)
    test.add_argument("cases", type=Path, metavar="FILE", help="the file of cases; - is standard input")
    for each in (validate, test):
        each.add_argument(
            "--policy", type=Path, required=True, metavar="FILE", help="the policy file; - is standard input"
        )
    text = "show what a policy gives and takes that another doesn't, and which certificates are issued again"
    diff = command(policy, "diff", _diff, text)
    diff.add_argument("old", type=Path, metavar="OLD", help="the policy file before; - is standard input")
    diff.add_argument("new", type=Path, metavar="NEW", help="the policy file after; - is standard input")


def _validate(options: argparse.Namespace) -> int:
    from certplane.broker.commands import policy_rows

    settings = _broker_settings(options)
    private, budgets = (None, {}) if settings is None else (settings.private_issuers, settings.budgets)
    found = policy_rows(options.policy, private, budgets)
    for notice in found["notices"]:
        say(f"{options.policy}: {notice}")
    if wants_json(options):
        print_json([found])
        return 0
    print(f"{escape(str(options.policy))} is valid, hash {found['policy_hash']}\n")
    print_table(found["profiles"], ("profile", "type", "dns_names"))
    print()
    labelled = any(each["labels"] for each in found["identities"])
    columns = ("identity", "kind", "label", "profiles", "roles", *(["labels"] if labelled else []))
    print_table(found["identities"], columns)
    return 0


def _test(options: argparse.Namespace) -> int:
    from certplane.broker import policy_commands

    _check_inputs(options.cases, options.policy)
    rows = policy_commands.test_policy(options.cases, options.policy, _private_issuers(options))
    if wants_json(options):
        print_json(rows)
    else:
        print_table(rows, policy_commands.CASE_COLUMNS)
    failures = policy_commands.failures(rows)
    for line in failures:
        say(line)
    say(f"certplane-broker: {len(failures)} of {counted(len(rows), 'case')} failed")
    return 1 if failures else 0


def _diff(options: argparse.Namespace) -> int:
    from certplane.broker import policy_commands

    _check_inputs(options.old, options.new)
    found = policy_commands.diff_policies(options.old, options.new, _private_issuers(options))
    if wants_json(options):
        print_json([found])
        return 0
    if found["changes"]:
        print_table(found["changes"], policy_commands.CHANGE_COLUMNS)
        print()
    print_table(found["counts"], policy_commands.COUNT_COLUMNS)
    return 0


def _check_inputs(*files: Path) -> None:
    """One file only may be standard input."""
    if sum(map(is_input, files)) > 1:
        problem = ConfigurationProblem(
            "certplane-broker", None, "-", "is named twice; standard input has one file", "name the other one's path"
        )
        raise ConfigurationError([problem])


def _private_issuers(options: argparse.Namespace) -> frozenset[str] | None:
    """The private CAs, None where no broker.yml says which they are."""
    settings = _broker_settings(options)
    return None if settings is None else settings.private_issuers


def _broker_settings(options: argparse.Namespace) -> BrokerSettings | None:
    """The broker.yml that was named, or that is here; None where there is none that can be read."""
    if options.config != DEFAULT_CONFIG:
        return settings_of(options)
    try:
        return settings_of(options)
    except ConfigurationError:
        return None
