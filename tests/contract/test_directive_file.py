"""What `DirectiveFile` and `ActivationFile` promise, asked of the fakes and of the real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certplane.agent.install.directive import JsonActivationFile, JsonDirectiveFile
from certplane.agent.model import Activation, DirectedRenewal
from certplane.agent.ports import ActivationFile, DirectiveFile
from certplane.errors import OperationError
from certplane.fleet_report.model import RenewalCause
from tests.fakes.agent_install import FakeActivationFile, FakeDirectiveFile

FULL = DirectedRenewal(
    certificate_id="certificate-1",
    renew_time=datetime(2026, 11, 23, 12, 0, 0, 7, tzinfo=UTC),
    cause=RenewalCause.ISSUER,
    reason="the CA found \u00e4 mistake",
    explanation_url="https://ca.example/incident",
    renewal_request_id="request-1",
    serial_number="1f",  # an identity has no id: here both stand
    receive_time=datetime(2026, 11, 23, 12, 0, 1, tzinfo=UTC),
    rollout_id="rollout-1",
    hold_activation=True,
    activate_by_time=datetime(2026, 12, 1, tzinfo=UTC),
    new_key=True,
    abandoned=True,
)


@pytest.fixture(params=["fake", "json"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], DirectiveFile]:
    """The file as after a restart."""
    if request.param == "json":
        return lambda: JsonDirectiveFile(tmp_path / "www")
    fake = FakeDirectiveFile()
    return lambda: fake


def test_nothing_saved_is_nothing_loaded(reopen: Callable[[], DirectiveFile]) -> None:
    """A lineage of which the broker has said nothing."""
    assert reopen().load() is None


def test_the_last_save_survives_a_restart(reopen: Callable[[], DirectiveFile]) -> None:
    """To the last field; an earlier one is replaced."""
    assert all(getattr(FULL, each.name) for each in dataclasses.fields(FULL))
    reopen().save(dataclasses.replace(FULL, certificate_id="certificate-0"))
    reopen().save(FULL)
    assert reopen().load() == FULL
    assert reopen().load().receive_time == FULL.receive_time  # type: ignore[union-attr]  # equal without it


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "renew_time": "2026-11-23T12:00:00"}'],
)
def test_what_cannot_be_read_counts_for_nothing(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    """The certificate then keeps its own time; it is said."""
    file = JsonDirectiveFile(tmp_path / "www")
    file.save(FULL)
    (tmp_path / "www" / "directive.json").write_text(content)
    assert file.load() is None
    assert "is ignored" in caplog.text


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    """So that nobody acknowledges what isn't kept."""
    (tmp_path / "www").write_text("a file where the directory should be")
    with pytest.raises(OperationError):
        JsonDirectiveFile(tmp_path / "www").save(FULL)


@pytest.mark.parametrize("kind", ["fake", "json"])
def test_what_was_said_of_held_certificates_survives_a_restart(kind: str, tmp_path: Path) -> None:
    """All of it, and an earlier word is replaced."""
    fake = FakeActivationFile()
    told = (Activation("c1", "rollout-1"), Activation("c2", "rollout-1", abandoned=True))

    def reopened() -> ActivationFile:
        return fake if kind == "fake" else JsonActivationFile(tmp_path / "www")

    assert reopened().load() == ()
    reopened().save((Activation("c0", "rollout-0"),))
    reopened().save(told)
    assert reopened().load() == told
    reopened().save(())
    assert reopened().load() == ()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "activations": [7]}'])
def test_what_cannot_be_read_releases_nothing(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    """A certificate that is held stays so; it is said."""
    file = JsonActivationFile(tmp_path / "www")
    file.save((Activation("c1", "rollout-1"),))
    (tmp_path / "www" / "activation.json").write_text(content)
    assert file.load() == ()
    assert "activation.json can't be read and is ignored" in caplog.text
