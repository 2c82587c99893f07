"""The command line of certplanectl: reads it, finds the context, runs the command (`arguments`, `commands`).

Errors are one line each on standard error, cause and remedy, never a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from certplane import __version__
from certplane.ctl.arguments import broker, budget, fleet, machines, rollouts
from certplane.ctl.arguments.command import MESSAGES, Command, add_output
from certplane.ctl.formats import Format
from certplane.runtime import command
from certplane.runtime.command import interruptible
from certplane.runtime.logging import LineHandler

COMMANDS: Final = (
    *fleet.COMMANDS,
    *machines.COMMANDS,
    *rollouts.COMMANDS,
    *budget.COMMANDS,
    *broker.COMMANDS,
)
"""All of them, in the order of the help."""

_GROUPS: Final = {**machines.GROUPS, **rollouts.GROUPS, **budget.GROUPS, **broker.GROUPS}

_EPILOG: Final = """\
exit statuses:
  0  done; nothing that was asked about is wrong
  1  failed, or refused, or nothing matched a selection to change; --check has found what needs a person, `brokers` what
     differs, `health` who doesn't serve, `audit verify` what doesn't hold, --wait a certificate that failed or a
     rollout that halted
  2  ctl.yml or an argument is wrong; each problem is a line on standard error
  3  `host add`, `host retire`: the policy has to be changed first, as it is shown
128+ a signal ended it: 130 for Ctrl-C, 141 for a reader that has gone

Colours only repeat what words say; there are none with NO_COLOR, with TERM=dumb, or where no terminal reads.
"""


class _Names(Mapping[str, argparse.ArgumentParser]):
    """The commands of a group by their names; of those that may be typed there, any word is one."""

    def __init__(self, commands: Mapping[str, argparse.ArgumentParser]) -> None:
        self._commands = commands

    def __getitem__(self, name: str) -> argparse.ArgumentParser:
        return self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)

    @override
    def __contains__(self, name: object) -> bool:
        return True


class _NameOrCommand(argparse._SubParsersAction):  # type: ignore[type-arg]  # noqa: SLF001 - argparse has no other way
    """The commands of a group, where a word that is none of them is a name for one of them (`machines.NAMED`)."""

    otherwise = ""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.choices: Any = _Names(self._name_parser_map)

    @override
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        words = list(values or ())
        if words[0] not in self._name_parser_map:
            words.insert(0, self.otherwise)
        super().__call__(parser, namespace, words, option_string)


class _Help(argparse.HelpFormatter):
    """Texts with lines of their own stay as they are; others are wrapped."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # Not even gRPC's errors: `Connection` says the same with a remedy.
    return command.main(
        "certplanectl", arguments, _parser, lambda options: asyncio.run(_run(options)), grpc_verbosity="NONE"
    )


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-c",
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="ctl.yml ($CERTPLANECTL_CONFIG, ~/.config/certplane/ctl.yml, /etc/certplane/ctl.yml)",
    )
    common.add_argument(
        "--context",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="the fleet, of the contexts in ctl.yml ($CERTPLANECTL_CONTEXT, `certplanectl context use`)",
    )
    parser = argparse.ArgumentParser(
        prog="certplanectl",
        description="Shows the hosts, certificates, orders and audit log of a fleet, renews and revokes certificates, "
        "one by one or in rollouts, and looks after policy and brokers.",
        epilog=_EPILOG,
        formatter_class=_Help,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"certplanectl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    groups: dict[str, Any] = {}
    for each in COMMANDS:
        group, _, name = each.name.rpartition(" ")
        if group and group not in groups:
            text = _GROUPS[group]
            description = f"{_sentence(text)[:-1]}; {broker.OWN_POLICY}." if group == "policy" else _sentence(text)
            groups[group] = _add_group(commands, group, text, description, common)
        made = _add(groups[group] if group else commands, name, each, common)
        if each.name in _GROUPS:  # a command by itself too
            groups[each.name] = made.add_subparsers(dest="action", metavar="COMMAND")
    return parser


def _add_group(commands: Any, group: str, text: str, description: str, common: argparse.ArgumentParser) -> Any:
    """The group of this name, to which its commands are added."""
    otherwise = machines.NAMED.get(group)
    if otherwise is None:
        made = commands.add_parser(group, help=text, description=description)
        return made.add_subparsers(dest="action", metavar="COMMAND", required=True)
    # As before it was a group, options may stand before the name.
    made = commands.add_parser(group, help=text, description=description, parents=[common])
    add_output(made, MESSAGES)
    below = made.add_subparsers(dest="action", metavar="NAME|COMMAND", required=True, action=_NameOrCommand)
    below.otherwise = otherwise
    return below


def _add(to: Any, name: str, each: Command, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = to.add_parser(
        name,
        help=each.help,
        description=" ".join(filter(None, (_sentence(each.help), each.more))),
        epilog=_examples(each),
        formatter_class=_Help,
        parents=[common],
    )
    add_output(made, each.formats)
    each.add(made)
    made.set_defaults(run=each)
    return made


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _examples(each: Command) -> str | None:
    examples = "\n".join(["examples:", *(f"  {line}\n      {what}" for line, what in each.examples)])
    return "\n\n".join(filter(None, (examples if each.examples else "", each.footer))) or None


async def _run(options: argparse.Namespace) -> int:
    # What a command needs is imported when it runs: `--help` needs no gRPC.
    from certplane.ctl.output import Output  # noqa: PLC0415
    from certplane.ctl.session import Session  # noqa: PLC0415
    from certplane.ctl.settings import find_settings, load_settings  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="certplanectl: %(message)s", handlers=[LineHandler(sys.stderr)])
    config = getattr(options, "config", None)
    settings = load_settings(config or find_settings())
    wanted = getattr(options, "output", None)
    out = Output(sys.stdout, None if wanted is None else Format(wanted))
    session = Session(settings, out, getattr(options, "context", None), config)
    return await interruptible(function_of(options.run)(options, session))


def function_of(each: Command) -> Any:
    """What runs a command: `async def run(options, session) -> int`, the exit status."""
    module, _, name = each.run.partition(":")
    return getattr(importlib.import_module(f"certplane.ctl.{module}"), name)
