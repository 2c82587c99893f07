"""The last policy that loaded stays in force, whatever happens to the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from certplane.broker.policy.source import FilePolicySource
from certplane.broker.ports import Policy, PolicySource
from certplane.errors import ConfigurationError, Reason, RefusalError

ONE = "version: 1\nprofiles:\n  one: {type: multi_san, dns_names: [a.example]}\n"
TWO = ONE.replace("one:", "two:")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yml"
    path.write_text(ONE)
    return path


def test_is_the_port(path: Path) -> None:
    """The source fits the port, and so does what it gives."""
    source: PolicySource = FilePolicySource(path)
    assert isinstance(source, FilePolicySource)
    policy: Policy = source.reload()
    assert source.current is policy


def test_nothing_loaded(path: Path) -> None:
    """Before the first load there is no policy, and that is unavailable, not a crash."""
    with pytest.raises(RefusalError) as caught:
        _ = FilePolicySource(path).current
    assert caught.value.refusal.reason is Reason.POLICY_UNAVAILABLE


def test_a_reload_is_another_snapshot(path: Path) -> None:
    """Who holds a snapshot keeps it; who asks anew gets the new one."""
    source = FilePolicySource(path)
    before = source.reload()
    path.write_text(TWO)
    assert source.changed()
    after = source.reload()
    assert source.current is after
    assert after.hash != before.hash
    assert before.find_profile("one") is not None
    assert after.find_profile("one") is None
    assert not source.changed()


@pytest.mark.parametrize("content", [b"version: 7", b"\xff", b"version: 1\nprofiles: {x: {}}"])
def test_the_last_good_one_stays(path: Path, content: bytes) -> None:
    """A file that doesn't load says why and changes nothing; it is not tried again until it changes."""
    source = FilePolicySource(path)
    good = source.reload()
    path.write_bytes(content)
    assert source.changed()
    with pytest.raises(ConfigurationError):
        source.reload()
    assert source.current is good
    assert not source.changed()
    path.write_text(TWO)
    assert source.changed()
    assert source.reload().find_profile("two") is not None


def test_a_missing_file(path: Path) -> None:
    """A file that went away is no change; asked to load it, the source says so and keeps the last one."""
    source = FilePolicySource(path)
    good = source.reload()
    path.unlink()
    assert not source.changed()
    with pytest.raises(ConfigurationError, match="does not exist"):
        source.reload()
    assert source.current is good


def test_touching_is_no_change(path: Path) -> None:
    """Content counts, not times: a configuration tool that rewrites the same file causes nothing."""
    source = FilePolicySource(path)
    source.reload()
    path.unlink()
    path.write_text(ONE)
    assert not source.changed()
