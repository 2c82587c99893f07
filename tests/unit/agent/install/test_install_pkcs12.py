"""The PKCS#12 output: made from a version, switched with it, and made anew when its password changes."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

from certplane.agent.install.lineage import FileVersionStore
from certplane.agent.install.material import Outputs
from certplane.agent.install.pkcs12 import Pkcs12Maker
from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.model import InstallMode, Version
from certplane.errors import OperationError
from tests.fakes.clock import ManualClock
from tests.support.lineages import LocalIssuer
from tests.support.parts import need_part
from tests.support.waiting import HANG

ISSUER = LocalIssuer()
both_modes = pytest.mark.parametrize("mode", list(InstallMode))


@dataclass
class Host:
    """One lineage with a key, a chain and a PKCS#12 file."""

    root: Path
    mode: InstallMode = InstallMode.LINK
    passwords: list[bytes] = field(default_factory=lambda: [b"changeit"])

    @property
    def path(self) -> Path:
        return self.root / "etc" / "web.p12"

    @property
    def store(self) -> FileVersionStore:
        outputs = Outputs(key=self.root / "etc" / "web.key", pkcs12=self.path)
        return FileVersionStore(
            self.root / "state" / "web",
            outputs,
            keys=self.keys,
            mode=self.mode,
            pkcs12=Pkcs12Maker(self.password, "tomcat"),
        )

    @property
    def keys(self) -> FilePendingKeys:
        return FilePendingKeys(self.root / "state" / "web", clock=ManualClock())

    def password(self) -> bytes:
        if not self.passwords:
            raise OperationError("the password is gone", remedy="put it back")
        return self.passwords[-1]

    def renew(self) -> Version:
        request = self.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
        version = self.store.stage(ISSUER.issue(request.csr_pem))
        self.store.activate(version)
        return version

    def opened(self, password: bytes = b"changeit") -> pkcs12.PKCS12KeyAndCertificates:
        return pkcs12.load_pkcs12(self.path.read_bytes(), password)


@both_modes
def test_holds_key_certificate_and_chain(tmp_path: Path, mode: InstallMode) -> None:
    """It opens with the password and holds what the PEM files hold, under its friendly name."""
    host = Host(tmp_path, mode)
    version = host.renew()
    bundle = host.opened()
    assert bundle.cert is not None
    assert bundle.key is not None
    assert (format(bundle.cert.certificate.serial_number, "x"), bundle.cert.friendly_name) == (
        version.serial_number, b"tomcat",
    )  # fmt: skip
    key = load_pem_private_key((tmp_path / "etc" / "web.key").read_bytes(), password=None)
    assert bundle.key.public_key() == key.public_key() == bundle.cert.certificate.public_key()
    assert [each.certificate for each in bundle.additional_certs] == [
        x509.load_pem_x509_certificate(ISSUER.pem.encode())
    ]
    assert host.path.stat().st_mode & 0o777 == 0o600
    assert host.path.is_symlink() == (mode is InstallMode.LINK)


@both_modes
def test_switches_with_the_version(tmp_path: Path, mode: InstallMode) -> None:
    """A renewal and a way back show the file of the version that is in place."""
    host = Host(tmp_path, mode)
    first, second = host.renew(), host.renew()
    for version in (second, first, second):
        host.store.activate(version)
        bundle = host.opened()
        assert bundle.cert is not None
        assert format(bundle.cert.certificate.serial_number, "x") == version.serial_number


@both_modes
def test_changed_password_takes_effect(tmp_path: Path, mode: InstallMode) -> None:
    """The next time that a version is put in place, at the agent's start say, the file opens with the new password."""
    host = Host(tmp_path, mode)
    version = host.renew()
    before = host.path.read_bytes()
    host.store.activate(version)
    assert host.path.read_bytes() == before
    host.passwords.append("n\u00e9w".encode())
    host.store.activate(version)
    assert host.opened("n\u00e9w".encode()).cert is not None
    with pytest.raises(ValueError, match="password"):
        host.opened()
    assert not (tmp_path / "state" / "web" / "replaced").exists()


def test_password_that_cannot_be_read_keeps_the_version_before(tmp_path: Path) -> None:
    """The certificate that came is on disk; what services use is untouched until the password is there again."""
    host = Host(tmp_path)
    first = host.renew()
    host.passwords.clear()
    with pytest.raises(OperationError, match="the password is gone"):
        host.renew()
    current = host.store.current()
    assert current == first
    assert [version.number for version in host.store.versions()] == [1, 2]


def test_output_that_was_added_later_appears(tmp_path: Path) -> None:
    """A version from before the output was configured gets its file when it is next put in place."""
    host = Host(tmp_path)
    plain = FileVersionStore(tmp_path / "state" / "web", Outputs(key=tmp_path / "etc" / "web.key"), keys=host.keys)
    request = host.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
    version = plain.stage(ISSUER.issue(request.csr_pem))
    plain.activate(version)
    host.store.activate(version)
    assert host.opened().key is not None


def test_openssl_reads_it_without_legacy_algorithms(tmp_path: Path) -> None:
    """OpenSSL opens it without its legacy provider, and names AES and SHA-256, no 3DES and no RC2."""
    openssl = need_part("openssl").path
    host = Host(tmp_path)
    host.renew()
    done = subprocess.run(
        [openssl, "pkcs12", "-in", host.path, "-passin", "pass:changeit", "-info", "-noout"],
        capture_output=True, text=True, check=True, timeout=HANG,
    )  # fmt: skip
    assert "AES-256-CBC" in done.stderr
    assert "MAC: sha256" in done.stderr
    assert "DES" not in done.stderr.replace("PBES2", "")
    assert "RC2" not in done.stderr
