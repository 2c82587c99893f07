"""A lineage's files after a disk, a copy or a person did them harm: what is whole is used, and nothing is destroyed."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from certplane.agent.install.status import JsonStatusFile
from certplane.agent.model import InstallMode
from certplane.agent.renewal.status import new_status
from certplane.errors import OperationError
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from certplane.runtime.files import Directory
from tests.fakes.clock import ManualClock
from tests.support.lineages import Host

OTHER_KEY = private_key_pem(generate_private_key(KeyType.EC_P256))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _only_combined(version: Path) -> None:
    for entry in version.iterdir():
        if entry.name != "combined.pem":
            entry.unlink()


LOSSES: dict[str, Callable[[Path], None]] = {
    "no key": lambda version: (version / "privkey.pem").unlink(),
    "an empty key": lambda version: _empty(version / "privkey.pem"),
    "half a key": lambda version: _cut(version / "privkey.pem"),
    "no certificate": lambda version: (version / "cert.pem").unlink(),
    "an empty certificate": lambda version: _empty(version / "cert.pem"),
    "half a certificate": lambda version: _cut(version / "cert.pem"),
    "no chain": lambda version: (version / "chain.pem").unlink(),
    "no full chain": lambda version: (version / "fullchain.pem").unlink(),
    "an empty full chain": lambda version: _empty(version / "fullchain.pem"),
    "no combined file": lambda version: (version / "combined.pem").unlink(),
    "no metadata": lambda version: (version / "metadata.json").unlink(),
    "all but the combined file": _only_combined,
}


@pytest.mark.parametrize("mode", list(InstallMode))
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_version_that_lost_a_file_is_made_whole_at_the_next_start(
    tmp_path: Path, mode: InstallMode, loss: Callable[[Path], None]
) -> None:
    """What the other files still hold costs no certificate, nor a token where it is the identity's."""
    host = Host(tmp_path, mode)
    version = host.renew()
    before = {entry.name: entry.read_bytes() for entry in version.path.iterdir()}
    loss(version.path)
    host.store.recover()
    current = host.store.current()
    assert current is not None
    assert current.serial_number == version.serial_number
    after = {entry.name: entry.read_bytes() for entry in version.path.iterdir()}
    del before["metadata.json"], after["metadata.json"]
    assert after == before
    assert {stat.S_IMODE((version.path / name).stat().st_mode) for name in ("privkey.pem", "combined.pem")} == {0o600}
    host.store.activate(current)
    assert host.shown() == version.serial_number


LOST: dict[str, Callable[[Path], object]] = {
    "no key at all": lambda version: [(version / name).unlink() for name in ("privkey.pem", "combined.pem")],
    "nothing": lambda version: [entry.unlink() for entry in version.iterdir()],
    "a folder for a key": lambda version: _folder(version / "privkey.pem"),
    "a file for a folder": lambda version: (version.rename(version.with_name("gone")), version.write_text("")),
}


@pytest.mark.parametrize("loss", LOST.values(), ids=LOST)
def test_a_version_that_cannot_be_made_whole_stops_nothing(
    host: Host, loss: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """It is left as it is, told once, and the next one is had and shown."""
    version = host.renew()
    loss(version.path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            host.store.recover()
            host.store.versions()
    told = [line for line in map(str.strip, caplog.messages) if str(version.path) in line and "is left out" in line]
    assert len(told) == 1
    assert host.renew().number == 2


PENDING_DAMAGE: dict[str, Callable[[Path], object]] = {
    "no request": lambda pending: (pending / "request.json").unlink(),
    "half a request": lambda pending: _cut(pending / "request.json"),
    "another document": lambda pending: (pending / "request.json").write_text("null"),
    "no key": lambda pending: (pending / "privkey.pem").unlink(),
    "an empty key": lambda pending: _empty(pending / "privkey.pem"),
    "junk for a key": lambda pending: (pending / "privkey.pem").write_text("junk"),
    "another key": lambda pending: (pending / "privkey.pem").write_bytes(OTHER_KEY),
    "a folder for a key": lambda pending: _folder(pending / "privkey.pem"),
    "a file": lambda pending: (pending.rename(pending.with_name("kept")), pending.write_text("")),
    "a link": lambda pending: (pending.rename(pending.with_name("kept")), pending.symlink_to("kept")),
}


@pytest.mark.parametrize("damage", PENDING_DAMAGE.values(), ids=PENDING_DAMAGE)
def test_a_pending_request_of_no_use_is_set_aside_at_the_next_start(
    host: Host, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """No certificate could ever come of it; nothing of it is destroyed, and another key is made."""
    host.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
    pending = host.lineage / "pending"
    damage(pending)
    left = sorted(entry.name for entry in pending.iterdir()) if pending.is_dir() else []
    with caplog.at_level(logging.WARNING):
        host.store.recover()
    aside = host.lineage / "pending.1"
    assert str(aside) in caplog.text
    assert (sorted(entry.name for entry in aside.iterdir()) if aside.is_dir() else []) == left
    assert host.renew().number == 1


def test_a_pending_request_that_may_not_be_read_now_stays(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right that is lacking, or a disk that fails, says nothing of the key; the message says what to do."""
    host.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)

    def refuse_to_read(directory: Directory, name: str, **_: object) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory.path / name))

    monkeypatch.setattr(Directory, "read", refuse_to_read)
    with pytest.raises(OperationError) as caught:
        host.store.recover()
    assert caught.value.remedy == "give that user the right to read and write there"
    monkeypatch.undo()
    assert host.keys.pending() is not None


def test_a_folder_in_the_place_of_a_status_is_set_aside(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The file only informs: it is written again, and what stood there is kept."""
    (host.lineage / "status.json").mkdir(parents=True)
    (host.lineage / "status.json" / "x").write_text("x")
    file = JsonStatusFile(host.lineage)
    with caplog.at_level(logging.WARNING):
        file.save(new_status("www", ManualClock().now()))
    assert file.load() == new_status("www", ManualClock().now())
    assert (host.lineage / "status.json.1" / "x").read_text() == "x"
    assert str(host.lineage / "status.json.1") in caplog.text
