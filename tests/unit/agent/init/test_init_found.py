"""What certbot, acme.sh and lego keep is read as they write it; what is of no use is found too, with the reason."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from certplane.agent.init.found import Lineage, find
from certplane.errors import OperationError
from certplane.pki.keys import KeyType
from tests.support.others_files import Pair, PublicCa, acme_sh_certificate, certbot_lineage, lego_certificate

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
WEB = "www.example.com"


@pytest.fixture(scope="module")
def ca() -> PublicCa:
    return PublicCa(NOW)


def only(client: str, folder: Path) -> Lineage:
    (found,) = find(client, folder, NOW)
    return found


def test_certbot(tmp_path: Path, ca: PublicCa) -> None:
    """Links of `live`, the hook of its renewal file, and how certbot is kept from it."""
    live = certbot_lineage(tmp_path, WEB, pair := ca.pair(WEB, "example.com"), hook="systemctl reload nginx")
    found = only("certbot", tmp_path)
    assert found.dns_names == ("example.com", WEB)
    assert (found.name, found.key_type, found.problem) == (WEB, KeyType.EC_P256, "")
    kinds = {"key": "privkey", "fullchain": "fullchain", "cert": "cert", "chain": "chain"}
    assert found.paths == {kind: live / f"{name}.pem" for kind, name in kinds.items()}
    assert found.hooks == ("systemctl reload nginx",)
    assert found.stop == f"mv {tmp_path}/renewal/{WEB}.conf {tmp_path}/renewal/{WEB}.conf.moved"
    assert {*found.files.values()} == {pair.key, pair.fullchain}


def test_certbot_without_its_renewal_file(tmp_path: Path, ca: PublicCa) -> None:
    """Somebody stopped it already: nothing is to be stopped."""
    certbot_lineage(tmp_path, WEB, ca.pair(WEB))
    (tmp_path / "renewal" / f"{WEB}.conf").unlink()
    assert (only("certbot", tmp_path).stop, only("certbot", tmp_path).problem) == ("", "")


def test_acme_sh(tmp_path: Path, ca: PublicCa) -> None:
    """Services read what was installed, and commands stand in base64 there."""
    coded = base64.b64encode(b"systemctl reload haproxy\n").decode()
    acme_sh_certificate(
        tmp_path,
        WEB,
        ca.pair(WEB),
        settings=f"Le_ReloadCmd='__ACME_BASE64__START_{coded}__ACME_BASE64__END_'\n"
        "Le_RealKeyPath='/etc/haproxy/web.key'\nLe_RealFullChainPath='/etc/haproxy/web.pem'\n",
    )
    (tmp_path / "dnsapi").mkdir()
    found = only("acme.sh", tmp_path)
    assert found.hooks == ("systemctl reload haproxy",)
    assert found.paths == {"key": Path("/etc/haproxy/web.key"), "fullchain": Path("/etc/haproxy/web.pem")}
    assert (found.stop, found.dns_names) == (f"acme.sh --remove -d {WEB} --ecc", (WEB,))


def test_lego(tmp_path: Path, ca: PublicCa) -> None:
    """A wildcard's files have `_` for the star."""
    lego_certificate(tmp_path, "*.example.com", ca.pair("*.example.com"))
    found = only("lego", tmp_path)
    assert (found.name, found.dns_names, found.problem) == ("_.example.com", ("*.example.com",), "")


def test_an_rsa_key_is_kept(tmp_path: Path, ca: PublicCa) -> None:
    """Its kind is what agent.yml must have then."""
    lego_certificate(tmp_path, WEB, ca.pair(WEB, key=rsa.generate_private_key(65537, 2048)))
    assert only("lego", tmp_path).key_type is KeyType.RSA_2048


def torn(pair: Pair) -> Pair:
    return Pair(pair.key, pair.cert[:-50], b"")


@pytest.mark.parametrize(
    ("kind", "names", "problem"),
    [
        ("expired", (WEB,), "the certificate expired at"),
        ("ed25519", (WEB,), "keys of the kind Ed25519 are not supported"),
        ("another key", (WEB,), "the private key is not the certificate's"),
        ("without chain", (WEB,), "the certificate's issuer isn't beside it"),
        ("staging", (WEB,), "the certificate is of a CA for tests"),
        ("torn", (), "there is no certificate"),
    ],
)
def test_what_is_of_no_use(tmp_path: Path, ca: PublicCa, kind: str, names: tuple[str, ...], problem: str) -> None:
    """Its names are known where they can be read, so that a certificate is ordered in its place."""
    pair = ca.pair(WEB)
    pair = {
        "expired": lambda: ca.pair(WEB, age=timedelta(days=91)),
        "ed25519": lambda: ca.pair(WEB, key=ed25519.Ed25519PrivateKey.generate()),
        "another key": lambda: Pair(ca.pair(WEB).key, pair.cert, pair.chain),
        "without chain": lambda: Pair(pair.key, pair.cert, b""),
        "staging": lambda: PublicCa(NOW, "(STAGING) Ersatz Edamame E1").pair(WEB),
        "torn": lambda: torn(pair),
    }[kind]()
    certbot_lineage(tmp_path, WEB, pair)
    found = only("certbot", tmp_path)
    assert problem in found.problem
    assert (found.dns_names, found.files) == (names, {})


def test_a_broken_lineage_is_found(tmp_path: Path, ca: PublicCa) -> None:
    """Its archive is gone: said with the file, and the other lineages are found."""
    live = certbot_lineage(tmp_path, WEB, ca.pair(WEB))
    certbot_lineage(tmp_path, "z.example.com", ca.pair("z.example.com"))
    (tmp_path / "archive" / WEB / "privkey1.pem").unlink()
    broken, well = find("certbot", tmp_path, NOW)
    assert (
        broken.problem == f"{live}/privkey.pem can't be read: No such file or directory; restore it, or issue it anew"
    )
    assert (well.name, well.problem) == ("z.example.com", "")


@pytest.mark.parametrize("client", ["certbot", "acme.sh", "lego"])
def test_nothing_there(tmp_path: Path, client: str) -> None:
    """A folder that is empty, or isn't there: one line with a remedy."""
    (tmp_path / "certificates").mkdir()
    with pytest.raises(OperationError, match=f"has no certificate of {client}; name its folder after --from"):
        find(client, tmp_path, NOW)
    if client != "certbot":
        with pytest.raises(OperationError, match="can't be read: No such file"):
            find(client, tmp_path / "nowhere", NOW)
