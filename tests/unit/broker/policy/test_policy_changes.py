"""`policy diff`: what one policy gives that another doesn't, and which certificates are issued again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from certplane.broker.cli import main
from certplane.broker.policy.changes import Change, Count, PolicyChange, PolicyChanges, Subject, compare
from certplane.broker.policy.document import read_policy
from certplane.config.document import Document

OLD = """\
profiles:
  web: {type: multi_san, dns_names: [a.example, b.example]}
  mail: {type: multi_san, dns_names: [mail.example]}
hosts:
  web1: {identity: web1.example, profiles: [web]}
  web2: {identity: web2.example, profiles: [web, mail]}
services:
  deploy: {identity: deploy.example, profiles: [mail]}
operators:
  alice: {identity: alice.example, roles: [viewer]}
"""


def _compare(old: str, new: str) -> PolicyChanges:
    before, after = (read_policy(Document.parse(text.encode(), "policy.yml")) for text in (old, new))
    return compare(before, after)


def test_nothing_changes() -> None:
    """Another order, quotes: another hash, and no change."""
    changes = _compare(OLD, OLD.replace("[a.example, b.example]", "['B.example', a.example]"))
    assert changes.changes == ()
    assert changes.before_hash != changes.after_hash
    assert all(count.gained == count.lost == 0 for count in changes.counts)


LOST, GAINED, CHANGED, AGAIN = Change.LOST, Change.GAINED, Change.CHANGED, Change.ISSUED_AGAIN
HOST, GRANT, NAME, PROFILE = Subject.HOST, Subject.GRANT, Subject.NAME, Subject.PROFILE


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(
            "  web1: {identity: web1.example, profiles: [web]}\n", "",
            [PolicyChange(LOST, HOST, "web1.example"), PolicyChange(LOST, GRANT, "web1.example", "web")],
            id="host lost",
        ),
        pytest.param(
            "web1.example", "new.example",
            [
                PolicyChange(LOST, HOST, "web1.example"), PolicyChange(LOST, GRANT, "web1.example", "web"),
                PolicyChange(GAINED, HOST, "new.example"), PolicyChange(GAINED, GRANT, "new.example", "web"),
            ],
            id="another identity under the label",
        ),
        pytest.param(
            "profiles: [web]}", "profiles: [web], labels: {ring: canary, dc: fra1}}",
            [PolicyChange(CHANGED, HOST, "web1.example", detail="labels: - -> dc=fra1, ring=canary")],
            id="labels",
        ),
        pytest.param(
            "operators:\n", "rollouts: {approval: required, rings: [{name: a, percent: 5, bake: 1h}, {name: b, rest: true}]}\noperators:\n",
            [
                PolicyChange(CHANGED, Subject.RULE, name="rollouts.approval", detail="none -> required"),
                PolicyChange(CHANGED, Subject.RULE, name="rollouts.rings", detail="- -> a (5%, 1h 0m), b (rest)"),
            ],
            id="rules",
        ),
        pytest.param("web1: {", "www: {", [], id="another label"),
        pytest.param(
            "[web, mail]", "[web]", [PolicyChange(LOST, GRANT, "web2.example", "mail")], id="grant lost"
        ),
        pytest.param(
            "roles: [viewer]", "roles: [operator]",
            [
                PolicyChange(LOST, Subject.ROLE, "alice.example", name="viewer"),
                PolicyChange(GAINED, Subject.ROLE, "alice.example", name="operator"),
            ],
            id="role",
        ),
        pytest.param(
            "  alice: {identity: alice.example, roles: [viewer]}\n", "  bob: {identity: bob.example}\n",
            [
                PolicyChange(LOST, Subject.OPERATOR, "alice.example"),
                PolicyChange(LOST, Subject.ROLE, "alice.example", name="viewer"),
                PolicyChange(GAINED, Subject.OPERATOR, "bob.example"),
            ],
            id="operator",
        ),
        pytest.param(
            "[a.example, b.example]", "[a.example, c.example]",
            [
                PolicyChange(LOST, NAME, profile="web", name="b.example"),
                PolicyChange(GAINED, NAME, profile="web", name="c.example"),
                *(
                    PolicyChange(
                        AGAIN, Subject.CERTIFICATE, host, "web",
                        detail="the profile's names change: what the caller asks for (agent.yml) has to change too",
                    )
                    for host in ("web1.example", "web2.example")
                ),
            ],
            id="names",
        ),
        pytest.param(
            "[mail.example]}", "[mail.example], renew_before: 240h}",
            [PolicyChange(CHANGED, PROFILE, profile="mail", detail="renew_before: - -> 10d 0h")],
            id="renewal alone issues nothing again",
        ),
        pytest.param(
            "[mail.example]}", "[mail.example], key_types: [ec-p256], acme: {issuers: [a, b]}}",
            [
                PolicyChange(
                    CHANGED, PROFILE, profile="mail",
                    detail="key_types: ec-p256, ec-p384, rsa-2048, rsa-3072, rsa-4096 -> ec-p256; acme.issuers: - -> a, b",
                ),
                *(
                    PolicyChange(AGAIN, Subject.CERTIFICATE, who, "mail", detail="the profile's key_types, acme.issuers changes")
                    for who in ("deploy.example", "web2.example")
                ),
            ],
            id="settings of a profile",
        ),
    ],
)  # fmt: skip
def test_changes(old: str, new: str, expected: list[PolicyChange]) -> None:
    """Each kind of change is named once: losses, gains, profiles, certificates that are issued again."""
    assert list(_compare(OLD, OLD.replace(old, new)).changes) == expected


def test_a_profile_that_is_gone() -> None:
    """Its names and grants go with it."""
    changes = _compare(
        OLD,
        OLD.replace("  mail: {type: multi_san, dns_names: [mail.example]}\n", "")
        .replace(", mail]", "]")
        .replace("[mail]", "[web]"),
    )
    assert changes.count(PROFILE) == Count(PROFILE, 2, 1, 0, 1)
    assert changes.count(GRANT) == Count(GRANT, 4, 3, 1, 2)
    assert changes.count(NAME) == Count(NAME, 3, 2, 0, 1)
    assert changes.issued_again == 0


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a broker, one object for tools, tables for people; a file that doesn't load is told with its line."""
    old, new = tmp_path / "old.yml", tmp_path / "new.yml"
    old.write_text(OLD)
    new.write_text(OLD.replace("[web, mail]", "[web]"))
    assert main(["policy", "diff", str(old), str(new), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changes"] == [{"change": "lost", "subject": "grant", "identity": "web2.example", "profile": "mail"}]
    assert {"subject": "grant", "before": 4, "after": 3, "gained": 0, "lost": 1} in found["counts"]
    new.write_text("hosts: {a: {identity: a.example, profiles: [none]}}\nprofile: {}\n")
    assert main(["policy", "diff", str(old), str(new)]) == 2
    said = capsys.readouterr().err
    assert f"{new}:1: hosts.a.profiles[0]: is 'none', which is no profile" in said
    assert f"{new}:2: profile: is not a known key" in said


OWN = """\
profiles:
  web: {type: multi_san, dns_names: ["{label}.{labels.dc}.example"]}
hosts:
  web1: {identity: web1.example, profiles: [web], labels: {dc: fra1}}
  web2: {identity: web2.example, profiles: [web], labels: {dc: fra1}}
"""
NAMES = "the profile's names change: what the caller asks for (agent.yml) has to change too"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(
            "labels: {dc: fra1}}\n  web2",
            "labels: {dc: ams1}}\n  web2",
            [
                PolicyChange(LOST, NAME, profile="web", name="web1.fra1.example"),
                PolicyChange(GAINED, NAME, profile="web", name="web1.ams1.example"),
                PolicyChange(CHANGED, HOST, "web1.example", detail="labels: dc=fra1 -> dc=ams1"),
                PolicyChange(AGAIN, Subject.CERTIFICATE, "web1.example", "web", detail=NAMES),
            ],
            id="another label of one host",
        ),
        pytest.param(
            "web1: {",
            "www: {",
            [
                PolicyChange(LOST, NAME, profile="web", name="web1.fra1.example"),
                PolicyChange(GAINED, NAME, profile="web", name="www.fra1.example"),
                PolicyChange(AGAIN, Subject.CERTIFICATE, "web1.example", "web", detail=NAMES),
            ],
            id="another name of the entry",
        ),
        pytest.param(
            "  web2: {identity: web2.example, profiles: [web], labels: {dc: fra1}}\n",
            "",
            [
                PolicyChange(LOST, HOST, "web2.example"),
                PolicyChange(LOST, GRANT, "web2.example", "web"),
                PolicyChange(LOST, NAME, profile="web", name="web2.fra1.example"),
            ],
            id="a host",
        ),
        pytest.param(
            "dns_names: [",
            "key_types: [ec-p256], dns_names: [",
            [
                PolicyChange(CHANGED, PROFILE, profile="web", detail="key_types: KEYS -> ec-p256"),
                PolicyChange(
                    AGAIN, Subject.CERTIFICATE, "web1.example", "web", detail="the profile's key_types changes"
                ),
                PolicyChange(
                    AGAIN, Subject.CERTIFICATE, "web2.example", "web", detail="the profile's key_types changes"
                ),
            ],
            id="what all have",
        ),
        pytest.param('"{label}.{labels.dc}.example"', '"{label}.fra1.example"', [], id="the same names otherwise made"),
    ],
)
def test_names_of_labels(old: str, new: str, expected: list[PolicyChange]) -> None:
    """Each identity's own names are what is lost, gained and issued again."""
    assert old in OWN
    changes = _compare(OWN, OWN.replace(old, new)).changes
    keys = "ec-p256, ec-p384, rsa-2048, rsa-3072, rsa-4096"
    assert [*changes] == [replace(each, detail=each.detail.replace("KEYS", keys)) for each in expected]
