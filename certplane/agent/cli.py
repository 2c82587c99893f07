"""The command line of certplane-agent.

Exit status: 0 when all is well, 1 when something failed, 2 when the configuration or the command line is wrong. Errors
are one line each on standard error, cause and remedy, never a traceback; results go to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from certplane import __version__
from certplane.agent.init import parser as init
from certplane.errors import CertplaneError, ConfigurationError, OperationError
from certplane.runtime import command
from certplane.runtime.command import FAILED, OK, interruptible

if TYPE_CHECKING:  # a command loads no more than it needs
    from certplane.agent.control import Outcome
    from certplane.agent.host import Host
    from certplane.agent.inspection import Finding
    from certplane.agent.settings import AgentSettings
    from certplane.config.values import LogLevel
    from certplane.runtime.progress import Progress

_DEFAULT_CONFIG = Path("/etc/certplane/agent.yml")

_SHOWN_LOGGERS = ("certplane.agent.lineage_runner", "certplane.agent.install.activation")
"""Their lines say what the display of a command says too."""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return command.main("certplane-agent", arguments, _parser, _command)


def _command(options: argparse.Namespace) -> int:
    # The parts of a command are imported when it runs: `status` needs no gRPC, `--help` nothing at all.
    from certplane.agent.settings import load_settings  # noqa: PLC0415

    if options.command == "init":  # there is no agent.yml yet
        from certplane.agent.init.command import run  # noqa: PLC0415

        return run(options, _config(options))
    try:
        settings = load_settings(_config(options))
    except ConfigurationError:
        if options.command == "reload":
            print("certplane-agent: an agent that runs keeps the agent.yml that it has:", file=sys.stderr)
        raise
    if settings.tracing.endpoint is None or options.command not in {"run", "renew", "activate"}:
        return asyncio.run(_run(options, settings))
    from certplane.rpc.otlp import traced  # noqa: PLC0415

    with traced(settings.tracing.collector, "certplane-agent"):
        return asyncio.run(_run(options, settings))


def _config(options: argparse.Namespace) -> Path:
    return getattr(options, "config", None) or _DEFAULT_CONFIG


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-c", "--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help=f"agent.yml ({_DEFAULT_CONFIG})"
    )
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="machine-readable output, one JSON object a line")
    parser = argparse.ArgumentParser(
        prog="certplane-agent", description="Gets and renews this host's certificates.", parents=[common]
    )
    parser.add_argument("--version", action="version", version=f"certplane-agent {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    init.add_parser(commands, [common])
    enroll = commands.add_parser(
        "enroll", parents=[common, output], help="get this host's identity from the internal CA with a one-time token"
    )
    enroll.add_argument(
        "--force", action="store_true", help="replace the identity; the old one stays until the new one is in place"
    )
    run = commands.add_parser("run", parents=[common, output], help="keep the identity and all certificates renewed")
    run.add_argument(
        "--once", action="store_true", help="do what is due, then exit: status 0 if all is well, 1 if something failed"
    )
    commands.add_parser(
        "check", parents=[common, output], help="check that everything needed for renewal is in place; changes nothing"
    )
    status = commands.add_parser(
        "status", parents=[common], help="show this host's certificates and when they are renewed"
    )
    status.add_argument("--json", action="store_true", help="one JSON object")
    renew = commands.add_parser("renew", parents=[common, output], help="renew one certificate, or the identity, now")
    renew.add_argument("name", metavar="NAME", help="the certificate's name in agent.yml; `identity` is the host's own")
    activate = commands.add_parser(
        "activate",
        parents=[common, output],
        help="use a certificate that is here now, whatever holds it back: a rollout, or its window",
    )
    activate.add_argument("name", metavar="NAME", help="the certificate's name in agent.yml")
    commands.add_parser(
        "reload",
        parents=[common, output],
        help="have the running agent take agent.yml as it is now; status 1 or 2, and the one before stays, if it can't",
    )
    return parser


async def _run(options: argparse.Namespace, settings: AgentSettings) -> int:
    from certplane.agent.host import Host  # noqa: PLC0415 - as in `main`

    host = Host(settings)
    try:
        if options.command == "run" and not options.once:
            return await _daemon(host, _config(options))
        with _display(options, settings, host) as progress:
            work = _COMMANDS[options.command](options, host, progress)
            return await interruptible(work)
    finally:
        host.close()


async def _daemon(host: Host, config: Path) -> int:
    from certplane.agent.daemon import Daemon  # noqa: PLC0415 - as in `main`
    from certplane.agent.host import Host  # noqa: PLC0415
    from certplane.agent.settings import load_settings  # noqa: PLC0415
    from certplane.runtime.notify import ServiceNotifier  # noqa: PLC0415

    _log(host.settings, host.settings.logging.level)
    logger.info("certplane-agent %s starts", __version__, extra={"fields": {"configuration_hash": host.settings.hash}})
    daemon = Daemon(
        host,
        lambda: Host(load_settings(config)),
        taken=lambda settings: _log(settings, settings.logging.level),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    reloads: set[asyncio.Task[Outcome]] = set()

    def reload() -> None:  # its outcome is in the log
        reloads.add(task := loop.create_task(daemon.reload(), name="reload"))
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    host.check_owner("run")
    with host.lock():
        async with ServiceNotifier(host.clock) as notifier:
            await daemon.run(notifier)
    return OK


async def _run_once(_: argparse.Namespace, host: Host, progress: Progress) -> int:
    from certplane.agent.app import Agent  # noqa: PLC0415 - as in `main`
    from certplane.agent.renewal.status import is_well  # noqa: PLC0415 - as in `main`

    host.check_owner("run --once")
    with host.lock():
        agent = Agent(host, progress)
        try:
            statuses = await agent.run_once()
        finally:
            await agent.close()
    return OK if all(is_well(status) for status in statuses.values()) else FAILED


async def _enroll(options: argparse.Namespace, host: Host, progress: Progress) -> int:
    host.check_owner("enroll --force" if options.force else "enroll")
    with host.lock():
        await host.enroll(progress, force=options.force)
    return OK


async def _act(options: argparse.Namespace, host: Host, progress: Progress) -> int:
    """`renew` and `activate`: by the agent that runs, else here."""
    from certplane.agent.control import ask  # noqa: PLC0415 - as in `main`
    from certplane.agent.install.lock import StateLockedError  # noqa: PLC0415

    names = [*host.certificates, *([host.identity.name] if options.command == "renew" else [])]
    if options.name not in names:
        message = f"has no certificate named {options.name!r}"
        remedy = f"use one of: {', '.join(names)}"
        raise ConfigurationError([host.settings.source.problem("certificates", message, remedy)])
    request = {"command": options.command, "name": options.name}
    outcome = await ask(host.state_dir, request, progress)
    if outcome is None:
        host.check_owner(f"{options.command} {options.name}")
        try:
            outcome = await _act_here(options, host, progress)
        except StateLockedError:
            outcome = await ask(host.state_dir, request, progress)
            if outcome is None:  # not an agent that runs, but another command, or one that is only starting
                raise
    text = outcome.text or "not done; `certplane-agent status` and the agent's log say why"
    if outcome.ok:
        progress.done(options.name, text)
    else:
        progress.failed(options.name, text)
    return OK if outcome.ok else FAILED


async def _reload(options: argparse.Namespace, host: Host, progress: Progress) -> int:
    from certplane.agent.control import ask  # noqa: PLC0415 - as in `main`

    outcome = await ask(host.state_dir, {"command": "reload"}, progress)
    if outcome is None:
        raise OperationError(
            f"no agent of this agent.yml runs in {host.state_dir}",
            remedy="start it; where `state_dir` has changed, restart it; `run --once` reads agent.yml each time",
        )
    (progress.done if outcome.ok else progress.failed)(_config(options).name, outcome.text)
    return OK if outcome.ok else FAILED


async def _act_here(options: argparse.Namespace, host: Host, progress: Progress) -> Outcome:
    from certplane.agent.app import Agent  # noqa: PLC0415 - as in `main`

    with host.lock():
        agent = Agent(host, progress)
        try:
            return await agent.by_hand(options.command, options.name)
        finally:
            await agent.close()


async def _check(options: argparse.Namespace, host: Host, _: Progress) -> int:
    from certplane.agent.check import findings  # noqa: PLC0415 - as in `main`
    from certplane.agent.inspection import act_as_owner  # noqa: PLC0415
    from certplane.runtime.dialect import json_line  # noqa: PLC0415

    async def all_findings() -> AsyncIterator[Finding]:
        if (about_user := act_as_owner(host)) is not None:
            yield about_user
        async for finding in findings(host):
            yield finding

    well = True
    async for finding in all_findings():
        well = well and finding.ok
        if options.json:
            health = "" if finding.health is None else f"HEALTH_{finding.health.value}"
            level, text = finding.level.value.lower(), finding.text
            members = {"subject": finding.subject, "ok": finding.ok, "level": level, "health": health, "text": text}
            print(json_line(members), flush=True)
        else:
            print(f"{finding.level:4}  {finding.subject}: {finding.text}", flush=True)
    return OK if well else FAILED


async def _status(options: argparse.Namespace, host: Host, progress: Progress) -> int:
    from certplane.agent.control import ask  # noqa: PLC0415 - as in `main`
    from certplane.agent.overview import lineage_reports  # noqa: PLC0415
    from certplane.agent.status import (  # noqa: PLC0415
        StatusReport,
        link_report,
        to_text,
    )
    from certplane.agent.status_json import to_json  # noqa: PLC0415
    from certplane.runtime.terminal import Terminal  # noqa: PLC0415

    try:
        answer = await ask(host.state_dir, {"command": "ping"}, progress)
        running = "" if answer is None else answer.text
    except CertplaneError:
        running = "by another user"
    now = host.clock.now()
    identity, certificates = await lineage_reports(host, now)
    report = StatusReport(
        identity_name=host.settings.identity.name,
        running=running,
        identity=identity,
        certificates=certificates,
        broker=link_report(
            await host.disk.run(host.link_file.load), running=bool(running), unacknowledged=host.reports.unacknowledged
        ),
    )
    print(to_json(report) if options.json else to_text(report, now, Terminal.of(sys.stdout)))
    return FAILED if report.alarms else OK


_COMMANDS = {
    "enroll": _enroll,
    "run": _run_once,
    "check": _check,
    "status": _status,
    "renew": _act,
    "activate": _act,
    "reload": _reload,
}


def _display(options: argparse.Namespace, settings: AgentSettings, host: Host) -> Progress:
    """What a command shows of its steps. The log says the same, so it is either the one or the other.

    A timer's `run --once` writes the log as configured; all else shows steps, and of the log only warnings.
    """
    from certplane.config.values import LogLevel  # noqa: PLC0415 - as in `main`
    from certplane.runtime.progress import SilentProgress, open_progress  # noqa: PLC0415

    if options.command == "run" and not options.json and not sys.stderr.isatty():
        _log(settings, settings.logging.level)
        return SilentProgress()
    if options.command in ("check", "status"):  # their lines are their result
        _log(settings, LogLevel.WARNING)
        return SilentProgress()
    _log(settings, LogLevel.WARNING if settings.logging.level is LogLevel.INFO else settings.logging.level)
    for name in _SHOWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return open_progress(host.clock, as_json=options.json)


def _log(settings: AgentSettings, level: LogLevel) -> None:
    from certplane.runtime.logging import setup  # noqa: PLC0415 - as in `main`

    setup(level.value, settings.logging.format.value, settings.logging.destination.value)
