"""The services of Certplane as one set of descriptors, for tools that make their messages without reflection.

    python -m certplane.rpc.protoset >certplane.protoset
    grpcurl -protoset certplane.protoset describe certplane.v1.CertificateService

It holds all that the services refer to, google/rpc/status.proto and the details of errors included, as the installed
program has them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.rpc import error_details_pb2

from certplane.runtime.command import exit_status
from certplane.v1 import (
    audit_pb2,
    broker_pb2,
    budget_pb2,
    certificate_pb2,
    enrollment_pb2,
    fleet_pb2,
    incident_pb2,
    order_pb2,
    policy_pb2,
    renewal_pb2,
    rollout_pb2,
)

_MODULES = (
    audit_pb2,
    broker_pb2,
    budget_pb2,
    certificate_pb2,
    enrollment_pb2,
    fleet_pb2,
    incident_pb2,
    order_pb2,
    policy_pb2,
    renewal_pb2,
    rollout_pb2,
    error_details_pb2,  # what errors carry
)
FILES: tuple[FileDescriptor, ...] = tuple(each.DESCRIPTOR for each in _MODULES)


def descriptor_set(files: Iterable[FileDescriptor] = FILES) -> bytes:
    """A serialized `google.protobuf.FileDescriptorSet` of `files` and all that they import, imports first."""
    found: dict[str, FileDescriptorProto] = {}

    def add(file: FileDescriptor) -> None:
        if file.name in found:
            return
        for imported in file.dependencies:
            add(imported)
        found[file.name] = FileDescriptorProto.FromString(file.serialized_pb)

    for file in files:
        add(file)
    return FileDescriptorSet(file=found.values()).SerializeToString()


def main() -> int:
    """Write it to standard output."""
    sys.stdout.buffer.write(descriptor_set())
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("certplane.rpc.protoset", main))
