"""Keys sealed for the database."""

from __future__ import annotations

import base64

import pytest

from certplane.broker.accounts.seal import SealError, SealKeys, account_context

ONE, TWO = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
CONTEXT = account_context("default", "https://ca.example/directory")


def test_what_was_sealed_is_unsealed() -> None:
    """And looks like nothing: the same key twice is two different texts."""
    keys = SealKeys(ONE)
    sealed = keys.seal(b"the account's key", CONTEXT)
    assert SealKeys(f" {ONE}\n").unseal(sealed, CONTEXT) == b"the account's key"
    assert b"account" not in sealed
    assert sealed != keys.seal(b"the account's key", CONTEXT)


def test_of_several_the_first_seals_and_all_unseal() -> None:
    """That is how a seal secret is replaced."""
    old = SealKeys(ONE).seal(b"x", CONTEXT)
    both = SealKeys(f"{TWO}\n{ONE}\n")
    assert both.unseal(old, CONTEXT) == b"x"
    assert not both.is_current(old)
    new = both.seal(b"x", CONTEXT)
    assert both.is_current(new)
    assert SealKeys(TWO).unseal(new, CONTEXT) == b"x"


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param("correct horse battery staple", "isn't base64", id="a password"),
        pytest.param(base64.b64encode(b"x" * 16).decode(), "holds 16 octets", id="short"),
        pytest.param(f"{ONE} {ONE[:-4]}", "octets|isn't base64", id="one of two cut off"),
        pytest.param("schl\u00fcssel", "isn't base64", id="no ASCII"),
    ],
)
def test_what_is_no_seal_secret(secret: str, said: str) -> None:
    """It is refused, and not quoted."""
    with pytest.raises(SealError, match=said) as caught:
        SealKeys(secret)
    assert not secret or secret not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]), "is damaged", id="a bit"),
        pytest.param(lambda sealed: sealed[:30], "is damaged", id="cut off"),
        pytest.param(lambda sealed: sealed[:10], "is damaged", id="no nonce"),
        pytest.param(lambda _: b"", "is damaged", id="nothing"),
        pytest.param(lambda sealed: b"\2" + sealed[1:], "newer certplane-broker", id="another version"),
        pytest.param(lambda _: SealKeys(TWO).seal(b"x", CONTEXT), "with another secret", id="another secret"),
        pytest.param(
            lambda _: SealKeys(ONE).seal(b"x", account_context("other", "https://ca.example/directory")),
            "for another issuer or directory",
            id="another issuer's",
        ),
    ],
)
def test_what_cannot_be_unsealed(spoil: object, said: str) -> None:
    """Nothing of it comes out, and the text says what to look at."""
    sealed = spoil(SealKeys(ONE).seal(b"x", CONTEXT))  # type: ignore[operator] # a parameter of the test
    with pytest.raises(SealError, match=said):
        SealKeys(ONE).unseal(sealed, CONTEXT)


def test_shows_no_key() -> None:
    """Neither in a log line nor in a traceback's values."""
    assert ONE[:8] not in repr(SealKeys(ONE))
