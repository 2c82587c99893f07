"""`CertificateStore`: in memory and in a folder."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from certplane.caller.folder import FolderStore
from certplane.caller.ordering import Wanted
from certplane.caller.stored import CertificateStore, MemoryStore, Pending, new_pending
from certplane.caller.values import IssuedCertificate
from certplane.errors import OperationError
from certplane.pki.keys import KeyType
from tests.fakes.caller import FakeSource
from tests.fakes.clock import ManualClock

NAMES = ("api.example",)


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CertificateStore:
    made = MemoryStore() if request.param == "memory" else FolderStore(tmp_path / "tls", "api")
    made.open()
    return made


def pending(replaces: str = "") -> Pending:
    return new_pending("api", NAMES, replaces=replaces, key_type=KeyType.EC_P256)


async def issued(request: Pending) -> IssuedCertificate:
    return IssuedCertificate(await FakeSource(ManualClock()).obtain(request.wanted), request.private_key_pem)


def test_nothing_at_first(store: CertificateStore) -> None:
    """A new place has neither."""
    assert store.load() == (None, None)


def test_a_request_is_found_again(store: CertificateStore) -> None:
    """With its key; a later one takes its place."""
    first, second = pending(), pending("c1")
    store.begin(first)
    assert store.load() == (None, first)
    store.begin(second)
    assert store.load() == (None, second)


async def test_a_certificate_ends_its_request(store: CertificateStore) -> None:
    """It is in use at once, and nothing is pending."""
    for _ in range(4):
        request = pending()
        store.begin(request)
        made = await issued(request)
        store.put(made)
        assert store.load() == (made, None)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestFolder:
    """What is the folder's alone."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "tls"

    def opened(self, folder: Path, profile: str = "api") -> FolderStore:
        store = FolderStore(folder, profile)
        store.open()
        return store

    async def test_it_outlives_the_process(self, folder: Path) -> None:
        """Another keeper of the same folder finds certificate and request."""
        store = self.opened(folder)
        request = pending()
        made = await issued(request)
        store.put(made)
        store.begin(request)
        store.close()
        again = self.opened(folder)  # a request whose certificate is in use is over
        assert again.load() == (made, None)

    async def test_modes_and_files(self, folder: Path) -> None:
        """The key is closed to all others; `current` has a pair that servers read; one version before it stays."""
        store = self.opened(folder)
        for _ in range(4):
            made = await issued(pending())
            store.put(made)
        current = folder / "current"
        assert [mode_of(folder), mode_of(current / "privkey.pem")] == [0o700, 0o600]
        assert (current / "privkey.pem").read_bytes() == made.private_key_pem
        assert (current / "fullchain.pem").read_text() == made.fullchain_pem
        assert sorted(path.name for path in (folder / "versions").iterdir()) == ["3", "4"]

    def test_two_keepers(self, folder: Path) -> None:
        """The second one of a folder is told whose it is."""
        first = self.opened(folder)
        with pytest.raises(OperationError, match=r"is in use by process .*one keeper has a folder"):
            self.opened(folder)
        first.close()
        self.opened(folder).close()

    async def test_another_profiles_folder(self, folder: Path) -> None:
        """It is refused, before its certificate is used for other names."""
        store = self.opened(folder)
        store.put(await issued(pending()))
        store.close()
        with pytest.raises(OperationError, match="has the certificate of profile api, not of web"):
            self.opened(folder, "web").load()

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda current: (current / "privkey.pem").write_bytes(b"half a k"), id="key"),
            pytest.param(lambda current: (current / "fullchain.pem").unlink(), id="no-chain"),
            pytest.param(lambda current: (current / "certificate.json").write_bytes(b"{"), id="facts"),
            pytest.param(lambda current: (current / "fullchain.pem").write_bytes(b"\xff"), id="no-text"),
        ],
    )
    async def test_damage_is_set_aside(self, folder: Path, damage: object) -> None:
        """A version that can't be used counts as none, and what is left of it stays for a person."""
        store = self.opened(folder)
        store.put(await issued(pending()))
        damage(folder / "current")  # type: ignore[operator]
        assert store.load() == (None, None)
        assert (folder / "current.1").is_symlink()
        made = await issued(pending())
        store.put(made)
        assert store.load() == (made, None)

    @pytest.mark.parametrize("name", ["privkey.pem", "request.json"])
    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe"])
    def test_a_damaged_request_is_set_aside(self, folder: Path, name: str, content: bytes) -> None:
        """No certificate could come of it."""
        store = self.opened(folder)
        store.begin(pending())
        (folder / "pending" / name).write_bytes(content)
        assert store.load() == (None, None)
        assert (folder / "pending.1").is_dir()

    def test_a_disk_that_refuses(self, folder: Path) -> None:
        """The error names the path and what to do."""
        folder.write_text("a file")
        with pytest.raises(OperationError, match=r"the keeper's folder can't be used: .*tls is no directory"):
            self.opened(folder)

    def test_a_folder_behind_a_link(self, tmp_path: Path, folder: Path) -> None:
        """Links on the way to it are followed."""
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        store = self.opened(tmp_path / "link" / "tls")
        store.begin(pending())
        assert (tmp_path / "real" / "tls" / "pending").is_dir()


def test_a_request_has_no_key_in_its_text() -> None:
    """A pending request may be logged."""
    assert "PRIVATE" not in repr(pending())
    assert isinstance(pending().wanted, Wanted)
