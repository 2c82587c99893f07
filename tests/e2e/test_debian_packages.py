"""The Debian packages on a booted Debian machine: see tests/support/package_walk.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support import booted
from tests.support.debian_packages import need_packages, next_packages

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]  # packages are built, machines are booted

_MOST_MIB = {"certplane-agent": 60, "certplane-broker": 120}
"""Installed, as docs/packages.md says."""


def test_the_life_of_the_packages(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Installed, upgraded in the middle of an order, downgraded, removed and purged, with files that people changed."""
    booted.need_machines("pebble")
    debs = need_packages(tmp_path_factory)
    sizes = dict(re.findall(r"debs/([a-z-]+)_\S+ +installed ([\d.]+) MiB", (debs / "made").read_text()))
    for name, most in _MOST_MIB.items():
        assert float(sizes[name]) <= most, f"{name} has {sizes[name]} MiB"
    newer = next_packages(debs, tmp_path / "next")
    done = booted.enter("tests.support.package_walk", str(tmp_path), str(debs), str(newer))
    assert done.returncode == 0, done.stdout
    sys.stdout.write(done.stdout)
