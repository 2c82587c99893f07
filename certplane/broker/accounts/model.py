"""What the database knows of an ACME account."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Account:
    """The account that all brokers of a database order with at one issuer.

    Attributes:
        issuer: The issuer's name in the configuration.
        directory_url: Of its CA. An issuer that moves to another CA has another account there, and keeps this one.
        public_key_sha256: Over the SubjectPublicKeyInfo of the account's key, hexadecimal.
        sealed_key: The key (`seal`), None where each broker has it from a file or a secret.
        next_key_sha256: Of the new key while a change of the key is under way; else empty.
        sealed_next_key: That key. It is the account's if the CA knows it, whatever stands in `sealed_key`.
    """

    issuer: str
    directory_url: str
    public_key_sha256: str
    sealed_key: bytes | None = field(default=None, repr=False)
    next_key_sha256: str = ""
    sealed_next_key: bytes | None = field(default=None, repr=False)
