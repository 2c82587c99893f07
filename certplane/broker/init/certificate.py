"""The broker's own certificate on disk: key first, then the certificate, each by one rename. Blocks.

The key is written before its CSR is sent, and stays over all renewals, so that a pair on disk always fits: a new
certificate takes the old one's place in one file. A run that was killed finds the key and asks with it again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from certplane.config.files import read_file, read_service_key
from certplane.errors import CertplaneError, OperationError
from certplane.pki.keys import KeyType, PrivateKey, generate_private_key, load_private_key, private_key_pem
from certplane.pki.lifetime import renew_time
from certplane.runtime.disk_errors import explain
from certplane.runtime.failpoints import failpoint
from certplane.runtime.files import open_directory
from certplane.stepca import server
from certplane.stepca.exchange import Endpoint
from certplane.stepca.trust import PinnedRoots

FAILPOINTS = ("init.key.after", "init.signed", "init.certificate.after")
"""Every place where a test may end this module's work."""


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """Where it is, and who makes it.

    Attributes:
        certificate: the chain, PEM, leaf first.
        key: its key, PEM.
        endpoint: the internal CA.
        roots: what that is known by.
        timeout: for one request.
    """

    certificate: Path
    key: Path
    endpoint: Endpoint
    roots: PinnedRoots
    timeout: timedelta

    def why_missing(self, name: str, now: datetime) -> str:
        """Why a certificate for `name` has to be got with a token; empty where there is one that can be used."""
        if not self.certificate.exists() or not self.key.exists():
            return "the broker has no certificate of its own yet"
        why = server.why_unusable(self._chain(), name, self._key(), self.roots, now)
        return f"{self.certificate} can't be used: {why}" if why else ""

    def get(self, name: str, token: str, now: datetime) -> None:
        """Get it with a one-time token.

        Raises:
            OperationError: the CA refused, or the disk.
            ConfigurationError: a key that is there can't be used.
        """
        if self.key.exists():
            key = self._key()
        else:
            key = generate_private_key(KeyType.EC_P256)
            self._write(self.key, private_key_pem(key), 0o600)
            failpoint("init.key.after")
        chain = server.sign(self.endpoint, self.roots, token=token, name=name, key=key, now=now, timeout=self.timeout)
        failpoint("init.signed")
        self._write(self.certificate, chain.encode(), 0o644)
        failpoint("init.certificate.after")

    def due_time(self) -> datetime:
        """From when it is to be renewed.

        Raises:
            CertplaneError: it can't be read.
        """
        leaf = self._leaf()
        return renew_time(leaf.not_valid_before_utc, leaf.not_valid_after_utc, None, self.name())

    def end_time(self) -> datetime:
        """When it ends.

        Raises:
            CertplaneError: it can't be read.
        """
        return self._leaf().not_valid_after_utc

    def name(self) -> str:
        """Its first DNS name.

        Raises:
            CertplaneError: it can't be read, or has none.
        """
        try:
            names = self._leaf().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return str(names.get_values_for_type(x509.DNSName)[0])
        except (x509.ExtensionNotFound, IndexError, ValueError) as error:
            raise self._broken("names no server") from error

    def renew(self, now: datetime) -> None:
        """Get the next one, for the same key.

        Raises:
            OperationError: the CA refused, or the disk.
        """
        chain = server.renew(
            self.endpoint,
            self.roots,
            chain_pem=self._chain(),
            name=self.name(),
            key=self._key(),
            now=now,
            timeout=self.timeout,
        )
        self._write(self.certificate, chain.encode(), 0o644)

    def _leaf(self) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificates(self._chain().encode())[0]
        except ValueError as error:
            raise self._broken("is no certificate") from error

    def _broken(self, why: str) -> OperationError:
        return OperationError(f"{self.certificate} {why}", remedy="move it away, and run `certplane-broker init` again")

    def _chain(self) -> str:
        return read_file(self.certificate).decode(errors="replace")

    def _key(self) -> PrivateKey:
        try:
            return load_private_key(read_service_key(self.key))
        except CertplaneError as error:
            raise OperationError(f"{self.key} can't be used: {error}", remedy="move it away") from error

    def _write(self, path: Path, data: bytes, mode: int) -> None:
        try:
            with open_directory(Path(os.path.abspath(path.parent))) as folder:  # noqa: PTH100 - no link is followed
                folder.replace(path.name, data, mode=mode)
        except OSError as error:
            cause, remedy = explain(error, path)
            raise OperationError(cause, remedy=remedy) from error
