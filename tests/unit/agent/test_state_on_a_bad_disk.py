"""The agent's own files where the disk, or somebody, has something against them: path, cause and remedy in each error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from certplane.agent.install.json_file import LineageJson
from certplane.agent.install.lock import StateLock
from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.link.state import LinkState
from certplane.errors import OperationError
from certplane.pki.keys import KeyType
from certplane.runtime.clock import SystemClock


def _keys(folder: Path) -> FilePendingKeys:
    return FilePendingKeys(folder, clock=SystemClock(), key_type=KeyType.EC_P256)


def save(folder: Path) -> None:
    LineageJson(folder, "status.json", if_unreadable="starts over").save(LinkState())


def begin(folder: Path) -> None:
    _keys(folder).begin(common_name="", sans=["web.example"], replaces_certificate_id="", reuse_key=False)


def load(folder: Path) -> None:
    _keys(folder).request_id()


def lock(folder: Path) -> None:
    StateLock(folder).acquire()


@pytest.mark.parametrize(
    ("plant", "use", "words"),
    [
        pytest.param(
            ".status.json.certplane-new/", save, "certplane-new is a directory", id="status's new file is one"
        ),
        pytest.param("lock/", lock, "lock is a directory", id="lock is a directory"),
        pytest.param("pending", load, "pending is no directory", id="pending request is a file"),
        pytest.param("pending/", load, "privkey.pem doesn't exist", id="pending request without its key"),
        pytest.param(".pending-new", begin, ".pending-new is no directory", id="its beginning is a file"),
    ],
)
def test_the_error_says_where_what_and_what_to_do(
    tmp_path: Path, plant: str, use: Callable[[Path], None], words: str
) -> None:
    """No bare errno: whoever reads it at night knows the file and the next step."""
    if plant.endswith("/"):
        (tmp_path / plant).mkdir()
    else:
        (tmp_path / plant).write_text("a file")
    with pytest.raises(OperationError) as caught:
        use(tmp_path)
    assert words in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert "Errno" not in str(caught.value)
    assert caught.value.remedy
