"""What other programs left at the configured paths goes on until it is due: no order, no token, no reload."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import NameOID

from certplane.agent.check import findings
from certplane.agent.inspection import Level
from certplane.agent.install import steps
from certplane.agent.renewal.status import is_well
from certplane.errors import OperationError
from certplane.fleet_report.model import CertificateState
from certplane.pki.csr import build_csr
from certplane.pki.keys import private_key_pem
from certplane.sandbox.certificates import CertificateAuthority
from certplane.stepca.errors import UnreachableError
from tests.support.agent_world import NAME, AgentWorld
from tests.support.lineages import read_leaf
from tests.support.others_files import (
    Pair,
    PublicCa,
    acme_sh_certificate,
    certbot_lineage,
    lego_certificate,
    pem_of,
)

MakeWorld = Callable[..., AgentWorld]
ORDERS = "issue"
WEB = "web.example"


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    worlds: list[AgentWorld] = []

    def make(**certificate: Any) -> AgentWorld:
        """A host with one certificate, `web`; its outputs as `AgentWorld` has them unless given."""
        worlds.append(AgentWorld(tmp_path, [{"name": "web", **certificate}]))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def place(world: AgentWorld, pair: Pair) -> None:
    """At the world's own paths."""
    tls = world.folder / "tls"
    tls.mkdir(exist_ok=True)
    (tls / "web.key").write_bytes(pair.key)
    (tls / "web.pem").write_bytes(pair.fullchain)


def paths_of(live: Path) -> dict[str, str]:
    return {"key": f"{live}/privkey.pem", "fullchain": f"{live}/fullchain.pem", "chain": f"{live}/chain.pem"}


async def run(world: AgentWorld) -> Any:
    """One run of a new process."""
    agent = world.agent()
    try:
        return await agent.run_once()
    finally:
        await agent.close()


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.message for record in caplog.records)


async def test_a_valid_pair_is_kept_until_it_is_due(make_world: MakeWorld) -> None:
    """It is version 0 and in force, nothing is ordered and no service reloaded; when it is due it is renewed."""
    world = make_world(reload_command="false")
    pair = PublicCa(world.clock.now()).pair(WEB)
    place(world, pair)
    await world.enroll()
    for _ in range(2):
        status = (await run(world))["web"]
        assert (status.state, status.confirmed_version, status.installed_version) == (CertificateState.WAITING, 0, 0)
        assert is_well(status)
    assert ORDERS not in world.broker.calls
    assert (world.folder / "tls" / "web.key").is_symlink()
    assert (world.folder / "tls" / "web.key").read_bytes() == pair.key
    assert read_leaf(world.folder / "tls" / "web.pem") == pair.serial
    world.configure([{"name": "web"}], {})  # the hook would have the renewal rolled back
    world.clock.advance(timedelta(days=70))
    status = (await run(world))["web"]
    assert ORDERS in world.broker.calls
    assert (is_well(status), status.installed_version) == (True, 1)
    assert read_leaf(world.folder / "tls" / "web.pem") != pair.serial


async def test_what_fails_to_be_activated_gives_way_to_what_was_taken_over(make_world: MakeWorld) -> None:
    """The renewal's reload fails: services have the pair that was taken over again."""
    world = make_world(reload_command='test "$CERTPLANE_VERSION" = 0')
    pair = PublicCa(world.clock.now()).pair(WEB)
    place(world, pair)
    await world.enroll()
    await run(world)
    world.clock.advance(timedelta(days=70))
    assert (await run(world))["web"].rejected_version == 1
    assert read_leaf(world.folder / "tls" / "web.pem") == pair.serial


async def test_an_operator_may_want_a_new_one_at_once(make_world: MakeWorld) -> None:
    """`renew` orders what is taken over anew."""
    world = make_world()
    place(world, PublicCa(world.clock.now()).pair(WEB))
    await world.enroll()
    await run(world)
    agent = world.agent()
    assert (await agent.by_hand("renew", "web")).ok
    await agent.close()
    assert [version.number for version in await world.versions("web")] == [0, 1]


async def test_copies_are_taken_over_too(make_world: MakeWorld) -> None:
    """`install: copy`: the files stay files."""
    world = make_world(install="copy")
    pair = PublicCa(world.clock.now()).pair(WEB)
    place(world, pair)
    await world.enroll()
    assert (await run(world))["web"].confirmed_version == 0
    assert ORDERS not in world.broker.calls
    key = world.folder / "tls" / "web.key"
    assert (key.is_symlink(), key.read_bytes()) == (False, pair.key)


async def test_a_host_that_has_its_certificate_takes_nothing_over(make_world: MakeWorld) -> None:
    """Files that somebody puts in the place of a certificate that was issued here are no reason to go back."""
    world = make_world()
    await world.enroll()
    await run(world)
    for path in (world.folder / "tls").iterdir():
        path.unlink()
    place(world, PublicCa(world.clock.now()).pair(WEB))
    status = (await run(world))["web"]
    assert status.confirmed_version == status.installed_version == 1
    assert [version.number for version in await world.versions("web")] == [1]


@pytest.mark.parametrize("at", ["keep", "hold", "link", "switch", "release", "relink", "finish"])
@pytest.mark.parametrize("side", ["before", "after"])
async def test_a_crash_on_the_way_is_finished_by_the_next_start(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, at: str, side: str
) -> None:
    """Wherever it ends, the paths have the pair, and the next start neither orders nor reloads."""

    class Ended(BaseException):
        pass

    def end(name: str) -> None:
        if name == f"install.{at}.{side}":
            raise Ended

    world = make_world(reload_command="false")
    pair = PublicCa(world.clock.now()).pair(WEB)
    place(world, pair)
    await world.enroll()
    host = world.start()
    with monkeypatch.context() as patched:
        patched.setattr(steps, "failpoint", end)
        with pytest.raises(Ended):
            await host.prepare(*host.certificates.values())
    assert read_leaf(world.folder / "tls" / "web.pem") == pair.serial
    assert (world.folder / "tls" / "web.key").read_bytes() == pair.key
    status = (await run(world))["web"]
    assert (is_well(status), status.confirmed_version) == (True, 0)
    assert ORDERS not in world.broker.calls


async def test_names_that_are_corrected_after_a_refusal(make_world: MakeWorld) -> None:
    """Other names were asked for and refused: once agent.yml has the pair's, it is taken over and nothing more asked."""
    world = make_world(dns_names=["other.example"], profile="unknown")
    place(world, PublicCa(world.clock.now()).pair(WEB))
    await world.enroll()
    assert (await run(world))["web"].state is CertificateState.FAILED
    world.configure([{"name": "web"}], {})
    world.broker.calls.clear()
    status = (await run(world))["web"]
    assert (is_well(status), status.confirmed_version, status.failures) == (True, 0, 0)
    assert ORDERS not in world.broker.calls


async def test_an_order_that_is_under_way_is_followed(make_world: MakeWorld) -> None:
    """Whoever puts a pair there meanwhile has the ordered certificate in its place."""
    world = make_world()
    await world.enroll()
    host = world.start()
    keys = host.certificates["web"].keys
    keys.begin(common_name="", sans=(WEB,), replaces_certificate_id="", reuse_key=False)
    keys.record_order("an-order")
    place(world, PublicCa(world.clock.now()).pair(WEB))
    assert (await run(world))["web"].installed_version == 1


async def test_files_that_could_not_be_read_at_first(tmp_path: Path, make_world: MakeWorld) -> None:
    """A broken lineage that was restored is taken over by the next start, without a reload."""
    live = certbot_lineage(tmp_path / "le", WEB, PublicCa().pair(WEB))
    archive = tmp_path / "le" / "archive" / WEB
    archive.rename(archive.with_name("away"))
    world = make_world(reload_command="false", **paths_of(live))
    await world.enroll()
    assert not is_well((await run(world))["web"])
    archive.with_name("away").rename(archive)
    status = (await run(world))["web"]
    assert (is_well(status), status.confirmed_version) == (True, 0)
    assert ORDERS not in world.broker.calls


async def test_certbot(tmp_path: Path, make_world: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    """Paths in `live`, which lead to `archive`, become the agent's; what is left for a person is said."""
    live = certbot_lineage(tmp_path / "le", WEB, pair := PublicCa().pair(WEB), number=3, hook="systemctl reload nginx")
    world = make_world(**paths_of(live))
    await world.enroll()
    assert (await run(world))["web"].confirmed_version == 0
    assert ORDERS not in world.broker.calls
    assert read_leaf(live / "fullchain.pem") == pair.serial
    assert (tmp_path / "le" / "archive" / WEB / "privkey3.pem").read_bytes() == pair.key


async def test_a_certbot_lineage_with_a_renewal_hook(
    tmp_path: Path, make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Who renews it too is told with the way to stop that, and the hook that would no longer run; `check` says it too."""
    live = certbot_lineage(tmp_path / "le", WEB, PublicCa().pair(WEB), hook="systemctl reload nginx")
    world = make_world(**paths_of(live))
    conf = tmp_path / "le" / "renewal" / f"{WEB}.conf"
    text = f"certbot renews it too, by {conf}; stop that: `mv {conf} {conf}.moved`, and give what its hook does as "
    await world.enroll()
    before = [each async for each in findings(world.start(), lambda _: world.broker)]
    await run(world)
    after = [each async for each in findings(world.start(), lambda _: world.broker)]
    assert f"web: {text}reload_command: systemctl reload nginx" in said(caplog)
    for found in (before, after):
        warnings = [each.text for each in found if each.level is Level.WARN]
        assert f"{text}reload_command: systemctl reload nginx" in warnings
    conf.rename(conf.with_name("moved"))
    after = [each async for each in findings(world.start(), lambda _: world.broker)]
    assert not [each for each in after if "certbot renews it too" in each.text]


async def test_a_broken_certbot_lineage(
    tmp_path: Path, make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Links into an archive that is gone: told with a remedy, and left; nothing is ordered that couldn't be installed."""
    live = certbot_lineage(tmp_path / "le", WEB, PublicCa().pair(WEB))
    for file in (tmp_path / "le" / "archive" / WEB).iterdir():
        file.unlink()
    world = make_world(**paths_of(live))
    await world.enroll()
    status = (await run(world))["web"]
    assert "privkey.pem is a symbolic link to ../../archive/web.example/privkey1.pem, which is" in status.last_error
    assert "move it away, or configure another path" in status.last_error
    assert ORDERS not in world.broker.calls


async def test_a_certbot_lineage_that_lacks_its_key(
    tmp_path: Path, make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a pair is told, and a certificate ordered."""
    live = certbot_lineage(tmp_path / "le", WEB, PublicCa().pair(WEB))
    (live / "privkey.pem").unlink()
    world = make_world(**paths_of(live))
    await world.enroll()
    assert (await run(world))["web"].installed_version == 1
    assert "not taken over: there is no private key; put the certificate, its chain and its own key there" in said(
        caplog
    )


async def test_acme_sh(tmp_path: Path, make_world: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    """Its own folder's files; it writes through links, so it must be told to stop."""
    folder = acme_sh_certificate(
        tmp_path / "acme", WEB, pair := PublicCa().pair(WEB), settings="Le_ReloadCmd='systemctl reload haproxy'\n"
    )
    world = make_world(key=f"{folder}/{WEB}.key", fullchain=f"{folder}/fullchain.cer")
    await world.enroll()
    assert (await run(world))["web"].confirmed_version == 0
    assert read_leaf(folder / "fullchain.cer") == pair.serial
    assert f"stop that: `acme.sh --remove -d {WEB} --ecc`" in said(caplog)
    assert "reload_command: systemctl reload haproxy" in said(caplog)


async def test_lego(tmp_path: Path, make_world: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    """Its certificate file holds the chain."""
    folder = lego_certificate(tmp_path / ".lego", WEB, PublicCa().pair(WEB))
    world = make_world(key=f"{folder}/{WEB}.key", fullchain=f"{folder}/{WEB}.crt")
    await world.enroll()
    assert (await run(world))["web"].confirmed_version == 0
    assert ORDERS not in world.broker.calls
    assert f"lego renews it too, by {folder}/{WEB}.json" in said(caplog)


async def test_the_seed_project(tmp_path: Path, make_world: MakeWorld) -> None:
    """Its files lie in the state folder itself: certificate, key and identity go on, without an order or a token."""
    state = tmp_path / "state"
    state.mkdir()
    world = make_world(key=f"{state}/web.key", cert=f"{state}/web.crt", fullchain=f"{state}/web.fullchain.pem")
    pair = PublicCa(world.clock.now()).pair(WEB)
    (state / "web.key").write_bytes(pair.key)
    (state / "web.crt").write_bytes(pair.cert)
    (state / "web.fullchain.pem").write_bytes(pair.fullchain)
    await standing_identity(world, state)
    statuses = await run(world)
    assert statuses["web"].confirmed_version == 0
    assert is_well(statuses["identity"])
    assert not {ORDERS} & {*world.broker.calls}
    assert "enroll" not in world.authority.calls[1:]


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def mixed(ca: PublicCa) -> Pair:
    pair = ca.pair(WEB)
    return Pair(ca.pair(WEB).key, pair.cert, pair.chain)


def locked(ca: PublicCa) -> Pair:
    pair = ca.pair(WEB, key=(key := new_key()))
    return Pair(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")), pair.cert, pair.chain
    )


def chained(chain: bytes) -> Callable[[PublicCa], Pair]:
    return lambda ca: Pair((pair := ca.pair(WEB)).key, pair.cert, chain)


def torn(ca: PublicCa) -> Pair:
    pair = ca.pair(WEB)
    return Pair(pair.key, pair.cert[:-60], b"")


def self_signed(ca: PublicCa) -> Pair:
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, WEB)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).add_extension(x509.SubjectAlternativeName([x509.DNSName(WEB)]), critical=False)
    builder = builder.not_valid_before(ca.now - timedelta(days=1)).not_valid_after(ca.now + timedelta(days=3650))
    return Pair(pem_of(key), builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), b"")


NOT_KEPT: dict[str, tuple[Callable[[PublicCa], Pair], str]] = {
    "expired": (lambda ca: ca.pair(WEB, age=timedelta(days=91)), "the certificate expired at"),
    "not yet valid": (lambda ca: ca.pair(WEB, age=timedelta(days=-2)), "is not valid before"),
    "another key": (mixed, "the private key is not the certificate's"),
    "other names": (
        lambda ca: ca.pair("other.example"),
        "the certificate is for other.example instead of web.example; correct dns_names",
    ),
    "rsa": (
        lambda ca: ca.pair(WEB, key=rsa.generate_private_key(65537, 2048)),
        "its key is rsa-2048, and key_type is ec-p256; write `key_type: rsa-2048`",
    ),
    "ed25519": (
        lambda ca: ca.pair(WEB, key=ed25519.Ed25519PrivateKey.generate()),
        "its key can't be kept: keys of the kind Ed25519 are not supported",
    ),
    "p-521": (
        lambda ca: ca.pair(WEB, key=ec.generate_private_key(ec.SECP521R1())),
        "the curve secp521r1 is not supported",
    ),
    "encrypted": (locked, "the private key can't be read, or is encrypted; put the certificate"),
    "without chain": (chained(b""), "issuer isn't beside it, and an output needs it; add the issuer's certificate"),
    "of another chain": (
        chained(CertificateAuthority.root("Root X1").intermediate("R11").pem),
        "has the name of the issuer of certificate 1",
    ),
    "placeholder": (self_signed, "the certificate is signed by itself"),
    "staging": (lambda ca: PublicCa(ca.now, "(STAGING) Ersatz Edamame E1").pair(WEB), "is of a CA for tests"),
    "for years": (
        lambda ca: ca.pair(WEB, life=timedelta(days=3650)),
        "lifetime is 3650 days, longer than a public CA's",
    ),
    "torn": (torn, "there is no certificate"),
}


@pytest.mark.parametrize("kind", NOT_KEPT)
async def test_what_is_not_kept(make_world: MakeWorld, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """It is said why, with a remedy, by `check` before and by the agent once; a certificate is ordered, and it works."""
    make, text = NOT_KEPT[kind]
    world = make_world()
    place(world, make(PublicCa(world.clock.now())))
    await world.enroll()
    found = [each async for each in findings(world.start(), lambda _: world.broker)]
    warnings = [each.text for each in found if each.subject == "files of web"]
    assert len(warnings) == 1
    assert text in warnings[0]
    status = (await run(world))["web"]
    assert (is_well(status), status.installed_version) == (True, 1)
    told = [line for line in said(caplog).splitlines() if "not taken over" in line]
    assert len(told) == 1
    assert text in told[0]
    assert "nothing to do: one is ordered" in told[0]


async def test_a_key_of_another_kind_is_kept_where_it_is_configured(make_world: MakeWorld) -> None:
    """As the remedy says: `key_type: rsa-2048`."""
    world = make_world(key_type="rsa-2048")
    place(world, PublicCa(world.clock.now()).pair(WEB, key=rsa.generate_private_key(65537, 2048)))
    await world.enroll()
    assert (await run(world))["web"].confirmed_version == 0
    assert ORDERS not in world.broker.calls


async def test_check_tells_what_will_be_taken_over(make_world: MakeWorld) -> None:
    """Before the agent's first start, and changes nothing."""
    world = make_world()
    place(world, PublicCa(world.clock.now()).pair(WEB))
    await world.enroll()
    found = [each async for each in findings(world.start(), lambda _: world.broker)]
    texts = [each.text for each in found if each.subject == "files of web" and each.level is Level.OK]
    assert len(texts) == 1
    assert texts[0].startswith("the pair at its paths is taken over at the agent's start, and kept until it is due")
    assert not (world.folder / "tls" / "web.key").is_symlink()


# ---- the identity --------------------------------------------------------------------------------------------------


async def standing_identity(world: AgentWorld, folder: Path, *, name: str = NAME) -> str:
    """An identity that another program enrolled at this CA, at `identity.cert` and `identity.key`; its serial number."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = build_csr(key, common_name=name, sans=[name])
    issued = await world.authority.enroll(world.authority.mint_token(name), csr)
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 - of the test, on its own disk
    (folder / "identity.crt").write_text(issued.certificate_pem + issued.chain_pem)
    (folder / "identity.key").write_bytes(private_key_pem(key))
    text = (world.folder / "agent.yml").read_text()
    lines = f"identity:\n  cert: {folder}/identity.crt\n  key: {folder}/identity.key\n"
    (world.folder / "agent.yml").write_text(text.replace("identity:\n", lines, 1))
    return format(x509.load_pem_x509_certificate(issued.certificate_pem.encode()).serial_number, "x")


async def test_a_valid_identity_is_taken_over(make_world: MakeWorld) -> None:
    """A run uses it at once, without a token, and renews it when it is due; the files are links then."""
    world = make_world()
    serial = await standing_identity(world, world.folder / "id")
    assert is_well((await run(world))["identity"])
    assert world.broker.reports == [serial]
    assert world.authority.calls == ["enroll", "vouch"]
    world.clock.advance(timedelta(hours=20))
    await run(world)
    assert world.authority.calls == ["enroll", "vouch", "rekey"]
    assert (world.folder / "id" / "identity.crt").is_symlink()
    assert read_leaf(world.folder / "id" / "identity.crt") != serial


async def test_check_tells_of_an_identity_that_will_be_taken_over(make_world: MakeWorld) -> None:
    """It is no host without an identity."""
    world = make_world()
    await standing_identity(world, world.folder / "id")
    found = {each.subject: each async for each in findings(world.start(), lambda _: world.broker)}
    assert found["identity"].level is Level.OK
    assert "is taken over at the agent's start" in found["identity"].text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("another host's", "it is for db.example, and identity.name is web1.example; correct identity.name, or get"),
        ("another CA's", "it doesn't lead to this CA"),
        ("expired", "it expired at"),
        ("another key", "the private key is not the certificate's; get a one-time token"),
        ("without its chain", "its issuer isn't beside it"),
    ],
)
async def test_an_identity_that_is_not_taken_over(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, kind: str, text: str
) -> None:
    """It is said why; the host isn't enrolled, and its files stay."""
    world = make_world()
    folder = world.folder / "id"
    await standing_identity(world, folder, name="db.example" if kind == "another host's" else NAME)
    match kind:
        case "another CA's":
            world.authority.intermediate = world.authority.root.intermediate("Fake Intermediate CA")
        case "expired":
            world.clock.advance(timedelta(days=2))
        case "another key":
            (folder / "identity.key").write_bytes(private_key_pem(ec.generate_private_key(ec.SECP256R1())))
        case "without its chain":
            leaf = (folder / "identity.crt").read_text().split("-----BEGIN")[1]
            (folder / "identity.crt").write_text(f"-----BEGIN{leaf}")
    with pytest.raises(OperationError, match="isn't enrolled"):
        await run(world)
    assert text in said(caplog)
    assert not (folder / "identity.crt").is_symlink()


async def test_a_ca_that_is_away_is_no_reason_for_a_token(make_world: MakeWorld) -> None:
    """The identity can't be judged then: the agent says so, and its next start tries again."""
    world = make_world()
    await standing_identity(world, world.folder / "id")
    world.authority.errors.append(UnreachableError("the internal CA can't be reached"))
    with pytest.raises(UnreachableError):
        await run(world)
    assert is_well((await run(world))["identity"])


async def test_enroll_uses_no_token_where_an_identity_is_taken_over(make_world: MakeWorld) -> None:
    """The token stays, and it is said."""
    world = make_world()
    (world.folder / "state").mkdir()
    await standing_identity(world, world.folder / "id")
    await world.start().enroll(world.progress, force=False)
    assert world.authority.calls == ["enroll", "vouch"]
    assert "no token was used" in world.progress.lines[-1]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
