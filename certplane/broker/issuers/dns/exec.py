"""TXT records through a program of the operator's: `PROGRAM present|cleanup FQDN VALUE`, as lego's `exec` calls it.

FQDN has its final dot. The secret, if one is named, comes on standard input and nowhere else; the environment is PATH,
LANG and HOME. Exit status 0 is success, and a program that is called again with the same arguments must succeed again.
75 (EX_TEMPFAIL) is tried again at once; 77 (EX_NOPERM), 78 (EX_CONFIG), 126 and 127 are a person's job, as is a program
that can't be started; any other status is a failure that may pass, and the order is tried again later.

What the program prints is nobody's to trust: the last line of its standard error is quoted without control characters
and without the secret.
"""

from __future__ import annotations

import os
import random
import stat
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from typing_extensions import override

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline, repeat
from certplane.broker.issuers.dns.provider import RETRY, DnsProvider, ProviderSettings
from certplane.broker.model import TxtRecord
from certplane.broker.ports import SecretSource
from certplane.config.values import PositiveSpan
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.programs import SEARCH_PATH, NotStartedError, run_program

_ENVIRONMENT = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "HOME": "/"}
_EX_TEMPFAIL = 75
_PERSONS_JOB = {77: "it may not (77)", 78: "its configuration is wrong (78)", 126: "it can't run (126)", 127: "127"}
_MOST_TOLD = 60 * 1024


@dataclass(frozen=True, slots=True)
class ExecSettings(ProviderSettings):
    """`issuer.acme.exec`; `credentials` names the secret that the program gets, for profiles that name none.

    `timeout` is for one call.
    """

    program: Path
    credentials: str = ""
    timeout: PositiveSpan = timedelta(seconds=60)

    @override
    def make(self, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsProvider:
        return ExecProvider(self, secrets, rng)


class ExecProvider(DnsProvider):
    """A `DnsProvider` that runs a program."""

    def __init__(self, settings: ExecSettings, secrets: SecretSource, rng: random.Random) -> None:
        """Nothing is run yet; the secret is read at each use.

        Raises:
            ConfigurationError: the program isn't one that the broker may run, or everybody may change it.
        """
        if problem := _unfit(settings.program):
            message, remedy = problem
            raise ConfigurationError(
                [ConfigurationProblem("", None, "issuer.acme.exec.program", f"{settings.program} {message}", remedy)]
            )
        self._settings, self._secrets, self._rng = settings, secrets, rng

    @override
    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        await self._run("present", record, deadline)
        return record

    @override
    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        await self._run("cleanup", record, deadline)

    async def _run(self, what: str, record: TxtRecord, deadline: Deadline) -> None:
        name = record.credentials or self._settings.credentials
        secret = await self._secrets.read(name) if name else ""
        if len(secret.encode()) > _MOST_TOLD:
            raise RefusalError(Reason.DNS_REJECTED, f"the secret {name!r} is too large for a program's input")
        await repeat(
            lambda: self._run_once(what, record, secret, deadline),
            deadline=deadline,
            backoff=RETRY,
            rng=self._rng,
            on=_TryAgainError,
            when=lambda _: True,
        )

    async def _run_once(self, what: str, record: TxtRecord, secret: str, deadline: Deadline) -> None:
        path = self._settings.program
        try:
            ended = await run_program(
                [str(path), what, f"{record.name}.", record.value],
                environment=_ENVIRONMENT,
                told=f"{secret}\n".encode() if secret else b"",
                timeout=min(self._settings.timeout, deadline.left),
                clock=deadline.clock,
            )
        except NotStartedError as error:
            message = f"the program {path} can't be started: {error}; correct it, or issuer.acme.exec.program"
            raise RefusalError(Reason.DNS_REJECTED, message) from error
        if ended.status == 0:
            return
        said = _last_line(ended.errors or ended.output, secret)
        if ended.status is None:
            message = f"the program {path} took too long to {what} the record at {record.name}, and was killed{said}"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message)
        message = f"the program {path} did not {what} the record at {record.name}"
        if why := _PERSONS_JOB.get(ended.status):
            raise RefusalError(Reason.DNS_REJECTED, f"{message}: {why}{said}")
        kind = _TryAgainError if ended.status == _EX_TEMPFAIL else RefusalError
        raise kind(Reason.DNS_UNAVAILABLE, f"{message}: exit status {ended.status}{said}")


class _TryAgainError(RefusalError):
    """The program asks to be called again."""


def _unfit(path: Path) -> tuple[str, str] | None:
    """Why the program may not be run, and the remedy."""
    if not path.is_absolute():
        return "isn't an absolute path", "write the program's whole path"
    try:
        status = path.stat()
    except OSError as error:
        return f"can't be used: {error.strerror}", "correct the path, or install the program"
    if not stat.S_ISREG(status.st_mode) or not os.access(path, os.X_OK):
        return "isn't a program that the broker may run", f"chmod 755 {path}, or correct the path"
    if status.st_mode & stat.S_IWOTH:
        return "can be changed by everybody", f"chmod o-w {path}"
    return None


def _last_line(output: bytes, secret: str) -> str:
    """The last line that says something, for a message; without the secret, whole or in any of its lines."""
    text = output.decode("utf-8", "replace")
    for part in sorted({secret, *secret.split()}, key=len, reverse=True):
        if len(part) >= 4:
            text = text.replace(part, "[secret]")
    lines = [line for line in (one_line(line, 200) for line in text.splitlines()) if line]
    return f": {lines[-1]}" if lines else ""
