"""What all tests share: the fixtures of tests/support, and a process that each test finds as it was."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.waiting import PATIENCE

# A run started by `nohup` or from a script's background ignores these, and so would each program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Hypothesis would fail an example that takes 200 ms, which says more of the machine than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = ["tests.support.parts", "tests.support.sandbox", "tests.support.stores", "tests.support.old_release"]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A test's time limit grows with that of each of its waits."""
    if config.option.timeout is None:
        config.option.timeout = float(config.getini("timeout")) * PATIENCE


_FIRST = ("e2e", "integration", "contract")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that no worker is left alone with one of them at the end.

    What a test says of its own time limit grows as all others do.
    """
    for item in items:
        limit = item.get_closest_marker("timeout")
        if limit is not None and PATIENCE != 1:
            item.add_marker(pytest.mark.timeout(limit.args[0] * PATIENCE), append=False)
    folders = [Path(__file__).parent / name for name in _FIRST]

    def place(item: pytest.Item) -> int:
        return next((number for number, folder in enumerate(folders) if folder in item.path.parents), len(folders))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A program's main that runs in a test's process sets logging up for itself; the next test must not notice."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    flags = (logging.logThreads, logging.logProcesses, logging.logMultiprocessing)
    levels = {name: logging.getLogger(name).level for name in root.manager.loggerDict}
    yield
    for name in root.manager.loggerDict:
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = flags
