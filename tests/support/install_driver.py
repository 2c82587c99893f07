"""An agent in small, which tests kill: one lineage, planned, staged and activated with the real parts on a real disk.

Run as a program it imports everything once, then forks for each line of JSON that it reads, so that hundreds of kills
cost little; each child takes its own CERTPLANE_FAILPOINTS as a new process would, and the line is answered with how it
ended: 0, or the negative number of the signal.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from certplane.agent.install.activation import Activator
from certplane.agent.install.lineage import FileVersionStore
from certplane.agent.install.material import Outputs
from certplane.agent.install.pkcs12 import Pkcs12Maker
from certplane.agent.install.status import JsonStatusFile
from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.model import HookResult, InstallMode, IssuedCertificate, ServiceView, Version
from certplane.agent.renewal.due import LineageSpec
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.plan import Activate, Request, Wait, next_step
from certplane.agent.renewal.status import new_status, request_succeeded
from certplane.runtime import failpoints
from certplane.runtime.pool import BlockingPool
from tests.fakes.clock import ManualClock
from tests.support.lineages import LocalIssuer
from tests.support.waiting import HANG

NAMES = ("www.example.org",)


@dataclass(frozen=True)
class Job:
    """What the agent shall do until nothing is left to do.

    `certificates`: how many the lineage shall have had in the end. `rejects`: versions whose reload fails. `looks`:
    whether the service is looked at; `unserved`: versions that it doesn't serve then.
    """

    root: str
    mode: str = "link"
    parts: tuple[str, ...] = ("key", "cert", "chain", "fullchain", "combined")
    certificates: int = 1
    rejects: tuple[int, ...] = ()
    looks: bool = False
    unserved: tuple[int, ...] = ()
    keep: int = 5
    failpoint: str = ""


def lineage_directory(job: Job) -> Path:
    return Path(job.root) / "state" / "www"


def outputs_of(job: Job) -> Outputs:
    return Outputs(**{part: Path(job.root) / "etc" / part / f"{part}.pem" for part in job.parts})


def keys_of(job: Job) -> FilePendingKeys:
    return FilePendingKeys(lineage_directory(job), clock=ManualClock())


def store_of(job: Job) -> FileVersionStore:
    return FileVersionStore(
        lineage_directory(job),
        outputs_of(job),
        keys=keys_of(job),
        mode=InstallMode(job.mode),
        pkcs12=Pkcs12Maker(lambda: b"changeit", "www") if "pkcs12" in job.parts else None,
    )


class Service:
    """`ServiceProbe` of a service that serves all but some versions."""

    def __init__(self, unserved: tuple[int, ...]) -> None:
        self._unserved = unserved

    async def look(self, version: Version) -> ServiceView:
        return ServiceView(None, "not served" if version.number in self._unserved else "")


def issued_directory(job: Job) -> Path:
    """Every certificate that was ever issued, under the hash of its CSR: asking again returns the same."""
    return Path(job.root) / "issued"


def issue(job: Job, csr_pem: str) -> IssuedCertificate:
    """A broker's answer: one certificate for one CSR, however often it is asked."""
    path = issued_directory(job) / hashlib.sha256(csr_pem.encode()).hexdigest()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        issued = LocalIssuer().issue(csr_pem)
        path.write_text(json.dumps([issued.certificate_pem, issued.chain_pem]))
    certificate_pem, chain_pem = json.loads(path.read_text())
    return IssuedCertificate(certificate_pem, chain_pem)


async def run_job(job: Job) -> None:
    """Recover, then follow the plan until it waits."""
    clock, pool = ManualClock(), BlockingPool("files", 1)
    keys, store, statuses = keys_of(job), store_of(job), JsonStatusFile(lineage_directory(job))

    async def reload(version: Version) -> HookResult:
        return HookResult(int(version.number in job.rejects), "")

    activator = Activator(
        store=store,
        statuses=statuses,
        reload=reload,
        pool=pool,
        clock=clock,
        rng=random.Random(1),
        keep=job.keep,
        probe=Service(job.unserved) if job.looks else None,
    )
    spec = LineageSpec(name="www", phase_key="www", dns_names=NAMES)
    store.recover()
    while True:
        status = statuses.load() or new_status("www", clock.now())
        facts = LineageFacts(tuple(store.versions()), store.current(), keys.pending(), status)
        newest = max((version.number for version in facts.versions), default=0)
        match next_step(spec, facts, clock.now(), forced=newest < job.certificates).step:
            case Request():
                request = keys.begin(common_name="", sans=list(NAMES), replaces_certificate_id="", reuse_key=False)
                version = store.stage(issue(job, request.csr_pem))
                statuses.save(request_succeeded(status, version, clock.now()))
            case Activate(version):
                await activator.activate(version, status)
            case Wait():
                break
    pool.close()


class Zygote:
    """Runs jobs in children of one process that has everything imported."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.install_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: Job) -> int:
        """0, or the negative number of the signal that killed it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=HANG)


def _child(job: Job) -> None:
    os.environ["CERTPLANE_FAILPOINTS"] = job.failpoint
    importlib.reload(failpoints)
    status = 1
    try:
        asyncio.run(run_job(job))
        status = 0
    except BaseException:  # noqa: BLE001 - the parent learns of it by the status
        traceback.print_exc()
    finally:
        os._exit(status)


def _main() -> None:
    for line in sys.stdin:
        fields = json.loads(line)
        job = Job(**{**fields, **{name: tuple(fields[name]) for name in ("parts", "rejects", "unserved")}})
        pid = os.fork()
        if pid == 0:
            _child(job)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
