"""The public names of certplane.client: which there are, what they take, and that each says what a caller must know.

A line of surface.txt that goes or changes breaks programs: that is for a new major version. What is added is added there,
so that it is meant.
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
from certplane.v1 import certificate_pb2, enrollment_pb2, renewal_pb2

_ROOT = Path(__file__).parents[3]
_RPCS = {
    rpc.name
    for messages in (certificate_pb2, enrollment_pb2, renewal_pb2)
    for service in messages.DESCRIPTOR.services_by_name.values()
    for rpc in service.methods
}
_INTEGRATING = (_ROOT / "docs" / "integrating.md").read_text()

_SURFACE = Path(__file__).with_name("surface.txt")
_MADE = {"Client", "SyncClient", "CertificateKeeper", "SyncCertificateKeeper"}
"""What a program makes itself; how others are made is not for programs."""
_VALUES = [name for name in sorted(client.__all__) if dataclasses.is_dataclass(getattr(client, name))]
_ENUMS = [name for name in sorted(client.__all__) if issubclass(getattr(client, name), Enum)]

_ENCODINGS = {
    r".*_pem": "PEM",
    r".*_sha256": "SHA-256 .*hexadecimal",
    "order_id|certificate_id|request_id": "The broker's name for",
    "serial_number": "hexadecimal",
    "timeout|wait": "How long",
    "identity|server_ca": "PEM",
    "key_type": "key",
    "status": "HTTP",
    "private_key_pem": "PKCS#8, PEM",
}
"""What a name's own description says, by the name."""
_CONVENTIONS = (
    "in UTC",
    "spans are `timedelta`",
    "PEM is text (private keys: bytes)",
    "A-labels",
    "hexadecimal digits",
)
"""What the package's docstring says for all."""
_SOURCE = r"RFC \d+|\w+\.proto|docs/\w+\.md"
_QUIET = {"on_change", "renew", "next_renewal", "last_error", "fullchain_pem", "ended"}
"""What raises nothing on purpose."""


def taken(call: Any) -> list[str]:
    """The names of a call's arguments."""
    return [name for name in inspect.signature(call).parameters if name not in {"self", "cls"}]


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


def section(text: str, name: str) -> dict[str, str]:
    """The entries of a section of a docstring."""
    found = re.search(rf"^{name}:\n((?: .*\n?|\n)*)", text, re.MULTILINE)
    entries = re.split(r"^    (?=\w[\w.]*: )", found.group(1) if found else "", flags=re.MULTILINE)
    return {each.partition(": ")[0]: " ".join(each.partition(": ")[2].split()) for each in entries if ": " in each}


def rendered() -> Iterator[str]:
    """The documentation of the public names as lines: what each is made with, has, takes, gives and raises."""
    for name in sorted(client.__all__):
        kind: Any = getattr(client, name)
        yield f"class {name}({', '.join(base.__name__ for base in kind.__bases__)})"
        if name in _MADE:
            yield f"{name}{inspect.signature(kind.__init__)}"
            yield from (f"{name} raises {error}" for error in section(inspect.getdoc(kind) or "", "Raises"))
        if name in _ENUMS:
            yield from (f"{name}.{each.name} = {each.value!r}" for each in kind)
        if name in _VALUES:
            for field in dataclasses.fields(kind):
                default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
                yield f"{name}.{field.name}: {field.type}{default}"
        for each, value in sorted(members(kind).items()):
            if isinstance(value, property):
                yield f"{name}.{each}: {inspect.signature(value.fget).return_annotation}"  # type: ignore[arg-type]
            elif not issubclass(kind, Exception):
                yield f"{name}.{each}{inspect.signature(getattr(kind, each))}"
            yield from (f"{name}.{each} raises {error}" for error in section(inspect.getdoc(value) or "", "Raises"))
        if issubclass(kind, Exception):
            yield from (f"{name}.{each}" for each in section(inspect.getdoc(kind) or "", "Attributes"))


def test_nothing_is_gone_or_other() -> None:
    """Each line of surface.txt is still so (else: a new major version), and it has each new one."""
    now, known = list(rendered()), _SURFACE.read_text().splitlines()
    assert not [line for line in known if line not in now], (
        "gone or changed: for a new major version, unless all that worked still does"
    )
    assert not [line for line in now if line not in known], f"new: add them to {_SURFACE.name}"


def test_a_name_that_goes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a member, an argument and a value's field."""
    monkeypatch.delattr(client.Client, "revoke")
    monkeypatch.setattr(client.CertificateKeeper, "renew", lambda self, now: None)
    monkeypatch.setattr(client, "__all__", [name for name in client.__all__ if name != "Order"])
    gone = set(_SURFACE.read_text().splitlines()) - set(rendered())
    assert {"Client.revoke", "CertificateKeeper.renew", "Order.state"} <= {re.split(r"[(:]", each)[0] for each in gone}


@pytest.mark.parametrize("name", _VALUES)
def test_values_are_frozen(name: str) -> None:
    """Nobody changes what the broker said."""
    assert getattr(client, name).__dataclass_params__.frozen


def documented() -> Iterator[Any]:
    for name in sorted(client.__all__):
        kind: Any = getattr(client, name)
        yield pytest.param(kind, kind.__init__ if name in _MADE else None, id=name)
        if not issubclass(kind, Exception):
            for each, value in members(kind).items():
                call = None if isinstance(value, property) else getattr(kind, each)
                yield pytest.param(value if call is None else call, call, id=f"{name}.{each}")


@pytest.mark.parametrize(("item", "call"), list(documented()))
def test_each_says_what_a_caller_must_know(item: Any, call: Any) -> None:
    """A docstring that begins with a sentence and describes each argument, with its unit or its encoding."""
    text = inspect.getdoc(item) or ""
    assert re.match(r"[A-Z`].*[.)]", text.split("\n", maxsplit=1)[0]), text
    described = section(text, "Args")
    assert list(described) == (taken(call) if call else [])
    if not any("As for `" in each for each in described.values()):
        check_encodings(described)


def check_encodings(described: dict[str, str]) -> None:
    for name, says in described.items():
        for pattern, word in _ENCODINGS.items():
            if re.fullmatch(pattern, name):
                assert re.search(word, says), f"{name}: {says!r} doesn't say {word}"


@pytest.mark.parametrize("name", _VALUES)
def test_each_field_is_described(name: str) -> None:
    """Values say of each field what it is, in which encoding, and where the rule is from."""
    kind = getattr(client, name)
    text = inspect.getdoc(kind) or ""
    described = section(text, "Attributes")
    assert list(described) == [field.name for field in dataclasses.fields(kind)]
    check_encodings(described)
    assert re.search(_SOURCE, text)


@pytest.mark.parametrize("name", _ENUMS)
def test_each_enum_names_its_source(name: str) -> None:
    """The document, the message or the RFC whose words these are."""
    assert re.search(_SOURCE, inspect.getdoc(getattr(client, name)) or "")


@pytest.mark.parametrize("name", ["Client", "CertificateKeeper"])
def test_each_call_says_what_it_raises(name: str) -> None:
    """In `Raises`, or the class does for all of them; the calls at a broker name their RPC; the other form says the same."""
    kind = getattr(client, name)
    of_all = {"RefusalError", "OperationError"} if "What a method raises is" in (inspect.getdoc(kind) or "") else set()
    for each, value in members(kind).items():
        text = inspect.getdoc(value) or ""
        raised = section(text, "Raises") or of_all
        assert raised or each in _QUIET, each
        assert all(hasattr(client, error) or error in {"RuntimeError", "ssl.SSLError"} for error in raised), raised
        if name == "Client" and each != "from_config":
            named = re.findall(r"[A-Z]\w+", "".join(re.findall(r"\(([A-Z][\w, ]+)\)", text.partition("\n")[0])))
            assert named, each
            assert set(named) <= _RPCS, named
        sync = inspect.getdoc(members(getattr(client, f"Sync{name}"))[each]) or ""
        assert section(sync, "Raises").keys() == section(text, "Raises").keys(), each


def test_the_conventions() -> None:
    """What holds for all times, spans, names and numbers is said once, where documentation begins."""
    text = " ".join((client.__doc__ or "").split())
    assert [each for each in _CONVENTIONS if each not in text] == []


def test_errors_are_one_tree() -> None:
    """One `except` catches them all; each has reason, retry_after and request_id."""
    errors = [getattr(client, name) for name in client.__all__ if name.endswith("Error")]
    assert all(issubclass(each, client.CertplaneError) for each in errors)
    plain = client.CertplaneError("x")
    assert (plain.reason, plain.retry_after, plain.request_id) == (None, None, "")


def test_every_public_name_is_in_the_document() -> None:
    """docs/integrating.md names each error and each class that a program makes."""
    named = set(re.findall(r"\w+", _INTEGRATING))
    wanted = {name for name in client.__all__ if name.endswith("Error")} | _MADE
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
