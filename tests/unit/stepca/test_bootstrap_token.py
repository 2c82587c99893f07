"""Reading and judging one-time tokens, and the file that brings them."""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.agent.enrollment.tokenfile import read_token_file, remove_token_file
from certplane.errors import ConfigurationError
from certplane.stepca.errors import EnrollmentError
from certplane.stepca.token import check_token, parse_token
from tests.support.identities import problem

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ROOT = "ab" * 32


def token(**claims: Any) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'ES256'})}.{part(claims)}.c2lnbmF0dXJl"


def test_claims_are_read_without_verifying_the_signature() -> None:
    """Names, root and times come out of the payload; the signature is the CA's business."""
    parsed = parse_token(token(sub="web1", sans=["web1.example"], sha=ROOT.upper(), nbf=0, exp=1700000000.5))
    assert parsed.subject == "web1"
    assert parsed.names == ("web1.example",)
    assert parsed.root_sha256 == ROOT
    assert parsed.not_before == datetime(1970, 1, 1, tzinfo=UTC)
    assert parsed.expire_time == datetime(2023, 11, 14, 22, 13, 20, 500000, tzinfo=UTC)


def test_the_subject_is_the_name_when_there_are_no_sans() -> None:
    """As step-ca reads it."""
    assert parse_token(token(sub="web1.example")).names == ("web1.example",)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("not a token", id="prose"),
        pytest.param("a.b", id="two parts"),
        pytest.param("a.!!!.c", id="not base64"),
        pytest.param("e30.bm90IGpzb24.c2ln", id="not JSON"),
        pytest.param("e30.W10.c2ln", id="a list"),
        pytest.param("e30." + base64.urlsafe_b64encode(b"[" * 100_000).decode() + ".c2ln", id="nested without end"),
        pytest.param(token(sub=7), id="subject is a number"),
        pytest.param(token(sans="web1"), id="sans is a text"),
        pytest.param(token(exp="soon"), id="expiry is a text"),
        pytest.param(token(exp=True), id="expiry is a boolean"),
        pytest.param(token(exp=1e300), id="expiry is beyond time"),
    ],
)
def test_what_is_no_token_is_refused_unsent_and_unquoted(text: str) -> None:
    """The error neither says that the token is spent nor holds a part of it, its cause included."""
    with pytest.raises(EnrollmentError) as refused:
        parse_token(text)
    assert not refused.value.token_spent
    assert refused.value.remedy
    assert len(str(refused.value)) < 300
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        pytest.param({"sha": "cd" * 32}, "another|fingerprint", id="of another root"),
        pytest.param(
            {"exp": (NOW - timedelta(minutes=2)).timestamp()}, "expired at 2026-11-23T11:58:00Z", id="expired"
        ),
        pytest.param({"nbf": (NOW + timedelta(hours=1)).timestamp()}, "not valid before", id="from the future"),
        pytest.param({"sans": ["web2.example"]}, "is for web2.example, but this host is web1.example", id="other name"),
        pytest.param({"sans": ["web1.example", "web2.example"]}, "is for web1.example, web2", id="one name too many"),
        pytest.param({"sub": ""}, "no name", id="no name"),
        pytest.param({"sub": "web1", "sans": ["web1.example"]}, "the token's subject is web1", id="short subject"),
        pytest.param({"sub": "Web server", "sans": ["web1.example"]}, "subject is Web server", id="prose for subject"),
        pytest.param({"sub": "web2.example", "sans": ["web1.example"]}, "subject is web2", id="another's subject"),
        pytest.param(
            {"sub": "WEB1.example", "sans": ["web1.example"]}, "subject is WEB1", id="subject in another case"
        ),
        pytest.param({"aud": "https://ca.example/1.0/ssh/sign"}, "the CA's /ssh/sign", id="for SSH"),
        pytest.param({"aud": ["https://ca.example/1.0/revoke#x"]}, "the CA's /revoke", id="for a revocation"),
        pytest.param({"aud": "https://ca.example/renew"}, "the CA's /renew", id="for a renewal"),
    ],
)
def test_a_token_that_cannot_work_is_not_sent(claims: dict[str, Any], words: str) -> None:
    """Another root, another host, another time: refused with the reason and what to do, the token unspent."""
    parsed = parse_token(token(**{"sub": "web1.example", **claims}))
    with pytest.raises(EnrollmentError, match=words) as refused:
        check_token(parsed, names=["web1.example"], root_sha256=[ROOT], now=NOW)
    assert not refused.value.token_spent
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("names", "claims"),
    [
        pytest.param(["web1.example"], {"sub": "web1.example"}, id="the name alone"),
        pytest.param(["web1.example"], {"sub": "web1.example", "sans": ["web1.example"]}, id="and as SAN"),
        pytest.param(["web1.example"], {"sub": "web1.example", "sans": ["web1.example"] * 2}, id="twice"),
        pytest.param(["web1.example"], {"sub": "", "sans": ["web1.example"]}, id="no subject"),
        pytest.param(["a.example", "b.example"], {"sub": "a.example", "sans": ["b.example", "a.example"]}, id="order"),
        pytest.param(["spiffe://x/web1"], {"sub": "spiffe://x/web1"}, id="URI"),
        pytest.param(["web1.example"], {"sub": "web1.example", "aud": "https://ca.example/1.0/sign#jwk"}, id="sign"),
        pytest.param(["web1.example"], {"sub": "web1.example", "aud": ["x", "https://ca.example/sign"]}, id="older CA"),
        pytest.param(["web1.example"], {"sub": "web1.example", "aud": "step-ca"}, id="no URL: the CA's to judge"),
    ],
)
def test_a_token_that_can_work_is_sent(names: list[str], claims: dict[str, Any]) -> None:
    """What the CA takes, and the broker lets in, isn't refused here."""
    check_token(parse_token(token(**claims)), names=names, root_sha256=[ROOT], now=NOW)


@pytest.mark.parametrize(
    ("header", "claims", "kind"),
    [
        pytest.param({}, {}, "JWK", id="JWK"),
        pytest.param({"x5c": ["MIIB"]}, {}, "X5C", id="a certificate's"),
        pytest.param({"nebula": "x"}, {}, "Nebula", id="Nebula"),
        pytest.param({}, {"kubernetes.io": {}}, "K8sSA", id="a service account's"),
        pytest.param({}, {"iss": "https://accounts.example"}, "OIDC", id="a person's"),
        pytest.param({}, {"iss": "admin@example.net"}, "JWK", id="JWK by its name"),
    ],
)
def test_the_provisioners_kind_is_told(header: dict[str, Any], claims: dict[str, Any], kind: str) -> None:
    """Identities of other kinds than JWK are let in only where the broker's configuration says so: a warning."""
    jwt = token(sub="web1.example", **claims).split(".")
    jwt[0] = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    parsed = parse_token(".".join(jwt))
    assert parsed.provisioner_kind == kind
    assert (f"of the kind {kind}" in parsed.warning) == (kind != "JWK")
    assert ("server.mtls.provisioners" in parsed.warning) == (kind != "JWK")


def test_the_remedy_has_the_right_line() -> None:
    """Who made the token can copy it."""
    with pytest.raises(EnrollmentError) as refused:
        check_token(
            parse_token(token(sub="web1", sans=["web1.example"])), names=["web1.example"], root_sha256=[ROOT], now=NOW
        )
    assert "`step ca token web1.example`" in refused.value.remedy


def test_a_minute_of_clock_difference_is_forgiven() -> None:
    """step-ca allows a minute on either side, so this host doesn't refuse earlier."""
    parsed = parse_token(
        token(sub="web1.example", sha=ROOT, exp=(NOW - timedelta(seconds=50)).timestamp(), nbf=NOW.timestamp() + 50)
    )
    check_token(parsed, names=["web1.example"], root_sha256=["00" * 32, ROOT], now=NOW)


def test_the_token_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    """`step ca token > file` ends with a newline, which isn't the token's."""
    path = _token_file(tmp_path, "abc.def.ghi\n")
    assert read_token_file(path, problem) == "abc.def.ghi"
    assert remove_token_file(path) == ""
    assert not path.exists()
    assert remove_token_file(path) == ""


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o620, 0o602])
def test_a_token_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    """Any access of group or others is an error that names file, key and remedy, and quotes nothing."""
    path = _token_file(tmp_path, "abc.def.ghi")
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=r"identity\.bootstrap_token") as refused:
        read_token_file(path, problem)
    assert f"chmod 600 {path}" in str(refused.value)
    assert "abc" not in str(refused.value).replace(str(path), "")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link is refused even where it leads to a good token."""
    link = tmp_path / "link"
    link.symlink_to(_token_file(tmp_path, "abc.def.ghi"))
    with pytest.raises(ConfigurationError, match="symbolic link"):
        read_token_file(link, problem)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_somebody_elses_token_is_refused(tmp_path: Path) -> None:
    """The file must be the agent's own, also where root could read it."""
    path = _token_file(tmp_path, "abc.def.ghi")
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigurationError, match="another user"):
        read_token_file(path, problem)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \n\t\n", id="blank"),
        pytest.param(b"abc.def.ghi jkl", id="two words"),
        pytest.param(b"abc.def.ghi\nabc.def.ghi\n", id="two tokens"),
        pytest.param(b"abc\x00", id="NUL"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
        pytest.param(b"a" * 20_000, id="too large"),
    ],
)
def test_a_file_with_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    """One token and nothing else."""
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"^agent\.yml:1: identity\.bootstrap_token: "):
        read_token_file(path, problem)


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    """A pipe without a writer must not block the agent."""
    path = tmp_path / "token"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    with pytest.raises(ConfigurationError):
        read_token_file(path, problem)


def _token_file(folder: Path, text: str) -> Path:
    path = folder / "token"
    path.write_text(text)
    path.chmod(0o600)
    return path
