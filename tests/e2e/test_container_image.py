"""The container image's steps, and its program on a read-only root: see tests/support/container_walk.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import booted
from tests.support.debian_packages import need_packages

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]  # packages are built, machines are booted


def test_a_broker_in_a_container(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The Containerfile's steps make a root on which the broker serves as nobody of rights, and writes to its volume alone."""
    booted.need_machines("pebble")
    debs = need_packages(tmp_path_factory)
    done = booted.enter("tests.support.container_walk", str(tmp_path), str(debs))
    assert done.returncode == 0, done.stdout
    sys.stdout.write(done.stdout)
