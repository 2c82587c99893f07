"""A disk that is full for real: a small tmpfs, filled to each of its last pages."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from certplane.errors import OperationError
from tests.support.install_driver import Job, keys_of, outputs_of, store_of
from tests.support.lineages import LocalIssuer, pair_problem, read_leaf, standing_pair

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a tmpfs"),
]
PAGE = os.sysconf("SC_PAGE_SIZE")
PAGES = 256


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={PAGES * PAGE},mode=0755", "tmpfs", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_full_disk_leaves_the_last_good_version(small_disk: Path, mode: str) -> None:
    """However many pages are left, a renewal succeeds or changes nothing that services see, and succeeds with room."""
    job = Job(root=str(small_disk), mode=mode)
    issuer, store, keys, outputs = LocalIssuer(), store_of(job), keys_of(job), outputs_of(job)
    ballast = small_disk / "ballast"
    cert = outputs.cert
    assert cert is not None

    def request() -> str:
        return keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False).csr_pem

    store.activate(store.stage(issuer.issue(request())))
    refused = succeeded = 0
    for free in range(28):
        good = read_leaf(cert)
        fill(ballast, free)
        issued = None
        with contextlib.suppress(OperationError):
            issued = issuer.issue(request())
            store.activate(store.stage(issued))
        renewed = read_leaf(cert) != good
        refused, succeeded = refused + (not renewed), succeeded + renewed
        assert pair_problem(outputs) == ""
        current = store.current()
        assert current is not None
        assert current.serial_number == read_leaf(cert)
        ballast.unlink()
        if not renewed:
            issued = issued or issuer.issue(request())
            store.activate(store.stage(issued))
            assert read_leaf(cert) != good
        store.prune(1)
        assert left_over(job) == []
    assert refused > 5
    assert succeeded > 5


def test_full_disk_on_first_use_leaves_what_stood_there(small_disk: Path) -> None:
    """An import that finds no room leaves another tool's pair in place, readable as before."""
    job = Job(root=str(small_disk))
    outputs, issuer = outputs_of(job), LocalIssuer()
    standing_pair(issuer, outputs, "www.example.org")
    request = keys_of(job).begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
    version = store_of(job).stage(issuer.issue(request.csr_pem))
    cert = outputs.cert
    assert cert is not None
    before = read_leaf(cert)
    for free in range(30):
        fill(small_disk / "ballast", free)
        with contextlib.suppress(OperationError):
            store_of(job).activate(version)
        assert pair_problem(outputs) == ""
        (small_disk / "ballast").unlink()
        if read_leaf(cert) != before:
            break
    else:
        pytest.fail("it never succeeded")
    assert free > 3
    assert left_over(job) == []


def fill(ballast: Path, free: int) -> None:
    """Leave so many pages of the disk free."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * PAGE)
    size = ballast.stat().st_size
    os.truncate(ballast, max(0, size - free * PAGE))


def left_over(job: Job) -> list[str]:
    """Temporary files and directories, anywhere."""
    return sorted(
        str(path)
        for path in Path(job.root).rglob("*")
        if ".certplane-new" in path.name or path.name in {".new", ".removed"}
    )
