"""What is remembered of the CAs above a leaf never changes a verdict, a reason, or what is said of the path."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import VerificationError
from hypothesis import given, note
from hypothesis import strategies as st

from certplane.errors import RefusalError
from certplane.pki import issuer_path
from certplane.pki.identity import IdentityVerifier, verify_identity
from certplane.pki.issuer_path import Issuers, KnownIssuers, leading_cas, verify_issuers
from certplane.pki.trust_bundle import TrustBundle
from tests.support.authority import NOW, certificate_pem

HOUR = timedelta(hours=1)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
USAGES: dict[str, list[x509.ObjectIdentifier]] = {"none": [], "client": [CLIENT], "server": [SERVER]}
CONSTRAINTS = {
    "permits": x509.NameConstraints([x509.DNSName("example")], None),
    "excludes": x509.NameConstraints(None, [x509.DNSName("bad.example")]),
}


@dataclass(frozen=True)
class Ca:
    """A CA's certificate as it is to be; `issuer` None: its own. Its validity is in hours from now."""

    name: str
    key: int
    issuer: Ca | None = None
    begins: int = -10
    ends: int = 10
    path_length: int | None = None
    constraint: str = ""
    usage: str = "none"
    signs: bool = True


@dataclass(frozen=True)
class Leaf:
    """A leaf as it is to be; `forged`: signed by another key than its issuer's."""

    issuer: Ca
    san: str = "web1.example"
    begins: int = -10
    ends: int = 10
    usage: str = "client"
    forged: bool = False
    names_key: bool = True


@cache
def _key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _builder(subject: str, issuer: Ca, key: int, begins: int, ends: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer.name)]))
        .public_key(_key(key).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begins * HOUR)
        .not_valid_after(NOW + max(ends, begins + 1) * HOUR)
    )


@cache
def _ca(ca: Ca) -> x509.Certificate:
    issuer = ca.issuer or ca
    usages = {"digital_signature", "key_cert_sign"} if ca.signs else {"digital_signature"}
    fields = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    builder = (
        _builder(ca.name, issuer, ca.key, ca.begins, ca.ends)
        .add_extension(x509.BasicConstraints(True, ca.path_length), critical=True)
        .add_extension(x509.KeyUsage(**{field: field in usages for field in fields}), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(_key(ca.key).public_key()), critical=False)
    )
    if ca.constraint:
        builder = builder.add_extension(CONSTRAINTS[ca.constraint], critical=True)
    if USAGES[ca.usage]:
        builder = builder.add_extension(x509.ExtendedKeyUsage(USAGES[ca.usage]), critical=False)
    return builder.sign(_key(issuer.key), hashes.SHA256())


@cache
def _leaf(leaf: Leaf) -> x509.Certificate:
    builder = _builder("web", leaf.issuer, 9, leaf.begins, leaf.ends).add_extension(
        x509.SubjectAlternativeName([x509.DNSName(leaf.san)]), critical=False
    )
    if USAGES[leaf.usage]:
        builder = builder.add_extension(x509.ExtendedKeyUsage(USAGES[leaf.usage]), critical=False)
    if leaf.names_key:
        key = _key(leaf.issuer.key).public_key()
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key), critical=False)
    return builder.sign(_key(8 if leaf.forged else leaf.issuer.key), hashes.SHA256())


@dataclass(frozen=True)
class Question:
    """A leaf with what is presented beside it; `hours` from now."""

    leaf: Leaf
    beside: tuple[Ca, ...]
    bundle: tuple[Ca, ...]
    hours: float = 0

    @property
    def now(self) -> datetime:
        return NOW + self.hours * HOUR


@cache
def _bundle(cas: tuple[Ca, ...]) -> TrustBundle:
    return TrustBundle(tuple(dict.fromkeys(map(_ca, cas))))


Verify = Callable[[x509.Certificate, tuple[x509.Certificate, ...], TrustBundle, datetime], Issuers]


def _verdict(question: Question, verify: Verify) -> Issuers | str:
    bundle = _bundle(question.bundle)
    between = leading_cas(map(_ca, question.beside), bundle)
    try:
        return verify(_leaf(question.leaf), between, bundle, question.now)
    except VerificationError as error:
        return str(error)


def _identity(question: Question, verifier: IdentityVerifier | None) -> object:
    leaf, chain = certificate_pem(_leaf(question.leaf)), certificate_pem(*map(_ca, question.beside))
    arguments = leaf.encode(), chain.encode(), _bundle(question.bundle), question.now
    try:
        return verify_identity(*arguments) if verifier is None else verifier.verify(*arguments).identity
    except RefusalError as error:
        return error.refusal


def _check(questions: Sequence[Question]) -> None:
    """Asked in this order, each is answered as the plain search answers it alone."""
    known = KnownIssuers()
    for question in questions:
        assert _verdict(question, known.verify) == _verdict(question, verify_issuers)


ROOT = Ca("Root", 0)
ISSUER = Ca("Issuer", 1, ROOT, path_length=0)
BUNDLE = (ROOT,)
GOOD = Question(Leaf(ISSUER), (ISSUER,), BUNDLE)


def _of(issuer: Ca, beside: tuple[Ca, ...] = (), **changes: object) -> Question:
    bundle = changes.pop("bundle", BUNDLE)
    hours = changes.pop("hours", 0)
    return Question(Leaf(issuer, **changes), beside or (issuer,), bundle, hours)  # type: ignore[arg-type]


def _plain_searches(monkeypatch: pytest.MonkeyPatch, *questions: Question) -> int:
    """How many of these needed the whole path."""
    searched = []

    def verify(*arguments: object) -> Issuers:
        searched.append(arguments)
        return verify_issuers(*arguments)  # type: ignore[arg-type]  # passed through as they are

    monkeypatch.setattr(issuer_path, "verify_issuers", verify)
    known = KnownIssuers()
    for question in questions:
        _verdict(question, known.verify)
    assert len(known) <= issuer_path._MAX_KNOWN
    return len(searched)


def test_one_signature_for_the_next_leaf_of_an_issuer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first leaf of an issuer has its whole path verified, the others are verified with the issuer as anchor."""
    assert isinstance(_verdict(GOOD, verify_issuers), Issuers)
    others = [_of(ISSUER, san=f"web{number}.example") for number in range(2, 5)]
    assert _plain_searches(monkeypatch, GOOD, *others) == 1
    assert _plain_searches(monkeypatch, GOOD, _of(ISSUER, san="web2.example", hours=9.9)) == 1


_CONSTRAINED_ROOT = Ca("Root", 0, constraint="excludes")
_CONSTRAINED = Ca("Issuer", 1, ROOT, constraint="excludes")
_UNDER_CONSTRAINED = Ca("Issuer", 1, _CONSTRAINED_ROOT)
_SHORT_ROOT = Ca("Root", 0, ends=2)
_UNDER_SHORT = Ca("Issuer", 1, _SHORT_ROOT)
_SHORT = Ca("Issuer", 1, ROOT, ends=2)
_TWIN = Ca("Issuer", 1, ROOT, ends=5)
_NAMESAKE = Ca("Issuer", 2, ROOT)
_OTHER_ROOT = Ca("Other Root", 3)
_CROSS = Ca("Issuer", 1, _OTHER_ROOT)
_RENEWED_ROOT = Ca("Root", 0, ends=20)
_MIDDLE = Ca("Middle", 4, ROOT)
_DEEP = Ca("Issuer", 1, _MIDDLE)
_TIGHT_ROOT = Ca("Root", 0, path_length=0)
_SELF_ISSUED = Ca("Root", 5, ROOT)

CASES = {
    "a leaf of another key": [GOOD, _of(ISSUER, forged=True)],
    "a leaf for servers": [GOOD, _of(ISSUER, usage="server")],
    "a leaf for anything": [GOOD, _of(ISSUER, usage="none")],
    "a leaf that has expired": [GOOD, _of(ISSUER, ends=-1)],
    "a leaf that isn't valid yet": [GOOD, _of(ISSUER, begins=1)],
    "a leaf without its issuer": [GOOD, replace(GOOD, beside=())],
    "names constrained by the root": [
        _of(_UNDER_CONSTRAINED, bundle=(_CONSTRAINED_ROOT,)),
        _of(_UNDER_CONSTRAINED, bundle=(_CONSTRAINED_ROOT,), san="a.bad.example"),
    ],
    "names constrained by the issuer": [_of(_CONSTRAINED), _of(_CONSTRAINED, san="a.bad.example")],
    "a root that has expired since": [
        _of(_UNDER_SHORT, bundle=(_SHORT_ROOT,)),
        _of(_UNDER_SHORT, bundle=(_SHORT_ROOT,), san="b.example", hours=3),
    ],
    "an issuer that has expired since": [_of(_SHORT), _of(_SHORT, san="b.example", hours=3)],
    "an issuer that isn't valid yet for a clock that was set back": [
        _of(Ca("Issuer", 1, ROOT, begins=0)), _of(Ca("Issuer", 1, ROOT, begins=0), san="b.example", hours=-1),
    ],
    "another certificate of the issuer, another time": [GOOD, _of(_TWIN), _of(_TWIN, hours=6), _of(ISSUER, hours=6)],
    "two certificates of the issuer, one short": [
        _of(ISSUER, (ISSUER, _TWIN)), _of(ISSUER, (ISSUER, _TWIN), san="b.example", hours=6),
        _of(ISSUER, (_TWIN, ISSUER), san="c.example"),
    ],
    "two issuers of one name": [
        _of(ISSUER, (ISSUER, _NAMESAKE)), _of(_NAMESAKE, (ISSUER, _NAMESAKE)), _of(_NAMESAKE, (ISSUER,)),
        _of(_NAMESAKE, (ISSUER, _NAMESAKE), names_key=False),
    ],
    "an issuer that is in the bundle by another certificate": [
        GOOD, replace(GOOD, bundle=(ROOT, _TWIN)), _of(ISSUER, san="b.example", bundle=(ROOT, _TWIN)),
    ],
    "an issuer under two roots": [
        _of(ISSUER, (ISSUER, _CROSS), bundle=(ROOT, _OTHER_ROOT)),
        _of(ISSUER, (_CROSS, ISSUER), san="b.example", bundle=(ROOT, _OTHER_ROOT)),
        _of(_CROSS, san="c.example", bundle=(ROOT, _OTHER_ROOT)),
    ],
    "a bundle without the root": [GOOD, replace(GOOD, bundle=(_OTHER_ROOT,)), GOOD],
    "a bundle with another root of the name and key": [
        GOOD, replace(GOOD, bundle=(_RENEWED_ROOT,)), replace(GOOD, bundle=(ROOT, _RENEWED_ROOT)),
        replace(GOOD, bundle=(_RENEWED_ROOT, ROOT)),
    ],
    "a bundle that trusts the issuer by itself": [GOOD, replace(GOOD, bundle=(ISSUER,)), replace(GOOD, bundle=(ISSUER, ROOT))],
    "two between, then one missing": [
        _of(_DEEP, (_DEEP, _MIDDLE)), _of(_DEEP, (_DEEP, _MIDDLE), san="b.example"), _of(_DEEP, (_DEEP,)),
    ],
    "a path that is too long for its root": [
        _of(ISSUER, bundle=(_TIGHT_ROOT,)), _of(Ca("Deep", 6, ISSUER), (Ca("Deep", 6, ISSUER), ISSUER)),
    ],
    "an issuer with the root's name": [
        _of(_SELF_ISSUED), _of(_SELF_ISSUED, san="b.example"), _of(ROOT, (_SELF_ISSUED,), san="c.example"),
    ],
    "the root's own leaf": [_of(ROOT, (ISSUER,)), _of(ROOT, (ISSUER,), san="b.example")],
    "an issuer for servers": [_of(Ca("Issuer", 1, ROOT, usage="server")), GOOD],
    "an issuer that signs nothing": [_of(Ca("Issuer", 1, ROOT, signs=False)), GOOD],
}  # fmt: skip


@pytest.mark.parametrize("questions", [pytest.param(questions, id=name) for name, questions in CASES.items()])
def test_what_is_remembered_changes_no_verdict(questions: list[Question]) -> None:
    """After any leaf, in any order of the two, the next one is judged as it would be alone."""
    both_ways = [*questions, *questions[::-1], *questions]
    _check(both_ways)
    verifier = IdentityVerifier(8)
    for question in both_ways:
        assert _identity(question, verifier) == _identity(question, None)


@pytest.mark.parametrize(
    "questions",
    [
        pytest.param([_of(_CONSTRAINED)], id="an issuer with name constraints"),
        pytest.param([_of(_UNDER_CONSTRAINED, bundle=(_CONSTRAINED_ROOT,))], id="a root with name constraints"),
        pytest.param([_of(ISSUER, (ISSUER, _TWIN))], id="an issuer of two certificates"),
        pytest.param([replace(GOOD, bundle=(ROOT, _RENEWED_ROOT))], id="a root of two certificates"),
        pytest.param([_of(ROOT, (ISSUER,))], id="a leaf of the root"),
        pytest.param([_of(ISSUER, forged=True), _of(ISSUER, usage="server")], id="leaves that were refused"),
    ],
)
def test_remembers_nothing_of(questions: list[Question]) -> None:
    """Where the next leaf might come to another path, and where there was none."""
    known = KnownIssuers()
    for question in questions:
        _verdict(question, known.verify)
    assert len(known) == 0


def test_remembers_no_more_than_some_and_of_one_bundle() -> None:
    """The oldest goes when it is full, and all go with the bundle."""
    known = KnownIssuers()
    for number in range(issuer_path._MAX_KNOWN + 3):
        _verdict(_of(Ca(f"Issuer {number}", 1, ROOT)), known.verify)
    assert len(known) == issuer_path._MAX_KNOWN
    _verdict(replace(GOOD, bundle=(ROOT, _OTHER_ROOT)), known.verify)
    assert len(known) == 1


Changes = Mapping[str, Any]

VALIDITIES: list[Changes] = [{"ends": 1}, {"begins": -1}, {"ends": -1}, {"begins": 1}]
CA_CHANGES: list[Changes] = [
    *VALIDITIES, {"path_length": 0}, {"path_length": 1}, {"constraint": "permits"}, {"constraint": "excludes"},
    {"usage": "client"}, {"usage": "server"}, {"signs": False}, {"key": 6}, {"name": "Issuer"}, {"ends": 9},
]  # fmt: skip
LEAF_CHANGES: list[Changes] = [
    *VALIDITIES, {"san": "a.bad.example"}, {"san": "web.other"}, {"usage": "server"}, {"usage": "none"},
    {"forged": True}, {"forged": True}, {"names_key": False},
]  # fmt: skip


def _lineage(ca: Ca | None) -> tuple[Ca, ...]:
    return () if ca is None else (ca, *_lineage(ca.issuer))


def _questions(rng: random.Random) -> list[Question]:
    """An issuer and its like: certificates of the same or another key, CA and bundle, each other in one thing.

    Most leaves are good, and follow one another: a verdict that is taken over wrongly needs one before that was right.
    Drawn evenly, which hypothesis' own choices are not: with them nearly all were refused.
    """

    def changed(value: Any, changes: Sequence[Changes], one_in: int) -> Any:
        return value if rng.randrange(one_in) else replace(value, **rng.choice(changes))

    root, other = changed(Ca("Root", 0), CA_CHANGES, 4), Ca("Other Root", 3)
    middle = changed(Ca("Middle", 4, root), CA_CHANGES, 4)
    issuer = changed(Ca("Issuer", 1, rng.choice([root, root, middle])), CA_CHANGES, 4)
    cas = [issuer]
    for _ in range(rng.randrange(3)):
        like = replace(rng.choice([issuer, issuer, middle]), **rng.choice(CA_CHANGES))
        cas.append(replace(like, issuer=rng.choice([like.issuer, like.issuer, root, other])))
    roots = [root, changed(root, CA_CHANGES, 1), other]
    bundles = [(root,), tuple(rng.sample([*roots, *cas], 2)), tuple(rng.sample(roots, 2))]
    asked, bundle = [], bundles[0]
    for _ in range(10):
        by = rng.choice([issuer, issuer, *cas])
        leaf = changed(Leaf(by, rng.choice(["web1.example", "web2.example"])), LEAF_CHANGES, 2)
        beside = (*_lineage(by)[:2], *rng.sample(cas, rng.choice([0, 0, 0, 1])))
        bundle = rng.choice([bundle] * 5 + bundles)
        asked.append(Question(leaf, beside, bundle, rng.choice([0, 0, 0, 2, -2])))
    return asked


@given(st.integers(0, 2**64 - 1))
def test_is_the_plain_search(seed: int) -> None:
    """Whatever the CAs, what is presented, the bundle and the time: verdict, reason and path are the plain search's."""
    questions = _questions(random.Random(seed))
    note(repr(questions))
    _check(questions)
