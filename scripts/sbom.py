"""What a requirements file installs, or a Debian package has in it, as an SBOM (CycloneDX 1.6, ECMA-424) beside it.

    python scripts/sbom.py dist/broker.txt                    writes dist/broker.cdx.json
    python scripts/sbom.py dist/debs/NAME_VERSION_ARCH.deb    likewise; requirements files are in the folder above

All of it is in that file: each package with its version, the hashes of its files (pip takes any of them), and who needs
it. Licenses are what the packages say themselves, where they are installed here in that version. The same file and
commit give the same SBOM: its time is that of SOURCE_DATE_EPOCH, and its serial number comes of its content.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sys
import tomllib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.utils import canonicalize_name

NAME = "certplane"
_DEBIAN = Path(__file__).parents[1] / "packaging" / "debian" / "packages.toml"
_ENTRY = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\\n]+?))?"
    r"(?P<hashes>(?: (?:\\\n +)?--hash=sha256:[0-9a-f]{64})+)\n(?: +# via (?P<via>.*)\n)?",
    re.MULTILINE,
)
_LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
_NAMESPACE = uuid.UUID("5b1f9a6e-6c0e-5c53-9d0f-0d6c3f4f2a11")
_SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_OWN_LICENSE = [{"license": {"id": "Apache-2.0"}}]
_SHORT = 64
"""Characters of a license's name; some packages have the whole text there."""


@dataclass(frozen=True)
class Package:
    """One line of a requirements file: what may be installed, where (`marker`), and which packages need it."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    needed_by: tuple[str, ...]

    @property
    def url(self) -> str:
        """Its package URL, by which an SBOM's parts name each other; Certplane's own isn't an index's."""
        return f"pkg:{'generic' if self.name == NAME else 'pypi'}/{self.name}@{self.version}"


def read(text: str) -> list[Package]:
    """The packages of a requirements file that a machine with Linux gets, Certplane's wheel first.

    Raises:
        ValueError: a line is none of a package with hashes, an option or a comment.
    """
    rest = re.sub(r"^(?: *#.*|--find-links .*|)\n", "", _ENTRY.sub("", text), flags=re.MULTILINE)
    if rest.strip():
        raise ValueError(f"can't be read: {rest.strip().splitlines()[0]!r}")
    return [
        Package(
            name=canonicalize_name(found["name"]),
            version=found["version"],
            marker=found["marker"] or "",
            hashes=tuple(re.findall(r"[0-9a-f]{64}", found["hashes"])),
            needed_by=tuple(_needing(found["via"] or "")),
        )
        for found in _ENTRY.finditer(text)
        if not found["marker"] or Marker(found["marker"]).evaluate(_LINUX)
    ]


def _needing(via: str) -> Iterator[str]:
    for one in via.split(", "):
        name = one.removesuffix(" (pyproject.toml)")
        if name and not name.startswith("-c "):
            yield canonicalize_name(name)


def bom(name: str, packages: list[Package], when: datetime) -> dict[str, Any]:
    """The SBOM of what the requirements file `name` installs, made of a commit of the time `when`."""
    (own,) = (package for package in packages if package.name == NAME)
    others = [package for package in packages if package is not own]
    about = {**_wheel(own), "description": f"Certplane as {name} installs it"}
    return _document(about, [_library(each) for each in others], _needs(packages), when)


def bom_of_debian_package(deb: Path, packages: list[Package], when: datetime) -> dict[str, Any]:
    """The SBOM of a Debian package that has these packages in it; it needs those that no other of them needs.

    Args:
        deb: The file, whose name says what it is: `NAME_VERSION_ARCHITECTURE.deb`.
        packages: What it has, Certplane's own wheel among them or not.
        when: The commit's time.
    """
    name, version, architecture = deb.stem.split("_")
    url = f"pkg:deb/certplane/{name}@{version}?arch={architecture}"
    sums = _hashes([hashlib.sha256(deb.read_bytes()).hexdigest()])
    about = {"type": "application", "bom-ref": url, "name": name, "version": version, "purl": url, "hashes": sums}
    about["licenses"] = _OWN_LICENSE
    names = {package.name for package in packages}
    first = [package.url for package in packages if not names & set(package.needed_by)]
    inside = [_wheel(package) if package.name == NAME else _library(package) for package in packages]
    return _document(about, inside, [{"ref": url, "dependsOn": first}, *_needs(packages)], when)


def inside(name: str, described: Mapping[str, Any], dist: Path) -> list[Package]:
    """What scripts/build-debs puts into the Debian package `name`.

    Args:
        name: The package's.
        described: packaging/debian/packages.toml.
        dist: Where the requirements files are that scripts/build has made.
    """

    def of(kind: str) -> list[Package]:
        return read((dist / f"{described[kind]['requirements']}.txt").read_text(encoding="utf-8"))

    if "requirements" not in described[name]:
        return []  # it runs what other packages have
    if "beside" not in described[name]:
        return of(name)
    there = {package.name for package in of(described[name]["beside"])}
    return [package for package in of(name) if package.name not in there]


def _document(
    about: dict[str, Any], components: list[dict[str, Any]], needs: list[dict[str, Any]], when: datetime
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "metadata": {
            "timestamp": when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "scripts/sbom.py"}]},
            "component": about,
        },
        "components": components,
        "dependencies": needs,
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True))
    head = {"$schema": _SCHEMA, "bomFormat": "CycloneDX", "specVersion": "1.6"}
    return {**head, "serialNumber": f"urn:uuid:{serial}", "version": 1, **content}


def _needs(packages: list[Package]) -> list[dict[str, Any]]:
    return [
        {"ref": package.url, "dependsOn": [each.url for each in packages if package.name in each.needed_by]}
        for package in packages
    ]


def _wheel(own: Package) -> dict[str, Any]:
    return {**_component(own, "application"), "licenses": _OWN_LICENSE, "hashes": _hashes(own.hashes)}


def _hashes(sums: Iterable[str]) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256} for sha256 in sums]


def _component(package: Package, kind: str) -> dict[str, Any]:
    return {"type": kind, "bom-ref": package.url, "name": package.name, "version": package.version, "purl": package.url}


def _library(package: Package) -> dict[str, Any]:
    files = {
        "type": "distribution",
        "url": package.url,
        "comment": "any of the files with these sums",
        "hashes": _hashes(package.hashes),
    }
    found = {**_component(package, "library"), "externalReferences": [files]}
    if said := _license(package):
        found["licenses"] = said
    if package.marker:
        found["properties"] = [{"name": "certplane:marker", "value": package.marker}]
    return found


def _license(package: Package) -> list[dict[str, Any]]:
    """What a package that is installed here says: an SPDX expression, else a name."""
    try:
        metadata = importlib.metadata.metadata(package.name)
    except importlib.metadata.PackageNotFoundError:
        return []
    if metadata["Version"] != package.version:
        return []
    if "License-Expression" in metadata:
        return [{"expression": metadata["License-Expression"]}]
    begin = "License :: "
    classified = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier", []) if text.startswith(begin)]
    named = metadata.get("License", "")
    names = classified or ([named] if named and len(named) <= _SHORT and "\n" not in named else [])
    return [{"license": {"name": name}} for name in dict.fromkeys(names)]


def main(files: list[Path]) -> None:
    """Write the SBOM of each file beside it: of requirements files, or of Debian packages in a folder below them."""
    when = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    for path in files:
        if path.suffix == ".deb":
            described = tomllib.loads(_DEBIAN.read_text(encoding="utf-8"))
            made = bom_of_debian_package(path, inside(path.name.partition("_")[0], described, path.parents[1]), when)
        else:
            made = bom(path.name, read(path.read_text(encoding="utf-8")), when)
        path.with_suffix(".cdx.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main([*map(Path, sys.argv[1:])])
