"""Lexicon: what is read from secrets, what is found at the start, and what its process tells."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from datetime import timedelta
from urllib.parse import quote, quote_plus

import dns.resolver
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns import lexicon, lexicon_call
from certplane.broker.issuers.dns.lexicon import LexiconProvider, LexiconSettings, read_credentials
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.errors import ConfigurationError, Reason, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.runtime.programs import Ended, NotStartedError
from tests.fakes.secrets import FakeSecretSource
from tests.support.waiting import HANG

NAME = "_acme-challenge.www.certplane.test"
RECORD = TxtRecord("", NAME, "value")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        pytest.param("t0ken", {"auth_token": "t0ken"}, id="token"),
        pytest.param("t0ken==", {"auth_token": "t0ken=="}, id="base64-token"),
        pytest.param("T0=ken", {"auth_token": "T0=ken"}, id="token-with-a-sign"),
        pytest.param("auth_token=a=b", {"auth_token": "a=b"}, id="pair"),
        pytest.param(
            "auth-username = me\n\nauth-password=p w\n", {"auth_username": "me", "auth_password": "p w"}, id="pairs"
        ),
        pytest.param('{"auth-token": "a", "port": 8}', {"auth_token": "a", "port": "8"}, id="json"),
    ],
)
def test_credentials(text: str, options: dict[str, str]) -> None:
    """A JSON object, lines of key=value, or the token alone."""
    assert read_credentials("dns/secret", text) == options


@pytest.mark.parametrize("text", ["{hush", '{"a": ["hush"]}', '{"a": null}', "{" * 100_000])
def test_credentials_that_are_none(text: str) -> None:
    """What looks like JSON and isn't is told by the secret's name, and never quoted."""
    with pytest.raises(RefusalError) as caught:
        read_credentials("dns/secret", text)
    assert caught.value.refusal.reason is Reason.DNS_REJECTED
    assert "'dns/secret'" in caught.value.refusal.message
    assert "hush" not in caught.value.refusal.message
    assert caught.value.__cause__ is None


def test_lexicon_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optional package is missed at the start, with the way to get it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError) as caught:
        LexiconProvider(LexiconSettings("powerdns", "x"), FakeSecretSource(), random.Random(1))
    (problem,) = caught.value.problems
    assert (problem.key, "optional.txt" in problem.remedy) == ("issuer.acme.lexicon", True)


@pytest.mark.parametrize(
    ("provider", "remedy"),
    [
        pytest.param("powerdsn", "did you mean powerdns?", id="nearly"),
        pytest.param("../../x", "lists them", id="a-path"),
        pytest.param("base", "lists them", id="no-provider"),
    ],
)
def test_provider_that_lexicon_does_not_have(provider: str, remedy: str) -> None:
    """A mistyped provider is found at the start."""
    with pytest.raises(ConfigurationError) as caught:
        LexiconProvider(LexiconSettings(provider, "x"), FakeSecretSource(), random.Random(1))
    (problem,) = caught.value.problems
    assert (problem.key, remedy in problem.remedy) == ("issuer.acme.lexicon.provider", True)


def test_plan() -> None:
    """A record is what the challenge wants, with the profile's secret."""
    provider = LexiconProvider(LexiconSettings("powerdns", "x"), FakeSecretSource(), random.Random(1))
    challenge = DnsChallenge("www.certplane.test", NAME, "value", "https://ca/a", "https://ca/c", "t.t")
    profile = Profile("web", "multi_san", ("www.certplane.test",), "hash", credentials="dns/other")
    assert provider.plan(challenge, profile) == TxtRecord("", NAME, "value", credentials="dns/other")


@pytest.mark.parametrize(
    ("ended", "reason", "message"),
    [
        pytest.param(Ended(None, b"", b""), Reason.DNS_UNAVAILABLE, "in time", id="limit"),
        pytest.param(Ended(137, b"", b"Killed"), Reason.DNS_UNAVAILABLE, "without a result, status 137", id="killed"),
        pytest.param(Ended(0, b'{"result": "done"}\nnoise', b""), Reason.DNS_UNAVAILABLE, "without a", id="noise"),
        pytest.param(Ended(0, b"[1]", b""), Reason.DNS_UNAVAILABLE, "without a result", id="list"),
        pytest.param(
            Ended(0, b'{"result": "rejected", "message": "no\\u001b[2J zone"}', b""), Reason.DNS_REJECTED, ": no[2J zone",
            id="rejected",
        ),
        pytest.param(
            Ended(0, b'x\n{"result": "unavailable", "message": 7}\n', b""), Reason.DNS_UNAVAILABLE, NAME, id="unavailable"
        ),
        pytest.param(NotStartedError("Out of memory"), Reason.DNS_UNAVAILABLE, "Out of memory", id="not-started"),
    ],
)  # fmt: skip
async def test_ends_of_the_process(
    monkeypatch: pytest.MonkeyPatch, ended: Ended | Exception, reason: Reason, message: str
) -> None:
    """Only a process that says so has done its work."""

    async def run(*_: object, **__: object) -> Ended:
        if isinstance(ended, Exception):
            raise ended
        return ended

    monkeypatch.setattr(lexicon, "run_program", run)
    provider = LexiconProvider(LexiconSettings("powerdns", "x"), FakeSecretSource({"x": "t"}), random.Random(1))
    with pytest.raises(RefusalError) as caught:
        await provider.add_txt(RECORD, Deadline.after(timedelta(seconds=0.1), SystemClock()))
    assert (caught.value.refusal.reason, message in caught.value.refusal.message) == (reason, True)


async def test_what_the_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials go over standard input, never as arguments or environment; proxies are passed on."""
    seen: dict[str, object] = {}

    async def run(command: list[str], **given: object) -> Ended:
        seen.update(given, command=command)
        return Ended(0, b'{"result": "done"}', b"")

    monkeypatch.setattr(lexicon, "run_program", run)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("LEXICON_POWERDNS_AUTH_TOKEN", "of the broker")
    secrets = FakeSecretSource({"dns/other": "hunter2"})
    api = LexiconSettings("powerdns", "x", {"pdns-server": "https://p"}, ttl=timedelta(minutes=2))
    provider = LexiconProvider(api, secrets, random.Random(1))
    record = TxtRecord("", NAME, "value", credentials="dns/other")
    await provider.remove_txt(record, Deadline.after(timedelta(seconds=5), SystemClock()))
    told = seen.pop("told")
    assert isinstance(told, bytes)
    assert "hunter2" not in repr(seen)
    assert "of the broker" not in repr(seen)
    assert "proxy.example" in repr(seen["environment"])
    call = json.loads(told)
    assert (call["operation"], call["name"], call["value"]) == ("delete", NAME, "value")
    assert call["config"]["powerdns"] == {"pdns_server": "https://p", "auth_token": "hunter2"}
    assert call["config"]["ttl"] == 120


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.url = "https://api.example/v1?key=hunter2"
    return requests.HTTPError(f"{status} for url {response.url}", response=response)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        pytest.param(http_error(401), "rejected", "HTTP status 401; check the credentials", id="401"),
        pytest.param(http_error(404), "rejected", "api.example answered with HTTP status 404", id="404"),
        pytest.param(http_error(429), "unavailable", "HTTP status 429", id="429"),
        pytest.param(http_error(502), "unavailable", "HTTP status 502", id="502"),
        pytest.param(
            requests.ConnectionError("https://u:hunter2@h"), "unavailable", "ConnectionError", id="connection"
        ),
        pytest.param(requests.ReadTimeout(), "unavailable", "ReadTimeout", id="timeout"),
        pytest.param(dns.resolver.NoNameservers(), "unavailable", "NoNameservers", id="zone"),
        pytest.param(OSError(111, "refused"), "unavailable", "ConnectionRefusedError", id="socket"),
        pytest.param(ValueError("No domain found"), "rejected", "ValueError: No domain found", id="other"),
    ],
)
def test_judging_errors(error: Exception, kind: str, message: str) -> None:
    """What may pass is told from what a person must mend; no URL is told, which may hold a key."""
    judged = lexicon_call._judge(error)
    assert (judged[0], message in judged[1]) == (kind, True)
    assert "hunter2" not in judged[1]


@given(
    secret=st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="[]|ecrst"), min_size=4)
)
def test_no_credential_is_told(secret: str) -> None:
    """A provider's words are told without credentials, as they are or quoted for a URL."""
    quoted = (quote(secret), quote(secret, safe=""), quote_plus(secret))
    told = lexicon_call._without([secret], "|".join((secret, *quoted, "kept")))
    assert told == "[secret]|[secret]|[secret]|[secret]|kept"


def test_lexicon_is_loaded_by_its_process_alone() -> None:
    """The broker's own process finds lexicon without loading it."""
    code = """
import random, sys
from certplane.broker.issuers.dns.lexicon import LexiconSettings, LexiconProvider
LexiconProvider(LexiconSettings("powerdns", "x"), None, random.Random())
sys.exit("lexicon" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=HANG).returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel by prctl(2)")
def test_a_crash_leaves_no_dump_with_the_credentials() -> None:
    """The process is another program than the broker: execve(2) has made it dumpable again."""
    code = (
        "import ctypes\n"
        "from certplane.broker.issuers.dns import lexicon_call\n"
        "lexicon_call._result = lambda call: {'dumpable': ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)}\n"
        "lexicon_call.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], input=b"{}", capture_output=True, timeout=HANG, check=True)
    assert json.loads(ended.stdout) == {"dumpable": 0}
