"""A lineage on disk: what services see at the configured paths, and what is never touched."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from certplane.agent.install.lineage import FileVersionStore, InstallError
from certplane.agent.install.material import Outputs
from certplane.agent.install.outputs import OutputError
from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.model import InstallMode
from certplane.errors import OperationError
from tests.fakes.clock import ManualClock
from tests.support.lineages import Host, LocalIssuer, standing_pair

ISSUER = LocalIssuer()
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs files of other owners")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def copying(tmp_path: Path) -> Host:
    return Host(tmp_path, InstallMode.COPY)


both_modes = pytest.mark.parametrize("mode", list(InstallMode))


def test_configured_paths_are_links_through_current(host: Host) -> None:
    """Each path names the lineage's `current`, so that its rename switches all of them."""
    version = host.renew()
    assert host.outputs.key is not None
    assert host.outputs.key.readlink() == host.lineage / "current" / "privkey.pem"
    assert (host.lineage / "current").readlink() == Path("versions/1")
    assert host.shown() == version.serial_number


@both_modes
def test_keys_are_the_owners_alone(tmp_path: Path, mode: InstallMode) -> None:
    """Keys are 0600 and certificates 0644 in directories that a service can pass, whatever the umask."""
    host = Host(tmp_path, mode)
    before = os.umask(0o077)
    try:
        version = host.renew()
    finally:
        os.umask(before)
    assert [host.mode_of(part) for part in ("key", "cert", "fullchain", "combined")] == [0o600, 0o644, 0o644, 0o600]
    directories = [host.lineage, host.lineage / "versions", version.path, host.root / "etc"]
    assert [stat.S_IMODE(directory.stat().st_mode) for directory in directories] == [0o755] * 4


def test_pending_key_is_the_owners_alone(host: Host) -> None:
    """Nobody else passes the directory of a pending key."""
    host.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
    assert stat.S_IMODE((host.lineage / "pending").stat().st_mode) == 0o700
    assert stat.S_IMODE((host.lineage / "pending" / "privkey.pem").stat().st_mode) == 0o600


@both_modes
def test_pair_that_stands_there_becomes_version_0(tmp_path: Path, mode: InstallMode) -> None:
    """A first activation keeps what another tool had installed, and can go back to it to the byte."""
    host = Host(tmp_path, mode)
    standing_pair(ISSUER, host.outputs, "www.example.org")
    before = {path: path.read_bytes() for path in host.outputs.paths().values()}
    version = host.renew()
    assert host.shown() == version.serial_number
    imported = host.store.versions()[0]
    assert imported.number == 0
    assert imported.dns_names == ("www.example.org",)
    host.store.activate(imported)
    assert {path: path.read_bytes() for path in host.outputs.paths().values()} == before


@both_modes
@pytest.mark.parametrize(
    ("stray", "kept"),
    [
        pytest.param("key", ["cert.pem", "combined.pem", "fullchain.pem", "privkey.pem"], id="another's key"),
        pytest.param("", ["cert.pem", "fullchain.pem"], id="no key"),
    ],
)
def test_what_is_no_pair_is_kept_aside(tmp_path: Path, mode: InstallMode, stray: str, kept: list[str]) -> None:
    """Files that don't make a pair are no version, and aren't destroyed either."""
    host = Host(tmp_path, mode)
    standing_pair(ISSUER, host.outputs, "www.example.org")
    assert host.outputs.key is not None
    assert host.outputs.cert is not None
    assert host.outputs.combined is not None
    if stray:
        host.outputs.key.write_bytes(ISSUER.pair("www.example.org")[0])
    else:
        host.outputs.key.unlink()
        host.outputs.combined.unlink()
    before = host.outputs.cert.read_bytes()
    version = host.renew()
    assert host.shown() == version.serial_number
    assert [each.number for each in host.store.versions()] == [1]
    assert sorted(path.name for path in (host.lineage / "replaced" / "1").iterdir()) == kept
    assert (host.lineage / "replaced" / "1" / "cert.pem").read_bytes() == before


def test_file_put_over_a_link_is_kept_aside(host: Host) -> None:
    """Whoever replaces a link by a file of his own finds the file again after the next activation."""
    host.renew()
    assert host.outputs.cert is not None
    host.outputs.cert.unlink()
    host.outputs.cert.write_text("mine")
    version = host.renew()
    assert host.shown() == version.serial_number
    assert (host.lineage / "replaced" / "1" / "cert.pem").read_text() == "mine"


def test_edited_copy_is_kept_aside(copying: Host) -> None:
    """A copy that somebody changed is replaced, and kept."""
    copying.renew()
    assert copying.outputs.fullchain is not None
    edited = copying.outputs.fullchain.read_text() + "# an issuer more\n"
    copying.outputs.fullchain.write_text(edited)
    copying.renew()
    assert (copying.lineage / "replaced" / "1" / "fullchain.pem").read_text() == edited
    copying.renew()
    assert not (copying.lineage / "replaced" / "2").exists()


def foreign_link(path: Path) -> None:
    path.symlink_to("/etc/ssl/private/elsewhere.pem")


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def large_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((1 << 20) + 1)


def _unchanging(status: os.stat_result) -> tuple[int, ...]:
    """What stays while a file is only looked at: all but the time of the last access."""
    return (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)


@both_modes
@pytest.mark.parametrize("plant", [foreign_link, directory, pipe, large_file])
def test_what_is_not_ours_is_refused(tmp_path: Path, mode: InstallMode, plant: Callable[[Path], None]) -> None:
    """Somebody else's link, a directory or a device isn't replaced: the error names it, and nothing has changed."""
    host = Host(tmp_path, mode)
    assert host.outputs.key is not None
    host.outputs.key.parent.mkdir()
    plant(host.outputs.key)
    before = _unchanging(host.outputs.key.lstat())
    version = host.stage()
    with pytest.raises(OutputError, match=r"key\.pem") as caught:
        host.store.activate(version)
    assert "another path" in caught.value.remedy
    assert host.store.current() is None
    assert _unchanging(host.outputs.key.lstat()) == before
    assert [path.name for path in host.outputs.key.parent.iterdir()] == ["key.pem"]


@as_root
@both_modes
def test_directory_that_others_may_write_is_refused(tmp_path: Path, mode: InstallMode) -> None:
    """As root, a configured path in somebody's own directory isn't written."""
    host = Host(tmp_path, mode)
    host.renew()
    good = host.shown()
    os.chown(tmp_path / "etc", 65534, 65534)
    version = host.stage()
    with pytest.raises(OperationError, match="belongs to user 65534"):
        host.store.activate(version)
    os.chown(tmp_path / "etc", 0, 0)
    assert host.shown() == good


def test_renamed_lineage_takes_over_its_paths(host: Host) -> None:
    """A certificate that got another name in the configuration keeps its paths, with its old pair as version 0."""
    old = host.renew()
    renamed = Host(host.root, name="web")
    new = renamed.renew()
    assert renamed.shown() == new.serial_number
    assert renamed.store.versions()[0].serial_number == old.serial_number
    assert host.store.current() == old


@pytest.mark.parametrize(("first", "then"), [("link", "copy"), ("copy", "link")])
def test_mode_can_be_changed(tmp_path: Path, first: str, then: str) -> None:
    """The next activation shows its version in the mode that is configured now."""
    Host(tmp_path, InstallMode(first)).renew()
    host = Host(tmp_path, InstallMode(then))
    version = host.renew()
    assert host.shown() == version.serial_number
    assert host.outputs.key is not None
    assert host.outputs.key.is_symlink() == (then == "link")
    assert not (host.lineage / "replaced").exists()


def test_outputs_can_change_their_places(host: Host) -> None:
    """A path that is configured for another file shows that one after the next activation."""
    host.renew()
    assert host.outputs.cert is not None
    swapped = Outputs(key=host.outputs.key, fullchain=host.outputs.cert)
    store = FileVersionStore(host.lineage, swapped, keys=host.keys)
    version = host.stage()
    store.activate(version)
    assert host.outputs.cert.read_bytes() == (version.path / "fullchain.pem").read_bytes()


@as_root
@both_modes
def test_owner_and_mode_are_handed_on(tmp_path: Path, mode: InstallMode) -> None:
    """A key that a group may read stays so for every version; reading by everybody is not handed on."""
    host = Host(tmp_path, mode)
    standing_pair(ISSUER, host.outputs, "www.example.org")
    assert host.outputs.key is not None
    assert host.outputs.combined is not None
    os.chown(host.outputs.key, 0, 33)
    host.outputs.key.chmod(0o640)
    host.outputs.combined.chmod(0o664)
    for _ in range(2):
        host.renew()
        assert host.mode_of("key") == 0o640
        assert host.outputs.key.stat().st_gid == 33
        assert host.mode_of("combined") == 0o640
        assert host.mode_of("cert") == 0o644


@as_root
def test_operator_may_open_a_key_to_a_group(host: Host) -> None:
    """What an operator sets on the current version's key holds for the next one too."""
    version = host.renew()
    os.chown(version.path / "privkey.pem", 0, 33)
    (version.path / "privkey.pem").chmod(0o640)
    host.renew()
    assert host.mode_of("key") == 0o640
    assert host.outputs.key is not None
    assert host.outputs.key.stat().st_gid == 33


def test_activating_what_is_shown_writes_nothing(host: Host, copying: Host) -> None:
    """A repeated activation leaves every file and link as it is."""
    for each in (host, Host(copying.root, InstallMode.COPY, name="other")):
        version = each.renew()
        assert each.outputs.key is not None
        before = _unchanging(each.outputs.key.lstat()), _unchanging((each.lineage / "current").lstat())
        each.store.activate(version)
        assert (_unchanging(each.outputs.key.lstat()), _unchanging((each.lineage / "current").lstat())) == before


def test_lineage_without_paths_is_switched_all_the_same(tmp_path: Path) -> None:
    """The identity's lineage needs no configured paths: the agent reads `current`."""
    keys = FilePendingKeys(tmp_path / "identity", clock=ManualClock())
    store = FileVersionStore(tmp_path / "identity", Outputs(), keys=keys)
    request = keys.begin(common_name="web1", sans=["web1.example"], replaces_certificate_id="", reuse_key=False)
    version = store.stage(ISSUER.issue(request.csr_pem))
    store.activate(version)
    assert store.current() == version


def test_path_inside_the_lineage_is_misuse(tmp_path: Path) -> None:
    """A configured path can't lie where versions are kept, nor can two outputs share one."""
    keys = FilePendingKeys(tmp_path / "www", clock=ManualClock())
    with pytest.raises(ValueError, match="own directory"):
        FileVersionStore(tmp_path / "www", Outputs(key=tmp_path / "www" / "current" / "key.pem"), keys=keys)
    with pytest.raises(ValueError, match="share"):
        Outputs(key=tmp_path / "a.pem", cert=tmp_path / "a.pem")
    with pytest.raises(ValueError, match="absolute"):
        Outputs(key=Path("a.pem"))


@pytest.mark.parametrize("junk", ["", "{", "null", "[" * 200_000, '{"format": 1, "certificate_id": 7}'])
def test_a_version_outlives_what_is_noted_of_it(host: Host, junk: str, caplog: pytest.LogCaptureFixture) -> None:
    """Key and certificate are whole: what is in use isn't given up for a file that only says more of it."""
    version = host.renew()
    (version.path / "metadata.json").write_text(junk)
    with caplog.at_level(logging.WARNING):
        assert host.store.current() == replace(version, certificate_id="", renew_time=None)
    assert "metadata.json can't be read and is ignored" in caplog.text
    host.store.activate(version)
    assert host.renew().number == 2


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": lambda current: current.unlink(),
    "dangling": lambda current: (current.unlink(), current.symlink_to("versions/99"))[0],
    "leads elsewhere": lambda current: (current.unlink(), current.symlink_to("/nowhere"))[0],
    "a file": lambda current: (current.unlink(), current.write_text("versions/1"))[0],
    "a folder": lambda current: (current.unlink(), current.mkdir(), (current / "privkey.pem").write_text("x"))[0],
}


@pytest.mark.parametrize("mode", list(InstallMode))
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_current_is_put_right_by_the_next_activation(
    tmp_path: Path, mode: InstallMode, damage: Callable[[Path], None]
) -> None:
    """Whatever stands there leads nowhere: the versions are whole, and the paths show one again; nothing is destroyed."""
    host = Host(tmp_path, mode)
    version = host.renew()
    damage(host.lineage / "current")
    assert host.store.current() is None
    host.store.recover()
    host.store.activate(version)
    assert host.store.current() == version
    assert host.shown() == version.serial_number
    assert host.renew().number == 2
    if damage is DAMAGE["a folder"]:
        assert (host.lineage / "current.1" / "privkey.pem").read_text() == "x"


@pytest.mark.parametrize("harm", ["no metadata", "cert", "privkey"])
def test_damaged_version_is_left_out(host: Host, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    """A version that lacks a file, or whose files can't be read, isn't shown to anybody, and is said to be so."""
    good, bad = host.stage(), host.stage()
    match harm:
        case "no metadata":
            (bad.path / "metadata.json").unlink()
        case "cert":
            (bad.path / "cert.pem").write_text("nonsense")
        case "privkey":
            (bad.path / "privkey.pem").unlink()
    with caplog.at_level(logging.WARNING):
        assert list(host.store.versions()) == [good]
    assert str(bad.path) in caplog.text
    with pytest.raises(InstallError, match="version 2"):
        host.store.activate(bad)
    assert host.stage().number == 3


@pytest.mark.parametrize("when", ["stage", "activate"])
def test_full_disk_leaves_the_last_good_version(host: Host, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room nothing changes: not what is shown, not the pending key; the error says what to do."""
    host.renew()
    good = host.shown()
    request = host.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
    issued = ISSUER.issue(request.csr_pem)
    staged = host.store.stage(issued) if when == "activate" else None
    monkeypatch.setattr(os, "fsync" if staged is None else "symlink", refuse)
    with pytest.raises(InstallError) as caught:
        host.store.stage(issued) if staged is None else host.store.activate(staged)
    assert caught.value.remedy == "make room on the disk"
    assert host.shown() == good
    assert (host.keys.pending() is None) == (staged is not None)
    monkeypatch.undo()
    host.store.activate(host.store.stage(issued))
    assert host.shown() != good


def test_full_disk_leaves_the_last_good_copies(copying: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """All copies are on disk before the first replaces anything."""
    copying.renew()
    good = copying.shown()
    version = copying.stage()
    writes = iter([None, None, errno.ENOSPC])
    fsync = os.fsync

    def full_at_the_third(fd: int) -> None:
        if next(writes, errno.ENOSPC):
            refuse()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full_at_the_third)
    with pytest.raises(InstallError, match="No space"):
        copying.store.activate(version)
    monkeypatch.undo()
    assert copying.shown() == good
    assert copying.outputs.key is not None
    assert len(list(copying.outputs.key.parent.iterdir())) == len(copying.outputs.paths())


def refuse(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("journal", ["{", "{}", '{"version": 9}', '{"version": "x"}'])
def test_journal_that_makes_no_sense_is_passed_over(copying: Host, journal: str) -> None:
    """A journal that can't be read, or of a version that is gone, stops nothing."""
    version = copying.renew()
    (copying.lineage / "install.json").write_text(journal)
    copying.store.recover()
    assert copying.shown() == version.serial_number
    copying.renew()


def test_recovery_of_a_new_host_is_nothing(host: Host) -> None:
    """A lineage that doesn't exist yet has nothing to recover, and isn't made by it."""
    host.store.recover()
    assert not host.lineage.exists()


def test_versions_survive_junk_beside_them(host: Host) -> None:
    """What isn't a version's number is nobody's version."""
    version = host.renew()
    for name in ("01", "-1", "2.bak", "notes"):
        (host.lineage / "versions" / name).mkdir()
    assert list(host.store.versions()) == [version]
    assert host.stage().number == 2


def test_metadata_holds_no_secret(host: Host) -> None:
    """What everybody may read about a version is what the broker said."""
    version = host.renew()
    document = json.loads((version.path / "metadata.json").read_text())
    assert set(document) == {"format", "certificate_id", "renew_time", "request_id", "key_type", "hold", "taken_over"}


@pytest.mark.parametrize("harm", ["request", "key", "link"])
def test_unreadable_pending_request_is_never_overwritten(host: Host, harm: str) -> None:
    """A pending key whose request can't be read is left for a person to look at."""
    host.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
    pending = host.lineage / "pending"
    match harm:
        case "request":
            (pending / "request.json").write_text("{")
        case "key":
            (pending / "privkey.pem").unlink()
        case "link":
            (pending / "request.json").rename(pending / "elsewhere.json")
            (pending / "request.json").symlink_to("elsewhere.json")
    before = sorted(entry.name for entry in pending.iterdir())
    with pytest.raises(OperationError, match="can't be read") as caught:
        host.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
    assert str(pending) in caught.value.remedy
    assert sorted(entry.name for entry in pending.iterdir()) == before


def _as_certbot(host: Host) -> dict[Path, bytes]:
    """Links at the configured paths into an archive beside them, as certbot's `live` has them; what they show."""
    standing_pair(ISSUER, host.outputs, "www.example.org")
    shown = {}
    for path in host.outputs.paths().values():
        archive = path.parent.parent / "archive"
        archive.mkdir(exist_ok=True)
        shown[path] = path.read_bytes()
        path.rename(archive / f"{path.stem}1.pem")
        path.symlink_to(Path("..") / "archive" / f"{path.stem}1.pem")
    return shown


@both_modes
def test_links_of_another_tool_are_imported(tmp_path: Path, mode: InstallMode) -> None:
    """Who comes from certbot keeps his paths: what the links show becomes version 0, and is shown until the switch."""
    host = Host(tmp_path, mode)
    before = _as_certbot(host)
    assert host.store.obstacles() == []
    version = host.renew()
    assert host.shown() == version.serial_number
    imported = host.store.versions()[0]
    assert (imported.number, imported.dns_names) == (0, ("www.example.org",))
    assert len(list((tmp_path / "etc").parent.joinpath("archive").iterdir())) == len(before)
    host.store.activate(imported)
    assert {path: path.read_bytes() for path in before} == before


@as_root
@both_modes
@pytest.mark.parametrize("loosen", [lambda archive: archive.chmod(0o777), lambda archive: os.chown(archive, 65534, 0)])
def test_links_into_a_folder_of_others_are_not(
    tmp_path: Path, mode: InstallMode, loosen: Callable[[Path], None]
) -> None:
    """As root a link is followed only where nobody else could have changed what it leads to."""
    host = Host(tmp_path, mode)
    before = _as_certbot(host)
    loosen(tmp_path / "archive")
    assert all("isn't followed" in str(obstacle) for obstacle in host.store.obstacles())
    version = host.stage()
    with pytest.raises(OutputError, match="isn't followed"):
        host.store.activate(version)
    assert {path: path.read_bytes() for path in before} == before


def test_try_install_says_all_that_is_in_the_way(host: Host) -> None:
    """One error: each output with its cause, and the remedies once."""
    assert host.outputs.key is not None
    assert host.outputs.cert is not None
    host.store.try_install()
    host.outputs.key.parent.mkdir()
    host.outputs.key.mkdir()
    host.outputs.cert.symlink_to("/nowhere")
    with pytest.raises(InstallError) as refused:
        host.store.try_install()
    assert f"key: {host.outputs.key} is a directory" in refused.value.message
    assert f"cert: {host.outputs.cert} is a symbolic link to /nowhere, which isn't there" in refused.value.message
    assert "not ordered" in refused.value.message
    assert refused.value.retry_after is None  # no CA has said so: `renew` tries at once


def test_an_error_of_the_disk_names_output_path_and_remedy(host: Host) -> None:
    """What turns up only when it is done is told as well as what was tried before: no bare errno."""
    assert host.outputs.key is not None
    version = host.stage()
    host.outputs.key.parent.parent.joinpath("etc").write_text("a file")
    with pytest.raises(InstallError) as refused:
        host.store.activate(version)
    assert f"key: {host.outputs.key.parent} is no directory" in refused.value.message
    assert refused.value.remedy
    assert "Errno" not in str(refused.value)
