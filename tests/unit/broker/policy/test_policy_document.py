"""policy.yml: the public format loads unchanged; what no CA could issue, or nobody could mean, is told at once."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.commands import policy_notices, policy_rows
from certplane.broker.model import Grant, IdentityKind
from certplane.broker.policy.document import PolicyDocument, load_policy, read_policy
from certplane.broker.standing_rules import Approval, IncidentRollout, IncidentRules, RingRule, RolloutRules
from certplane.config.document import Document
from certplane.errors import ConfigurationError

EXAMPLE = Path(__file__).parents[2] / "config" / "examples" / "policy.yml"


def _read(text: str) -> PolicyDocument:
    return read_policy(Document.parse(text.encode(), "policy.yml"))


def _problems(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        _read(text)
    return [str(problem).removeprefix("policy.yml:") for problem in caught.value.problems]


def test_every_key_of_the_format() -> None:
    """A file with every key loads, and each value arrives where it belongs."""
    policy = load_policy(EXAMPLE)
    assert policy.hash == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    web = policy.find_profile("web-wildcard")
    assert web is not None
    assert (web.kind, web.dns_names) == ("wildcard", ("*.example.com", "*.example.org"))
    assert (web.challenge, web.credentials, web.acme_profile) == ("dns-01", "cloudflare/whisper-cl", "tlsserver")
    assert (web.renew_before, web.key_types) == (timedelta(hours=720), ("ec-p256", "rsa-3072"))
    mail = policy.find_profile("mail")
    assert mail is not None
    assert (mail.kind, mail.dns_names) == ("multi_san", ("imap.example.com", "mail.example.com"))
    assert (mail.credentials, mail.acme_profile, mail.renew_before) == ("", "", None)
    assert mail.key_types == ("ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096")
    apex = policy.find_profile("apex")
    assert apex is not None
    assert (apex.kind, apex.dns_names) == ("mixed", ("*.example.net", "example.net"))
    assert policy.profiles == (web, mail, apex)
    labels = {"dc": "fra1", "ring": "canary"}
    assert policy.grants == (
        Grant("web1.example", IdentityKind.HOST, "web1", ("web-wildcard", "apex"), labels=labels),
        Grant("spiffe://example/host/mail1", IdentityKind.HOST, "mail1", ("mail",)),
        Grant("spiffe://example/service/deployer", IdentityKind.SERVICE, "deployer", ("apex",), ("renewal_watcher",)),
        Grant("alice.ops.example", IdentityKind.OPERATOR, "alice", (), ("operator", "viewer")),
    )
    assert policy.find_grant("web1.example") == policy.grants[0]
    assert policy.find_grant("Web1.example") is None
    assert policy.find_profile("nothing") is None
    assert policy.rollouts == RolloutRules(
        Approval.REQUIRED,
        100,
        (
            RingRule("canary", {"ring": "canary"}, bake=timedelta(hours=1)),
            RingRule("tenth", {}, percent=10),
            RingRule("rest", {}, rest=True),
        ),
    )
    assert policy.incidents == IncidentRules(IncidentRollout.RINGS, 20)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("# rendered from {{ hosts }}\n", id="a-comment"),
        pytest.param("version: 1\nprofiles:\nhosts: {}\n", id="no-hosts"),
        pytest.param("hosts:\nservices:\noperators:\n", id="sections-without-entries"),
        pytest.param("profiles: {p: {type: multi_san, dns_names: [a.example]}}\nhosts: {}\n", id="profiles-for-nobody"),
    ],
)
def test_a_policy_for_nobody_is_refused(text: str, tmp_path: Path) -> None:
    """A file by which nobody has anything is a template's mistake, and not a policy to run a broker by."""
    path = tmp_path / "policy.yml"
    path.write_text(text)
    with pytest.raises(
        ConfigurationError, match=r"gives nothing to anybody: it has no hosts.*check what wrote"
    ) as caught:
        load_policy(path)
    assert caught.value.problems[0].file == str(path)


@pytest.mark.parametrize("section", ["hosts", "services", "operators"])
def test_one_identity_is_a_policy(section: str, tmp_path: Path) -> None:
    """Operators alone are a beginning; what is missing besides is a notice."""
    path = tmp_path / "policy.yml"
    path.write_text(f"{section}: {{a: {{identity: a.example}}}}\n")
    assert [grant.name for grant in load_policy(path).grants] == ["a.example"]
    notices = policy_notices(policy_rows(path))
    assert any("operators only" in notice or "gives no host or service a profile" in notice for notice in notices)


@pytest.mark.parametrize("name", ["db.corp.internal", "*.lan.local", "nas.home.arpa"])
@pytest.mark.parametrize(
    ("acme", "known", "said"),
    [
        pytest.param("{}", None, "notice", id="no-broker.yml"),
        pytest.param("{private_ca: true}", None, "", id="no-broker.yml-and-the-profile-says-so"),
        pytest.param("{}", (), "error", id="a-public-CA"),
        pytest.param("{}", ("",), "", id="a-private-CA"),
        pytest.param("{issuers: [two]}", ("",), "error", id="a-further-one-that-is-public"),
        pytest.param("{issuers: [two]}", ("two",), "", id="a-further-one-that-is-private"),
    ],
)
def test_private_names_where_the_cas_are_not_known(
    name: str, acme: str, known: tuple[str, ...] | None, said: str, tmp_path: Path
) -> None:
    """Without a broker.yml nobody knows whether the CAs are private: then it is a notice, and no error."""
    kind = "wildcard" if name.startswith("*") else "multi_san"
    path = tmp_path / "policy.yml"
    path.write_text(
        f"profiles: {{p: {{type: {kind}, dns_names: ['{name}'], acme: {acme}}}}}\n"
        "hosts: {a: {identity: a.example, profiles: [p]}}\n"
    )
    if said == "error":
        with pytest.raises(ConfigurationError, match="are not public"):
            policy_rows(path, known)
        return
    notices = policy_rows(path, known)["notices"]
    assert ["are not public" in notice and "profiles.p.dns_names[0]" in notice for notice in notices] == (
        [True] if said else []
    )


def test_names_and_profiles_are_sets() -> None:
    """What is written twice, in another case or with a final dot, is there once; the version may be left out."""
    policy = _read(
        "profiles:\n  p: {type: multi_san, dns_names: [b.example, A.example, a.example., a.example]}\n"
        "hosts:\n  h: {identity: H.example., profiles: [p, p]}\n"
    )
    (profile,) = policy.profiles
    assert profile.dns_names == ("a.example", "b.example")
    assert policy.grants == (Grant("h.example", IdentityKind.HOST, "h", ("p",)),)
    written_once = _read("profiles:\n  p: {type: multi_san, dns_names: [a.example, b.example]}\n")
    assert written_once.profiles[0].hash == profile.hash
    with pytest.raises(ConfigurationError, match=r"b\.identity: is h\.example, the identity of hosts\.a"):
        _read("hosts:\n  a: {identity: h.example}\n  b: {identity: h.example.}\n")
    with pytest.raises(ConfigurationError, match=r"empty label|ends with a dot"):
        _read("hosts:\n  a: {identity: h.example..}\n")


def test_a_shared_section_is_written_once() -> None:
    """An `acme` section for many profiles stands in one of them, as an anchor."""
    policy = _read(
        "profiles:\n"
        "  a: {type: multi_san, dns_names: [a.example], acme: &acme {credentials: dns/token, issuers: [one]}}\n"
        "  b: {type: multi_san, dns_names: [b.example], acme: *acme}\n"
        "  c: {type: multi_san, dns_names: [c.example], acme: {<<: *acme, profile: shortlived}}\n"
    )
    assert [(each.credentials, each.issuers, each.acme_profile) for each in policy.profiles] == [
        ("dns/token", ("one",), ""),
        ("dns/token", ("one",), ""),
        ("dns/token", ("one",), "shortlived"),
    ]


PRIVATE = (
    "remove it; or, if the profile's issuers are private ACME CAs, set their ca_bundle in broker.yml or "
    "acme.private_ca: true here"
)
BASE = "version: 1\nprofiles:\n  p:\n"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        pytest.param("version: 2", ["1: version: is 2; this broker reads version 1"], id="version"),
        pytest.param("version: '1'", ["1: version: must be a whole number, without quotes"], id="quoted-version"),
        pytest.param(
            BASE + "    type: wildcard\n    dns_names: ['*.a.example', b.example]\n",
            ["5: profiles.p.dns_names: of a wildcard profile holds b.example; use type: mixed, or only wildcard names"],
            id="wildcard-profile-with-a-plain-name",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    dns_names: ['*.a.example', b.example]\n",
            ["5: profiles.p.dns_names: of a multi_san profile holds *.a.example; use type: wildcard or mixed"],
            id="multi-san-profile-with-a-wildcard",
        ),
        pytest.param(
            BASE + "    type: mixed\n    dns_names: [b.example]\n",
            ["5: profiles.p.dns_names: of a mixed profile holds no wildcard name; add one, or use type: multi_san"],
            id="mixed-profile-without-a-wildcard",
        ),
        pytest.param(
            BASE + "    type: mixed\n    dns_names: ['*.b.example']\n",
            ["5: profiles.p.dns_names: of a mixed profile holds no other name; add one, or use type: wildcard"],
            id="mixed-profile-of-wildcards",
        ),
        pytest.param(
            BASE + "    type: mulit_san\n    dns_names: [b.example]\n",
            ["4: profiles.p.type: is 'mulit_san', must be one of wildcard, multi_san, mixed"],
            id="unknown-type",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    dns_names: []\n", ["5: profiles.p.dns_names: must not be empty"], id="no-names"
        ),
        pytest.param(
            BASE + "    type: mixed\n    dns_names:\n    - '*.a.example'\n    - www.a.example\n    - a.example\n",
            ["7: profiles.p.dns_names[1]: is www.a.example, which *.a.example covers; CAs refuse both together; remove it"],
            id="covered-by-a-wildcard",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    dns_names: [b\u00fccher.example]\n",
            ["5: profiles.p.dns_names[0]: 'b\u00fccher.example' has characters beyond ASCII; use the A-label (xn--...)"], id="row25-unicode",
        ),
        pytest.param(
            BASE + "    type: wildcard\n    dns_names: ['*.com']\n",
            ["5: profiles.p.dns_names[0]: is *.com: it stands for a whole top-level domain; remove it"], id="row28-tld-wildcard",
        ),
        pytest.param(
            BASE + "    type: wildcard\n    dns_names: ['*']\n",
            ["5: profiles.p.dns_names[0]: is *: it stands for a whole top-level domain; remove it"], id="row28-bare-wildcard",
        ),
        pytest.param(
            BASE + "    type: wildcard\n    dns_names: ['a.*.example']\n",
            ["5: profiles.p.dns_names[0]: 'a.*.example' has a wildcard that is not the whole leftmost label"], id="row29-inner-wildcard",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    dns_names: [printer.local]\n",
            [f"5: profiles.p.dns_names[0]: is printer.local: names under .local are not public; {PRIVATE}"], id="row31-local",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    dns_names: [1.2.0.192.in-addr.arpa]\n",
            ["5: profiles.p.dns_names[0]: is 1.2.0.192.in-addr.arpa: names under .arpa are not public; remove it"], id="row31-arpa",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    dns_names: [com]\n",
            ["5: profiles.p.dns_names[0]: is com: it has one label only; remove it"], id="row31-tld",
        ),
        pytest.param(
            BASE + f"    type: multi_san\n    dns_names: [{', '.join(f'w{n}.example' for n in range(101))}]\n",
            ["5: profiles.p.dns_names: holds 101 names; the CA allows 100; split the profile"], id="row21-101-names",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    acme: {profile: tlsserver}\n"
            f"    dns_names: [{', '.join(f'w{n}.example' for n in range(26))}]\n",
            ["6: profiles.p.dns_names: holds 26 names; the CA allows 25; split the profile"], id="row21-26-names-of-tlsserver",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    dns_names: [a.example]\n    acme: {challenge: http-01}\n",
            ["6: profiles.p.acme.challenge: is 'http-01', must be one of dns-01"], id="challenge",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    dns_names: [a.example]\n    key_types: []\n",
            ["6: profiles.p.key_types: must not be empty; leave it out for ec-p256, ec-p384, rsa-2048, rsa-3072, rsa-4096"],
            id="no-key-types",
        ),
        pytest.param(
            BASE + "    type: multi_san\n    dns_names: [a.example]\n    renew_before: 0s\n",
            ["6: profiles.p.renew_before: must be more than zero"], id="renew-before",
        ),
        pytest.param(
            "version: 1\nprofiles:\n  'a b': {type: multi_san, dns_names: [a.example]}\n",
            ["3: profiles.a b: has a name with other characters than A-Z, a-z, 0-9, '.', '_', '-', or over 64 of them"],
            id="profile-name",
        ),
        pytest.param(
            "version: 1\nhosts:\n  a: {identity: a.example, profiles: [nothing]}\n",
            ["3: hosts.a.profiles[0]: is 'nothing', which is no profile; define it under `profiles`"], id="unknown-profile",
        ),
        pytest.param(
            "version: 1\nhosts:\n  a: {identity: a.example}\nservices:\n  b: {identity: A.example}\noperators:\n  c: {identity: a.example}\n",
            [
                "5: services.b.identity: is a.example, the identity of hosts.a too; give each entry its own",
                "7: operators.c.identity: is a.example, the identity of hosts.a too; give each entry its own",
            ],
            id="identity-twice",
        ),
        pytest.param(
            "version: 1\nhosts:\n  a: {identity: '*.example'}\n",
            ["3: hosts.a.identity: is a wildcard; an identity is one DNS name or URI"], id="wildcard-identity",
        ),
        pytest.param(
            "version: 1\nhosts:\n  a: {profiles: []}\n", ["3: hosts.a.identity: is required; add `identity: ...`"], id="no-identity"
        ),
        pytest.param(
            "version: 1\nhosts:\n  a: {identity: a.example, roles: [viewer]}\n",
            ["3: hosts.a.roles: is not a known key; did you mean `profiles`?"], id="host-with-roles",
        ),
        pytest.param(
            "version: 1\noperators:\n  a: {identity: a.example, roles: [Root]}\n",
            ["3: operators.a.roles[0]: must be a word of a-z, '_' and '-'"], id="role",
        ),
    ],
)  # fmt: skip
def test_refuses(text: str, problems: list[str]) -> None:
    """Exactly these lines, each with its place and remedy."""
    assert _problems(text) == problems


def test_all_problems_at_once() -> None:
    """Mistakes within entries and between them are told together, in the file's order."""
    text = """\
version: 1
profiles:
  bad: {type: wildcard, dns_names: [a.example]}
  twice: {type: multi_san, dns_names: [a.example, a.example], renew: 1h}
hosts:
  a: {identity: a.example, profiles: [bad, gone]}
  b: {identity: a.example, profiles: [bad, bad]}
operators:
  c: {identity: c.example, roles: admin}
"""
    lines = _problems(text)
    assert [line.split(": ")[:2] for line in lines] == [
        ["3", "profiles.bad.dns_names"],
        ["4", "profiles.twice.renew"],
        ["6", "hosts.a.profiles[1]"],
        ["7", "hosts.b.identity"],
        ["9", "operators.c.roles"],
    ]


@pytest.mark.parametrize("name", ["www.certplane.test", "host.example", "a.b.certplane.example"])
def test_names_for_trying_a_policy(name: str) -> None:
    """Reserved names that a private ACME server issues for are allowed."""
    profile = _read(BASE + f"    type: multi_san\n    dns_names: [{name}]\n").find_profile("p")
    assert profile is not None
    assert profile.dns_names == (name,)


PROFILE = "    type: mixed\n    dns_names: ['*.a.example', a.example]\n    acme: {credentials: c}\n    key_types: [ec-p256, rsa-2048]\n"


def _hash(text: str) -> str:
    profile = _read(text).find_profile("p")
    assert profile is not None
    return profile.hash


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        pytest.param("['*.a.example', a.example]", "[A.example, '*.a.example']", True, id="order-and-case-of-names"),
        pytest.param("[ec-p256, rsa-2048]", "[rsa-2048, ec-p256]", True, id="order-of-key-types"),
        pytest.param("    type", "    renew_before: 1h\n    type", True, id="renew-before"),
        pytest.param("{credentials: c}", "{credentials: c, challenge: dns-01}", True, id="default-written-out"),
        pytest.param("a.example]", "b.example]", False, id="names"),
        pytest.param("[ec-p256, rsa-2048]", "[ec-p256]", False, id="key-types"),
        pytest.param("{credentials: c}", "{credentials: d}", False, id="credentials"),
        pytest.param("{credentials: c}", "{credentials: c, profile: shortlived}", False, id="acme-profile"),
    ],
)
def test_profile_hash(old: str, new: str, same: bool) -> None:
    """The hash changes with what decides the certificate, and with nothing else."""
    assert old in PROFILE
    assert (_hash(BASE + PROFILE.replace(old, new)) == _hash(BASE + PROFILE)) is same


def test_profile_hash_is_stable() -> None:
    """Stored hashes stay right in the next release."""
    assert _hash(BASE + PROFILE) == "60b4fa69ae28076a3b3ea96547722ee721e4c8cd285342781527e93f4b564837"


def test_a_large_policy_loads() -> None:
    """Ten thousand hosts are one file."""
    hosts = "".join(f"  h{n}: {{identity: h{n}.example, profiles: [p]}}\n" for n in range(2000))
    policy = _read(BASE + PROFILE + "hosts:\n" + hosts)
    assert len(policy.grants) == 2000


WORDS = st.sampled_from(
    [
        "1",
        "a.example",
        "'*.a.example'",
        "p",
        "[p]",
        "{}",
        "[]",
        "~",
        "wildcard",
        "[a.example, 1]",
        "{identity: a.example}",
    ]
)


@given(
    st.dictionaries(
        st.sampled_from(["profiles", "hosts", "services", "operators", "version"]),
        st.dictionaries(WORDS, WORDS) | WORDS,
    )
)
def test_never_raises_anything_else(sections: dict[str, object]) -> None:
    """Any shape of file ends in a policy or a ConfigurationError."""
    text = "".join(
        f"{name}: {content if isinstance(content, str) else '{' + ', '.join(f'? {k} : {v}' for k, v in content.items()) + '}'}\n"  # type: ignore[attr-defined] # a dict otherwise
        for name, content in sections.items()
    )
    try:
        assert isinstance(_read(text), PolicyDocument)
    except ConfigurationError as error:
        assert error.problems  # noqa: PT017 - both ends are right; an error without a problem is not


PRIVATE_NAMES = ["printer.local", "nas.home.arpa", "app.office.internal", "*.corp.internal"]


@pytest.mark.parametrize(
    ("acme", "private", "loads"),
    [
        pytest.param("{}", [""], True, id="default-issuer-private"),
        pytest.param("{}", ["second"], False, id="another-issuer-private"),
        pytest.param("{issuers: [second]}", ["second"], True, id="named-issuer-private"),
        pytest.param("{issuers: [second, default]}", ["second"], False, id="one-of-two-private"),
        pytest.param("{private_ca: true}", [], True, id="said"),
        pytest.param("{private_ca: Yes}", [], True, id="said-otherwise"),
        pytest.param("{private_ca: false}", [], False, id="said-not"),
    ],
)
def test_names_of_private_networks(acme: str, private: list[str], loads: bool) -> None:
    """They pass where each issuer of the profile is a private CA, by broker.yml or by the profile's word."""
    names = ", ".join(f'"{name}"' for name in PRIVATE_NAMES)
    text = f"version: 1\nprofiles:\n  p:\n    type: mixed\n    dns_names: [{names}]\n    acme: {acme}\n"
    document = Document.parse(text.encode(), "policy.yml")
    if loads:
        policy = read_policy(document, private)
        assert [set(profile.dns_names) for profile in policy.profiles] == [set(PRIVATE_NAMES)]
        return
    with pytest.raises(ConfigurationError) as caught:
        read_policy(document, private)
    assert [problem.key for problem in caught.value.problems] == [f"profiles.p.dns_names[{n}]" for n in range(4)]
    assert all("acme.private_ca: true" in problem.remedy for problem in caught.value.problems)


@pytest.mark.parametrize(
    "name", ["a.localhost", "a.invalid", "a.onion", "a.alt", "1.0.0.10.in-addr.arpa", "*.internal", "local"]
)
def test_names_that_no_dns_has(name: str) -> None:
    """A private CA is no reason for names that no zone can hold, nor for a whole top-level domain."""
    text = f'version: 1\nprofiles:\n  p:\n    type: {"wildcard" if "*" in name else "multi_san"}\n    dns_names: ["{name}"]\n'
    with pytest.raises(ConfigurationError):
        read_policy(Document.parse(text.encode(), "policy.yml"), [""])


def test_who_is_called_so() -> None:
    """A name is one identity's; a label may be of a host, a service and an operator at once."""
    kinds = {"h.example": IdentityKind.HOST, "s.example": IdentityKind.SERVICE, "o.example": IdentityKind.OPERATOR}
    grants = {name: Grant(name, kind, "api") for name, kind in kinds.items()}
    policy = PolicyDocument("policy.yml", "hash", {}, grants)
    assert policy.identities_of("api") == {*kinds}
    assert policy.identities_of("s.example") == {"s.example"}
    assert policy.identities_of("nobody") == frozenset()


RINGS = "rollouts:\n  rings:\n    - {name: canary, labels: {ring: canary}}\n    - {name: rest, rest: true}\n"


def test_without_rules() -> None:
    """Nothing begins by itself and nobody is asked."""
    policy = _read("")
    assert (policy.rollouts, policy.incidents) == (RolloutRules(), IncidentRules(IncidentRollout.NONE, 10))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("rollouts: {approval: yes}\n", "must be one of none, required", id="approval"),
        pytest.param("rollouts: {approval_above_hosts: 3}\n", "is of no use without approval", id="a-number-alone"),
        pytest.param("rollouts: {approval: required, approval_above_hosts: -1}\n", "must be 0 or more", id="below-0"),
        pytest.param("rollouts: {rings: [{name: a}]}\n", "is of a ring that picks no host", id="no-way"),
        pytest.param(
            "rollouts: {rings: [{name: a, percent: 10, rest: true}]}\n",
            "picks its hosts in several ways",
            id="two-ways",
        ),
        pytest.param("rollouts: {rings: [{name: a, percent: 0}, {name: b, rest: true}]}\n", "is 0, must be", id="0%"),
        pytest.param("rollouts: {rings: [{name: a, percent: 101}, {name: b, rest: true}]}\n", "is 101", id="101%"),
        pytest.param("rollouts: {rings: [{name: a b, rest: true}]}\n", "must be 1 to 64 of", id="a-name"),
        pytest.param(RINGS + "    - {name: late, percent: 5}\n", "is of a ring after the rest", id="after-the-rest"),
        pytest.param(RINGS.replace("rest,", "canary,"), "is canary again", id="a-name-again"),
        pytest.param(
            "rollouts: {rings: [{name: a, percent: 50}]}\n", "hosts may be left that no ring has", id="no-rest"
        ),
        pytest.param("incidents: {rollout: rings}\n", "is rings, and there are none", id="no-rings"),
        pytest.param("incidents: {at_least: 0}\n", "must be more than zero", id="at-least-0"),
        pytest.param("incidents: {within: 1h}\n", "is not a known key", id="an-unknown-key"),
        pytest.param(
            "rollouts: {rings: ["
            + ", ".join(f"{{name: r{n}, percent: 1}}" for n in range(20))
            + ", {name: z, rest: true}]}\n",
            "has 21 rings, more than 20",
            id="too-many",
        ),
    ],
)
def test_refuses_rules(text: str, expected: str) -> None:
    """Rings that leave hosts out, overlap by rule or pick nobody, and what would have no effect."""
    assert any(expected in problem for problem in _problems(text)), _problems(text)
