"""The .proto files that the installed program has, for who generates stubs or calls with grpcurl."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from certplane.errors import OperationError
from certplane.rpc import protos
from certplane.runtime.command import FAILED, exit_status
from tests.support.waiting import HANG

ROOT = Path(__file__).parents[3]
OURS = sorted((ROOT / "proto").rglob("*.proto"))


def test_all_of_them_are_laid(tmp_path: Path) -> None:
    """Each proto of ours and what goes with them lands under the name that it is imported by."""
    laid = protos.lay(tmp_path / "new" / "folder")
    wanted = {str(path.relative_to(ROOT / "proto")): path.read_bytes() for path in OURS}
    found = {str(path.relative_to(tmp_path / "new" / "folder")): path.read_bytes() for path in laid}
    googles = ROOT / "third_party" / "googleapis"
    wanted |= {str(path.relative_to(googles)): path.read_bytes() for path in googles.rglob("*.proto")}
    assert found == wanted


def test_they_are_found_beside_the_stubs_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wheel is installed, its own files are taken."""
    (tmp_path / "certplane/rpc").mkdir(parents=True)
    (tmp_path / "certplane/v1").mkdir()
    (tmp_path / "certplane/v1/order.proto").write_text("// the wheel's")
    monkeypatch.setattr(protos, "__file__", str(tmp_path / "certplane/rpc/protos.py"))
    assert protos.files()["certplane/v1/order.proto"].read_text() == "// the wheel's"


def test_those_of_another_version_are_replaced(tmp_path: Path) -> None:
    """Laid twice, the folder has what this version has."""
    first = protos.lay(tmp_path)
    first[0].write_text("// of another version")
    second = protos.lay(tmp_path)
    assert second == first
    assert second[0].read_bytes() == OURS[0].read_bytes()


def test_an_installation_without_them_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that somebody stripped from the wheel are named with what to do."""
    monkeypatch.setattr(protos, "__file__", str(tmp_path / "certplane/rpc/protos.py"))
    with pytest.raises(OperationError, match=r"no \.proto files below") as caught:
        protos.lay(tmp_path)
    assert "wheel" in caught.value.remedy


def test_a_folder_that_is_a_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can't be written ends with status 1 and one line with its remedy."""
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(sys, "argv", ["protos", str(tmp_path / "taken")])
    assert exit_status("certplane.rpc.protos", protos.main) == FAILED
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path / "taken") in said
    assert "name another folder" in said


def test_grpc_tools_compiles_what_is_laid(tmp_path: Path) -> None:
    """A protoc with the folder as its only import path makes stubs of them."""
    folder, out = tmp_path / "protos", tmp_path / "out"
    out.mkdir()
    laid = subprocess.run(
        [sys.executable, "-m", "certplane.rpc.protos", folder], capture_output=True, text=True, timeout=HANG, check=True
    )
    assert laid.stdout == f"{len(OURS) + 2} files below {folder}: the import path of protoc, buf and grpcurl\n"
    shutil.copytree(folder, tmp_path / "moved")  # they are files, not links
    names = [str(path.relative_to(ROOT / "proto")) for path in OURS]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{tmp_path / 'moved'}", f"--python_out={out}", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(out.rglob("*_pb2.py"))) == len(OURS)
