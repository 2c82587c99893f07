"""certplanectl in this process, against a broker whose answers a test scripts."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from certplane.ctl import cli
from certplane.ctl.formats import Format
from certplane.ctl.output import Output
from certplane.ctl.session import Session
from certplane.ctl.settings import load_settings
from certplane.runtime.terminal import Terminal
from tests.support.operators_broker import OperatorsBroker


class Ran(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    said: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Ctl = Callable[..., Coroutine[Any, Any, Ran]]


@pytest.fixture
async def broker() -> AsyncIterator[OperatorsBroker]:
    async with OperatorsBroker().running() as server:
        yield server


@pytest.fixture
def ctl(
    broker: OperatorsBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ctl:
    """Runs a command as on a terminal of `width` columns, unless it says otherwise with -o."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    config = broker.write_config(tmp_path)

    async def run(*arguments: str, width: int | None = 80, colour: bool = False, clock: Any = None) -> Ran:
        options = cli._parser().parse_args(arguments)
        stream = io.StringIO()
        wanted = getattr(options, "output", None)
        out = Output(stream, Format(wanted) if wanted else Format.TABLE, Terminal(width, colour))
        named = getattr(options, "config", None)
        settings = load_settings(named or config)
        session = Session(
            settings, out, getattr(options, "context", None), named, **({"clock": clock} if clock else {})
        )
        capsys.readouterr()
        status = await cli.function_of(options.run)(options, session)
        await asyncio.sleep(0)
        return Ran(status, stream.getvalue(), capsys.readouterr().err)

    return run
