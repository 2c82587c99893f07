"""The Ansible roles, by ansible-core on a booted Debian machine: see tests/support/ansible_walk.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import booted
from tests.support.debian_packages import need_packages

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]  # packages are built, machines are booted


def test_both_roles_on_one_machine(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A machine has its certificate after one run; another run changes nothing, a changed file is reloaded, a wrong one refused."""
    booted.need_machines("ansible", "pebble")
    debs = need_packages(tmp_path_factory)
    done = booted.enter("tests.support.ansible_walk", str(tmp_path), str(debs))
    assert done.returncode == 0, done.stdout
    sys.stdout.write(done.stdout)
