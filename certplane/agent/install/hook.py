"""The operator's commands: run in a process group of their own, with a time limit, and never waited for in vain.

    - /bin/sh -c, in a new session: at the limit the whole group gets SIGTERM, and SIGKILL after a grace
    - the exit is awaited, not the end of the output: a daemon that the hook starts may keep the pipe for good
    - of the output the last 16 KiB are kept; control characters are escaped, private keys are cut out
    - stdin is /dev/null; the environment lacks what belongs to the agent itself (its notify socket, its credentials)

What a hook leaves running must have its own output: the pipe closes when the hook ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta

from typing_extensions import override

from certplane.agent.model import HookResult
from certplane.agent.ports import HookRunner
from certplane.errors import OperationError
from certplane.runtime.clock import Clock
from certplane.runtime.programs import NotStartedError, run_program

OUTPUT_LIMIT = 16 * 1024
"""Octets of output that are kept: its end, where errors are."""

_NOT_PASSED_ON = frozenset(
    {
        "NOTIFY_SOCKET",  # a hook could declare the agent ready, or stopped
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "LISTEN_PID",
        "CREDENTIALS_DIRECTORY",  # the agent's secrets
        "CERTPLANE_FAILPOINTS",  # meant for this process
    }
)
_GRACE = timedelta(seconds=5)
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_PRIVATE_KEY = re.compile(
    r"(?:-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----"
    r"|\A(?:\[\.\.\.\])?(?=[A-Za-z0-9+/=\s]*-----END [A-Z0-9 ]*PRIVATE KEY-----))"  # its beginning was cut off
    r".*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)


class ShellHookRunner(HookRunner):
    """`HookRunner` with /bin/sh. One at a time or several: runs share nothing."""

    def __init__(
        self, *, clock: Clock, environment: Mapping[str, str] | None = None, grace: timedelta = _GRACE
    ) -> None:
        """Nothing is started yet.

        Args:
            clock: For the time limit.
            environment: What hooks inherit, before what isn't passed on is dropped; this process's by default.
            grace: Between SIGTERM and SIGKILL.
        """
        self._clock = clock
        self._environment = os.environ if environment is None else environment
        self._grace = grace

    @override
    async def run(self, command: str, timeout: timedelta, environment: dict[str, str]) -> HookResult:
        """Cancellation ends the hook as the time limit does, then goes on.

        Raises:
            OperationError: the shell can't be started.
        """
        try:
            ended = await run_program(
                ["/bin/sh", "-c", command],
                environment=hook_environment(self._environment, environment),
                timeout=timeout,
                clock=self._clock,
                one_output=True,
                keep=2 * OUTPUT_LIMIT,
                grace=self._grace,
            )
        except NotStartedError as error:
            raise OperationError(f"/bin/sh can't be started: {error}") from error
        return HookResult(ended.status, readable(_whole_lines(ended.output)))


def hook_environment(inherited: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """What a hook's environment is."""
    return {**{name: value for name, value in inherited.items() if name not in _NOT_PASSED_ON}, **added}


def _whole_lines(output: bytes) -> bytes:
    """Its end; whole lines where something was cut off."""
    if len(output) <= OUTPUT_LIMIT:
        return output
    end = output[-OUTPUT_LIMIT:]
    return b"[...]\n" + end.partition(b"\n")[2] if b"\n" in end[:1024] else b"[...]" + end


def readable(output: bytes) -> str:
    """Output for a log: UTF-8, control characters escaped (a terminal must not obey them), private keys cut out."""
    text = output.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    return _PRIVATE_KEY.sub("[private key removed]", text).translate(_CONTROLS)
