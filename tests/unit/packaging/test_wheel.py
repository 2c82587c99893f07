"""What scripts/build makes: a machine gets all that the documents speak of, and an SBOM tells what that is."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import zipfile
from datetime import UTC, datetime
from email.parser import Parser
from pathlib import Path

import pytest
import releasing
import sbom

import certplane
from tests.support.waiting import MINUTES_OF_WORK
from tests.unit.packaging import test_requirements

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
    """A folder with all of it."""
    folder = tmp_path_factory.mktemp("build") / "dist"
    done = subprocess.run(
        [_ROOT / "scripts" / "build", folder], capture_output=True, text=True, timeout=MINUTES_OF_WORK, check=False
    )
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
    for folder in ("tests", "packaging", "proto", "third_party", "docs", "examples"):
        assert {f"{folder}/{name}" for name in _tracked(folder)} <= names


_KINDS = ("agent", "broker", "broker-cloudflare", "optional")


@pytest.mark.parametrize("kind", _KINDS)
def test_requirements_name_the_wheel_and_all_that_it_needs(built: Path, kind: str) -> None:
    """The wheel beside the file, by its sum, and the lines that are locked."""
    text = (built / f"{kind}.txt").read_text()
    (wheel,) = built.glob("*.whl")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert f"certplane=={certplane.__version__} --hash=sha256:{sha256}\n" in text
    assert text.endswith((_ROOT / "requirements" / f"{kind}.txt").read_text())


@pytest.mark.parametrize("kind", _KINDS)
def test_an_sbom_has_what_is_installed(built: Path, kind: str) -> None:
    """Every package in its version, with each sum that pip takes; each but the wheel is needed by another."""
    made = json.loads((built / f"{kind}.cdx.json").read_text())
    found = {
        each["name"]: (each["version"], {one["content"] for one in each["externalReferences"][0]["hashes"]})
        for each in made["components"]
    }
    locked = {
        name: (each.version, set(each.hashes))
        for name, each in test_requirements.of(kind).items()
        if "win32" not in str(each.requirement.marker)
    }
    assert found == locked
    refs = {each["bom-ref"] for each in made["components"]}
    needed = {ref for each in made["dependencies"] for ref in each["dependsOn"]}
    assert needed == refs
    assert {each["ref"] for each in made["dependencies"]} == refs | {made["metadata"]["component"]["bom-ref"]}
    (own,) = made["metadata"]["component"]["hashes"]
    (wheel,) = built.glob("*.whl")
    assert own["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_sboms_are_cyclonedx(built: Path) -> None:
    """They hold to its schema of version 1.6, strictly."""
    releasing.validate(built)


def test_licenses_are_told(built: Path) -> None:
    """Of whatever is installed here, as it says itself."""
    made = json.loads((built / "agent.cdx.json").read_text())
    told = {each["name"]: each.get("licenses") for each in made["components"]}
    assert all(told.values())
    assert told["grpcio"] == [{"expression": "Apache-2.0"}]


@pytest.mark.parametrize("line", ["x==1\n", "x>=1 --hash=sha256:ab\n", "git+https://example.com/x\n"])
def test_a_line_that_no_sbom_can_tell(line: str) -> None:
    """A package without version and sum is an error, and not left out."""
    with pytest.raises(ValueError, match="can't be read"):
        sbom.read(f"--find-links .\n{line}")


def test_an_sbom_is_made_again_alike() -> None:
    """The same packages at the same time are the same bytes; another package is another serial number."""
    when = datetime(2026, 11, 29, tzinfo=UTC)
    text = "certplane==1.0.0 --hash=sha256:" + "a" * 64 + "\n"
    more = text + "x==1 \\\n    --hash=sha256:" + "b" * 64 + "\n    # via certplane (pyproject.toml)\n"
    one, same, other = (sbom.bom("x.txt", sbom.read(each), when) for each in (text, text, more))
    assert one == same
    assert one["serialNumber"] != other["serialNumber"]


@pytest.mark.parametrize(
    ("name", "kind", "without"),
    [
        pytest.param("certplane-agent", "agent", None, id="agent"),
        pytest.param("certplane-broker", "broker", None, id="broker"),
        pytest.param("certplane-broker-cloudflare", "broker-cloudflare", "broker", id="beside-another"),
        pytest.param("certplanectl", None, None, id="nothing-of-its-own"),
    ],
)
def test_an_sbom_of_a_debian_package(
    built: Path, tmp_path: Path, name: str, kind: str | None, without: str | None
) -> None:
    """It has the wheel and what that needs; what stands beside another package has the rest; all of it is needed."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    deb = tmp_path / "debs" / f"{name}_1.2.3-1_amd64.deb"
    deb.parent.mkdir()
    deb.write_bytes(b"deb")
    sbom.main([deb])
    releasing.validate(tmp_path / "debs")
    made = json.loads(deb.with_suffix(".cdx.json").read_text())
    about = made["metadata"]["component"]
    assert (about["name"], about["version"]) == (name, "1.2.3-1")
    assert about["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"deb").hexdigest()}]

    def packages(kind: str) -> set[str]:
        return {package.name for package in sbom.read((built / f"{kind}.txt").read_text())}

    wanted = packages(kind) - (packages(without) if without else set()) if kind else set()
    assert {each["name"] for each in made["components"]} == wanted
    assert ("certplane" in wanted, "cloudflare" in wanted) == (kind in {"agent", "broker"}, without is not None)
    reached, todo = set(), [about["bom-ref"]]
    needs = {each["ref"]: each["dependsOn"] for each in made["dependencies"]}
    while todo:
        reached.add(ref := todo.pop())
        todo += [below for below in needs[ref] if below not in reached]
    assert reached == {about["bom-ref"], *(each["bom-ref"] for each in made["components"])}
