"""scripts/release: what keeps a checkout from being a release is told at once, with its remedy; nothing is published."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import releasing
from releasing import Checkout

from certplane import __version__
from tests.support.waiting import HANG

_ROOT = Path(__file__).parents[3]
_CHANGELOG = """\
# Changelog

## [Unreleased]

## [1.2.3] - 2026-11-29

### Added

- Something.

## [1.2.2] - 2026-11-01

- Before.

[1.2.3]: https://example.com/1.2.3
"""
READY = Checkout(
    version_file='__version__ = "1.2.3"\n',
    project_file='dynamic = ["version"]\n',
    changelog=_CHANGELOG,
    changes=(),
    head="abc",
    tags={"v1.2.2": "def"},
    released_wire=b"wire",
    wire=b"wire",
)


@pytest.mark.parametrize("tags", [{}, {"v1.2.2": "def"}, {"v1.2.3": "abc"}])
def test_a_checkout_that_is_ready(tags: dict[str, str]) -> None:
    """Nothing is said against it, whether it has its tag already or not."""
    assert [*releasing.problems(replace(READY, tags=tags))] == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"version_file": '__version__ = "1.2"\n'}, "no version like 1.2.3", id="version"),
        pytest.param({"version_file": ""}, "no version like 1.2.3", id="no-version"),
        pytest.param({"project_file": 'version = "1.2.3"\n'}, "pyproject.toml has a version too", id="two-places"),
        pytest.param({"version_file": '__version__ = "1.2.4"\n'}, "no section of 1.2.4", id="no-section"),
        pytest.param({"changelog": "## [1.2.3]\n\n- Text.\n"}, "no section of 1.2.3", id="no-date"),
        pytest.param({"changelog": "## [Unreleased] 1.2.3\n\n- Text.\n"}, "no section of 1.2.3", id="unreleased"),
        pytest.param({"changelog": "## [1.2.3] - 2026-11-29\n\n## [1.2.2] - 2026-11-01\n- x\n"}, "says nothing of 1.2.3", id="empty-section"),
        pytest.param({"changes": (" M README.md",)}, "M README.md: not committed", id="changed"),
        pytest.param({"changes": ("?? x", " M y", " M z")}, "?? x and 2 more: not committed", id="several-changed"),
        pytest.param({"tags": {"v1.2.3": "def"}}, "the tag of another commit", id="tagged"),
        pytest.param({"released_wire": b"old"}, "scripts/gen-protos --release", id="wire"),
    ],
)  # fmt: skip
def test_what_is_not_ready(changed: dict[str, object], said: str) -> None:
    """One line with its remedy."""
    (found,) = releasing.problems(replace(READY, **changed))  # type: ignore[arg-type]
    assert said in str(found)
    assert found.remedy


def test_all_of_it_at_once() -> None:
    """Nobody repairs one thing to be told of the next."""
    broken = replace(READY, version_file="", changes=("?? x",), released_wire=b"", project_file="version = 1")
    assert len([*releasing.problems(broken)]) == 4


def test_the_section_of_a_version() -> None:
    """Its text alone, without the links at the end."""
    assert releasing.notes(_CHANGELOG, "1.2.3") == "### Added\n\n- Something."
    assert releasing.notes(_CHANGELOG, "1.2.2") == "- Before."
    assert releasing.notes(_CHANGELOG, "Unreleased") is None


def test_a_look_makes_nothing(tmp_path: Path) -> None:
    """`--dry-run` in a clone with a file that nobody committed: status 1, what is wrong, and no dist/."""
    if not (_ROOT / ".git").exists():
        pytest.skip("this is no clone")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{_ROOT}", clone], check=True, timeout=HANG)
    shutil.copytree(_ROOT / "scripts", clone / "scripts", dirs_exist_ok=True)
    (clone / ".venv").symlink_to(_ROOT / ".venv")
    (clone / "left-over").touch()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [clone / "scripts" / "release", "--dry-run"], capture_output=True, text=True, timeout=HANG, env=environment, check=False
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "more: not committed" in done.stderr
    assert f"would make {__version__} of " in done.stdout
    assert not (clone / "dist").exists()


def test_sums_are_sha256sums(tmp_path: Path) -> None:
    """The program that people have checks them, in folders too; a file that was changed afterwards is found."""
    (tmp_path / "debs").mkdir()
    for name in ("a.whl", "debs/b.deb"):
        (tmp_path / name).write_text(name)
    releasing.write_sums(tmp_path)
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path, check=False, timeout=HANG).returncode == 0
    (tmp_path / "debs/b.deb").write_text("another")
    done = subprocess.run(check, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, "debs/b.deb" in done.stdout) == (1, True)


def test_what_was_built_twice_is_compared(tmp_path: Path) -> None:
    """A file that comes out otherwise, or not again, is named."""
    for folder, content in (("one", "x"), ("other", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same").write_text("same")
        (tmp_path / folder / "differs").write_text(content)
    (tmp_path / "one" / "only").touch()
    assert releasing.differing(tmp_path / "one", tmp_path / "other") == ["differs", "only"]


@pytest.mark.parametrize(
    "text", ['{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{"name": "x"}]}', "{}"]
)
def test_an_sbom_that_is_none(tmp_path: Path, text: str) -> None:
    """It is refused by CycloneDX's own schema."""
    (tmp_path / "x.cdx.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.cdx\.json is no CycloneDX 1\.6"):
        releasing.validate(tmp_path)
