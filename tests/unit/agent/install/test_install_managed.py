"""Which other program renews what stands at a path, by that program's own files; a guess is never made."""

from __future__ import annotations

from pathlib import Path

import pytest

from certplane.agent.install.managed import Manager, acme_sh_hooks, certbot_hooks, manager_of, settings_of
from tests.support.others_files import PublicCa, acme_sh_certificate, certbot_lineage, lego_certificate

WEB = "www.example.com"


@pytest.fixture(scope="module")
def ca() -> PublicCa:
    return PublicCa()


@pytest.mark.parametrize(
    ("written", "hook"),
    [
        pytest.param("systemctl reload nginx", "systemctl reload nginx", id="plain"),
        pytest.param("\"echo 'a, b'\"", "echo 'a, b'", id="quoted"),
        pytest.param("'''it's \"both\"'''", 'it\'s "both"', id="both-quotes"),
        pytest.param("sh -c 'x'", "sh -c 'x'", id="a-quote-at-its-end"),
    ],
)
def test_hooks_of_certbot(written: str, hook: str) -> None:
    """As certbot's own reader has them."""
    assert certbot_hooks(settings_of(f"[renewalparams]\nrenew_hook = {written}\npost_hook = None\n")) == (hook,)


def test_hooks_of_acme_sh_in_clear() -> None:
    """What stands there in base64 is no command as it stands."""
    assert acme_sh_hooks({"Le_ReloadCmd": "'service x reload'"}) == ("service x reload",)
    assert acme_sh_hooks({"Le_ReloadCmd": "'__ACME_BASE64__START_eA==__ACME_BASE64__END_'"}) == ()


def test_a_path_of_nobody(tmp_path: Path, ca: PublicCa) -> None:
    """A file alone; links of `live` whose renewal file is gone; an acme.sh folder without a domain; lego's without JSON."""
    (tmp_path / "web.pem").write_bytes(b"")
    live = certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB))
    (tmp_path / "le" / "renewal" / f"{WEB}.conf").unlink()
    folder = acme_sh_certificate(tmp_path / "acme", WEB, ca.pair(WEB))
    (folder / f"{WEB}.conf").write_text("Le_Webroot='dns'\n")
    certificates = lego_certificate(tmp_path / "lego", WEB, ca.pair(WEB))
    (certificates / f"{WEB}.json").unlink()
    for path in (
        tmp_path / "web.pem",
        tmp_path / "nowhere" / "web.pem",
        live / "privkey.pem",
        folder / "fullchain.cer",
        certificates / f"{WEB}.crt",
    ):
        assert manager_of(path) is None


def test_what_cannot_be_read_is_nobodys(tmp_path: Path, ca: PublicCa, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that isn't root looks at certbot's folder in vain: no error comes of it."""
    live = certbot_lineage(tmp_path / "le", WEB, ca.pair(WEB))
    assert isinstance(manager_of(live / "privkey.pem"), Manager)

    def refuse(*_: object, **__: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert manager_of(live / "privkey.pem") is None


def test_lego_by_each_of_its_files(tmp_path: Path, ca: PublicCa) -> None:
    """Key, certificate and issuer lead to the same record."""
    certificates = lego_certificate(tmp_path / "lego", WEB, ca.pair(WEB))
    found = {manager_of(certificates / f"{WEB}{ending}") for ending in (".key", ".crt", ".issuer.crt")}
    assert [each.file.name for each in found if each is not None] == [f"{WEB}.json"]
    assert None not in found
