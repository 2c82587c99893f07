"""scripts/build: what machines install, by hash."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from certplane import __version__
from tests.support.waiting import HANG, MINUTES_OF_WORK

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def test_a_release_installs_by_hash_and_nothing_else_does(tmp_path: Path) -> None:
    """`scripts/build` makes wheel and requirements files that fit; a wheel with one other byte is refused."""
    work = tmp_path / "checkout"
    for folder in ("certplane", "packaging", "proto", "requirements", "scripts"):
        shutil.copytree(ROOT / folder, work / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, work)
    (work / ".venv").symlink_to(sys.prefix)
    subprocess.run([work / "scripts" / "build"], check=True, timeout=MINUTES_OF_WORK, capture_output=True)
    (wheel,) = (work / "dist").glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for name in ("agent", "broker", "optional"):
        text = (work / "dist" / f"{name}.txt").read_text()
        assert f"certplane=={__version__} --hash=sha256:{digest}\n" in text
        assert text.endswith((ROOT / "requirements" / f"{name}.txt").read_text())

    def install(target: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--require-hashes", "-r", only]
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(
            [*command, "--target", tmp_path / target],
            env=kept,
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )

    only = work / "dist" / "only.txt"
    only.write_text("".join((work / "dist" / "agent.txt").read_text().splitlines(keepends=True)[:3]))
    done = install("good")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "good" / "certplane" / "agent" / "app.py").exists()
    laid = subprocess.run(
        [sys.executable, "-m", "certplane.rpc.protos", tmp_path / "protos"],
        cwd=tmp_path / "good",
        env={"PYTHONPATH": str(tmp_path / "good"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert laid.returncode == 0, laid.stderr
    for proto in (ROOT / "proto/certplane/v1").glob("*.proto"):
        assert (tmp_path / "good/certplane/v1" / proto.name).read_bytes() == proto.read_bytes()
        assert (tmp_path / "protos/certplane/v1" / proto.name).read_bytes() == proto.read_bytes()
    metadata = (tmp_path / "good" / f"certplane-{__version__}.dist-info" / "METADATA").read_text()
    assert f"\nVersion: {__version__}\n" in metadata
    with wheel.open("ab") as file:
        file.write(b"\0")
    assert install("changed").returncode != 0
    assert not (tmp_path / "changed").exists()
