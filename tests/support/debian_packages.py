"""The Debian packages of this checkout, built once for all tests that install them, and those of a release after it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from certplane.sandbox import parts
from tests.support import next_release
from tests.support.waiting import MINUTES_OF_WORK

_ROOT = Path(__file__).parents[2]
PROGRAMS = ("certplane-agent", "certplane-broker", "certplanectl")
RULES = "/etc/polkit-1/rules.d/50-certplane-agent.rules"


def need_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of each of `PROGRAMS`; without what builds them the test is skipped, or fails where all parts are required."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "debs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        work = shared / "debs"
        if not (work / "dist" / "debs" / "made").exists():
            _build(work)
    return work / "dist" / "debs"


def checkout(work: Path) -> Path:
    """A copy of what scripts/build and scripts/build-debs read, so that nothing is made in this checkout."""
    for folder in ("certplane", "packaging", "proto", "requirements", "scripts"):
        shutil.copytree(_ROOT / folder, work / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(_ROOT / file, work)
    (work / ".venv").symlink_to(sys.prefix)
    return work


def _build(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    checkout(work)
    # What scripts/setup installed into the machines' root, by hash, for the root's Python: nothing is fetched here.
    (packages,) = root().glob("opt/certplane/lib/python3.*/site-packages")
    how = ["--fast", "--packages", packages, "--python", _python(packages.parent.name), "--only", *PROGRAMS]
    done = subprocess.run(
        [work / "scripts" / "build-debs", *how], capture_output=True, text=True, timeout=MINUTES_OF_WORK, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (work / "dist" / "debs" / "made").write_text(done.stdout)


def root() -> Path:
    """The machines' Debian."""
    return parts.require("debian").path.parent.parent


def _python(name: str) -> str:
    """A program of the root's Python version, which compiles what the packages have."""
    for candidate in (sys.executable, shutil.which(name)):
        if candidate and Path(candidate).resolve().name == name:
            return candidate
    message = f"the Debian root has {name}, and there is none here to compile for it"
    if parts.all_required():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def next_packages(debs: Path, folder: Path) -> Path:
    """Packages of a release after this one: a newer version and schema, and another polkit rule.

    Args:
        debs: what `need_packages` returned; the files that went into the packages are still beside it.
        folder: where the copy is made.
    """
    newer = next_release.next_release(folder / "release")["PYTHONPATH"]
    made = folder / "debs"
    made.mkdir()
    for name in PROGRAMS:
        tree = folder / name
        shutil.copytree(debs.parents[1] / "build" / "debs" / name, tree, symlinks=True)
        control = tree / "DEBIAN" / "control"
        control.write_text(
            re.sub(r"^Version: .*", f"Version: {next_release.NEXT_VERSION}-1", control.read_text(), flags=re.MULTILINE)
        )
        for package in tree.glob("opt/certplane/*/lib/python3.*/site-packages/certplane"):
            shutil.rmtree(package)
            shutil.copytree(Path(newer) / "certplane", package)
        rules = tree / RULES.lstrip("/")
        if rules.exists():
            rules.write_text("// of the next release\n" + rules.read_text())
        deb = made / f"{name}_{next_release.NEXT_VERSION}-1.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, deb],
            check=True,
            timeout=MINUTES_OF_WORK,
            stdout=subprocess.DEVNULL,
        )
        shutil.rmtree(tree)
    return made
