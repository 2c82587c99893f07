"""Certificates, keys and bundles are read as the tools of the field write them; what is wrong names file and remedy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

from certplane.broker.services.trust import LoadedTrust, TrustFiles, TrustText
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.chain import leaf_facts, split_chain
from certplane.pki.keys import private_key_pem
from certplane.pki.pem import pem_text
from tests.support.authority import Authority, IssuedLeaf
from tests.support.csr import ec_key

CASES = Path(__file__).parents[3] / "cases/B3"

Change = Callable[[bytes], bytes]


@cache
def _authority() -> Authority:
    return Authority()


@cache
def _leaf() -> IssuedLeaf:
    return _authority().issue("broker.example.test", key=ec_key())


def _check(change: Change, *parts: str) -> LoadedTrust:
    text = {
        "chain": _leaf().fullchain_pem.encode(),
        "key": private_key_pem(ec_key()),
        "bundle": _authority().root_pem,
    }
    text |= {part: change(text[part]) for part in parts}

    def locate(key: str) -> ConfigurationProblem:
        return ConfigurationProblem("broker.yml", 3, key, "")

    return TrustFiles(Path("server.crt"), Path("server.key"), Path("agents.crt"), locate).check(TrustText(**text))


AS_TOOLS_WRITE_THEM = [
    pytest.param(lambda pem: b"\xef\xbb\xbf" + pem, id="byte-order-mark"),
    pytest.param(lambda pem: b"Certificate:\n    Data:\n        Version: 3 (0x2)\n" + pem, id="text-of-openssl-ca"),
    pytest.param(lambda pem: "# für den Broker\n".encode("latin-1") + pem, id="comment-in-latin-1"),
    pytest.param(lambda pem: pem.replace(b"\n-----BEGIN", b"\n# the next\n-----BEGIN"), id="comment-between"),
    pytest.param(lambda pem: pem + b"subject=CN = broker\n", id="text-after"),
    pytest.param(lambda pem: pem.replace(b"\n", b"\r\n") + b"\x1a", id="dos"),
    pytest.param(lambda pem: pem.rstrip(b"\n"), id="no-final-newline"),
]


@pytest.mark.parametrize("part", ["chain", "key", "bundle"])
@pytest.mark.parametrize("change", AS_TOOLS_WRITE_THEM)
def test_takes_files_as_tools_write_them(change: Change, part: str) -> None:
    """Text, marks and line ends of other tools are borne, and what grpc gets is written anew without them."""
    trust = _check(change, part)
    assert trust.pair.chain_pem.decode() == _leaf().fullchain_pem
    assert trust.pair.private_key_pem == private_key_pem(ec_key())
    assert trust.bundle_pem(datetime.now(UTC)) == _authority().root_pem


@pytest.mark.parametrize(
    ("part", "change", "phrase"),
    [
        pytest.param("chain", lambda pem: pem + private_key_pem(ec_key()), "private key belongs in a file", id="key-in-cert"),
        pytest.param("bundle", lambda pem: pem + private_key_pem(ec_key()), "holds a private key", id="key-in-bundle"),
        pytest.param("chain", lambda pem: pem.decode().encode("utf-16"), "UTF-16", id="cert-of-utf-16"),
        pytest.param("bundle", lambda pem: pem.decode().encode("utf-16"), "UTF-16", id="bundle-of-utf-16"),
        pytest.param("key", lambda pem: pem.decode().encode("utf-16"), "UTF-16", id="key-of-utf-16"),
        pytest.param("chain", lambda _: b"\x30\x82\x01\x00", "binary", id="cert-of-der"),
        pytest.param("bundle", lambda _: b"\x30\x82\x01\x00", "binary", id="bundle-of-der"),
        pytest.param("key", lambda _: b"\x30\x82\x01\x00", "binary", id="key-of-der"),
        pytest.param("chain", lambda pem: pem[:-30], "cut off", id="cert-cut-off"),
        pytest.param("bundle", lambda pem: pem[:-30], "cut off", id="bundle-cut-off"),
        pytest.param("key", lambda pem: pem[:-30], "cut off", id="key-cut-off"),
        pytest.param("chain", lambda pem: pem.replace(b"\n-----BEGIN", b"-----BEGIN"), "line of its own", id="glued"),
    ],
)  # fmt: skip
def test_tells_what_is_wrong(part: str, change: Change, phrase: str) -> None:
    """What can't be taken is one line with the file, the key of the configuration and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        _check(change, part)
    (problem,) = caught.value.problems
    assert phrase in str(problem)
    assert problem.file == "broker.yml"
    assert problem.key.startswith("server.")
    assert problem.remedy


@pytest.mark.parametrize("file", sorted(CASES.iterdir()), ids=lambda file: file.name)
def test_reads_certificates_of_the_field(file: Path) -> None:
    """Files as `openssl ca` and editors left them are the certificates in them."""
    text = pem_text(file.read_bytes())
    assert leaf_facts(text).issuer.startswith("CN=Example")
    assert "".join(split_chain(text)).startswith("-----BEGIN CERTIFICATE-----\n")
