"""Programs that tests run, and what they may not do to them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest


def refuse_signals(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Let no process group be signalled, as if another user's; returns what signals one all the same."""
    killpg = os.killpg

    def refused(group: int, number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), group, number)

    monkeypatch.setattr(os, "killpg", refused)
    return killpg
