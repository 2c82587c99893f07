"""DNS names have one canonical text, and what can't be in a certificate has none."""

from __future__ import annotations

import contextlib
from pathlib import Path

import idna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certplane.pki import names
from certplane.pki.names import DnsNameError, canonical_dns_name, has_dns_syntax, names_sha256


def _encoded(label: str) -> str:
    """A name with this label in Punycode, valid or not."""
    return f"xn--{label.encode('punycode').decode('ascii').lower()}.example"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        pytest.param("example.com", "example.com", id="as-it-is"),
        pytest.param("WWW.Example.COM", "www.example.com", id="case"),
        pytest.param("web1", "web1", id="one-label"),
        pytest.param("1.example", "1.example", id="digits"),
        pytest.param("a-b.example", "a-b.example", id="hyphen"),
        pytest.param("*.Example.com", "*.example.com", id="wildcard"),
        pytest.param("*.com", "*.com", id="wildcard-of-a-tld"),
        pytest.param("*", "*", id="bare-wildcard"),
        pytest.param("XN--Bcher-KVA.example", "xn--bcher-kva.example", id="a-label-in-upper-case"),
        pytest.param("xn--fa-hia.de", "xn--fa-hia.de", id="sharp-s"),
        pytest.param("xn--zckzah.xn--p1ai", "xn--zckzah.xn--p1ai", id="a-label-tld"),
        pytest.param("xn--4db2a.example", "xn--4db2a.example", id="hebrew"),
        pytest.param("abc--d.example", "abc--d.example", id="hyphens-later-than-third-and-fourth"),
        pytest.param(f"{'a' * 63}.example", f"{'a' * 63}.example", id="label-63"),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    """Lower case, A-labels, no more."""
    assert canonical_dns_name(text) == canonical


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param(".", "ends with a dot", id="root"),
        pytest.param("example.com.", "ends with a dot", id="trailing-dot"),
        pytest.param(".example.com", "empty label", id="leading-dot"),
        pytest.param("a..example.com", "empty label", id="empty-label"),
        pytest.param("*..com", "empty label", id="empty-label-after-wildcard"),
        pytest.param("a" * 64, "longer than 63", id="label-64"),
        pytest.param(".".join(["a" * 63] * 4), "longer than 253", id="name-255"),
        pytest.param("-a.example", "letters, digits", id="leading-hyphen"),
        pytest.param("a-.example", "letters, digits", id="trailing-hyphen"),
        pytest.param("a_b.example", "letters, digits", id="underscore"),
        pytest.param("a b.example", "letters, digits", id="space"),
        pytest.param("a\0.example", "letters, digits", id="nul"),
        pytest.param("example.com\n", "letters, digits", id="newline"),
        pytest.param("https://example.com", "letters, digits", id="url"),
        pytest.param("example.com:443", "letters, digits", id="port"),
        pytest.param("192.0.2.1", "as an address does", id="ipv4"),
        pytest.param("::1", "letters, digits", id="ipv6"),
        pytest.param("example.123", "as an address does", id="numeric-tld"),
        pytest.param("a.*.example", "whole leftmost", id="inner-wildcard"),
        pytest.param("*.*.example", "whole leftmost", id="two-wildcards"),
        pytest.param("f*.example", "whole leftmost", id="partial-wildcard"),
        pytest.param("**.example", "whole leftmost", id="double-star"),
        pytest.param("b\u00fccher.example", "A-label", id="unicode"),
        pytest.param("\uff45xample.com", "A-label", id="full-width"),
        pytest.param("example\u3002com", "A-label", id="ideographic-dot"),
        pytest.param("\u212aelvin.example", "A-label", id="kelvin-sign-that-lower-cases-to-ascii"),
        pytest.param("ab--c.example", "no A-label", id="reserved-hyphens"),
        pytest.param("xn--.example", "letters, digits", id="a-label-of-nothing"),
        pytest.param("xn--a.example", "IDNA 2008", id="a-label-of-a-control-character"),
        pytest.param("xn--99999999999.example", "Punycode", id="punycode-overflow"),
        pytest.param("xn--0000.example", "xn--0000", id="punycode-that-encodes-otherwise"),
        pytest.param("xn--ls8h.example", "IDNA 2008", id="emoji"),
        pytest.param(_encoded("\u00dcber"), "IDNA 2008", id="upper-case-u-label"),
        pytest.param(_encoded("a\u0308"), "IDNA 2008", id="not-nfc"),
        pytest.param(_encoded("a\u200db"), "IDNA 2008", id="joiner"),
        pytest.param(_encoded("\u0301a"), "IDNA 2008", id="leading-combining-mark"),
        pytest.param(_encoded("a\u05d0"), "IDNA 2008", id="mixed-directions"),
        pytest.param(_encoded("\u2160"), "IDNA 2008", id="compatibility-character"),
    ],
)
def test_refuses(text: str, problem: str) -> None:
    """What isn't a name says why not, on one printable line."""
    with pytest.raises(DnsNameError) as caught:
        canonical_dns_name(text)
    assert problem in caught.value.problem
    assert caught.value.name == text
    assert str(caught.value).isprintable()


def test_a_message_does_not_carry_a_megabyte() -> None:
    """A hostile name is cut before it is repeated."""
    with pytest.raises(DnsNameError) as caught:
        canonical_dns_name("a" * 1_000_000)
    assert len(str(caught.value)) < 400


CASES = Path(__file__).resolve().parents[2] / "cases" / "J3" / "names.txt"


@pytest.mark.parametrize("line", CASES.read_text(encoding="utf-8").splitlines(), ids=lambda line: line.split()[0])
def test_takes_what_a_contextual_rule_allows(line: str) -> None:
    """Joiners, middle dots and other punctuation where RFC 5892 A.1 to A.7 have them are valid in names."""
    name = line.split(maxsplit=1)[0]
    assert canonical_dns_name(name.upper()) == name


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        pytest.param("a\u200cb", "U+200C", id="a1-non-joiner-between-latin-letters"),
        pytest.param("a\u200db", "U+200D", id="a2-joiner-without-virama"),
        pytest.param("l\u00b7a", "U+00B7", id="a3-middle-dot-not-between-two-l"),
        pytest.param("\u0375a", "U+0375", id="a4-keraia-before-latin"),
        pytest.param("a\u05f3\u05d0", "", id="a5-geresh-after-latin"),
        pytest.param("a\u05f4\u05d0", "", id="a6-gershayim-after-latin"),
        pytest.param("a\u30fbb", "U+30FB", id="a7-katakana-dot-without-kana"),
        pytest.param("\u0661\u06f1\u0628", "", id="a8-a9-two-kinds-of-arabic-digits"),
    ],
)
def test_refuses_what_a_contextual_rule_forbids(label: str, problem: str) -> None:
    """The same characters elsewhere are refused, and the message names the character."""
    with pytest.raises(DnsNameError) as caught:
        canonical_dns_name(_encoded(label))
    assert "no A-label of IDNA 2008" in caught.value.problem
    assert problem in caught.value.problem
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param(
            "b\u00fccher.example", "'b\u00fccher.example' has characters beyond ASCII", id="as-it-was-written"
        ),
        pytest.param(
            "\u201ca.example\u201d", "'\u201ca.example\u201d' has typographic quotes", id="typographic-quotes"
        ),
        pytest.param("a\u202eb.example", "'a\\u202eb.example' has characters", id="override-escaped"),
        pytest.param("a\ud800.example", "'a\\ud800.example' has characters", id="surrogate-escaped"),
        pytest.param("a_b.example", "'a_b.example' has a label that", id="underscore"),
    ],
)
def test_a_problem_names_the_name(text: str, name: str) -> None:
    """Whoever reads the message sees which name is meant, as it was written, escaped where it can't be printed."""
    with pytest.raises(DnsNameError) as caught:
        canonical_dns_name(text)
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize(
    ("text", "well"),
    [
        ("a.example", True), ("*.a.example", True), ("*", True), ("a", True), ("xn--not-an-a-label", True), ("ab--c.d", True),
        ("", False), (".", False), ("a.", False), ("a..b", False), ("A.example", False), ("a_b", False), ("-a.b", False),
        ("a.*.b", False), ("a\n", False), ("b\u00fccher.example", False), ("a" * 64, False), (".".join(["a" * 63] * 4), False),
    ],
)  # fmt: skip
def test_syntax_alone(text: str, well: bool) -> None:
    """What only compares names asks for their syntax, which decodes nothing."""
    assert has_dns_syntax(text) is well


@given(st.text(max_size=80))
def test_canonical_names_have_the_syntax(text: str) -> None:
    """No canonical name is lost to the cheap check."""
    with contextlib.suppress(DnsNameError):
        assert has_dns_syntax(canonical_dns_name(text))


def test_a_label_is_judged_once() -> None:
    """Whoever repeats a costly label pays for it once: later looks take a small part of the first one's time."""
    label = (
        "xn--"
        + "\u03b1\u03b2\u03b3\u03b4\u03b5\u03b6\u03b7\u03b8\u03b9\u03ba\u03bb\u03bc\u03bd\u03be\u03bf\u03c0".encode(
            "punycode"
        ).decode()
    )
    before = names._a_label_problem.cache_info()
    for number in range(5):
        canonical_dns_name(f"w{number}.{label}.example")
    after = names._a_label_problem.cache_info()
    assert (after.misses - before.misses <= 1, after.hits - before.hits >= 4) == (True, True)
    assert after.maxsize is not None


@given(st.text(max_size=300))
def test_canonical_is_a_fixed_point(text: str) -> None:
    """A text has no name, or one that is its own canonical form."""
    with contextlib.suppress(DnsNameError):
        name = canonical_dns_name(text)
        assert canonical_dns_name(name) == name
        assert name.isascii()
        assert name == name.lower()
        assert len(name) <= 253


LABELS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def _agrees(label: str) -> bool:
    """Whether `idna` accepts what ours accepts; in doubt ours may refuse."""
    encoded = "xn--" + label.encode("punycode").decode("ascii").lower()
    try:
        canonical_dns_name(f"{encoded}.example")
    except DnsNameError:
        return True
    try:
        return idna.encode(idna.decode(encoded)).decode() == encoded
    except (idna.IDNAError, UnicodeError):
        return False


def test_agrees_with_idna_2008_on_each_character() -> None:
    """No character of the scripts in use is accepted that the `idna` package refuses."""
    assert [hex(point) for point in range(0x80, 0x3400) if not _agrees(f"a{chr(point)}b")] == []


@given(LABELS)
@example("b\u00fccher")
@example("\u0661")
@example("\u05d0\u05d1")
@example("\u05d01")
@example("a\u05d0")
@example("l\u00b7l")
def test_agrees_with_idna_2008(label: str) -> None:
    """What is accepted as an A-label, the `idna` package accepts; it knows the contextual rules besides."""
    assert _agrees(label)


@given(
    st.text(
        st.sampled_from(
            "\u00e4\u00f6\u00fc\u00df\u00e9\u00f1\u0430\u0431\u0432\u03b1\u03b2\u4e2d\u6587\u65e5\u672cab1"
        ),
        min_size=1,
        max_size=10,
    )
)
def test_takes_what_people_register(label: str) -> None:
    """Letters of common scripts are not lost to the strictness: what `idna` encodes is accepted."""
    assert canonical_dns_name(idna.encode(f"{label}.example").decode("ascii"))


def test_name_sets_are_told_apart() -> None:
    """The hash that stands for names in the index differs with any of them."""
    sets = [("a.example", "b.example"), ("a.example",), ("b.example", "c.example"), ("*.a.example",)]
    assert len({names_sha256(names) for names in sets}) == len(sets)
