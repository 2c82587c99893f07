"""The real parts: programs that we did not write, where they are on this machine, and what they can do.

`scripts/setup` gets them, this module finds them. It looks, in this order:

1. at `CERTPLANE_PART_<NAME>`, a path to the program (`CERTPLANE_PART_PEBBLE`, `CERTPLANE_PART_STEP_CA`); empty: left
out; 2. in the parts folder (`CERTPLANE_PARTS_DIR`, default `$XDG_CACHE_HOME/certplane/parts`), newest version first,
where `scripts/setup` builds with Go into `<name>-<version>/bin`; 3. beside the running Python (PyPI packages put
programs there), on PATH, and where Debian keeps servers.

A part that is missing or too old is left out with a reason, never an error: what needs it says so and the rest goes on.
Where `CERTPLANE_REQUIRE_PARTS=1` is set (CI), tests turn each left-out part into a failure.
"""

from __future__ import annotations

import glob
import mmap
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from certplane.sandbox.errors import PartMissingError

REQUIRE_VARIABLE = "CERTPLANE_REQUIRE_PARTS"
PARTS_FOLDER_VARIABLE = "CERTPLANE_PARTS_DIR"
_OVERRIDE_PREFIX = "CERTPLANE_PART_"
_ASK_SECONDS = 20


@dataclass(frozen=True, slots=True)
class PartKind:
    """What is known of a part before it is found.

    Attributes:
        name: also the beginning of its folder in the parts folder.
        program: the file to look for.
        used_for: one phrase for the table.
        had_by: how `scripts/setup` gets it.
        minimum: oldest version that the sandbox can run.
        module: its Go module; a Go binary carries the module's version inside.
        version_arguments: make it print its version, where it knows it.
        extra_folders: glob patterns of folders that aren't on an ordinary PATH; the highest number in them comes first.
        before_path: look into `extra_folders` before PATH.
        last_set_up: of several the one that `scripts/setup` took or made last, since its versions have no order.
        capabilities: capability -> bytes that only a program with that capability contains.
    """

    name: str
    program: str
    used_for: str
    had_by: str
    minimum: tuple[int, ...] = ()
    module: str | None = None
    version_arguments: tuple[str, ...] = ()
    extra_folders: tuple[str, ...] = ()
    before_path: bool = False
    last_set_up: bool = False
    capabilities: Mapping[str, bytes] = field(default_factory=dict)


PEBBLE_ARI = "ari"
"""Serves renewalInfo (RFC 9773)."""
PEBBLE_SET_RENEWAL_INFO = "set-renewal-info"
"""Its management port replaces a certificate's renewalInfo."""
PEBBLE_PROFILES = "profiles"
"""Knows ACME profiles, and the certificate lifetime is a profile's."""

KINDS = (
    PartKind(
        name="step-ca",
        program="step-ca",
        used_for="identity CA",
        had_by="scripts/setup builds it with Go (see scripts/versions.env)",
        minimum=(0, 28),
        module="github.com/smallstep/certificates",
    ),
    PartKind(
        name="step",
        program="step",
        used_for="step-ca's own client, to compare with",
        had_by="scripts/setup builds it with Go (see scripts/versions.env)",
        minimum=(0, 28),
        module="github.com/smallstep/cli",
    ),
    PartKind(
        name="pebble",
        program="pebble",
        used_for="public CA (ACME)",
        had_by="scripts/setup builds it with Go, or installs Debian's pebble as root",
        minimum=(2, 4),
        module="github.com/letsencrypt/pebble/v2",
        capabilities={
            PEBBLE_ARI: b"/draft-ietf-acme-ari",
            PEBBLE_SET_RENEWAL_INFO: b"/set-renewal-info/",
            PEBBLE_PROFILES: b"Loaded profile %q",
        },
    ),
    PartKind(
        name="acme2certifier",
        program="a2c-cli",
        used_for="a second ACME server",
        had_by="scripts/setup gets it from PyPI, into a virtual environment of its own",
        minimum=(0, 43),
    ),
    PartKind(
        name="certbot",
        program="certbot",
        used_for="another client, to move from",
        had_by="scripts/setup gets it from PyPI, into a virtual environment of its own",
        minimum=(2, 0),
    ),
    PartKind(
        name="bind",
        program="named",
        used_for="authoritative DNS",
        had_by="scripts/setup installs Debian's bind9 as root",
        minimum=(9, 16),
        version_arguments=("-v",),
        extra_folders=("/usr/sbin", "/usr/local/sbin"),
    ),
    PartKind(
        name="postgresql",
        program="postgres",
        used_for="database of several brokers",
        had_by="scripts/setup installs Debian's postgresql as root",
        minimum=(13,),
        version_arguments=("--version",),
        extra_folders=("/usr/lib/postgresql/*/bin",),
        before_path=True,
    ),
    PartKind(
        name="pgbouncer",
        program="pgbouncer",
        used_for="a pooler before the database",
        had_by="scripts/setup installs Debian's pgbouncer as root",
        minimum=(1, 15),
        version_arguments=("--version",),
        extra_folders=("/usr/sbin", "/usr/local/sbin"),
    ),
    PartKind(
        name="grpcurl",
        program="grpcurl",
        used_for="operations over gRPC",
        had_by="scripts/setup builds it with Go, or gets it from PyPI",
        minimum=(1, 8, 6),
        module="github.com/fullstorydev/grpcurl",
        version_arguments=("--version",),
    ),
    PartKind(
        name="nginx",
        program="nginx",
        used_for="a service that certificates are installed for",
        had_by="scripts/setup installs Debian's nginx-light as root",
        minimum=(1, 18),
        version_arguments=("-v",),
        extra_folders=("/usr/sbin", "/usr/local/sbin"),
    ),
    PartKind(
        name="haproxy",
        program="haproxy",
        used_for="a service that reads a combined file",
        had_by="scripts/setup installs Debian's haproxy as root",
        minimum=(2, 2),
        version_arguments=("-v",),
        extra_folders=("/usr/sbin", "/usr/local/sbin"),
    ),
    PartKind(
        name="prometheus",
        program="prometheus",
        used_for="reads the metrics; promtool lies beside it",
        had_by="scripts/setup installs Debian's prometheus as root",
        minimum=(2, 42),
        version_arguments=("--version",),
    ),
    PartKind(
        name="ansible",
        program="ansible-playbook",
        used_for="runs the roles of packaging/ansible",
        had_by="scripts/setup gets it from PyPI, into a virtual environment of its own",
        minimum=(2, 15),
    ),
    PartKind(
        name="openssl",
        program="openssl",
        used_for="a second view of certificates",
        had_by="scripts/setup installs Debian's openssl as root",
        minimum=(1, 1),
        version_arguments=("version",),
    ),
    PartKind(
        name="nspawn",
        program="systemd-nspawn",
        used_for="boots machines",
        had_by="scripts/setup installs Debian's systemd-container as root",
        minimum=(247,),
        version_arguments=("--version",),
    ),
    PartKind(
        name="debian",
        program="certplane-test-root",  # a file that the root alone has; the root is the folder above its bin
        last_set_up=True,
        used_for="the machines that are booted",
        had_by="scripts/setup makes it with Debian's mmdebstrap as root",
    ),
)


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is here.

    Attributes:
        version: as the part writes it, without a leading "v"; empty when it can't be told.
        capabilities: see the constants of this module.
    """

    kind: PartKind
    path: Path
    version: str
    capabilities: frozenset[str]

    @property
    def name(self) -> str:
        """The part's name."""
        return self.kind.name

    def can(self, capability: str) -> bool:
        """Whether it has a capability."""
        return capability in self.capabilities


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part that isn't here, or that is of no use, and why."""

    kind: PartKind
    reason: str

    @property
    def name(self) -> str:
        """The part's name."""
        return self.kind.name


def find(name: str, environment: Mapping[str, str] | None = None) -> Part | LeftOut:
    """Look for one part.

    Raises:
        KeyError: no part has that name.
    """
    environment = os.environ if environment is None else environment
    kind = next((kind for kind in KINDS if kind.name == name), None)
    if kind is None:
        raise KeyError(name)
    override = environment.get(_OVERRIDE_PREFIX + name.upper().replace("-", "_"))
    if override == "":
        return LeftOut(kind, "switched off by the environment")
    candidates = [Path(override)] if override else list(_candidates(kind, environment))
    too_old: LeftOut | None = None
    for path in candidates:
        if not os.access(path, os.X_OK) or path.is_dir():
            continue
        part = _describe(kind, path)
        if isinstance(part, Part):
            return part
        too_old = too_old or part
    if override:
        return too_old or LeftOut(kind, f"{override} isn't a program")
    return too_old or LeftOut(kind, f"no {kind.program} on this machine; {kind.had_by}")


def require(name: str, environment: Mapping[str, str] | None = None) -> Part:
    """Like `find`, for code that can't go on without.

    Raises:
        PartMissingError: the part is left out; says why.
    """
    found = find(name, environment)
    if isinstance(found, LeftOut):
        raise PartMissingError(found.name, found.reason)
    return found


def find_all(environment: Mapping[str, str] | None = None) -> list[Part | LeftOut]:
    """Every part, in the order of `KINDS`."""
    return [find(kind.name, environment) for kind in KINDS]


def all_required(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a left-out part is a failure here."""
    return (os.environ if environment is None else environment).get(REQUIRE_VARIABLE, "") not in {"", "0"}


def parts_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where `scripts/setup` puts what it builds."""
    environment = os.environ if environment is None else environment
    if chosen := environment.get(PARTS_FOLDER_VARIABLE):
        return Path(chosen)
    cache = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/")) / ".cache"
    return Path(cache) / "certplane" / "parts"


def version_tuple(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "v2.10.1" and "2.10.1+ds" are both (2, 10, 1); () if there are none."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return tuple(int(number) for number in match[1].split(".")) if match else ()


def _candidates(kind: PartKind, environment: Mapping[str, str]) -> Iterator[Path]:
    built = parts_folder(environment).glob(f"{kind.name}-*/bin/{kind.program}")
    # "step-*" also matches "step-ca-v0.30.2"; a version starts with a digit.
    own = [path for path in built if version_tuple(_folder_version(kind, path))]
    if kind.last_set_up:
        yield from sorted(own, key=lambda path: path.parents[1].stat().st_mtime, reverse=True)
    else:
        yield from sorted(own, key=lambda path: version_tuple(_folder_version(kind, path)), reverse=True)
    yield Path(sys.executable).parent / kind.program
    extra = [
        Path(folder) / kind.program
        for pattern in kind.extra_folders
        for folder in sorted(glob.glob(pattern), key=_numbers, reverse=True)  # noqa: PTH207 (absolute patterns)
    ]
    if kind.before_path:
        yield from extra
    if on_path := shutil.which(kind.program, path=environment.get("PATH")):
        yield Path(on_path)
    yield from extra


def _describe(kind: PartKind, path: Path) -> Part | LeftOut:
    version = _version(kind, path)
    if version and version_tuple(version) < kind.minimum:
        least = ".".join(map(str, kind.minimum))
        return LeftOut(kind, f"{path} has version {version}; at least {least} is needed")
    capabilities = frozenset(name for name, mark in kind.capabilities.items() if _contains(path, mark))
    return Part(kind, path, version, capabilities)


def _version(kind: PartKind, path: Path) -> str:
    """From the folder, from the Go binary itself, from its own words, or from Debian; empty if nobody knows."""
    if folder := _folder_version(kind, path):
        return folder.removeprefix("v")
    if kind.module and (built_in := _go_module_version(path, kind.module)):
        return built_in.removeprefix("v")
    if kind.version_arguments:
        said = _output([path, *kind.version_arguments])
        if match := re.search(r"\bv?(\d+(?:\.\d+)+)", said):
            return match[1]
    if owner := _output(["dpkg-query", "--search", path.resolve()]).partition(":")[0]:
        return _output(["dpkg-query", "--show", "--showformat=${Version}", owner])
    return ""


def _folder_version(kind: PartKind, path: Path) -> str:
    folder = path.parent.parent.name
    version = folder.removeprefix(f"{kind.name}-")
    return version if version != folder and re.match(r"v?\d", version) else ""


def _go_module_version(path: Path, module: str) -> str:
    """What `go version -m` would say, without Go: the linker keeps the module list as text in the binary."""
    mark = rb"(?:mod|dep)\t" + re.escape(module.encode()) + rb"\t(v[0-9][^\t\n]*)"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        match = re.search(mark, content)
        return match[1].decode() if match else ""


def _contains(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(mark) >= 0


def _output(command: list[str | Path]) -> str:
    """Standard output and error of a short command, stripped; empty if it can't be run or fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_ASK_SECONDS,
            check=True,
            text=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
