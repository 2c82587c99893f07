"""Tests and the real parts: a part that is left out skips a test, or fails it where all parts are required."""

from __future__ import annotations

import pytest

from certplane.sandbox import parts


def need_part(name: str) -> parts.Part:
    """The part `name`; without it the test is skipped, or fails where `CERTPLANE_REQUIRE_PARTS` is set."""
    found = parts.find(name)
    if isinstance(found, parts.Part):
        return found
    message = f"{found.name} is left out: {found.reason}"
    if parts.all_required():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end, above the closing line, which parts were not there to test with."""
    left_out = [part for part in parts.find_all() if isinstance(part, parts.LeftOut)]
    if left_out and terminalreporter.verbosity > -2:
        terminalreporter.section("left-out parts")
        for part in left_out:
            terminalreporter.line(f"{part.name} ({part.kind.used_for}): {part.reason}")
