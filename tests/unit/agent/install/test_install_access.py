"""Configured owners, groups and modes: set before a file is shown, over what stood there, and an error if they can't be."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from certplane.agent.install.access import FileAccess
from certplane.agent.install.lineage import FileVersionStore
from certplane.agent.install.material import Outputs, Part
from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.model import InstallMode, Version
from certplane.errors import OperationError
from tests.fakes.clock import ManualClock
from tests.support.lineages import LocalIssuer, standing_pair
from tests.support.waiting import HANG

ISSUER = LocalIssuer()
NOBODY, GROUP = 65534, 33
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
both_modes = pytest.mark.parametrize("mode", list(InstallMode))


@dataclass
class Host:
    """One lineage with a key and a chain, and who may read them."""

    root: Path
    mode: InstallMode = InstallMode.LINK
    access: dict[Part, FileAccess] = field(default_factory=dict)

    @property
    def outputs(self) -> Outputs:
        return Outputs(key=self.root / "etc" / "web.key", fullchain=self.root / "etc" / "web.pem")

    @property
    def store(self) -> FileVersionStore:
        state = self.root / "state" / "web"
        return FileVersionStore(state, self.outputs, keys=self.keys, mode=self.mode, access=self.access)

    @property
    def keys(self) -> FilePendingKeys:
        return FilePendingKeys(self.root / "state" / "web", clock=ManualClock())

    def stage(self) -> Version:
        request = self.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
        return self.store.stage(ISSUER.issue(request.csr_pem))

    def renew(self) -> Version:
        version = self.stage()
        self.store.activate(version)
        return version

    def shown(self, path: Path | None) -> tuple[int, int, int]:
        assert path is not None
        status = path.stat()
        return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


@as_root
@both_modes
def test_configured_access_holds_for_every_version(tmp_path: Path, mode: InstallMode) -> None:
    """Owner, group and mode of each file are what is configured, by name or number, with each renewal."""
    host = Host(
        tmp_path,
        mode,
        {Part.PRIVKEY: FileAccess("nobody", str(GROUP), 0o440), Part.FULLCHAIN: FileAccess(None, "www-data", None)},
    )
    for _ in range(2):
        host.renew()
        assert host.shown(host.outputs.key) == (NOBODY, GROUP, 0o440)
        assert host.shown(host.outputs.fullchain) == (0, GROUP, 0o644)


@as_root
@both_modes
def test_configured_access_goes_over_what_stood_there(tmp_path: Path, mode: InstallMode) -> None:
    """A file that is replaced hands on what isn't configured, and no more."""
    host = Host(tmp_path, mode, {Part.PRIVKEY: FileAccess(mode=0o400)})
    standing_pair(ISSUER, host.outputs, "www.example.org")
    assert host.outputs.key is not None
    os.chown(host.outputs.key, 0, GROUP)
    host.outputs.key.chmod(0o640)
    host.renew()
    assert host.shown(host.outputs.key) == (0, GROUP, 0o400)


@as_root
@both_modes
def test_changed_access_takes_effect_without_a_renewal(tmp_path: Path, mode: InstallMode) -> None:
    """The agent's next start shows the version that is in place as it is configured now."""
    host = Host(tmp_path, mode)
    version = host.renew()
    assert host.shown(host.outputs.key) == (0, 0, 0o600)
    host.access = {Part.PRIVKEY: FileAccess(None, str(GROUP), 0o640)}
    host.store.activate(version)
    assert host.shown(host.outputs.key) == (0, GROUP, 0o640)
    assert not (tmp_path / "state" / "web" / "replaced").exists()


@both_modes
@pytest.mark.parametrize(
    ("access", "problem"),
    [
        pytest.param(FileAccess("certplane-nobody"), "no user certplane-nobody", id="user"),
        pytest.param(FileAccess(None, "certplane-nobodies"), "no group certplane-nobodies", id="group"),
    ],
)
def test_unknown_account_keeps_the_version_before(
    tmp_path: Path, mode: InstallMode, access: FileAccess, problem: str
) -> None:
    """What can't be had stops the activation; services keep what they have."""
    host = Host(tmp_path, mode)
    first = host.renew()
    second = host.stage()
    host.access = {Part.PRIVKEY: access}
    with pytest.raises(OperationError, match=problem) as caught:
        host.store.activate(second)
    assert "correct" in caught.value.remedy
    assert host.store.current() == first


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder that every user may pass, as /var/lib and /etc are; a test's own folder is closed."""
    folder = Path(tempfile.mkdtemp(prefix="certplane-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@as_root
@both_modes
def test_service_of_the_group_reads_through_the_links(passable: Path, mode: InstallMode) -> None:
    """A service that runs as a member of the group opens key and chain; another user only the chain."""
    host = Host(passable, mode, {Part.PRIVKEY: FileAccess(None, str(GROUP), 0o640)})
    host.renew()
    readers = {GROUP: {"web.key", "web.pem"}, NOBODY: {"web.pem"}}
    for group, readable in readers.items():
        for path in (passable / "etc" / "web.key", passable / "etc" / "web.pem"):
            done = subprocess.run(
                ["cat", path], user=NOBODY, group=group, extra_groups=[], capture_output=True, check=False, timeout=HANG
            )
            assert (done.returncode == 0) == (path.name in readable), (group, path.name, done.stderr)


@as_root
def test_agent_that_is_not_root_cannot_give_files_away(passable: Path) -> None:
    """An owner that only root may set is an error with its remedy, not a file that its service can't read."""
    os.chown(passable, NOBODY, NOBODY)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            host = Host(passable, access={Part.PRIVKEY: FileAccess("root", None, 0o600)})
            try:
                host.renew()
            except OperationError as error:
                status = 0 if "only root" in error.remedy or "as root" in error.remedy else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
