"""The .proto files of Certplane's services, for whoever generates stubs or calls with grpcurl.

    python3 -m certplane.rpc.protos FOLDER     writes them into FOLDER, with google/rpc/*.proto that go with them

The wheel has ours beside the stubs (`certplane/v1/*.proto`), as googleapis-common-protos has google/rpc/*.proto: the
folder of an environment's packages is an import path for protoc and buf by itself. A checkout has them in proto/ and
third_party/. google/protobuf/*.proto come with every protoc, buf and grpcurl.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from certplane.errors import OperationError
from certplane.runtime.command import OK, exit_status
from certplane.runtime.text import counted

_PROGRAM: Final = "certplane.rpc.protos"
_OURS: Final = "certplane/v1"
_GOOGLES: Final = ("google/rpc/error_details.proto", "google/rpc/status.proto")
"""What ours import, and what the details of each refusal are."""


def files() -> dict[str, Path]:
    """Each file by the name that others import it by, as `certplane/v1/order.proto`.

    Raises:
        OperationError: this installation has none.
    """
    installed = Path(__file__).parents[2]
    for folder in installed / _OURS, installed / "proto" / _OURS:
        found = {f"{_OURS}/{path.name}": path for path in sorted(folder.glob("*.proto"))}
        if found:
            return found | {name: _of_googleapis(name) for name in _GOOGLES}
    remedy = "install Certplane's wheel, or take proto/ of its source"
    raise OperationError(f"there are no .proto files below {installed}", remedy=remedy)


def _of_googleapis(name: str) -> Path:
    package = find_spec("google.rpc")
    for folder in (package and package.submodule_search_locations) or ():
        if (path := Path(folder, Path(name).name)).exists():
            return path
    remedy = "install googleapis-common-protos again"
    raise OperationError(f"this environment has no {name}", remedy=remedy)


def lay(folder: Path) -> list[Path]:
    """Write the files below `folder`, which is made where it is missing; those of another version are replaced.

    Raises:
        OperationError: one can't be written.
    """
    laid = []
    for name, source in files().items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        except OSError as error:
            raise OperationError(
                f"{error.filename or target} can't be written: {error.strerror}", remedy="name another folder"
            ) from error
        laid.append(target)
    return laid


def main() -> int:
    """Lay them where the command line says."""
    parser = argparse.ArgumentParser(_PROGRAM, description="Write the .proto files of Certplane's services.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to; it becomes an import path")
    folder: Path = parser.parse_args().folder
    laid = lay(folder)
    sys.stdout.write(f"{counted(len(laid), 'file')} below {folder}: the import path of protoc, buf and grpcurl\n")
    return OK


if __name__ == "__main__":
    sys.exit(exit_status(_PROGRAM, main))
