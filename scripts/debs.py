"""Debian packages: which files each has, laid out in a folder, and dpkg-deb over that.

`packaging/debian/packages.toml` says what the packages are, the files beside it are their maintainer scripts. What the
programs need from PyPI comes from one folder that pip installed by hash; each Debian package takes what its file of
`requirements/` names. No debhelper: what it would do here is a folder, some links and four scripts.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

ROOT = Path(__file__).parents[1]
HOME = PurePath("opt/certplane")
_MADE = "1580601600"  # hatchling's own time for what it packs, where SOURCE_DATE_EPOCH says nothing else
_LEFT_OUT_FOLDERS = frozenset({"tests", "testing", "__pycache__"})
_LEFT_OUT_SUFFIXES = frozenset({".pyi", ".pyx", ".pxd", ".pxi", ".h", ".c", ".cc", ".pyc"})
# Of an installation by pip that no longer is one.
_LEFT_OUT_FILES = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_SECTIONS = ("Depends", "Recommends", "Suggests")


@dataclass(frozen=True)
class Target:
    """What the packages are made for.

    Attributes:
        python: program of the interpreter, which compiles.
        minor: its version, `3.11`.
        architecture: Debian's word for it.
        version: of the packages, with Debian's revision.
        wheel: Certplane's own.
        packages: folder with all that is needed from PyPI.
    """

    python: str
    minor: str
    architecture: str
    version: str
    wheel: Path
    packages: Path

    def site(self, kind: str) -> PurePath:
        """Where the modules of one virtual environment are."""
        return HOME / kind / "lib" / f"python{self.minor}" / "site-packages"


def deb_version(version: str, revision: str) -> str:
    """A version of Python's as one of Debian's, where `~` sorts before the end: 1.0rc1 is older than 1.0."""
    return re.sub(r"(?<=\d)\.?(a|b|rc|dev)(?=\d)", r"~\1", version).replace("+", ".") + f"-{revision}"


def canonical(name: str) -> str:
    """A package's name as all its spellings have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(requirements: str) -> set[str]:
    """The packages that a file of requirements/ names."""
    return {canonical(name) for name in re.findall(r"^([A-Za-z0-9][\w.-]*)==", requirements, re.MULTILINE)}


def is_installed(path: PurePath) -> bool:
    """Whether a file of a Python package is of use on a machine: no tests, no sources of what is compiled."""
    outside = path.is_absolute() or ".." in path.parts or path.parts[0] in {"bin", "share"}
    return not (
        outside
        or _LEFT_OUT_FOLDERS & set(path.parts[:-1])
        or path.suffix in _LEFT_OUT_SUFFIXES
        or (path.name in _LEFT_OUT_FILES and path.parent.suffix == ".dist-info")
    )


def files_of(packages: Path, names: set[str]) -> Iterator[PurePath]:
    """The files of some packages, relative to their folder.

    Raises:
        SystemExit: one of them tells no files; what isn't there at all is for another Python or system.
    """
    for each in importlib.metadata.distributions(path=[str(packages)]):
        if canonical(each.metadata["Name"]) in names:
            if each.files is None:
                raise SystemExit(
                    f"{packages}: {each.metadata['Name']} has no RECORD; remove the folder, and run this again"
                )
            yield from (PurePath(path) for path in each.files if is_installed(PurePath(path)))


def control(name: str, package: dict[str, Any], target: Target, size: int) -> str:
    """The control file.

    Args:
        name: the package's.
        package: its table in packages.toml.
        target: what for.
        size: of its files, in KiB.
    """
    relations = {"Depends": list(package.get("depends", ())), "Recommends": package.get("recommends", ())}
    relations["Suggests"] = package.get("suggests", ())
    if "programs" in package:
        relations["Depends"] = [f"python{target.minor}", *relations["Depends"]]
    if beside := package.get("beside"):
        relations["Depends"] = [f"{beside} (= {target.version})"]
    lines = {
        "Package": name,
        "Version": target.version,
        "Architecture": "all" if "launcher" in package else target.architecture,
        "Maintainer": "The Certplane authors <certplane@example.invalid>",
        "Section": "admin",
        "Priority": "optional",
        "Installed-Size": str(size),
        **{field: ", ".join(relations[field]) for field in _SECTIONS if relations[field]},
        "Description": f"{package['description']}\n {package['text']}",
    }
    return "".join(f"{field}: {value}\n" for field, value in lines.items())


def maintainer_scripts(name: str, package: dict[str, Any]) -> dict[str, str]:
    """The four scripts of a package with units; of another one none."""
    if "units" not in package:
        return {}
    known = {"package": name, "units": package["stopped"]}
    known |= {key: package[key] for key in ("purged", "kept", "folders")}
    begin = "#!/bin/sh\nset -e\n" + "".join(f"{key}='{value}'\n" for key, value in known.items())
    folder = ROOT / "packaging" / "debian"
    shared = (folder / "service.sh").read_text()
    return {
        script: f"{begin}{shared}\n{(folder / script).read_text()}"
        for script in ("preinst", "postinst", "prerm", "postrm")
    }


class Tree:
    """The files of one package, in a folder."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder

    def at(self, path: PurePath | str) -> Path:
        """Where a path of the target lies, with its folder made."""
        here = self.folder / str(path).lstrip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        return here

    def write(self, path: PurePath | str, content: str | bytes, mode: int = 0o644) -> None:
        """Make a file."""
        here = self.at(path)
        here.write_bytes(content.encode() if isinstance(content, str) else content)
        here.chmod(mode)

    def files(self) -> list[Path]:
        """All of it but folders and links, by name."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())

    def size(self) -> int:
        """In KiB, each file and folder a whole number of them, as Debian counts."""
        found = list(self.folder.rglob("*"))
        return sum(
            -(-path.lstat().st_size // 1024) if path.is_file() and not path.is_symlink() else 1 for path in found
        )


def lay_programs(tree: Tree, kind: str, package: dict[str, Any], target: Target) -> None:
    """A virtual environment with Certplane and what it needs, without pip; compiled, since its user can't do that."""
    home, site = HOME / kind, target.site(kind)
    names = wanted((ROOT / "requirements" / f"{package['requirements']}.txt").read_text())
    lay_packages(tree, site, target, files_of(target.packages, names))
    with zipfile.ZipFile(target.wheel) as wheel:
        for name in wheel.namelist():
            folder, _, below = name.partition("/")
            if folder.endswith(".data"):
                # Where its installation would put it; manual pages, completion and units have places of their own.
                if below.startswith("data/share/certplane/schemas/"):
                    tree.write(home / below.removeprefix("data/"), wheel.read(name))
            elif is_installed(PurePath(name)):
                tree.write(site / name, wheel.read(name))
    tree.write(home / "pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")
    tree.at(home / "bin/python3").symlink_to(f"/usr/bin/python{target.minor}")
    for program, module in package["programs"].items():
        text = f"#!/{home}/bin/python3\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
        tree.write(home / "bin" / program, text, 0o755)
    lay_compiled(tree, target)


def lay_packages(tree: Tree, site: PurePath, target: Target, files: Iterator[PurePath]) -> None:
    """Files of Python packages; what linkers and debuggers want of their libraries is left out."""
    for path in files:
        shutil.copy(target.packages / path, tree.at(site / path))
        tree.at(site / path).chmod(0o644)
    libraries = [path for path in tree.files() if ".so" in path.suffixes]
    if libraries and shutil.which("strip"):
        subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)


def lay_compiled(tree: Tree, target: Target) -> None:
    """The modules' byte code, which their user may not write at the first start."""
    # No check of the source's time, which differs: the files of a package change together.
    options = ["-q", "-j", "2", "--invalidation-mode", "unchecked-hash", "-s", str(tree.folder), "-p", "/"]
    subprocess.run([target.python, "-m", "compileall", *options, tree.folder / HOME], check=True)


def lay_service(tree: Tree, name: str, package: dict[str, Any]) -> None:
    """Units, users, folders, and what else packages.toml says goes somewhere."""
    packaging = ROOT / "packaging"
    for unit in package["units"]:
        tree.write(f"usr/lib/systemd/system/{unit}", (packaging / "systemd" / unit).read_bytes())
    for kind in ("sysusers", "tmpfiles"):
        tree.write(f"usr/lib/{kind}.d/{name}.conf", (packaging / "systemd" / f"{name}.{kind}").read_bytes())
    for source, goes in package.get("files", {}).items():
        tree.write(goes, (packaging / source).read_bytes())


def lay_launcher(tree: Tree, program: str, kinds: Sequence[str]) -> None:
    """The same program is in several virtual environments: the first that is there runs it."""
    tries = "".join(
        f'[ ! -x /{HOME}/{kind}/bin/{program} ] || exec /{HOME}/{kind}/bin/{program} "$@"\n' for kind in kinds
    )
    tree.write(
        HOME / "bin" / program, f"#!/bin/sh\n{tries}echo '{program}: nothing in /{HOME} runs it' >&2\nexit 1\n", 0o755
    )


def lay(name: str, package: dict[str, Any], target: Target, tree: Tree) -> None:
    """All files of a package but dpkg's own."""
    kind = name.removeprefix("certplane-")
    if beside := package.get("beside"):
        of = {
            each: wanted((ROOT / "requirements" / f"{each}.txt").read_text())
            for each in (package["requirements"], "broker")
        }
        names = of[package["requirements"]] - of["broker"]
        site = target.site(beside.removeprefix("certplane-"))
        lay_packages(tree, site, target, files_of(target.packages, names))
        lay_compiled(tree, target)
    elif "programs" in package:
        lay_programs(tree, kind, package, target)
        lay_service(tree, name, package)
    else:
        lay_launcher(tree, name, package["launcher"])
    for program in package.get("on_path", ()):
        if "programs" in package:
            tree.at(HOME / "bin" / program).symlink_to(f"../{kind}/bin/{program}")
        tree.at(f"usr/bin/{program}").symlink_to(f"/{HOME}/bin/{program}")
        page = (ROOT / "packaging" / "man" / f"{program}.1").read_bytes()
        tree.write(f"usr/share/man/man1/{program}.1.gz", gzip.compress(page, mtime=0))
        completion = (ROOT / "packaging" / "completion" / program).read_bytes()
        tree.write(f"usr/share/bash-completion/completions/{program}", completion)
    tree.write(f"usr/share/doc/{name}/copyright", _COPYRIGHT)


_COPYRIGHT = """\
Certplane: Apache License 2.0, /usr/share/common-licenses/Apache-2.0.
Packages from PyPI in /opt/certplane: each has its licence in its folder *.dist-info there.
"""


def make(name: str, package: dict[str, Any], target: Target, folder: Path, *, fast: bool) -> Path:
    """One package, as a file."""
    tree = Tree(ROOT / "build" / "debs" / name)
    lay(name, package, target, tree)
    for path in (tree.folder, *tree.folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    files = tree.files()
    sums = "".join(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree.folder)}\n" for path in files)  # noqa: S324 - dpkg's own format
    conffiles = "".join(
        f"/{path.relative_to(tree.folder)}\n" for path in files if path.is_relative_to(tree.folder / "etc")
    )
    size = tree.size()
    tree.write("DEBIAN/control", control(name, package, target, size))
    tree.write("DEBIAN/md5sums", sums)
    if conffiles:
        tree.write("DEBIAN/conffiles", conffiles)
    for script, text in maintainer_scripts(name, package).items():
        tree.write(f"DEBIAN/{script}", text, 0o755)
    (tree.folder / "DEBIAN").chmod(0o755)
    made = folder / f"{name}_{target.version}_{'all' if 'launcher' in package else target.architecture}.deb"
    how = ["-Zgzip", "-z1"] if fast else ["-Zxz"]
    environment = {"SOURCE_DATE_EPOCH": _MADE, **os.environ}
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", *how, "--build", tree.folder, made],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    sys.stdout.write(
        f"{made.relative_to(ROOT)}  installed {size / 1024:.1f} MiB, package {made.stat().st_size / 2**20:.1f} MiB\n"
    )
    return made


def from_pypi(minor: str) -> Path:
    """A folder with all that any package needs; pip installs it once for each change of the requirements."""
    requirements = ROOT / "requirements" / "broker-cloudflare.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    folder = ROOT / "build" / "debs" / f"packages-{minor}-{digest}"
    if not folder.exists():
        work = folder.with_suffix(".work")
        shutil.rmtree(work, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--require-hashes", "--quiet", "--disable-pip-version-check"]
        only = ["--no-compile", "--only-binary", ":all:", "--python-version", minor, "--target", work]
        subprocess.run([*command, *only, "--requirement", requirements], check=True)
        work.rename(folder)
    return folder


def said(*command: str) -> str:
    """What a program prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """The packages that were asked for, each with its size on a line."""
    with (ROOT / "packaging" / "debian" / "packages.toml").open("rb") as file:
        packages = tomllib.load(file)
    parser = argparse.ArgumentParser(prog="scripts/build-debs")
    parser.add_argument("--python", default="/usr/bin/python3")
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--revision", default="1")
    parser.add_argument("--only", nargs="+", choices=packages, default=list(packages))
    parser.add_argument("--fast", action="store_true")
    wants = parser.parse_args()
    for program in ("dpkg-deb", wants.python):
        if shutil.which(program) is None:
            raise SystemExit(f"build-debs: {program} is needed, and isn't here")
    minor = said(wants.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    (wheel,) = (ROOT / "build" / "debs" / "release").glob("certplane-*.whl")
    version = deb_version(wheel.name.split("-")[1], wants.revision)
    target = Target(
        python=wants.python,
        minor=minor,
        architecture=said("dpkg", "--print-architecture"),
        version=version,
        wheel=wheel,
        packages=wants.packages or from_pypi(minor),
    )
    folder = ROOT / "dist" / "debs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in wants.only:
        make(name, packages[name], target, folder, fast=wants.fast)


if __name__ == "__main__":
    main()
