"""proto/ as somebody has it who has just cloned: it builds and generates with nothing that git doesn't have."""

from __future__ import annotations

import filecmp
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import HANG

ROOT = Path(__file__).parents[3]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of this checkout that git has, as they are now: what a clone of the next commit holds."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: there is nothing to clone")
    wanted = ["buf.yaml", "buf.gen.yaml", "proto", "third_party", "scripts"]
    names = subprocess.run(["git", "ls-files", "-z", *wanted], cwd=ROOT, capture_output=True, check=True).stdout
    for name in names.decode().split("\0")[:-1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _buf(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run buf with the plugins of this Python's environment, and no home whose cache could help."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(clone / "home")}
    return subprocess.run(
        ["buf", *arguments], cwd=clone, env=environment, capture_output=True, text=True, timeout=HANG, check=False
    )


def test_it_builds(clone: Path) -> None:
    """`buf build` and `buf lint` find all that the protos import."""
    for command in "build", "lint":
        done = _buf(clone, command)
        assert (done.returncode, done.stderr) == (0, ""), command


def test_it_generates_the_stubs_that_are_committed(clone: Path) -> None:
    """`buf generate` makes certplane/v1 as the repository has it."""
    done = _buf(clone, "generate")
    assert done.returncode == 0, done.stderr
    made, committed = clone / "certplane" / "v1", ROOT / "certplane" / "v1"
    names = sorted(path.name for path in made.iterdir())
    assert names == sorted(path.name for path in committed.glob("*_pb2*"))
    same, different, missing = filecmp.cmpfiles(made, committed, names, shallow=False)
    assert (len(same), different, missing) == (len(names), [], [])


def test_a_plugin_that_fails_is_an_error_with_its_reason(clone: Path) -> None:
    """A proto that can't be read ends `buf generate` with its file and line."""
    (clone / "proto/certplane/v1/order.proto").write_text('syntax = "proto3";\npackage certplane.v1;\nmessage {}\n')
    done = _buf(clone, "generate")
    assert done.returncode != 0
    assert "proto/certplane/v1/order.proto:3" in done.stderr


def test_what_is_imported_is_what_the_python_package_has() -> None:
    """third_party/googleapis has the files of googleapis-common-protos in the locked version, with its licence."""
    found = importlib.util.find_spec("google.rpc")
    assert found is not None
    assert found.submodule_search_locations is not None
    packaged = Path(next(iter(found.submodule_search_locations)))
    ours = ROOT / "third_party" / "googleapis"
    names = sorted(path.name for path in ours.rglob("*.proto"))
    assert names == ["error_details.proto", "status.proto"]
    for name in names:
        assert (ours / "google/rpc" / name).read_bytes() == (packaged / name).read_bytes()
    assert "Apache License" in (ours / "LICENSE").read_text(encoding="utf-8")
