"""scripts/build-debs: what goes into the Debian packages, and what their scripts do to files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path, PurePath
from types import ModuleType

import pytest

from certplane.broker.init.wanted import DROP_IN
from tests.support.waiting import HANG

_ROOT = Path(__file__).parents[3]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("certplane_debs", _ROOT / "scripts" / "debs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


debs = _load()
PACKAGES = tomllib.loads((_ROOT / "packaging" / "debian" / "packages.toml").read_text())
SERVICES = [name for name, package in PACKAGES.items() if "units" in package]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        pytest.param("0.1.0", "0.1.0-2", id="release"),
        pytest.param("1.0rc1", "1.0~rc1-2", id="candidate"),
        pytest.param("1.0.dev3", "1.0~dev3-2", id="development"),
        pytest.param("1.0+local", "1.0.local-2", id="local"),
    ],
)
def test_versions_sort_as_pythons_do(version: str, expected: str) -> None:
    """A candidate is older than the release to dpkg."""
    assert debs.deb_version(version, "2") == expected


@pytest.mark.parametrize(
    ("path", "installed"),
    [
        pytest.param("grpc/aio/_server.py", True, id="module"),
        pytest.param("grpc/_cython/_credentials/roots.pem", True, id="data"),
        pytest.param("cryptography-50.0.2.dist-info/licenses/LICENSE", True, id="licence"),
        pytest.param("certplane/agent/testing.py", True, id="a-module-of-that-name"),
        pytest.param("sqlalchemy/testing/util.py", False, id="tests"),
        pytest.param("yaml/_yaml.pyx", False, id="source-of-what-is-compiled"),
        pytest.param("grpc/__pycache__/_channel.cpython-311.pyc", False, id="byte-code-of-pips"),
        pytest.param("idna-3.20.dist-info/RECORD", False, id="record-of-pips"),
        pytest.param("../../bin/alembic", False, id="program"),
        pytest.param("/etc/passwd", False, id="absolute"),
    ],
)
def test_what_is_of_use_on_a_machine_is_installed(path: str, installed: bool) -> None:
    """No tests, no sources of libraries, and nothing outside of the folder of modules."""
    assert debs.is_installed(PurePath(path)) is installed


def test_requirements_are_read_by_name() -> None:
    """A file's lines name what a package takes, in any spelling; hashes and comments aren't names."""
    text = "# comment\nPyYAML==6.0.4 \\\n    --hash=sha256:ab\ntyping_extensions==4.16.0 ; python_version < '3.13' \\\n    --hash=sha256:cd\n"
    assert debs.wanted(text) == {"pyyaml", "typing-extensions"}


@pytest.mark.parametrize("name", SERVICES)
def test_scripts_are_shell(name: str, tmp_path: Path) -> None:
    """Each maintainer script parses, and begins by failing at the first fault."""
    scripts = debs.maintainer_scripts(name, PACKAGES[name])
    assert set(scripts) == {"preinst", "postinst", "prerm", "postrm"}
    for script, text in scripts.items():
        (tmp_path / script).write_text(text)
        subprocess.run(["sh", "-n", tmp_path / script], check=True, timeout=HANG)
        assert text.startswith("#!/bin/sh\nset -e\n")


@pytest.mark.parametrize("name", SERVICES)
def test_only_a_purge_removes_files(name: str) -> None:
    """What it removes is under the package's own names, and never all of a folder that it shares."""
    package = PACKAGES[name]
    for path in package["purged"].split():
        assert path.startswith(("/etc/certplane/", "/var/lib/certplane/", f"/etc/systemd/system/{name}.service.d/"))
    document = (_ROOT / "docs" / "packages.md").read_text()
    for path in (package["purged"] + " " + package["kept"]).split():
        assert f"`{path}`" in document, f"docs/packages.md doesn't say what becomes of {path}"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        pytest.param("certplane-agent", ("internal-ca.pem", "broker-ca.pem", "agent.yml"), id="agent"),
        pytest.param("certplane-broker", ("agent-ca.pem", "acme-ca.pem", "broker.yml"), id="broker"),
    ],
)
def test_a_purge_removes_what_init_wrote_and_kept(name: str, written: tuple[str, ...]) -> None:
    """Each file, what `--replace` kept of it, and the broker's drop-in, whose credential is gone."""
    purged = PACKAGES[name]["purged"].split()
    assert {f"/etc/certplane/{each}{end}" for each in written for end in ("", ".before-init*")} <= set(purged)
    if name == "certplane-broker":
        assert any(DROP_IN.match(pattern) for pattern in purged)
        assert str(DROP_IN.parent) in PACKAGES[name]["folders"].split()


def test_what_a_failed_upgrade_stopped_is_started_by_the_next_one(tmp_path: Path) -> None:
    """The second one finds nothing running, and remembers what the first one has stopped."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        f"""#!/bin/sh
echo "$*" >>{tmp_path}/calls
if [ "$1" = list-units ] && [ ! -e {tmp_path}/stopped ]; then echo "web.service loaded active running Web"; fi
if [ "$1" = stop ]; then touch {tmp_path}/stopped; fi
"""
    )
    systemctl.chmod(0o755)
    script = f"""
set -e
package=web units=web.service
{(_ROOT / "packaging" / "debian" / "service.sh").read_text()}
systemd_runs() {{ :; }}
ran={tmp_path}/ran PATH={tmp_path}:$PATH
stop_what_runs
stop_what_runs
start_what_ran
"""
    subprocess.run(["sh", "-c", script], check=True, timeout=HANG)
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "start web.service"
    assert not (tmp_path / "ran").exists()


def test_every_file_for_systemd_is_in_a_package() -> None:
    """A unit that is added to packaging/systemd goes into one of them."""
    packed = {unit for name in SERVICES for unit in PACKAGES[name]["units"]}
    packed |= {PurePath(source).name for name in SERVICES for source in PACKAGES[name].get("files", {})}
    packed |= {f"{name}.{kind}" for name in SERVICES for kind in ("sysusers", "tmpfiles")}
    assert packed == {path.name for path in (_ROOT / "packaging" / "systemd").iterdir()}
