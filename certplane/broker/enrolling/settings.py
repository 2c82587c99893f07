"""The section `bootstrap` of broker.yml: tokens for new hosts and services, made with a key of the identity CA's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Final

from certplane.config.decoding import Check, InputPath, KeyProblem
from certplane.config.values import Fingerprint, HttpsUrl

LEAST_LIFETIME: Final = timedelta(seconds=10)
_MOST_LIFETIME: Final = timedelta(hours=24)


def _lifetime(span: timedelta) -> str | None:
    return None if LEAST_LIFETIME <= span <= _MOST_LIFETIME else "must be from 10s to 24h"


def _provisioner(name: str) -> str | None:
    return None if name.isprintable() else "must be the provisioner's name as `step ca provisioner list` shows it"


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """Which CA, by which root new hosts know it, and whose key signs.

    `key_secret` holds the private key of the JWK provisioner `provisioner`: JWK (RFC 7517) or PEM, unencrypted.
    """

    ca_url: HttpsUrl
    provisioner: Annotated[str, Check(_provisioner)]
    key_secret: str
    root_ca_bundle: InputPath | None = None
    fingerprint: Fingerprint | None = None
    max_lifetime: Annotated[timedelta, Check(_lifetime)] = timedelta(minutes=5)

    def problems(self) -> Iterator[KeyProblem]:
        """New hosts know the root somehow, and one way only."""
        if self.fingerprint is None and self.root_ca_bundle is None:
            remedy = "write the output of `step certificate fingerprint root_ca.crt`"
            yield KeyProblem("fingerprint", "or `root_ca_bundle` is required: new hosts know the CA by it", remedy)
        if self.fingerprint is not None and self.root_ca_bundle is not None:
            yield KeyProblem("fingerprint", "doesn't go with `root_ca_bundle`", "leave one of them out")
        if "?" in self.ca_url:
            yield KeyProblem("ca_url", "must have no query", "write it like https://ca.example.net:8443")
