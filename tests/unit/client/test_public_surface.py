"""The public names of certplane.client: which there are, what they take, and that each says what a caller must know.

A name that goes, or an argument that goes or becomes required, breaks programs: that is for a new major version. What is
added is added to the table here, so that it is meant.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

import certplane
from certplane import client

_ROOT = Path(__file__).parents[3]
_INTEGRATING = (_ROOT / "docs" / "integrating.md").read_text()

_CLIENT = "url, *, identity, server_ca, timeout=, proxy="
_KEEPER = "client, *, profile, folder=, dns_names=, key_type=, wait="
_CALLS = {
    "from_config": "path",
    "identity": "",
    "issue": "profile, *, dns_names=, key_type=, replaces=, timeout=",
    "order": "order_id",
    "watch_order": "order_id",
    "certificate": "certificate_id",
    "certificates": "*, profile=, include_unusable=",
    "revoke": "certificate_id, reason=",
    "watch_certificates": "",
}
_KEEPING = {
    "current": None,
    "next_renewal": None,
    "last_error": None,
    "ssl_context": "",
    "on_change": "callback",
    "renew": "",
}
_ERROR = {"reason": None, "retry_after": None, "request_id": None}

SURFACE: dict[str, tuple[str | None, dict[str, str | None]]] = {
    "Client": (f"{_CLIENT}, clock=", _CALLS),
    "SyncClient": (_CLIENT, _CALLS),
    "CertificateKeeper": (_KEEPER, _KEEPING),
    "SyncCertificateKeeper": (_KEEPER, _KEEPING),
    "Certificate": (None, {"fullchain_pem": None}),
    "CertificateNews": (None, {}),
    "Identity": (None, {}),
    "IssuedCertificate": (None, {"fullchain_pem": None}),
    "Order": (None, {"ended": None}),
    "OrderState": (None, {}),
    "RevocationReason": (None, {}),
    "KeyType": (None, {}),
    "ProxyUse": (None, {}),
    "Reason": (None, {}),
    "CertplaneError": (None, _ERROR),
    "RefusalError": (None, _ERROR),
    "OrderFailedError": (None, _ERROR),
    "OrderUnderWayError": (None, _ERROR),
    "OperationError": (None, _ERROR),
    "ConfigurationError": (None, _ERROR),
    "Refusal": (None, {}),
    "ProblemDocument": (None, {}),
    "Violation": (None, {}),
}
"""Of each name what it is made with (None: nobody makes it), and its members with what they take (None: a property)."""

FIELDS = {
    "Certificate": "certificate_id profile dns_names serial_number issuer public_key_sha256 not_before not_after renew_time "
    "revoke_time certificate_pem chain_pem",
    "CertificateNews": "certificate_id profile dns_names serial_number not_after renew_time renew_reason "
    "renewal_request_id revoke_time revocation_reason public_key_sha256 new_key",
    "Identity": "name kind label serial_number expire_time profiles dns_names roles broker_time broker_version contest_time",
    "IssuedCertificate": "certificate private_key_pem",
    "Order": "order_id state profile dns_names certificate error retry_time trouble wait_time",
    "Refusal": "reason message retry_after violations problems request_id",
    "ProblemDocument": "type detail status identifier",
    "Violation": "subject description",
}


def taken(call: Any) -> str:
    """The arguments of a call as the table has them."""
    parts, keyword_only = [], False
    for parameter in inspect.signature(call).parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        parts.append(parameter.name + ("" if parameter.default is parameter.empty else "="))
    return ", ".join(parts)


def members(kind: type) -> dict[str, Any]:
    """The public methods and properties of a class, those of its bases in this package too."""
    found = {}
    for base in kind.__mro__:
        if base.__module__.startswith("certplane"):
            found.update({name: each for name, each in vars(base).items() if name not in found})
    wanted = (property, classmethod, staticmethod)
    return {
        name: each
        for name, each in found.items()
        if not name.startswith("_") and (isinstance(each, wanted) or inspect.isfunction(each))
    }


def test_the_names() -> None:
    """What is exported is what the table has."""
    assert sorted(client.__all__) == sorted(SURFACE)
    assert all(hasattr(client, name) for name in client.__all__)


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_what_a_name_has(name: str) -> None:
    """Constructor, members and their arguments are the table's."""
    kind: Any = getattr(client, name)
    made, expected = SURFACE[name]
    if made is not None:
        assert taken(kind.__init__) == made
    found = members(kind)
    if issubclass(kind, Exception):  # how they are made is not for programs
        found = {each: value for each, value in found.items() if isinstance(value, property)}
    assert {
        each: None if isinstance(value, property) else taken(getattr(kind, each)) for each, value in found.items()
    } == expected


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_what_a_value_has(name: str) -> None:
    """The fields of a value, in their order, frozen."""
    kind: Any = getattr(client, name)
    assert " ".join(field.name for field in dataclasses.fields(kind)) == FIELDS[name]
    assert kind.__dataclass_params__.frozen


def documented() -> Iterator[Any]:
    for name, (made, _) in sorted(SURFACE.items()):
        kind: Any = getattr(client, name)
        yield pytest.param(kind, kind if made is None else kind.__init__, id=name)
        if not issubclass(kind, Exception):
            for each, value in members(kind).items():
                call = value.fget if isinstance(value, property) else getattr(kind, each)
                yield pytest.param(value if isinstance(value, property) else call, call, id=f"{name}.{each}")


@pytest.mark.parametrize(("item", "call"), list(documented()))
def test_each_says_what_a_caller_must_know(item: Any, call: Any) -> None:
    """A docstring that names each argument, and what is raised where something is."""
    text = inspect.getdoc(item) or ""
    assert re.match(r"[A-Z`].*[.)]", text.split("\n", maxsplit=1)[0]), text
    if not (inspect.isclass(item) and item is call):
        arguments = re.findall(r"(\w+)=?", taken(call).replace("*", "")) if callable(call) else []
        missing = [each for each in arguments if not re.search(rf"^ +{each}: ", text, re.MULTILINE)]
        assert not missing, missing
    for name in re.findall(r"\n    (\w+): ", text):
        assert name


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_each_field_is_described(name: str) -> None:
    """Values say of each field what it is, in `Attributes` or in a sentence."""
    text = inspect.getdoc(getattr(client, name)) or ""
    described = set(re.findall(r"(?:^ *|`)(\w+)(?::|`)", text, re.MULTILINE))
    fields = set(FIELDS[name].split())
    if "Attributes:" in text:
        assert fields <= described
    else:
        assert text


def test_errors_are_one_tree() -> None:
    """One `except` catches them all; each has reason, retry_after and request_id."""
    errors = [getattr(client, name) for name in client.__all__ if name.endswith("Error")]
    assert all(issubclass(each, client.CertplaneError) for each in errors)
    plain = client.CertplaneError("x")
    assert (plain.reason, plain.retry_after, plain.request_id) == (None, None, "")


def test_every_public_name_is_in_the_document() -> None:
    """docs/integrating.md names each error and each class that a program makes."""
    named = set(re.findall(r"\w+", _INTEGRATING))
    wanted = {name for name in client.__all__ if name.endswith("Error") or SURFACE[name][0] is not None}
    assert wanted <= named, wanted - named


def test_a_light_import() -> None:
    """A service needs none of the broker's packages, nor the programs' own."""
    code = (
        "import sys, certplane.client\n"
        "heavy = {'acme', 'sqlalchemy', 'alembic', 'httpx', 'dns', 'rich', 'textual', 'certplane.broker', "
        "'certplane.agent', 'certplane.ctl', 'certplane.sandbox'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_enums_have_text_values() -> None:
    """They can be stored and compared as text."""
    for name in client.__all__:
        kind = getattr(client, name)
        if isinstance(kind, type) and issubclass(kind, Enum):
            assert all(isinstance(each.value, str) for each in kind)


@pytest.mark.parametrize("example", sorted((_ROOT / "examples" / "python").glob("*.py")), ids=lambda path: path.name)
def test_the_examples_use_public_names_alone(example: Path) -> None:
    """They import `certplane.client` and nothing below it; keeping a certificate fresh takes ten lines or fewer."""
    tree = ast.parse(example.read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert {each for each in modules if each.startswith("certplane")} == {"certplane.client"}
    words = ("certplane", "Client", "Keeper", "keeper")
    lines = [line for line in example.read_text().partition('"""\n\n')[2].splitlines() if any(w in line for w in words)]
    assert len(lines) <= 10, lines
    assert certplane.__version__
