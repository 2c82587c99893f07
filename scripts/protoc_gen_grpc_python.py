"""The gRPC generator inside grpcio-tools as a plugin of its own: buf.gen.yaml makes the *_pb2_grpc.py with it.

Reads a serialized `CodeGeneratorRequest` from standard input and writes the `CodeGeneratorResponse` to standard output
(google/protobuf/compiler/plugin.proto). It works on the request's own descriptors: nothing is compiled a second time.
"""

import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def answer(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    """The stubs of the files that `request` asks for, or what the generator said against them (its status)."""
    with tempfile.TemporaryDirectory() as folder:
        descriptors, out = Path(folder, "descriptors.binpb"), Path(folder, "out")
        out.mkdir()
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        arguments = ["protoc", f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}"]
        status = protoc.main([*arguments, *request.file_to_generate])
        if status != 0:
            return CodeGeneratorResponse(error=f"grpcio-tools ends with status {status}, for its reasons above")
        files = [
            CodeGeneratorResponse.File(name=str(path.relative_to(out)), content=path.read_text(encoding="utf-8"))
            for path in sorted(out.rglob("*.py"))
        ]
    return CodeGeneratorResponse(file=files, supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)


if __name__ == "__main__":
    sys.stdout.buffer.write(answer(CodeGeneratorRequest.FromString(sys.stdin.buffer.read())).SerializeToString())
