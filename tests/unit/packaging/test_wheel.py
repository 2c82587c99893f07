"""The wheel and the source archive as they are built: what a machine gets is all that the documents speak of."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import certplane
from tests.support.waiting import HANG

_ROOT = Path(__file__).parents[3]
_DATA = {
    "packaging/man": "share/man/man1",
    "packaging/completion": "share/bash-completion/completions",
    "packaging/systemd": "share/certplane/systemd",
    "packaging/monitoring": "share/certplane/monitoring",
    "packaging/schemas": "share/certplane/schemas",
}
"""Where the files of a folder are below the folder of an installation."""


def _tracked(folder: str) -> set[str]:
    """The files below a folder of the checkout, without what programs leave there."""
    found = (path for path in (_ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(_ROOT / folder)) for path in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both; the wheel is built of the archive, as scripts/build does."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, _ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def info(wheel: zipfile.ZipFile) -> str:
    return f"certplane-{certplane.__version__}.dist-info"


def test_programs_and_protos(wheel: zipfile.ZipFile) -> None:
    """Every module with what it reads, without the sandbox; beside the stubs the protos that they are made of."""
    modules = {name.removeprefix("certplane/") for name in wheel.namelist() if name.startswith("certplane/")}
    wanted = {name for name in _tracked("certplane") if not name.startswith("sandbox/")}
    protos = {f"v1/{Path(name).name}" for name in _tracked("proto/certplane/v1")}
    assert modules == wanted | protos
    assert len(protos) > 3


@pytest.mark.parametrize(("folder", "place"), _DATA.items())
def test_files_beside_the_programs(wheel: zipfile.ZipFile, folder: str, place: str) -> None:
    """Units, users, folders and rules; manual pages and completion; alert rules, dashboards and schemas."""
    above = f"certplane-{certplane.__version__}.data/data/{place}/"
    found = {name.removeprefix(above): wheel.read(name) for name in wheel.namelist() if name.startswith(above)}
    assert found == {name: (_ROOT / folder / name).read_bytes() for name in _tracked(folder)}
    assert found


def test_what_the_metadata_say(wheel: zipfile.ZipFile, info: str) -> None:
    """The version of `certplane/__init__.py`, the license with its text, and Cloudflare's SDK in its extra alone."""
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert (metadata["Version"], metadata["License-Expression"]) == (certplane.__version__, "Apache-2.0")
    assert wheel.read(f"{info}/licenses/LICENSE") == (_ROOT / "LICENSE").read_bytes()
    wanted = [text for text in metadata.get_all("Requires-Dist", []) if text.startswith("cloudflare")]
    assert [text.partition(";")[2].strip() for text in wanted] == ["extra == 'cloudflare'"]


def test_three_programs(wheel: zipfile.ZipFile, info: str) -> None:
    """Each is on the PATH of an installation."""
    lines = wheel.read(f"{info}/entry_points.txt").decode().splitlines()
    assert {line.partition(" = ")[0] for line in lines if " = " in line} == {
        "certplane-agent",
        "certplane-broker",
        "certplanectl",
    }


def test_the_archive_has_the_source(built: Path) -> None:
    """Whoever has it alone can read it, test it and build from it."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE",
        "scripts/build",
        "requirements/build.txt",
        "buf.yaml",
    ):
        assert needed in names
    for folder in ("tests", "packaging", "proto", "third_party", "docs"):
        assert {f"{folder}/{name}" for name in _tracked(folder)} <= names
