"""Messages and calls of a gRPC service, made from the description of its .proto file instead of generated code."""

from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import Default as descriptor_pool
from google.protobuf.message_factory import GetMessageClass


def read_messages(path: Path) -> dict[str, Any]:
    """Return the classes of a .proto file's messages by name, and the file's "DESCRIPTOR".

    Args:
        path: description that `python -m grpc_tools.protoc -I . --descriptor_set_out=PATH FILE.proto` has written.
    """
    (file,) = FileDescriptorSet.FromString(path.read_bytes()).file
    described = descriptor_pool().AddSerializedFile(file.SerializeToString())
    classes = {name: GetMessageClass(message) for name, message in described.message_types_by_name.items()}
    return classes | {"DESCRIPTOR": described}


class Stub:
    """The calls of a file's one service over a channel, each under its method's name, such as `stub.Run(plan)`."""

    def __init__(self, channel: grpc.Channel, file: FileDescriptor):
        (service,) = file.services_by_name.values()
        for method in service.methods:
            call = getattr(channel, _kind(method))(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)


def add_service(server: grpc.Server, file: FileDescriptor, service: Any) -> None:
    """Let a server answer the calls of a file's one service by an object's methods of the same names."""
    (described,) = file.services_by_name.values()
    handler = grpc.method_handlers_generic_handler(
        described.full_name,
        {
            method.name: getattr(grpc, f"{_kind(method)}_rpc_method_handler")(
                getattr(service, method.name),
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
            for method in described.methods
        },
    )
    server.add_generic_rpc_handlers((handler,))


def _kind(method: MethodDescriptor) -> str:
    """Return what gRPC calls a method by whether requests and answers are streams, such as "unary_stream"."""
    return "_".join("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
