"""What `scripts/release` does: a checkout that is ready becomes files, and every file is named at the end.

What a release needs is judged first (`problems`), all of it at once; the rest is carried out by the scripts that build
each thing. Nothing leaves the machine: a person looks at dist/ and publishes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_FINAL = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*)){2}(?:(?:a|b|rc)[0-9]+)?", re.ASCII)
_HEADING = re.compile(r"^## \[([^\]]+)\](.*)$", re.MULTILINE)
_DATE = re.compile(r" - [0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_SUMS = "SHA256SUMS"
_DEBS = "scripts/build-debs"


@dataclass(frozen=True)
class Problem:
    """Why there can't be a release yet, and what to do."""

    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


@dataclass(frozen=True)
class Checkout:
    """What is judged, as it was read."""

    version_file: str
    project_file: str
    changelog: str
    changes: tuple[str, ...]
    """Files that aren't committed, as `git status --porcelain` shows them."""
    head: str
    tags: dict[str, str]
    """Commits by tag."""
    released_wire: bytes
    wire: bytes
    """The wire contract as it was kept for this release, and as proto/ has it, as buf's images."""


def version_of(text: str) -> str:
    """The version that certplane/__init__.py has; empty if it has none."""
    found = _VERSION.search(text)
    return found[1] if found else ""


def notes(changelog: str, version: str) -> str | None:
    """The text of a version's section of CHANGELOG.md; None if there is none, or its heading has no date."""
    for found in _HEADING.finditer(changelog):
        if found[1] == version and _DATE.fullmatch(found[2].rstrip()):
            return changelog[found.end() :].partition("\n## [")[0].partition("\n[")[0].strip()
    return None


def problems(checkout: Checkout) -> Iterator[Problem]:
    """All that keeps a checkout from being a release."""
    version = version_of(checkout.version_file)
    if not _FINAL.fullmatch(version):
        yield Problem(
            f"certplane/__init__.py has no version like 1.2.3: {version!r}", "write it there, and nowhere else"
        )
    else:
        text = notes(checkout.changelog, version)
        if text is None:
            yield Problem(f"CHANGELOG.md has no section of {version}", f"head it `## [{version}] - YEAR-MONTH-DAY`")
        elif not text:
            yield Problem(f"CHANGELOG.md says nothing of {version}", "write what is new for whoever upgrades")
    if re.search(r"^version *=", checkout.project_file, re.MULTILINE):
        yield Problem("pyproject.toml has a version too", "remove it: hatch reads that of certplane/__init__.py")
    if checkout.changes:
        others = f" and {len(checkout.changes) - 1} more" if len(checkout.changes) > 1 else ""
        yield Problem(f"{checkout.changes[0].strip()}{others}: not committed", "commit, or put it away")
    if checkout.tags.get(f"v{version}", checkout.head) != checkout.head:
        yield Problem(
            f"v{version} is the tag of another commit", "a release is never made twice: take the next version"
        )
    if checkout.released_wire != checkout.wire:
        remedy = "run `scripts/gen-protos --release`, and commit it: the next release is held to that"
        yield Problem("proto/released.binpb isn't the wire of this tree", remedy)


def read(root: Path) -> Checkout:
    """A checkout as it is on the disk."""

    def run(*command: str) -> bytes:
        return subprocess.run(command, cwd=root, check=True, capture_output=True).stdout

    def of(name: str) -> str:
        return (root / name).read_text(encoding="utf-8")

    form = "--format=%(refname:short) %(objectname) %(*objectname)"  # the last of them is the commit
    tags = (line.split() for line in run("git", "for-each-ref", form, "refs/tags").decode().splitlines())
    return Checkout(
        of("certplane/__init__.py"),
        of("pyproject.toml"),
        of("CHANGELOG.md"),
        tuple(run("git", "status", "--porcelain").decode().splitlines()),
        run("git", "rev-parse", "HEAD").decode().strip(),
        {name: commits[-1] for name, *commits in tags},
        (root / "proto" / "released.binpb").read_bytes(),
        run(str(root / ".venv" / "bin" / "buf"), "build", "proto", "-o", "-#format=binpb"),
    )


def validate(folder: Path) -> None:
    """See that each SBOM is what it says; ValueError if one isn't."""
    # Of the packages for development alone; a look without building needs it not.
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for path in sorted(folder.rglob("*.cdx.json")):
        if (error := validator.validate_str(path.read_text(encoding="utf-8"))) is not None:
            raise ValueError(f"{path.name} is no CycloneDX 1.6: {error}")


def differing(one: Path, other: Path) -> list[str]:
    """The files of a folder that another lacks or has otherwise."""
    return [path.name for path in sorted(one.iterdir()) if path.is_file() and _sum(path) != _sum(other / path.name)]


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def files(folder: Path) -> list[str]:
    """Each file below a folder, by its path from there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)


def write_sums(folder: Path) -> None:
    """Write `SHA256SUMS`, as `sha256sum -c` reads it."""
    lines = (f"{_sum(folder / name)}  {name}\n" for name in files(folder))
    (folder / _SUMS).write_text("".join(lines), encoding="utf-8")


def build(root: Path, *, packages: bool) -> Path:
    """Build everything into dist/.

    Raises:
        ValueError: what was built twice differs, or an SBOM is none.
        subprocess.CalledProcessError: a script failed; it has said why.
    """
    dist = root / "dist"
    quiet = subprocess.DEVNULL
    with tempfile.TemporaryDirectory() as again:
        subprocess.run([root / "scripts" / "build"], check=True, stdout=quiet)
        subprocess.run([root / "scripts" / "build", Path(again) / "dist"], check=True, stdout=quiet)
        if differ := differing(dist, Path(again) / "dist"):
            raise ValueError(f"built twice, these differ: {', '.join(differ)}")
    if packages:
        subprocess.run([root / _DEBS], check=True, stdout=sys.stderr)
        committed = subprocess.run(
            ["git", "log", "-1", "--format=%ct"], cwd=root, check=True, capture_output=True, text=True
        )
        command = [sys.executable, root / "scripts" / "sbom.py", *sorted(dist.glob("debs/*.deb"))]
        subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": committed.stdout.strip()})
    validate(dist)
    write_sums(dist)
    return dist


def main(arguments: list[str] | None = None, root: Path = _ROOT) -> int:
    """The exit status: 0 for a release, or a checkout that is ready for one; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="scripts/release", description="Make a release of this checkout into dist/.")
    parser.add_argument("--dry-run", action="store_true", help="look only, and make nothing")
    asked = parser.parse_args(arguments)
    checkout = read(root)
    found = [*problems(checkout)]
    for problem in found:
        print(f"release: {problem}", file=sys.stderr)
    version, packages = version_of(checkout.version_file), (root / _DEBS).is_file()
    if asked.dry_run:
        kinds = ["the wheel and the source archive", "requirements files with hashes, and their SBOMs"]
        kinds += ["Debian packages with theirs"] if packages else []
        print(f"would make {version} of {checkout.head[:12]}: {'; '.join(kinds)}; {_SUMS}")
        print("would first run scripts/check")
    if found or asked.dry_run:
        return 1 if found else 0
    try:
        subprocess.run([root / "scripts" / "check"], check=True, stdout=sys.stderr)
        dist = build(root, packages=packages)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    print(f"{version} of {checkout.head}, in {dist}:")
    for name in [*files(dist), _SUMS]:
        print(f"{(dist / name).stat().st_size:>12,}  {name}")
    print(f"\nNothing is published. Look at it, then: git tag -s v{version} {checkout.head[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
