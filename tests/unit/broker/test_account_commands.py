"""Commands on the account at the CA: what is refused before the CA is asked, each with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from certplane.broker.cli import main
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from tests.support.broker_files import BrokerFiles
from tests.support.scripted_acme import Answer, ScriptedAcme


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(BrokerFiles(tmp_path).config)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        pytest.param(["account", "show"], 1, "the broker makes the key when it starts", id="no key yet"),
        pytest.param(["account", "rollover"], 1, "the broker makes the key when it starts", id="no key to change"),
        pytest.param(["account", "show", "--issuer", "other"], 1, "it has default", id="no such issuer"),
        pytest.param(["certs", "revoke", "x"], 2, "there is no such database", id="no database yet"),
        pytest.param(["certs", "revoke", "x", "--reason", "why"], 2, "must be one of unspecified", id="no such reason"),
    ],
)
def test_what_is_refused(
    config: str, arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A mistake is one line with its remedy, and makes no account key."""
    assert main(["-c", config, *arguments]) == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "account.key").exists()


@pytest.mark.parametrize("command", ["show", "rollover"])
@pytest.mark.parametrize(
    ("issuer", "section"), [("", "issuer.acme"), ("second", "issuers.second.acme")], ids=["default", "further"]
)
def test_a_wrong_directory_before_the_first_start(
    command: str, issuer: str, section: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without an account key there is no account to look at; that the directory isn't there is told all the same."""
    with ScriptedAcme(tmp_path) as ca:
        files = BrokerFiles(tmp_path)
        wrong = {"directory_url": f"{ca.url}/nowhere", "ca_bundle": str(ca.roots_file)}
        second = {"acme": {**wrong, "account_key": str(tmp_path / "second.key")}}
        files.settings["issuer"]["acme"] |= wrong
        files.settings["issuers"] = {"second": second}
        files.write()
        ca.fail("GET /nowhere", *[Answer(404)] * 9)
        assert main(["-c", str(files.config), "account", command, *(["--issuer", issuer] if issuer else [])]) == 1
        said = capsys.readouterr().err
    assert f"{ca.url}/nowhere is no ACME directory: HTTP status 404; set {section}.directory_url" in said
    assert "there is no account key at " in said
    assert "Traceback" not in said


def test_a_key_that_others_can_read(config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The account's key is refused with the line of broker.yml that names it."""
    key = tmp_path / "account.key"
    key.write_bytes(private_key_pem(generate_private_key(KeyType.EC_P256)))
    key.chmod(0o644)
    assert main(["-c", config, "account", "show"]) == 2
    said = capsys.readouterr().err
    assert "chmod 600" in said
    assert "issuer.acme.account_key" in said
