"""What every test of issuance needs at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.issuance import kill_all


@pytest.fixture(autouse=True)
async def _nothing_runs_on() -> AsyncIterator[None]:
    """Registration authorities that a test has started end with it."""
    yield
    await kill_all()
