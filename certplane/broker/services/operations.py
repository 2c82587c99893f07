"""Health, reflection and channelz: grpc's own services, behind the same edge as ours.

grpcio-reflection speaks v1alpha only. v1 is the same protocol under another package name (gRPC proposal A15), and newer
tools ask for it first, so its descriptor is made here by renaming and served by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

_V1ALPHA: Final = "grpc.reflection.v1alpha"
_V1: Final = "grpc.reflection.v1"

OPERATION_SERVICES: Final = (
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
    f"{_V1ALPHA}.ServerReflection",
    f"{_V1}.ServerReflection",
)


def add_operations(server: grpc.aio.Server, services: Sequence[str]) -> health.aio.HealthServicer:
    """Add the three to `server`.

    Args:
        server: Not started yet.
        services: Full names of our own services: what reflection lists, and whose health is told.

    Returns:
        The health servicer; all of `services` are SERVING once the caller says so.
    """
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    channelz_pb2_grpc.add_ChannelzServicer_to_server(channelz.aio.ChannelzServicer(), server)
    _add_reflection_v1_descriptor()
    servicer = reflection.aio.ReflectionServicer([*services, *OPERATION_SERVICES])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for package in (_V1ALPHA, _V1):
        service = grpc.method_handlers_generic_handler(f"{package}.ServerReflection", {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers((service,))
    return health_servicer


def _add_reflection_v1_descriptor() -> None:
    """Let reflection describe its own v1: the v1alpha file under the other package's name."""
    pool = descriptor_pool.Default()
    name = "grpc/reflection/v1/reflection.proto"
    try:
        pool.FindFileByName(name)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        file.name = name
        file.package = _V1
        file.ClearField("options")  # they say where v1alpha's generated code lives
        for field in _type_names(file):
            field.type_name = field.type_name.replace(f".{_V1ALPHA}.", f".{_V1}.")
        for method in file.service[0].method:
            method.input_type = method.input_type.replace(f".{_V1ALPHA}.", f".{_V1}.")
            method.output_type = method.output_type.replace(f".{_V1ALPHA}.", f".{_V1}.")
        pool.AddSerializedFile(file.SerializeToString())


def _type_names(file: descriptor_pb2.FileDescriptorProto) -> list[Any]:
    return [field for message in file.message_type for field in message.field if field.type_name]
