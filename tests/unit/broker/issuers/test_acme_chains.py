"""Which chain is kept: the work that it takes. What is kept of which chains is `tests/integration/test_acme_chains.py`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.issuers import acme_chains
from certplane.broker.issuers.acme_chains import choose_chain
from certplane.broker.issuers.attempts import Deadline
from tests.fakes.clock import ManualClock

HALF_A_MINUTE = timedelta(seconds=30)


@pytest.mark.parametrize(
    ("wanted", "alternates", "looks"),
    [("", (), 0), ("", ("https://ca.test/2",), 1), ("Root X1", (), 1)],
    ids=["nothing-to-choose", "an-alternate", "a-preferred"],
)
async def test_no_chain_is_verified_twice_for_nothing(
    monkeypatch: pytest.MonkeyPatch, wanted: str, alternates: tuple[str, ...], looks: int
) -> None:
    """Where there is nothing to choose from, only whoever keeps the chain verifies it."""
    looked: list[str] = []

    def top_issuer(chain: str, _: object) -> str:
        looked.append(chain)
        return "Root X1"

    monkeypatch.setattr(acme_chains, "top_issuer", top_issuer)
    exchanges: Any = None
    deadline = Deadline.after(HALF_A_MINUTE, ManualClock())
    assert await choose_chain(exchanges, wanted, "the chain", alternates, deadline) == "the chain"
    assert len(looked) == looks
