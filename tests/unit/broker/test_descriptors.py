"""The limit of open files, which bounds the fleet."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from certplane.broker.descriptors import OWN_DESCRIPTORS, too_few

FEW = """
import resource
from certplane.broker.descriptors import raise_file_limit
hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
assert raise_file_limit() == hard
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
assert raise_file_limit() == hard
"""


SOME_LEFT = """
import resource
from certplane.broker.descriptors import most_connections
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for limit, most in ((64, 32), (1000, 500), (1024, 512), (1025, 513), (4096, 3584)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert most_connections() == most, limit
"""


def test_connections_leave_some_descriptors() -> None:
    """Half of few, five hundred of many: what calls to CA, DNS and database need."""
    done = subprocess.run([sys.executable, "-c", SOME_LEFT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    """In a process of its own, whose limits nobody else has."""
    done = subprocess.run([sys.executable, "-c", FEW], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("limit", "hosts", "enough"),
    [
        pytest.param(1024, 1024 - OWN_DESCRIPTORS, True, id="just enough"),
        pytest.param(1024, 1025 - OWN_DESCRIPTORS, False, id="one too few"),
        pytest.param(resource.RLIM_INFINITY, 1_000_000, True, id="no limit"),
    ],
)
def test_a_fleet_that_does_not_fit_is_told(limit: int, hosts: int, enough: bool) -> None:
    """With what would be enough, and how it is set."""
    said = too_few(limit, hosts)
    assert (said == "") is enough
    assert enough or (str(hosts + OWN_DESCRIPTORS) in said and "LimitNOFILE" in said)
