"""TLS credentials of either side, out of PEM bytes that were checked before.

Rules it keeps:

- The server asks every client for a certificate and refuses the handshake without one.
- The server's fetcher hands a configuration over once, on the next connection after it was replaced, and otherwise says
  "no change". Handing one over on every connection would void all TLS session tickets, and so turn resumption off; but
  grpc's core (1.85; grpc/grpc#36693) frees the configuration before while another connection may still be using it, and
  two clients that connect at once then crash the server. So tickets stay valid until the next replacement: a session
  may be resumed without its certificate being looked at, and each call on such a connection is refused by the broker's
  interceptor. docs/adr/0007 has the measurements.

It reads no file. grpc's core takes a broken configuration without a word to Python, and ends the process over an empty
key or chain: a server's pair was loaded with `certplane.pki` first, and a client's comes from `client_pair`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certplane.errors import CertplaneError
from certplane.pki.keys import public_key_sha256


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key and its certificate chain, both PEM; the chain begins with the leaf."""

    private_key_pem: bytes
    chain_pem: bytes

    def __repr__(self) -> str:
        """Without the key: a value like this ends up in log lines and tracebacks."""
        return f"KeyPair(private_key_pem=..., chain_pem=<{len(self.chain_pem)} bytes>)"


class PairError(CertplaneError):
    """A key and a chain that nobody can be known by: `key` or `chain` says why, going on from the file's name."""

    def __init__(self, *, key: str = "", chain: str = "") -> None:
        super().__init__("; ".join(filter(None, (key and f"the key {key}", chain and f"the certificate {chain}"))))
        self.key = key
        self.chain = chain


def client_pair(private_key_pem: bytes, chain_pem: bytes) -> KeyPair:
    """A pair that was looked at: half a file, or the key of another certificate, is told before anybody connects.

    Raises:
        PairError: the key or the leaf can't be read, or they don't belong together.
    """
    try:
        leaf = x509.load_pem_x509_certificates(chain_pem)[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise PairError(chain="holds no certificate that can be read" if chain_pem.strip() else "is empty") from None
    try:
        key = load_pem_private_key(private_key_pem, password=None).public_key()
    except TypeError:
        raise PairError(key="is encrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        # The cause may quote the key's bytes: it is cut off on purpose.
        raise PairError(key="holds no private key" if private_key_pem.strip() else "is empty") from None
    if public_key_sha256(key) != public_key_sha256(leaf):
        raise PairError(key="isn't the certificate's")
    return KeyPair(private_key_pem, chain_pem)


class ServerTls:
    """What a server presents and whom it lets connect, replaceable while it runs.

    `replace` may be called from any thread; it is in force for the next connection. Open connections live on: what they
    may do is decided on every call (`certplane.broker.identity`).
    """

    def __init__(self, pair: KeyPair, client_ca_pem: bytes) -> None:
        self._configuration = _configuration(pair, client_ca_pem)

    def replace(self, pair: KeyPair, client_ca_pem: bytes) -> None:
        """Put another pair and bundle in force. Both must have been checked."""
        self._configuration = _configuration(pair, client_ca_pem)

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for one `add_secure_port`."""
        handed_over = self._configuration

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # Called on threads of grpc's core, once per connection and one at a time: nothing but attribute reads.
            nonlocal handed_over
            configuration = self._configuration
            if configuration is handed_over:
                return None
            handed_over = configuration
            return configuration

        # None is documented, and not in the type stubs.
        fetcher = cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch)
        return grpc.dynamic_ssl_server_credentials(handed_over, fetcher, require_client_authentication=True)


def _configuration(pair: KeyPair, client_ca_pem: bytes) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pair.private_key_pem, pair.chain_pem)], root_certificates=client_ca_pem
    )


def channel_credentials(server_ca_pem: bytes, pair: KeyPair | None) -> grpc.ChannelCredentials:
    """Credentials of a client.

    Args:
        server_ca_pem: The only CAs that the server's certificate may come from, PEM.
        pair: The client's identity; None connects without one, which a broker refuses (tests show that it does).
    """
    if pair is None:
        return grpc.ssl_channel_credentials(root_certificates=server_ca_pem)
    return grpc.ssl_channel_credentials(
        root_certificates=server_ca_pem, private_key=pair.private_key_pem, certificate_chain=pair.chain_pem
    )
