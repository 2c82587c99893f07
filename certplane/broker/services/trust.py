"""The broker's own certificate and the agents' CA bundle: read, checked, then in force for the next connection.

Rules it keeps:

- Nothing is handed to grpc that was not loaded first: its core takes a key that doesn't match its certificate, or a
  bundle that is none, and keeps the old configuration without a word to Python.
- What was checked is what is handed over: certificates and key are written anew from what was parsed.
- A bundle may hold several roots, so that an old and a new internal CA overlap while hosts move. What has ended of the
  bundle, or of the chain that is presented, is not handed over: a handshake may fail by it though its successor is
  there. `TrustInForce.refresh` drops it when it ends.

Reading again, and what to do when it fails, is `certplane.broker.reload`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from typing_extensions import override

from certplane.broker.ports import IdentityTrust
from certplane.config.files import read_file, read_service_key
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.bundle import BundleError, CaBundle, encode_certificates, presentable
from certplane.pki.chain import CertificateFacts, leaf_facts, split_chain
from certplane.pki.chain_path import ChainError
from certplane.pki.keys import PrivateKeyError, load_private_key, private_key_pem, public_key_sha256
from certplane.pki.pem import PemError, pem_text
from certplane.pki.trust_bundle import TrustBundle
from certplane.rpc.credentials import KeyPair, ServerTls

Locate = Callable[[str], ConfigurationProblem]
"""From a key of the configuration to where it stands, for messages."""


@dataclass(frozen=True, slots=True)
class TrustText:
    """The three files as they are on disk."""

    chain: bytes
    key: bytes
    bundle: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the three; equal when nothing has changed."""
        digests = (hashlib.sha256(part).digest() for part in (self.chain, self.key, self.bundle))
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def __repr__(self) -> str:
        """Without the key."""
        return f"TrustText({self.fingerprint[:12]})"


@dataclass(frozen=True, slots=True)
class TrustFiles:
    """Where the files are, and where they are configured."""

    cert: Path
    key: Path
    agent_ca_bundle: Path
    locate: Locate

    def read(self) -> TrustText:
        """Read the three. Blocks.

        Raises:
            ConfigurationError: all that can't be read, or the key's mode lets others in.
        """
        parts: list[bytes] = []
        problems: list[ConfigurationProblem] = []
        for path, key, read in (
            (self.cert, "server.tls.cert", read_file),
            (self.key, "server.tls.key", read_service_key),
            (self.agent_ca_bundle, "server.mtls.agent_ca_bundle", read_file),
        ):
            try:
                parts.append(read(path, at=self.locate(key)))
            except ConfigurationError as error:
                problems += error.problems
        if problems:
            raise ConfigurationError(problems)
        return TrustText(*parts)

    def check(self, text: TrustText) -> LoadedTrust:
        """What the files mean.

        Raises:
            ConfigurationError: all that is wrong with them. Whether they are expired is not asked.
        """
        problems: list[ConfigurationProblem] = []

        def problem(key: str, path: Path, message: str, remedy: str) -> None:
            at = self.locate(key)
            problems.append(ConfigurationProblem(at.file, at.line, at.key, f"{path} {message}", remedy))

        chain = facts = key = bundle = None
        try:
            chain_text = pem_text(text.chain)
            facts = leaf_facts(chain_text)
            chain = "".join(split_chain(chain_text)).encode("ascii")
        except ChainError as error:
            detail = error.refusal.message
            problem("server.tls.cert", self.cert, f"is no certificate chain: {detail}", "give PEM, leaf first")
        except PemError as error:
            problem("server.tls.cert", self.cert, str(error), "give PEM, leaf first")
        try:
            key = load_private_key(text.key)
        except PrivateKeyError as error:
            problem("server.tls.key", self.key, f"can't be used: {error}", "give the certificate's key in PEM")
        if facts is not None and key is not None and facts.public_key_sha256 != public_key_sha256(key.public_key()):
            problem(
                "server.tls.key",
                self.key,
                f"is not the key of {self.cert}",
                "put the pair that belongs together into both files",
            )
        try:
            bundle = TrustBundle.from_pem(text.bundle)
        except BundleError as error:
            problem("server.mtls.agent_ca_bundle", self.agent_ca_bundle, str(error), "give CA certificates in PEM")
        if problems or facts is None or chain is None or key is None or bundle is None:
            raise ConfigurationError(problems)
        return LoadedTrust(KeyPair(private_key_pem(key), chain), facts, bundle)


@dataclass(frozen=True, slots=True)
class LoadedTrust:
    """A checked pair and bundle."""

    pair: KeyPair
    server: CertificateFacts
    bundle: TrustBundle

    def bundle_pem(self, now: datetime) -> bytes:
        """What of the bundle is in force now, PEM; all of it once everything has ended, which lets nobody in."""
        return self._cas.pem(now) or encode_certificates(self.bundle.certificates)

    def presented(self, now: datetime) -> KeyPair:
        """The pair as it is presented now: without the intermediates that have ended."""
        return KeyPair(self.pair.private_key_pem, presentable(self.pair.chain_pem, now))

    def ca_not_after(self, now: datetime) -> datetime:
        """When the next of the bundle's CAs ends, those with a successor passed over."""
        return self._cas.next_end(now)

    def ca_problem(self, now: datetime) -> str:
        """Why nobody can be let in by the bundle now, going on from the file's name; empty if somebody can."""
        return self._cas.nothing_left(now)

    def ca_warnings(self, now: datetime) -> list[str]:
        """What of the bundle has ended or ends soon, a line each."""
        return self._cas.warnings(now)

    @property
    def _cas(self) -> CaBundle:
        return CaBundle(self.bundle.certificates)


class TrustInForce(IdentityTrust):
    """What the broker presents and trusts now. Changed from the event loop; read from anywhere."""

    def __init__(self, trust: LoadedTrust, now: datetime) -> None:
        self._trust = trust
        self._pair, self._bundle_pem = trust.presented(now), trust.bundle_pem(now)
        self.tls = ServerTls(self._pair, self._bundle_pem)

    @property
    def current(self) -> LoadedTrust:
        """All of it."""
        return self._trust

    @property
    def bundle(self) -> TrustBundle:
        """The CAs that callers are verified against, on every call."""
        return self._trust.bundle

    @override
    def trusts(self, anchor: str) -> bool:
        return anchor in self._trust.bundle.anchors

    @property
    def agent_ca_bundle_pem(self) -> str:
        """The CAs that are handed to new connections' handshakes, as PEM."""
        return self._bundle_pem.decode("ascii")

    @property
    def server_chain_pem(self) -> str:
        """What new connections are presented, leaf first."""
        return self._pair.chain_pem.decode("ascii")

    def replace(self, trust: LoadedTrust, now: datetime) -> None:
        """Put `trust` in force: for new connections their handshake, for all of them the next call."""
        self._trust = trust
        self.refresh(now)

    def refresh(self, now: datetime) -> bool:
        """Hand over what is of use now, if that is something else than before; whether it is."""
        pair, bundle_pem = self._trust.presented(now), self._trust.bundle_pem(now)
        if (pair, bundle_pem) == (self._pair, self._bundle_pem):
            return False
        self._pair, self._bundle_pem = pair, bundle_pem
        self.tls.replace(pair, bundle_pem)
        return True
