"""What `VersionStore` promises, asked of the fake and of the real one in both modes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.agent.install.lineage import FileVersionStore
from certplane.agent.install.material import Outputs
from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.model import ActivationHold, InstallMode, IssuedCertificate, Version
from certplane.errors import OperationError
from tests.fakes.agent_install import FakeVersionStore
from tests.fakes.agent_keystore import FakePendingKeys
from tests.fakes.clock import ManualClock
from tests.support.lineages import LocalIssuer

ISSUER = LocalIssuer()


class Subject:
    def __init__(self, keys: Any, store: Any) -> None:
        self.keys = keys
        self.store = store

    def request(self) -> str:
        request = self.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
        return str(request.csr_pem)

    def stage(self) -> Version:
        version: Version = self.store.stage(ISSUER.issue(self.request()))
        return version


@pytest.fixture(params=["fake", "link", "copy"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    clock = ManualClock()
    if request.param == "fake":
        fake_keys = FakePendingKeys(clock=clock)
        return Subject(fake_keys, FakeVersionStore(fake_keys))
    keys = FilePendingKeys(tmp_path / "state" / "www", clock=clock)
    outputs = Outputs(key=tmp_path / "etc" / "key.pem", fullchain=tmp_path / "etc" / "fullchain.pem")
    mode = InstallMode(request.param)
    return Subject(keys, FileVersionStore(tmp_path / "state" / "www", outputs, keys=keys, mode=mode))


def test_new_lineage_has_no_version(subject: Subject) -> None:
    """Nothing is current and nothing is listed before the first certificate."""
    assert subject.store.current() is None
    assert list(subject.store.versions()) == []


def test_staged_version_says_what_the_certificate_is(subject: Subject) -> None:
    """A version carries the certificate's facts and what the broker said."""
    renew_time = datetime(2027, 1, 22, tzinfo=UTC)
    issued = ISSUER.issue(subject.request(), certificate_id="cert-1", renew_time=renew_time)
    version = subject.store.stage(issued)
    assert version.number == 1
    assert version.dns_names == ("www.example.org",)
    assert version.certificate_id == "cert-1"
    assert version.renew_time == renew_time
    assert version.not_after - version.not_before == timedelta(days=90)
    assert version.key_type == "ec-p256"
    assert list(subject.store.versions()) == [version]


def test_a_version_is_held_from_the_moment_that_it_is_there(subject: Subject) -> None:
    """What holds it stands in it; delivered again, without that, it is still held."""
    hold = ActivationHold("rollout-1", datetime(2027, 1, 22, tzinfo=UTC))
    issued = ISSUER.issue(subject.request(), certificate_id="cert-1")
    assert subject.store.stage(issued, hold).hold == hold
    assert subject.store.stage(issued).hold == hold
    (version,) = subject.store.versions()
    assert version.hold == hold


def test_staging_changes_nothing_that_is_shown(subject: Subject) -> None:
    """A staged version isn't current until it is activated."""
    first = subject.stage()
    subject.store.activate(first)
    second = subject.stage()
    assert subject.store.current() == first
    subject.store.activate(second)
    assert subject.store.current() == second


def test_staged_request_is_no_longer_pending(subject: Subject) -> None:
    """The pending key is forgotten once a version holds it."""
    subject.stage()
    assert subject.keys.pending() is None


def test_staging_the_same_certificate_again_returns_the_same_version(subject: Subject) -> None:
    """A repeated delivery makes no second version, whatever is pending by then."""
    issued = ISSUER.issue(subject.request())
    first = subject.store.stage(issued)
    assert subject.store.stage(issued) == first
    subject.request()
    assert subject.store.stage(issued) == first
    assert len(subject.store.versions()) == 1
    assert subject.keys.pending() is not None


def test_certificate_for_another_key_is_refused(subject: Subject) -> None:
    """A leaf that isn't for the pending key makes no version and leaves the request pending."""
    other = FakePendingKeys(clock=ManualClock()).begin(
        common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False
    )
    subject.request()
    with pytest.raises(OperationError, match="another key"):
        subject.store.stage(ISSUER.issue(other.csr_pem))
    assert list(subject.store.versions()) == []
    assert subject.keys.pending() is not None


@pytest.mark.parametrize(
    "certificate",
    [pytest.param("", id="empty"), pytest.param("<html>", id="html"), pytest.param("é", id="not ascii")],
)
def test_what_is_no_certificate_is_refused(subject: Subject, certificate: str) -> None:
    """Anything but certificates in PEM is an `OperationError`, whatever the peer sent."""
    subject.request()
    with pytest.raises(OperationError):
        subject.store.stage(IssuedCertificate(certificate, ""))
    assert list(subject.store.versions()) == []


def test_certificate_without_a_request_is_refused(subject: Subject) -> None:
    """Without a pending key there is nothing that the certificate could belong to."""
    issued = ISSUER.issue(subject.request())
    subject.keys.abandon()
    with pytest.raises(OperationError, match="no key"):
        subject.store.stage(issued)


def test_an_older_version_can_be_shown_again(subject: Subject) -> None:
    """Going back is activating the version before; numbers go on from the newest."""
    first, second = subject.stage(), subject.stage()
    subject.store.activate(second)
    subject.store.activate(first)
    assert subject.store.current() == first
    assert subject.stage().number == 3


def test_activating_again_is_no_change(subject: Subject) -> None:
    """What is shown already stays."""
    version = subject.stage()
    subject.store.activate(version)
    subject.store.activate(version)
    assert subject.store.current() == version


def test_a_version_that_is_gone_cannot_be_shown(subject: Subject) -> None:
    """Activating a version that isn't there is an error and changes nothing."""
    first, second, third = subject.stage(), subject.stage(), subject.stage()
    subject.store.activate(third)
    subject.store.prune(1)
    assert list(subject.store.versions()) == [second, third]
    with pytest.raises(OperationError, match="version 1"):
        subject.store.activate(first)
    assert subject.store.current() == third


@pytest.mark.parametrize(
    ("current", "keep", "left"),
    [
        pytest.param(5, 2, [4, 5], id="the newest"),
        pytest.param(5, 1, [4, 5], id="the one before the current stays"),
        pytest.param(2, 2, [1, 2, 4, 5], id="the current and the one before it stay"),
        pytest.param(1, 1, [1, 5], id="the first has none before it"),
        pytest.param(5, 9, [1, 2, 3, 4, 5], id="more than there are"),
    ],
)
def test_pruning_keeps_what_is_needed(subject: Subject, current: int, keep: int, left: list[int]) -> None:
    """Pruning removes old versions, never the current one nor the one before it."""
    versions = {version.number: version for version in [subject.stage() for _ in range(5)]}
    subject.store.activate(versions[current])
    subject.store.prune(keep)
    assert [version.number for version in subject.store.versions()] == left


def test_pruning_everything_is_misuse(subject: Subject) -> None:
    """At least one version is kept."""
    with pytest.raises(ValueError):
        subject.store.prune(0)
