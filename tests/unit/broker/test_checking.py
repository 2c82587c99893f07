"""`certplane-broker check` says what a start would refuse, changes nothing, and is silent about nothing that it can't see."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certplane.broker import surroundings
from certplane.broker.checking import check
from certplane.broker.prepared import prepare
from certplane.broker.settings import BrokerSettings, load_settings
from certplane.broker.store.files import open_writer
from certplane.broker.store.schema import APPLICATION_ID
from certplane.broker.surroundings import secret_names
from certplane.config.files import read_private_file, read_service_key
from certplane.errors import ConfigurationError
from certplane.sandbox.tokens import ProvisionerKey
from tests.support.broker_files import BrokerFiles
from tests.support.bundles import DAY, named_root, pem


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BrokerFiles:
    monkeypatch.setenv("DNS_TSIG", "c2VjcmV0")
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "x")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return BrokerFiles(tmp_path)


def _settings(files: BrokerFiles) -> BrokerSettings:
    files.config.write_text(yaml.safe_dump(files.settings))
    return load_settings(files.config)


async def _notices(files: BrokerFiles) -> str:
    _, notices = await check(_settings(files), offline=True)
    return "\n".join(notices)


async def _problems(files: BrokerFiles) -> str:
    with pytest.raises(ConfigurationError) as caught:
        await check(_settings(files), offline=True)
    return str(caught.value)


@pytest.mark.parametrize(
    ("account_key", "name", "secret", "said"),
    [
        (
            {"secret": "acme/key"},
            "acme/key",
            "",
            r"issuer\.acme\.account_key\.secret: the secret 'acme/key' can't be read",
        ),
        ({"secret": "acme/key"}, "acme/key", "tell", "the secret 'acme/key' can't be used: not a private key in PEM"),
        ({"store": True}, "seal", "", r"store\.seal_secret: the secret 'seal' can't be read"),
        ({"store": True}, "seal", "tell", "the secret 'seal' holds 3 octets in base64, and must hold 32; make one"),
    ],
)
async def test_an_account_key_that_no_file_has(
    files: BrokerFiles, account_key: object, name: str, secret: str, said: str
) -> None:
    """The secrets behind it are read, found wanting with their line, and not shown; nothing is made."""
    folder = files.directory / "secrets"
    for each, content in (("dns/tsig", "c2VjcmV0"), ("cloudflare/api-token", "x"), (name, secret)):
        if content:
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            (folder / each).write_text(content)
            (folder / each).chmod(0o600)
    files.settings["secrets"] = {"provider": "file", "file": {"directory": str(folder)}}
    files.settings["issuer"]["acme"]["account_key"] = account_key
    if "store" in account_key:  # type: ignore[operator]
        files.settings["store"]["seal_secret"] = name
    found = await _problems(files)
    assert re.search(said, found)
    assert re.match(rf"{files.config}:\d+: ", found)
    assert "tell" not in found
    assert not (files.directory / "account.key").exists()


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()


def _foreign_id(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 7")
        connection.commit()


def _foreign_in_use(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    _left_open.append(connection)


_left_open: list[sqlite3.Connection] = []


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
        connection.commit()


@pytest.mark.parametrize(
    ("make", "phrase"),
    [
        pytest.param(_foreign, "is a database of another program", id="another-program's"),
        pytest.param(_foreign_id, "is a database of another program", id="another-program's-mark"),
        pytest.param(_foreign_in_use, "is a database of another program", id="another-program-has-it-open"),
        pytest.param(_newer, "was written by a newer certplane-broker (schema 9999)", id="newer"),
        pytest.param(lambda path: path.write_bytes(b"no database at all" * 100), "is corrupt", id="no-database"),
        pytest.param(lambda path: path.mkdir(), "is not a file", id="folder"),
    ],
)
async def test_a_database_that_a_start_refuses(files: BrokerFiles, make: Callable[[Path], None], phrase: str) -> None:
    """What `serve` says of a database, `check` says too; neither changes its mode, nor anything beside it."""
    path = files.directory / "broker.db"
    make(path)
    path.chmod(0o755 if path.is_dir() else 0o644)
    before = {each.name: (each.stat().st_mode, each.stat().st_size) for each in files.directory.iterdir()}
    said = await _problems(files)
    assert phrase in said
    assert "broker.yml:" in said
    assert "store.path" in said
    with pytest.raises(Exception, match=phrase.partition(" (")[0]):
        open_writer(path, timedelta(), exclusive=True)
    assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    after = {each.name: (each.stat().st_mode, each.stat().st_size) for each in files.directory.iterdir()}
    assert before == after
    while _left_open:
        _left_open.pop().close()


async def test_a_database_of_ours_is_left_as_it_is(files: BrokerFiles) -> None:
    """No file is a beginning, an empty one is what was left of a database; neither is touched."""
    path = files.directory / "broker.db"
    assert "store" not in await _notices(files)
    assert not path.exists()
    path.touch(0o644)
    with pytest.raises(ConfigurationError, match="the file is empty"):
        await check(_settings(files), offline=True)
    assert path.stat().st_size == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


async def test_folders_that_systemd_makes(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first start the unit's folder is missing, which is a notice; another folder is a person's to make."""
    state = files.directory / "state"
    monkeypatch.setattr(surroundings, "STATE_DIRECTORY", state)
    files.settings["store"]["path"] = str(state / "broker.db")
    files.settings["issuer"]["acme"]["account_key"] = str(state / "account.key")
    assert f"{state} isn't there yet: systemd makes it at the first start" in await _notices(files)
    other = files.directory / "other"
    files.settings["store"]["path"] = str(other / "broker.db")
    files.settings["issuer"]["acme"]["account_key"] = str(other / "account.key")
    said = await _problems(files)
    assert said.count(f"there is no folder {other}") == 2
    assert f"make {other}, owned by the service's user" in said
    assert not other.exists()


async def test_secrets_that_cannot_be_read(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that the service won't find is a problem where it is looked for in the right place, else a notice."""
    monkeypatch.delenv("DNS_TSIG")
    said = await _notices(files)
    assert "issuer.acme.rfc2136.tsig_secret: there is no secret 'dns/tsig'" in said
    assert "unless the service's environment sets it" in said
    directory = files.directory / "secrets"
    (directory / "dns").mkdir(parents=True)
    files.settings["secrets"] = {"provider": "file", "file": {"directory": str(directory)}}
    said = await _problems(files)
    assert "issuer.acme.rfc2136.tsig_secret: the secret 'dns/tsig' can't be read" in said
    (directory / "dns" / "tsig").write_text("c2VjcmV0")
    (directory / "dns" / "tsig").chmod(0o644)
    assert "everybody can read it (chmod o-rwx)" in await _problems(files)
    (directory / "dns" / "tsig").chmod(0o640)
    (directory / "cloudflare").mkdir()
    (directory / "cloudflare" / "api-token").write_text("x")
    (directory / "cloudflare" / "api-token").chmod(0o600)
    assert "secret" not in await _notices(files)


def test_all_secrets_are_looked_at(files: BrokerFiles) -> None:
    """The names of the configuration's secrets and the profiles' are found, each with its key."""
    files.settings["issuer"]["acme"]["eab"] = {"kid": "k", "hmac_secret": "ca/hmac"}
    files.settings["store"] = {
        "driver": "postgresql", "url": "postgresql://u@127.0.0.1/x", "password_secret": "db/password",
    }  # fmt: skip
    settings = _settings(files)
    named = secret_names(settings, prepare(settings))
    assert {name: at.key for name, at in named.items()} == {
        "db/password": "store.password_secret",
        "ca/hmac": "issuer.acme.eab.hmac_secret",
        "dns/tsig": "issuer.acme.rfc2136.tsig_secret",
        "cloudflare/api-token": "profiles.web.acme.credentials",
    }
    assert named["cloudflare/api-token"].file == str(files.policy)


@pytest.mark.parametrize(
    ("provider", "section", "key"),
    [
        pytest.param("cloudflare", {}, "cloudflare.credentials", id="cloudflare"),
        pytest.param("acme-dns", {"endpoint": "https://auth.example"}, "acme_dns.accounts", id="acme-dns"),
        pytest.param("lexicon", {"provider": "powerdns"}, "lexicon.credentials", id="lexicon"),
    ],
)
def test_secret_of_profiles_that_name_none(
    files: BrokerFiles, provider: str, section: dict[str, str], key: str
) -> None:
    """The DNS provider's own secret is looked at where a profile relies on it, under whatever key it stands."""
    files.settings["issuer"]["acme"] |= {"dns_provider": provider, provider.replace("-", "_"): section}
    settings = _settings(files)
    prepared = prepare(settings)
    assert f"issuer.acme.{key}" not in {at.key for at in secret_names(settings, prepared).values()}
    files.policy.write_text(re.sub(r", credentials: [^,}]+", "", files.policy.read_text()))
    assert f"issuer.acme.{key}" in {at.key for at in secret_names(settings, prepare(settings)).values()}


async def test_a_provider_whose_package_is_not_installed(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloudflare's SDK is installed only where it is used: without it the line and the file to install are told."""
    files.settings["issuer"]["acme"]["dns_provider"] = "cloudflare"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = await _problems(files)
    assert re.match(rf"{files.config}:\d+: issuer\.acme\.cloudflare: needs Cloudflare's SDK", found)
    assert "broker-cloudflare.txt" in found


async def test_root_is_told_that_it_is_root(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything: it is told how to look as the service, and no file of the service's is wrong to it."""
    if os.geteuid() != 0:
        pytest.skip("this needs root")
    os.chown(files.directory, 65534, -1)
    for name in ("server.key", "server.crt", "agent-ca.pem"):
        os.chown(files.directory / name, 65534, -1)
    again = f"sudo -u nobody certplane-broker -c {_settings(files).source.file} check"
    assert f"as the service: {again}" in await _notices(files)
    monkeypatch.setattr(surroundings, "service_user", lambda _: None)
    assert "sudo" not in await _notices(files)


@pytest.mark.parametrize(
    ("owner", "group", "mode", "me", "groups", "good"),
    [
        pytest.param(0, 0, 0o600, 0, [], True, id="root's-own"),
        pytest.param(996, 996, 0o600, 0, [], True, id="root-looks-at-the-service's"),
        pytest.param(0, 996, 0o640, 0, [], True, id="root-looks-at-what-it-shares"),
        pytest.param(996, 996, 0o600, 996, [996], True, id="the-service's-own"),
        pytest.param(0, 996, 0o640, 996, [996], True, id="root's-for-the-service's-group"),
        pytest.param(0, 42, 0o640, 996, [996, 42], True, id="root's-for-another-group-of-the-service"),
        pytest.param(0, 42, 0o640, 996, [996], False, id="root's-for-a-group-of-others"),
        pytest.param(996, 996, 0o640, 996, [996], False, id="the-service's-own-for-its-group"),
        pytest.param(0, 0, 0o640, 0, [0], False, id="root's-for-its-own-group"),
        pytest.param(0, 996, 0o660, 996, [996], False, id="writable-by-the-group"),
        pytest.param(0, 996, 0o644, 996, [996], False, id="readable-by-all"),
        pytest.param(0, 996, 0o644, 0, [], False, id="readable-by-all-to-root"),
        pytest.param(1000, 996, 0o600, 996, [996], False, id="another's"),
    ],
)
def test_whose_key_may_be_whose(
    owner: int, group: int, mode: int, me: int, groups: list[int], good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A service's key is its own, or root's for its group; root may look; a refusal never says to take it away."""
    if os.geteuid() != 0:
        pytest.skip("this needs root")
    key = tmp_path / "server.key"
    key.write_text("key")
    os.chown(key, owner, group)
    key.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: me)
    monkeypatch.setattr(os, "getegid", lambda: groups[0] if groups else 0)
    monkeypatch.setattr(os, "getgroups", lambda: groups)
    if good:
        assert read_service_key(key) == b"key"
        return
    with pytest.raises(ConfigurationError) as caught:
        read_service_key(key)
    assert "chown 0 " not in str(caught.value)
    assert "chown root " not in str(caught.value)


def test_a_private_file_of_another_user_is_looked_at_as_that_user(tmp_path: Path) -> None:
    """Where only the owner may read, the remedy is to be the owner, and not to take the file from it."""
    if os.geteuid() != 0:
        pytest.skip("this needs root")
    key = tmp_path / "identity.key"
    key.write_text("key")
    key.chmod(0o600)
    os.chown(key, 65534, -1)
    with pytest.raises(ConfigurationError, match=r"belongs to another user \(nobody \(uid 65534\)\); .*sudo -u nobody"):
        read_private_file(key)


async def test_agents_bundle(files: BrokerFiles) -> None:
    """A CA that has ended, or soon will, is a notice; a bundle by which nobody can be let in is a problem."""
    bundle = files.directory / "agent-ca.pem"
    ended = pem(named_root(files.ca.root.subject, files.ca.root_key, begins=-300 * DAY, ends=-DAY))
    ending = pem(named_root("Other", files.ca.root_key, begins=-300 * DAY, ends=10 * DAY))
    assert "agent-ca.pem" not in await _notices(files)
    bundle.write_bytes(ended + files.ca.root_pem + ending)
    notices = await _notices(files)
    assert "is passed over; remove it" in notices
    assert "add its successor to the file before that" in notices
    bundle.write_bytes(ended)
    assert f"{bundle} has no certificate that is still valid" in await _problems(files)


async def test_what_notifies_and_copies_is_looked_at(files: BrokerFiles, tmp_path: Path) -> None:
    """URLs, bundles and secrets of notifiers and audit sinks, all at once; nobody is connected to."""
    files.settings["notifications"] = {
        "oncall": {"webhook": {"url": "http://hooks.example/", "signing_secret": "notify/nosuch"}},
        "post": {
            "mail": {
                "server": "mail.example:587",
                "sender": "a@example.org",
                "recipients": ["b@example.org"],
                "ca_bundle": str(tmp_path / "nosuch.pem"),
            }
        },
    }
    files.settings["audit"] = {"sinks": {"siem": {"otlp": {"endpoint": "http://192.0.2.1:4317"}}}}
    with pytest.raises(ConfigurationError) as caught:
        await check(_settings(files), offline=True)
    told = "\n".join(map(str, caught.value.problems))
    assert "audit.sinks.siem.otlp.endpoint: it must be https" in told
    assert "notifications.oncall.webhook.url: it must be https" in told
    assert re.search(r"broker\.yml:\d+: notifications\.post\.mail\.ca_bundle: .*nosuch\.pem", told)
    files.settings["notifications"]["oncall"]["webhook"]["url"] = "https://hooks.example/"
    del files.settings["audit"]
    del files.settings["notifications"]["post"]
    _, doubts = await check(_settings(files), offline=True)
    assert any("notifications.oncall.webhook.signing_secret: there is no secret" in doubt for doubt in doubts), doubts


def _bootstrap(files: BrokerFiles, key: str) -> None:
    folder = files.directory / "secrets"
    for name, content in (("dns/tsig", "c2VjcmV0"), ("cloudflare/api-token", "x"), ("bootstrap-key", key)):
        if content:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
            (folder / name).chmod(0o600)
    files.settings["secrets"] = {"provider": "file", "file": {"directory": str(folder)}}
    files.settings["bootstrap"] = {
        "ca_url": "https://ca.certplane.test:8443/",
        "root_ca_bundle": str(files.directory / "agent-ca.pem"),
        "provisioner": "certplane-broker",
        "key_secret": "bootstrap-key",
    }


@pytest.mark.parametrize(
    ("key", "said"),
    [
        pytest.param("", r"bootstrap\.key_secret: the secret 'bootstrap-key' can't be read", id="none"),
        pytest.param("tell", "the secret 'bootstrap-key' can't be used: not a private key in PEM", id="no-key"),
        pytest.param('{"tell": 1}', "the secret 'bootstrap-key' isn't an EC key", id="another-kind"),
        pytest.param("tell.a.b.c.d", "is encrypted: decrypt it with `step crypto jwe decrypt`; put", id="encrypted"),
    ],
)
async def test_the_key_of_tokens_is_looked_at(files: BrokerFiles, key: str, said: str) -> None:
    """A key that could sign nothing is told with its line, and not shown."""
    _bootstrap(files, key)
    found = await _problems(files)
    assert re.search(said, found)
    assert re.match(rf"{files.config}:\d+: ", found)
    assert "tell" not in found


async def test_new_hosts_know_the_ca_by_its_root(files: BrokerFiles) -> None:
    """The fingerprint is that of the bundle's first certificate; a bundle that can't be read is told with its line."""
    _bootstrap(files, json.dumps(ProvisionerKey.generate().private_jwk))
    prepared, _ = await check(_settings(files), offline=True)
    assert prepared.identity_ca is not None
    assert prepared.identity_ca.url == "https://ca.certplane.test:8443"
    root = x509.load_pem_x509_certificate(files.ca.root_pem)
    assert prepared.identity_ca.root_fingerprint == root.fingerprint(hashes.SHA256()).hex()
    files.settings["bootstrap"]["root_ca_bundle"] = str(files.directory / "nowhere.pem")
    assert re.search(rf"{files.config}:\d+: bootstrap\.root_ca_bundle: .*nowhere\.pem", await _problems(files))


async def test_a_secret_that_the_service_will_be_handed_is_judged_and_not_doubted(files: BrokerFiles) -> None:
    """Whom its file is closed to gets no notice of it, if somebody read it for him; and one of no use is a problem."""
    _bootstrap(files, "")
    key = json.dumps(ProvisionerKey.generate().private_jwk)
    _, notices = await check(_settings(files), offline=True, handed={"bootstrap-key": key})
    assert not [notice for notice in notices if "bootstrap" in notice]
    with pytest.raises(ConfigurationError, match="the secret 'bootstrap-key' can't be used"):
        await check(_settings(files), offline=True, handed={"bootstrap-key": "tell"})
