"""The agent killed at every step of an installation: never a mixed pair, and what it began is finished."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certplane.agent.install.lineage import FileVersionStore
from certplane.agent.install.material import Outputs
from certplane.agent.install.status import JsonStatusFile
from certplane.agent.install.steps import FAILPOINTS
from certplane.agent.keystore.pending import FAILPOINTS as KEYSTORE_FAILPOINTS
from certplane.agent.model import Version
from tests.support.install_driver import Job, Zygote, keys_of, lineage_directory, outputs_of, store_of
from tests.support.lineages import LocalIssuer, pair_problem, standing_pair

pytestmark = pytest.mark.integration

KEYSTORE = {"keystore.begin.before", "keystore.begin.written", "keystore.begin.after"} | {
    "keystore.drop.before",
    "keystore.drop.renamed",
    "keystore.drop.after",
}
STAGE = ("write", "publish", "forget")
SUCCESS = ("install", "reload", "confirm")
GO_BACK = ("install", "reload", "rollback", "reload_again", "record")


def nothing(job: Job) -> None:
    """An empty host."""


def a_pair_stands(job: Job) -> None:
    """Another tool has installed a certificate."""
    standing_pair(LocalIssuer(), outputs_of(job), "www.example.org")


def half_a_pair_stands(job: Job) -> None:
    """A certificate stands there, its key doesn't."""
    a_pair_stands(job)
    for path in (outputs_of(job).key, outputs_of(job).combined):
        assert path is not None
        path.unlink()


@dataclass(frozen=True)
class Scenario:
    """What is there before, what the agent is to do, and which steps it passes."""

    steps: tuple[str, ...]
    job: Job
    before: tuple[Job, ...] = ()
    standing: Callable[[Job], None] = nothing
    current: int = 1
    requests: bool = True

    @property
    def failpoints(self) -> set[str]:
        points = {f"install.{name}.{side}" for name in self.steps for side in ("before", "after")}
        return points | KEYSTORE if self.requests else points


ONE = Job(root="")
TWO = replace(ONE, certificates=2)
BUNDLED = replace(ONE, parts=(*ONE.parts, "pkcs12"))
SCENARIOS = {
    "first, link": Scenario((*STAGE, *SUCCESS, "permit", "link", "switch"), ONE),
    "first beside a pair, link": Scenario(
        (*STAGE, *SUCCESS, "keep", "hold", "link", "permit", "switch", "release", "relink", "finish"),
        ONE,
        standing=a_pair_stands,
    ),
    "first beside a pair, reload fails, link": Scenario(
        (*STAGE, *GO_BACK, "keep", "hold", "link", "permit", "switch", "release", "relink", "finish"),
        replace(ONE, rejects=(1,)),
        standing=a_pair_stands,
        current=0,
    ),
    "first beside half a pair, link": Scenario(
        (*STAGE, *SUCCESS, "keep", "hold", "link", "permit", "switch", "release", "relink", "finish"),
        ONE,
        standing=half_a_pair_stands,
    ),
    "renewal, link": Scenario((*STAGE, *SUCCESS, "permit", "switch"), TWO, before=(ONE,), current=2),
    "renewal and pruning, link": Scenario(
        (*STAGE, *SUCCESS, "permit", "switch", "remove"),
        replace(ONE, certificates=3, keep=1),
        before=(TWO,),
        current=3,
    ),
    "renewal, reload fails, link": Scenario(
        (*STAGE, *GO_BACK, "permit", "switch"), replace(TWO, rejects=(2,)), before=(ONE,), current=1
    ),
    "renewal, no reload succeeds, link": Scenario(
        (*STAGE, *GO_BACK, "reinstate", "permit", "switch"), replace(TWO, rejects=(1, 2)), before=(ONE,), current=2
    ),
    "first, with PKCS#12, seen served, link": Scenario(
        (*STAGE, *SUCCESS, "verify", "derive", "permit", "link", "switch"), replace(BUNDLED, looks=True)
    ),
    "renewal with PKCS#12, copy": Scenario(
        (*STAGE, *SUCCESS, "derive", "prepare", "journal", "commit", "switch", "finish"),
        replace(BUNDLED, mode="copy", certificates=2),
        before=(replace(ONE, mode="copy"),),
        current=2,
    ),
    "renewal, not served, link": Scenario(
        (*STAGE, *GO_BACK, "verify", "verify_again", "permit", "switch"),
        replace(TWO, looks=True, unserved=(2,)),
        before=(ONE,),
        current=1,
    ),
    "renewal, nothing is served, link": Scenario(
        (*STAGE, *GO_BACK, "verify", "verify_again", "reinstate", "reload_last", "permit", "switch"),
        replace(TWO, looks=True, unserved=(1, 2)),
        before=(ONE,),
        current=2,
    ),
    "first, copy": Scenario(
        (*STAGE, *SUCCESS, "prepare", "journal", "commit", "switch", "finish"), replace(ONE, mode="copy")
    ),
    "first beside a pair, copy": Scenario(
        (*STAGE, *SUCCESS, "keep", "prepare", "journal", "commit", "switch", "finish"),
        replace(ONE, mode="copy"),
        standing=a_pair_stands,
    ),
    "renewal, copy": Scenario(
        (*STAGE, *SUCCESS, "prepare", "journal", "commit", "switch", "finish"),
        replace(TWO, mode="copy"),
        before=(replace(ONE, mode="copy"),),
        current=2,
    ),
    "renewal, reload fails, copy": Scenario(
        (*STAGE, *GO_BACK, "prepare", "journal", "commit", "switch", "finish"),
        replace(TWO, mode="copy", rejects=(2,)),
        before=(replace(ONE, mode="copy"),),
        current=1,
    ),
    "from copies to links with a renewal": Scenario(
        (*STAGE, *SUCCESS, "permit", "link", "switch"), TWO, before=(replace(ONE, mode="copy"),), current=2
    ),
    "from links to copies with a renewal": Scenario(
        (*STAGE, *SUCCESS, "prepare", "journal", "commit", "switch", "finish"),
        replace(TWO, mode="copy"),
        before=(ONE,),
        current=2,
    ),
}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


def test_scenarios_pass_every_failpoint() -> None:
    """No step of an installation is without a scenario that kills the agent before and after it."""
    passed = set().union(*(scenario.failpoints for scenario in SCENARIOS.values()))
    unused = {"keystore.record.before", "keystore.record.after"}  # which order it became: no step of an installation
    assert passed == {*FAILPOINTS, *KEYSTORE_FAILPOINTS} - unused


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_anywhere_it_never_mixes_and_finishes(name: str, zygote: Zygote, tmp_path: Path) -> None:
    """A kill at any step leaves no mixed pair and loses no good version; a restart ends as if nothing had happened."""
    scenario = SCENARIOS[name]
    job = replace(scenario.job, root=str(tmp_path / "host"))
    stash = prepare(scenario, job, zygote, tmp_path)
    for point in sorted(scenario.failpoints):
        for nth in itertools.count(1):
            restore(stash, tmp_path)
            good = store_of(job).current()
            if zygote.run(replace(job, failpoint=f"{point}=kill@{nth}")) == 0:
                assert nth > 1, f"{point} was not passed"
                break
            where = f"after a kill at pass {nth} of {point}"
            if job.mode == "link" and scenario.standing is not half_a_pair_stands:
                assert pair_problem(outputs_of(job)) == "", where
            store_of(job).recover()
            assert scenario.standing is half_a_pair_stands or pair_problem(outputs_of(job)) == "", where
            assert good is None or good in store_of(job).versions(), where
            assert zygote.run(job) == 0, where
            assert_finished(scenario, job, where)
    restore(stash, tmp_path)
    others = {*FAILPOINTS, *KEYSTORE_FAILPOINTS} - scenario.failpoints
    assert zygote.run(replace(job, failpoint=",".join(f"{point}=kill" for point in others))) == 0


def prepare(scenario: Scenario, job: Job, zygote: Zygote, tmp_path: Path) -> Path:
    """The host as it is before; a copy to return to."""
    Path(job.root).mkdir()
    scenario.standing(job)
    for before in scenario.before:
        assert zygote.run(replace(before, root=job.root)) == 0
    stash = tmp_path / "stash"
    shutil.copytree(job.root, stash, symlinks=True)
    return stash


def restore(stash: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "host")
    shutil.copytree(stash, tmp_path / "host", symlinks=True)


def assert_finished(scenario: Scenario, job: Job, where: str) -> None:
    """The end is the same whatever happened on the way."""
    lineage, outputs = lineage_directory(job), outputs_of(job)
    current = store_of(job).current()
    assert current is not None
    assert current.number == scenario.current, where
    assert pair_problem(outputs) == "", where
    for path in outputs.paths().values():
        name = {"key": "privkey.pem", "pkcs12": "bundle.p12"}.get(path.stem, path.name)
        assert path.read_bytes() == (current.path / name).read_bytes()
        assert path.is_symlink() == (job.mode == "link"), where
        assert [each.name for each in path.parent.iterdir()] == [path.name], f"left over {where}"
    status = JsonStatusFile(lineage).load()
    assert status is not None
    confirmed = scenario.current == job.certificates and not job.rejects and not job.unserved
    assert (status.confirmed_version == job.certificates) == confirmed, where
    left = {entry.name for entry in lineage.iterdir()} - {"current", "versions", "status.json", "replaced"}
    assert left == set(), f"left over {where}"
    assert all(entry.name.isdecimal() for entry in (lineage / "versions").iterdir()), f"left over {where}"
    issued = len(list((Path(job.root) / "issued").iterdir()))
    # A request that was made but not sent before the kill is the next start's; one that was sent is never doubled.
    assert issued == job.certificates, where


def test_reader_never_sees_a_mixed_pair_while_it_switches(tmp_path: Path) -> None:
    """A service that resolves `current` once, or reads the combined file, gets one version through 200 switches."""
    job = Job(root=str(tmp_path))
    store, versions = two_versions(job)
    stop, problems, reads = threading.Event(), list[str](), [0, 0]
    readers = [
        threading.Thread(target=read_by_directory, args=(lineage_directory(job), stop, problems, reads)),
        threading.Thread(target=read_combined, args=(outputs_of(job), stop, problems, reads)),
    ]
    for reader in readers:
        reader.start()
    for turn in range(200):
        store.activate(versions[turn % 2])
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert min(reads) > 20


def two_versions(job: Job) -> tuple[FileVersionStore, list[Version]]:
    keys, store, versions = keys_of(job), store_of(job), []
    for _ in range(2):
        request = keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
        versions.append(store.stage(LocalIssuer().issue(request.csr_pem)))
    store.activate(versions[0])
    return store, versions


def read_by_directory(lineage: Path, stop: threading.Event, problems: list[str], reads: list[int]) -> None:
    while not stop.is_set():
        directory = os.open(lineage / "current", os.O_PATH | os.O_DIRECTORY)
        try:
            opened = [os.open(name, os.O_RDONLY, dir_fd=directory) for name in ("privkey.pem", "cert.pem")]
            key, certificate = (read_and_close(fd) for fd in opened)
        finally:
            os.close(directory)
        check_pair(key, certificate, problems)
        reads[0] += 1


def read_and_close(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


def read_combined(outputs: Outputs, stop: threading.Event, problems: list[str], reads: list[int]) -> None:
    assert outputs.combined is not None
    while not stop.is_set():
        data = outputs.combined.read_bytes()
        check_pair(data, data, problems)
        reads[1] += 1


def check_pair(key_pem: bytes, certificate_pem: bytes, problems: list[str]) -> None:
    key = load_pem_private_key(key_pem, password=None).public_key()
    if key != x509.load_pem_x509_certificates(certificate_pem)[0].public_key():
        problems.append("a key beside another key's certificate")
