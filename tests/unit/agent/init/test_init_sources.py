"""What `init --from` makes of another client's certificates: entries by policy's profiles, copies, and lines to type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from certplane.agent.init.found import find
from certplane.agent.init.presets import Service
from certplane.agent.init.sources import Taken, shown, taken
from certplane.agent.init.text import agent_yml, service_lines
from certplane.agent.init.wanted import ProfileChoice, Wanted
from certplane.errors import OperationError
from certplane.setup.account import Account
from certplane.setup.apply import apply
from certplane.setup.plan import WriteFile
from tests.support.others_files import PublicCa, acme_sh_certificate, certbot_lineage, lego_certificate

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
WEB = "www.example.com"
ROOT, AGENT = Account("root", None), Account("certplane-agent", None)
NAMES: Mapping[str, tuple[str, ...]] = {"web": (WEB, "example.com"), "wild": ("*.example.org",)}


@pytest.fixture(scope="module")
def ca() -> PublicCa:
    return PublicCa(NOW)


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    (tmp_path / "etc" / "tls").mkdir(parents=True)
    return Wanted(
        name="web1.example.net",
        ca_url="https://ca.example.net",
        broker=["https://broker.example.net:8443"],
        config=tmp_path / "etc" / "agent.yml",
        state_dir=tmp_path / "state",
    )


def from_certbot(wanted: Wanted, folder: Path, who: Account) -> Taken:
    return taken(wanted, find("certbot", folder, NOW), NAMES, who)


def entries(wanted: Wanted, found: Taken) -> list[dict[str, object]]:
    loaded: list[dict[str, object]] = yaml.safe_load(agent_yml(wanted, found.certificates))["certificates"]
    return loaded


def test_root_takes_the_paths_that_services_read(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """Nothing is copied, the hook is the reload command, and certbot is to be stopped."""
    live = certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com"), hook="systemctl reload nginx")
    found = from_certbot(wanted, tmp_path / "le", ROOT)
    (entry,) = entries(wanted, found)
    assert entry["dns_names"] == [WEB, "example.com"]
    assert (entry["key"], entry["fullchain"]) == (f"{live}/privkey.pem", f"{live}/fullchain.pem")
    assert (entry["profile"], entry["reload_command"]) == ("web", "systemctl reload nginx")
    assert (found.copies.steps, found.said) == ((), ())
    conf = tmp_path / "le" / "renewal" / f"{WEB}.conf"
    assert found.then == (
        f"keep certbot from renewing {WEB}: mv {conf} {conf}.moved",
        f"let the agent's unit write there, by a drop-in: ReadWritePaths={live}",
    )


def test_for_another_user_the_pair_is_copied(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """Key, chain and the combined file, secret, of the agent's user; services may go on reading where they do."""
    pair = ca.pair(WEB, "example.com")
    live = certbot_lineage(tmp_path / "le", WEB, pair)
    found = from_certbot(wanted, tmp_path / "le", AGENT)
    steps = {step.path.name: step for step in found.copies.steps if isinstance(step, WriteFile)}
    assert {name: step.mode for name, step in steps.items()} == {
        "web.key": 0o600,
        "web.pem": 0o644,
        "web.combined": 0o600,
        "web.cert": 0o644,
        "web.chain": 0o644,
    }
    assert all(step.secret and step.owner is None for step in steps.values())
    assert steps["web.pem"].text.encode() == pair.fullchain
    assert steps["web.combined"].text.encode() == pair.key + pair.fullchain
    tls = wanted.tls
    assert found.then[1] == (
        f"have services read {tls}/web.key, {tls}/web.pem, {tls}/web.combined, {tls}/web.cert, {tls}/web.chain; "
        f"or let them read where they do: ln -sfn {tls}/web.key {live}/privkey.pem && ln -sfn {tls}/web.pem "
        f"{live}/fullchain.pem && ln -sfn {tls}/web.cert {live}/cert.pem && ln -sfn {tls}/web.chain {live}/chain.pem"
    )


def test_a_second_run_makes_the_same(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """Copies that are there are kept, certbot that was stopped stays so, and links that were made aren't asked for."""
    live = certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com"), hook="systemctl reload nginx")
    first = from_certbot(wanted, tmp_path / "le", AGENT)
    assert apply(first.copies, lambda _: None) == 5
    for name, target in (
        ("privkey", "web.key"),
        ("fullchain", "web.pem"),
        ("cert", "web.cert"),
        ("chain", "web.chain"),
    ):
        (live / f"{name}.pem").unlink()
        (live / f"{name}.pem").symlink_to(wanted.tls / target)
    conf = tmp_path / "le" / "renewal" / f"{WEB}.conf"
    conf.rename(f"{conf}.moved")
    second = from_certbot(wanted, tmp_path / "le", AGENT)
    assert second.certificates == first.certificates
    assert (second.copies.steps, second.then) == ((), ())
    assert second.said[0].startswith("kept what stands at ")


def test_a_service_has_its_files_and_its_reload(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """`--profile web --service haproxy`: one file, made of the pair; certbot's hook is told, not taken."""
    certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com"), hook="/opt/deploy.sh")
    wanted = dataclasses.replace(wanted, profiles=(ProfileChoice("web", Service.HAPROXY),))
    found = from_certbot(wanted, tmp_path / "le", AGENT)
    assert [step.path.name for step in found.copies.steps if isinstance(step, WriteFile)] == ["web.combined"]
    (entry,) = entries(wanted, found)
    assert entry["reload_command"] == "systemctl reload haproxy.service"
    assert found.then[-1].endswith("give what of it is needed as reload_command: /opt/deploy.sh")


def test_a_hook_that_only_certbot_can_run_is_told(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """It reads RENEWED_LINEAGE: no reload command comes of it."""
    hook = "cp $RENEWED_LINEAGE/fullchain.pem /srv/"
    certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com"), hook=hook)
    found = from_certbot(wanted, tmp_path / "le", ROOT)
    assert "reload_command" not in entries(wanted, found)[0]
    assert found.then[-1].endswith(f"give what of it is needed as reload_command: {hook}")


def test_what_stops_a_service_is_no_reload_command(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """`pre_hook` and `post_hook` run around each try, scripts for each certificate: they are told, and not taken."""
    certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com"))
    with (tmp_path / "le" / "renewal" / f"{WEB}.conf").open("a") as conf:
        conf.write("pre_hook = systemctl stop nginx\npost_hook = None\n")
    script = tmp_path / "le" / "renewal-hooks" / "deploy" / "10-mail"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    found = from_certbot(wanted, tmp_path / "le", ROOT)
    assert "reload_command" not in entries(wanted, found)[0]
    assert found.then[-1].endswith(f"is needed as reload_command: systemctl stop nginx; {script}")


def test_homes_are_hidden_from_an_agent_of_root(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """Its unit has ProtectHome: what lies there is copied, for root too."""
    folder = lego_certificate(tmp_path / "lego", WEB, ca.pair(WEB, "example.com"))
    (lineage,) = find("lego", tmp_path / "lego", NOW)
    moved = {kind: Path("/root/.lego/certificates") / path.name for kind, path in lineage.paths.items()}
    found = taken(wanted, [dataclasses.replace(lineage, paths=moved)], NAMES, ROOT)
    assert len(found.copies.steps) == 3
    assert entries(wanted, found)[0]["key"] == str(wanted.tls / "web.key")
    in_place = taken(wanted, [lineage], NAMES, ROOT)
    assert entries(wanted, in_place)[0]["key"] == str(folder / f"{WEB}.key")


def test_a_service_that_reads_another_form_has_it_in_place_too(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """HAProxy of an agent of root: its one file beside certbot's own paths, and a line that names it."""
    live = certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com"))
    wanted = dataclasses.replace(wanted, profiles=(ProfileChoice("web", Service.HAPROXY),))
    found = from_certbot(wanted, tmp_path / "le", ROOT)
    (entry,) = entries(wanted, found)
    assert (entry["cert"], entry["combined"]) == (f"{live}/cert.pem", str(wanted.tls / "web.combined"))
    assert service_lines(Service.HAPROXY, found.certificates[0]) == (f"bind :443 ssl crt {wanted.tls}/web.combined",)


@pytest.mark.parametrize("installer", ["nginx", "apache"])
def test_what_certbot_reloads_itself_is_reloaded(installer: str, tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """`certbot --nginx` has no hook, and reloads nginx all the same."""
    certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com"))
    with (tmp_path / "le" / "renewal" / f"{WEB}.conf").open("a") as conf:
        conf.write(f"installer = {installer}\n")
    (entry,) = entries(wanted, from_certbot(wanted, tmp_path / "le", AGENT))
    assert entry["reload_command"] == f"systemctl reload {Service(installer)}{'2' * (installer == 'apache')}.service"


def test_a_certificate_and_its_chain_apart_are_the_paths_too(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """acme.sh's `--cert-file` and `--ca-file`: else a service would have an old certificate with a new key."""
    settings = "".join(f"Le_Real{kind}Path='/etc/apache2/{kind}.pem'\n" for kind in ("Key", "Cert", "CACert"))
    acme_sh_certificate(tmp_path / "acme", WEB, ca.pair(WEB, "example.com"), settings=settings)
    lineages = find("acme.sh", tmp_path / "acme", NOW)
    (entry,) = entries(wanted, taken(wanted, lineages, NAMES, ROOT))
    assert [entry[kind] for kind in ("key", "cert", "chain")] == [
        "/etc/apache2/Key.pem", "/etc/apache2/Cert.pem", "/etc/apache2/CACert.pem",
    ]  # fmt: skip
    links = taken(wanted, lineages, NAMES, AGENT).then[1]
    assert all(f"/etc/apache2/{kind}.pem" in links for kind in ("Key", "Cert", "CACert"))


def test_a_lineage_without_its_key_is_ordered(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """Its certificate says which profile it is; nothing is linked before there is something to link."""
    live = certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com"))
    (tmp_path / "le" / "archive" / WEB / "privkey1.pem").unlink()
    found = from_certbot(wanted, tmp_path / "le", AGENT)
    assert found.certificates[0].profile == "web"
    assert f"a certificate is ordered: {live}/privkey.pem can't be read" in found.said[0]
    assert found.then[1].startswith("once the agent has its first certificate, have services read")


def test_of_what_cannot_be_read_no_profile_is_asked_for(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """The remedy is to restore it, not a profile of names that nobody knows."""
    certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB))
    (tmp_path / "le" / "archive" / WEB / "fullchain1.pem").write_bytes(b"\xff")
    with pytest.raises(OperationError, match="no certificate of certbot's can be read") as refused:
        from_certbot(wanted, tmp_path / "le", AGENT)
    assert refused.value.remedy.startswith("restore them")


def test_an_rsa_key_is_what_agent_yml_says(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """Else the agent would order another one at once."""
    pair = ca.pair("*.example.org", key=rsa.generate_private_key(65537, 2048))
    lego_certificate(tmp_path / "lego", "*.example.org", pair)
    found = taken(wanted, find("lego", tmp_path / "lego", NOW), NAMES, AGENT)
    assert entries(wanted, found)[0]["key_type"] == "rsa-2048"
    assert found.then[0].startswith("keep lego from renewing _.example.org: take the line of")


def test_acme_sh_s_installed_files_are_the_paths(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """Where `--install-cert` put them, not its own folder."""
    settings = "Le_RealKeyPath='/etc/haproxy/web.key'\nLe_RealFullChainPath='/etc/haproxy/web.pem'\n"
    acme_sh_certificate(tmp_path / "acme", WEB, ca.pair(WEB, "example.com"), settings=settings)
    found = taken(wanted, find("acme.sh", tmp_path / "acme", NOW), NAMES, ROOT)
    assert entries(wanted, found)[0]["fullchain"] == "/etc/haproxy/web.pem"


def test_what_is_of_no_use_is_ordered(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """An expired pair: its entry is written all the same, nothing is copied, and it is said."""
    certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com", age=timedelta(days=91)))
    found = from_certbot(wanted, tmp_path / "le", AGENT)
    assert [entry["profile"] for entry in entries(wanted, found)] == ["web"]
    assert found.copies.steps == ()
    assert (
        "certbot's www.example.com is not taken over, and a certificate is ordered: the certificate expired"
        in found.said[0]
    )


def test_what_is_left_out_is_said(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """Of two with the same names the one that ends first; names that no profile has; a broken one."""
    certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB, "example.com", age=timedelta(days=20)))
    certbot_lineage(tmp_path / "le", f"{WEB}-0001", ca.pair(WEB, "example.com"))
    certbot_lineage(tmp_path / "le", "shop.example.com", ca.pair("shop.example.com"))
    live = certbot_lineage(tmp_path / "le", "wild", ca.pair("*.example.org"))
    (tmp_path / "le" / "archive" / "wild" / "fullchain1.pem").unlink()
    broken = f"{live}/fullchain.pem can't be read: No such file or directory"
    found = from_certbot(wanted, tmp_path / "le", ROOT)
    (entry,) = entries(wanted, found)
    assert f"{WEB}-0001" in str(entry["key"])
    assert sorted(found.said) == [
        "certbot's shop.example.com is left out: no profile has exactly its names, shop.example.com",
        f"certbot's wild is left out: {broken}; restore it, or issue it anew",
        f"certbot's {WEB} is left out: {WEB}-0001 has the same names and is good for longer",
    ]


def test_nothing_that_policy_gives(tmp_path: Path, wanted: Wanted, ca: PublicCa) -> None:
    """One line with all names, and what is to be done at the broker."""
    certbot_lineage(tmp_path / "le", "shop.example.com", ca.pair("shop.example.com"))
    with pytest.raises(
        OperationError, match=r"no profile that policy gives to web1\.example\.net.*shop\.example\.com.*"
    ):
        from_certbot(wanted, tmp_path / "le", ROOT)


def test_shown_before_anybody_was_asked(tmp_path: Path, ca: PublicCa) -> None:
    """A dry run on a host that isn't enrolled."""
    certbot_lineage(tmp_path, WEB, ca.pair(WEB))
    certbot_lineage(tmp_path, "z.example.com", ca.pair("z.example.com", age=timedelta(days=91)))
    first, second = shown(find("certbot", tmp_path, NOW))
    assert first == (
        f"would take over certbot's {WEB} ({WEB}), until 2027-02-26, if a profile of this host has these names"
    )
    assert second.startswith("would not take over certbot's z.example.com: the certificate expired at")
