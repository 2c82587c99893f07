"""An earlier release in an environment of its own: its wheel, built from git's history, with the packages of its day.

Made once per user, beside the parts that `scripts/setup` builds. Where history or packages are missing, the tests that
need it are skipped and say why. Where all parts are required, missing packages are a failure; history is no part: a
shallow clone or an archive of the tree can't have it.
"""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from certplane.sandbox import parts

COMMIT = "452d001"
_LOCKED_BY = "65c7d4a"
"""Its packages: 452d001 itself locked none, this commit did for the same requirements."""

_REPOSITORY = Path(__file__).parents[2]


class _MissingError(Exception):
    """There is no such environment, for this reason."""

    def __init__(self, reason: str, *, excused: bool = False) -> None:
        super().__init__(reason)
        self.excused = excused


@pytest.fixture(scope="session")
def old_python() -> str:
    """The Python of an environment with the programs of `COMMIT`."""
    try:
        return str(_environment() / "bin" / "python")
    except _MissingError as error:
        if parts.all_required() and not error.excused:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


def _environment() -> Path:
    folder = parts.parts_folder()
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"certplane-{COMMIT}-python{sys.version_info.major}.{sys.version_info.minor}"
    with (folder / f".{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # each worker of a run comes here
        if not made.exists():
            _make(made)
    return made


def _make(made: Path) -> None:
    _need_history()
    work = made.with_name(f".{made.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    source = work / "source"
    source.mkdir()
    archive = _git("archive", COMMIT)
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    (work / "requirements.txt").write_bytes(_git("show", f"{_LOCKED_BY}:requirements/broker.txt"))
    # hatchling, which builds the wheel, is among the packages of the running environment.
    _pip(sys.executable, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(work), str(source))
    environment = work / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, capture_output=True)
    python = str(environment / "bin" / "python")
    _pip(python, "install", "--require-hashes", "-r", str(work / "requirements.txt"))
    _pip(python, "install", "--no-index", "--no-deps", *map(str, work.glob("*.whl")))
    environment.rename(made)  # whole or not at all; only its Python is used, which doesn't name the folder
    shutil.rmtree(work)


def _need_history() -> None:
    try:
        for commit in (COMMIT, _LOCKED_BY):
            _git("cat-file", "-e", f"{commit}^{{commit}}")
    except (OSError, subprocess.CalledProcessError):
        reason = f"git's history isn't here, or doesn't reach {COMMIT} (`git fetch --unshallow` gets it)"
        raise _MissingError(reason, excused=True) from None


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", _REPOSITORY, *arguments], check=True, capture_output=True).stdout


def _pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise _MissingError(f"{COMMIT} could not be installed: {finished.stderr.strip()[-1000:]}")
