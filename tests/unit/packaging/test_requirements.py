"""What is installed from PyPI is named with its hash, everywhere, and fits pyproject.toml."""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(re.findall(r"^(\w+)=(\S+)$", (ROOT / "scripts" / "versions.env").read_text(), re.MULTILINE))
EXTRAS = PROJECT["project"]["optional-dependencies"]
BUILD = PROJECT["build-system"]["requires"]
AGENT = PROJECT["project"]["dependencies"]
BROKER = [*AGENT, *EXTRAS["broker"]]
AT_CLOUDFLARE = [*BROKER, *EXTRAS["cloudflare"]]
_ENTRY = re.compile(r"(?P<requirement>[^#\s][^\\\n]*?) \\\n(?P<hashes>(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


@dataclass(frozen=True)
class Locked:
    """One line of a lock file."""

    requirement: Requirement
    hashes: frozenset[str]

    @property
    def version(self) -> str:
        (specifier,) = self.requirement.specifier
        assert specifier.operator == "=="
        return specifier.version


def read(path: Path) -> dict[str, Locked]:
    """A lock file's lines by package; every line that isn't a comment must be one."""
    text = re.sub(r"^ *#.*\n", "", path.read_text(), flags=re.MULTILINE)
    found = {}
    for entry in _ENTRY.finditer(text):
        requirement = Requirement(entry["requirement"])
        hashes = frozenset(re.findall(r"[0-9a-f]{64}", entry["hashes"]))
        found[canonicalize_name(requirement.name)] = Locked(requirement, hashes)
    assert _ENTRY.sub("", text) == "", f"{path.name} has lines without hash, or options"
    return found


def of(name: str) -> dict[str, Locked]:
    return read(ROOT / "requirements" / f"{name}.txt")


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_line_has_one_version_and_hashes(path: Path) -> None:
    """No line leaves anything to the registry, and none names one."""
    locked = read(path)
    assert locked
    for each in locked.values():
        assert each.version
        assert each.hashes
        assert each.requirement.url is None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        pytest.param("agent", AGENT, id="agent"),
        pytest.param("broker", BROKER, id="broker"),
        pytest.param("broker-cloudflare", AT_CLOUDFLARE, id="broker-cloudflare"),
        pytest.param(
            "optional",
            [*BROKER, *(each for extra in EXTRAS.keys() - {"broker", "dev"} for each in EXTRAS[extra])],
            id="all-optional",
        ),
        pytest.param("dev", [*AT_CLOUDFLARE, *EXTRAS["dev"], *BUILD], id="dev"),
        pytest.param("build", [*BUILD, "build"], id="build"),
        pytest.param("ansible", [f"ansible-core=={PINS['ANSIBLE_VERSION']}"], id="ansible"),
        pytest.param("acme2certifier", [f"acme2certifier=={PINS['ACME2CERTIFIER_VERSION']}"], id="acme2certifier"),
        pytest.param(
            "certbot",
            [f"{name}=={PINS['CERTBOT_VERSION']}" for name in ("certbot", "certbot-dns-cloudflare")],
            id="certbot",
        ),
        pytest.param("lock", ["uv"], id="lock"),
    ],
)
def test_what_is_wanted_is_locked(name: str, wanted: list[str]) -> None:
    """Each dependency is there in a version that is allowed; `scripts/lock` makes it so."""
    locked = of(name)
    for requirement in map(Requirement, wanted):
        found = locked.get(canonicalize_name(requirement.name))
        assert found is not None, f"{requirement} is not in {name}.txt; run scripts/lock"
        assert requirement.specifier.contains(found.version, prereleases=True), f"{found.requirement}: run scripts/lock"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [pytest.param("agent", AGENT, id="agent"), pytest.param("broker", BROKER, id="broker"),
     pytest.param("dev", [*AT_CLOUDFLARE, *EXTRAS["dev"], *BUILD], id="dev")],
)  # fmt: skip
def test_what_those_want_is_locked_too(name: str, wanted: list[str]) -> None:
    """Dependencies of dependencies, as the packages that run this test tell them."""
    lacking = set(needed(map(Requirement, wanted), set())) - set(of(name))
    assert not lacking, "run scripts/lock"


def needed(wanted: Iterator[Requirement], seen: set[tuple[str, str]]) -> Iterator[str]:
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        for extra in ["", *requirement.extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            yield name
            try:
                told = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # not installed here: that is scripts/setup's to see to
            further = map(Requirement, told)
            yield from needed(
                (each for each in further if each.marker is None or each.marker.evaluate({"extra": extra})), seen
            )


def test_one_version_for_all_machines() -> None:
    """What is tested is what hosts and brokers get, to the hash."""
    everything = {**of("optional"), **of("dev")}
    for name in ("agent", "broker", "broker-cloudflare", "optional", "build"):
        for package, locked in of(name).items():
            assert locked.version == everything[package].version
            assert locked.hashes == everything[package].hashes
    assert set(of("agent")) < set(of("broker")) < set(of("broker-cloudflare")) < set(of("optional"))
    assert "cloudflare" not in of("broker"), "its SDK is nearly as large as all the rest"


PLACES = {
    "scripts": [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file()],
    "documents": [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))],
    "messages": sorted((ROOT / "certplane").rglob("*.py")),
    "examples": [path for path in sorted((ROOT / "examples").rglob("*")) if path.is_file()],
    "units": [path for path in sorted((ROOT / "packaging").rglob("*")) if path.is_file()],
}
_INSTALL = re.compile(r"(?:\bpip|/pip)\b(?:[^\n`']*\\\n)*?[^\n`']*?\binstall\b(?:[^\n]*\\\n)*[^\n]*")


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_installed_by_its_name_alone(place: str) -> None:
    """Each `pip install` wants hashes, or fetches nothing: whoever takes a free name must not get onto a machine."""
    for path in PLACES[place]:
        for command in _INSTALL.findall(path.read_text()):
            fetches_nothing = "--no-index" in command and "--no-deps" in command
            assert "--require-hashes" in command or fetches_nothing, f"{path}: {command}"


def test_the_search_finds_what_it_must() -> None:
    """The test before this one sees plain, continued and quoted commands."""
    for command in (
        "pip install x",
        "/opt/x/bin/pip install 'x[y]'",
        "-m pip install --quiet \\\n    x",
        "pip --q install x",
    ):
        assert _INSTALL.search(command), command
