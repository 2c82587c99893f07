"""Promises of the wire contract that a linter can't check, read from the descriptors."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FileOptions

from certplane.rpc import protoset

FILES: tuple[FileDescriptor, ...] = tuple(file for file in protoset.FILES if file.package == "certplane.v1")
PRIVATE = re.compile(r"private|secret|passw|token$|(^|_)key(_pem|_der)?$|pkcs8|pkcs12|pfx|keystore")
PAGING = {"page_token", "next_page_token"}
ONE_TIME = "certplane.v1.CreateBootstrapTokenResponse.token"
"""The one secret that an answer is made for; no key, and none that a host has sent."""


def walk(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """Every field that can be reached from `message`, through sub-messages too."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None:
            yield from walk(field.message_type, seen)


def all_fields() -> list[FieldDescriptor]:
    seen: set[str] = set()
    return [field for file in FILES for message in file.message_types_by_name.values() for field in walk(message, seen)]


def private_looking(fields: list[FieldDescriptor]) -> list[str]:
    # A map's entries have fields called "key" and "value"; the map field itself is looked at under its own name. Whether
    # there is to be a new key is no key.
    return [
        field.full_name
        for field in fields
        if PRIVATE.search(field.name)
        and field.name not in PAGING
        and field.full_name != ONE_TIME
        and field.type != FieldDescriptor.TYPE_BOOL
        and not field.containing_type.GetOptions().map_entry
    ]


def test_no_message_can_carry_a_private_key() -> None:
    """No field of any message that the services can send or receive is named as a key, secret or password would be."""
    fields = all_fields()
    assert len(fields) > 60
    assert private_looking(fields) == []


def test_no_field_is_opaque_bytes() -> None:
    """Nothing is sent as bytes or Any outside google.rpc.Status, so that no key can hide in a field with another name."""
    opaque = [
        field.full_name
        for field in all_fields()
        if field.type == FieldDescriptor.TYPE_BYTES and not field.full_name.startswith("google.")
    ]
    assert opaque == []


@pytest.mark.parametrize("name", ["private_key", "key_pem", "tls_key", "pfx", "bootstrap_token", "password"])
def test_the_check_for_private_keys_would_see_one(name: str) -> None:
    """The names that such a field would have are caught."""
    assert PRIVATE.search(name)


def test_every_rpc_says_who_may_call_it() -> None:
    """Each method's comment in the proto ends with a line "Callers: ..."."""
    import pathlib

    root = pathlib.Path(__file__).parents[3] / "proto" / "certplane" / "v1"
    rpcs = []
    for path in sorted(root.glob("*.proto")):
        for comment, name in re.findall(r"((?:^ *//.*\n)+) *rpc (\w+)\(", path.read_text(), re.MULTILINE):
            rpcs.append(name)
            assert re.search(r"// Callers: .+\.\n\Z", comment), name
    assert len(rpcs) == sum(len(s.methods) for file in FILES for s in file.services_by_name.values())


def test_each_rpc_has_messages_of_its_own() -> None:
    """VerbNoun takes VerbNounRequest and returns VerbNounResponse, so that either can grow alone.

    Where two services have a method of one name, the second one's messages begin with the service's.
    """
    taken: set[str] = set()
    for file in FILES:
        for service in file.services_by_name.values():
            for method in service.methods:
                name = f"{service.name}{method.name}" if method.name in taken else method.name
                taken.add(name)
                assert method.input_type.name == f"{name}Request"
                assert method.output_type.name == f"{name}Response"
                first = method.input_type.fields[0]
                if method.client_streaming:  # each message is one of several; the first of them introduces the call
                    assert first.name == "hello"
                    first = first.message_type.fields[0]
                assert first.name == "request_id"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_generated_packages_keep_their_names(file: FileDescriptor) -> None:
    """Stubs for Go and Java land in the packages that they have always had: callers' imports stay as they are."""
    options = FileOptions.FromString(file.GetOptions().SerializeToString())
    names = options.go_package, options.java_package, options.java_multiple_files, options.java_outer_classname
    outer = f"{file.name.rpartition('/')[2].removesuffix('.proto').capitalize()}Proto"  # else order.proto's is Order
    assert names == ("certplane/v1;certplanev1", "certplane.v1", True, outer)


def test_no_two_classes_of_java_have_one_name() -> None:
    """Messages, enums and the files' own classes share the one package of Java, and differ in their names."""
    classes = [
        name
        for file in FILES
        for name in (
            FileOptions.FromString(file.GetOptions().SerializeToString()).java_outer_classname,
            *file.message_types_by_name,
            *file.enum_types_by_name,
        )
    ]
    assert sorted(classes) == sorted(set(classes))
