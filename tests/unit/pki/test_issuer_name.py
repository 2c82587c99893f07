"""A distinguished name is known again in whatever form a person has it."""

from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from certplane.pki.issuer_name import find_name, parse_name

CA = "CN=Example Intermediate CA,OU=Identity+L=Bonn,O=Example\\, Inc.,C=DE"
KNOWN = [x509.Name.from_rfc4514_string(text) for text in ("CN=Other", CA, "CN=step CA Intermediate CA,O=step CA")]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(CA, id="as-it-is"),
        pytest.param(CA.replace("Intermediate", "INTERMEDIATE"), id="other-case"),
        pytest.param(CA.replace("CN=", "cn=").replace("C=DE", "c=de"), id="types-in-other-case"),
        pytest.param(CA.replace("Example Intermediate", " Example   Intermediate"), id="spaces-inside"),
        pytest.param("CN = Example Intermediate CA, OU = Identity + L = Bonn, O = Example\\, Inc., C = DE", id="spaces-between"),
        pytest.param("C=DE,O=Example\\, Inc.,OU=Identity+L=Bonn,CN=Example Intermediate CA", id="other-direction"),
        pytest.param("C=DE,O=Example\\, Inc.,L=Bonn+OU=Identity,CN=Example Intermediate CA", id="other-order-in-a-set"),
        pytest.param("issuer=C = DE, O = Example\\, Inc., OU = Identity + L = Bonn, CN = Example Intermediate CA", id="openssl"),
        pytest.param("/C=DE/O=Example\\, Inc./OU=Identity+L=Bonn/CN=Example Intermediate CA", id="openssl-of-old"),
        pytest.param("CN=\uff25xample Intermediate CA,OU=Identity+L=Bonn,O=Example\\, Inc.,C=DE", id="wide-letter"),
    ],
)  # fmt: skip
def test_finds_the_known_one(text: str) -> None:
    """The name that is used is the known one, to the letter."""
    assert find_name(parse_name(text), KNOWN) is KNOWN[1]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("CN=Example Intermediate CA", id="a-part"),
        pytest.param(CA + ",DC=more", id="more"),
        pytest.param(CA.replace("OU=Identity+L=Bonn", "OU=Identity,L=Bonn"), id="another-structure"),
        pytest.param(CA.replace("Example\\, Inc.", "Example Inc."), id="another-text"),
        pytest.param("OU=Identity+L=Bonn,CN=Example Intermediate CA,O=Example\\, Inc.,C=DE", id="mixed-up"),
    ],
)
def test_finds_no_other(text: str) -> None:
    """What is another name stays another name."""
    assert find_name(parse_name(text), KNOWN) is None


@given(st.text(max_size=40))
def test_never_raises_anything_else(text: str) -> None:
    """Any text is a name or a ValueError."""
    for candidate in (text, f"CN={text}", f"/CN={text}", f"issuer=CN={text}"):
        try:
            find_name(parse_name(candidate), KNOWN)
        except ValueError:
            continue
