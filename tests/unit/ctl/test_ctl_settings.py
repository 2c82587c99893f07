"""Where certplanectl finds its broker and its identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from certplane.ctl.settings import find_settings, load_settings
from certplane.errors import ConfigurationError

RIGHT = """
broker: {url: "https://broker.example:8443", server_ca_bundle: root.crt}
identity: {cert: /etc/certplane/alice.crt, key: alice.key}
"""

FLEET = '{broker: {url: "https://b.example", server_ca_bundle: root.crt}, identity: {cert: a.crt, key: a.key}}'


def written(folder: Path, text: str) -> Path:
    file = folder / "ctl.yml"
    file.write_text(text)
    return file


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """The same file works from any directory."""
    context = load_settings(written(tmp_path, RIGHT)).named("")
    assert context.path(context.settings.identity.key) == tmp_path / "alice.key"
    assert context.path(context.settings.identity.cert) == Path("/etc/certplane/alice.crt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            RIGHT.replace("8443", "8443/api"),
            "ctl.yml:2: broker.url: must be https://host:port without a path",
            id="url-with-a-path",
        ),
        pytest.param(RIGHT.replace("https", "http"), "broker.url", id="no-tls"),
        pytest.param(RIGHT.replace("alice.key}", "alice.key, token: x}"), "identity.token", id="unknown-key"),
        pytest.param("broker: {}\n", "broker.server_ca_bundle: is required", id="nothing-there"),
        pytest.param("timeout: 3s\n", "identity: is required; add `identity:`, or `contexts:`", id="no-identity"),
        pytest.param(f"{RIGHT}context: a\n", "context: there are no contexts", id="context-without-contexts"),
        pytest.param(f"{RIGHT}contexts: {{a: {FLEET}}}\n", "broker: goes without `contexts`", id="both"),
        pytest.param(f"contexts: {{a: {FLEET}}}\ncontext: b\n", "there is no context b; use one of: a", id="no-such"),
        pytest.param(f"contexts: {{a b: {FLEET}}}\n", "contexts.a b: isn't a name", id="name-of-a-context"),
        pytest.param(
            f"contexts:\n  a: {FLEET.replace('https', 'http')}\n", "ctl.yml:2: contexts.a.broker.url", id="in-a-context"
        ),
        pytest.param(
            RIGHT.replace("url: ", 'urls: ["https://a", "https://a:443"], url: '),
            "goes without `url`",
            id="url-and-urls",
        ),
        pytest.param(
            RIGHT.replace('url: "https://broker.example:8443"', 'urls: ["https://a", "https://a:443"]'),
            "broker.urls[1]: is the same broker as urls[0]",
            id="twice-the-same",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    """As for the programs' own files: file, line, key."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(written(tmp_path, text))
    assert said in str(caught.value)


def test_the_nearest_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable comes before the user's own file; without any the remedy says where to write one."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("CERTPLANECTL_CONFIG", raising=False)
    with pytest.raises(ConfigurationError, match=r"write .*/certplane/ctl.yml"):
        find_settings()
    (tmp_path / "certplane").mkdir()
    own = written(tmp_path / "certplane", RIGHT)
    assert find_settings() == own
    monkeypatch.setenv("CERTPLANECTL_CONFIG", "/somewhere/else.yml")
    assert find_settings() == Path("/somewhere/else.yml")


def test_a_user_without_a_home_is_told_of_the_systems_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that runs as a number which passwd(5) doesn't have has neither HOME nor a home there."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("CERTPLANECTL_CONFIG", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigurationError, match=r"write /etc/certplane/ctl.yml, or name one"):
        find_settings()
