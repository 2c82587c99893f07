"""What `PendingKeys` and `PendingKeyMaterial` promise, asked of the fake and of the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.model import PendingRequest
from certplane.agent.ports import PendingKeys
from certplane.pki.csr import parse_csr
from certplane.pki.keys import KeyType, generate_private_key, load_private_key, private_key_pem, public_key_sha256
from tests.fakes.agent_keystore import FakePendingKeys
from tests.fakes.clock import ManualClock


class Subject:
    """An implementation, how to give it a current key, and how to start it anew."""

    def __init__(self, keys: Any, restart: Callable[[], Any], set_current: Callable[[bytes], None]) -> None:
        self.keys = keys
        self.restart = restart
        self.set_current = set_current


@pytest.fixture(params=["fake", "file"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    clock = ManualClock()
    if request.param == "fake":
        fake = FakePendingKeys(clock=clock)

        def hold(pem: bytes) -> None:
            fake.current_key = lambda: load_private_key(pem)

        return Subject(fake, lambda: fake, hold)

    directory = tmp_path / "www"

    def store(pem: bytes) -> None:
        (directory / "versions" / "1").mkdir(parents=True)
        (directory / "versions" / "1" / "privkey.pem").write_bytes(pem)
        (directory / "current").symlink_to("versions/1")

    return Subject(FilePendingKeys(directory, clock=clock), lambda: FilePendingKeys(directory, clock=clock), store)


def begin(keys: PendingKeys, *, replaces: str = "", reuse_key: bool = False) -> PendingRequest:
    return keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id=replaces, reuse_key=reuse_key)


def test_nothing_is_pending_at_first(subject: Subject) -> None:
    """A new lineage has no pending request and no key."""
    assert subject.keys.pending() is None
    assert subject.keys.private_key_pem() is None
    assert subject.keys.request_id() is None


def test_request_carries_the_names_and_the_key(subject: Subject) -> None:
    """The CSR asks for the names and is signed with the key that is kept."""
    request = begin(subject.keys, replaces="cert-1")
    csr = parse_csr(request.csr_pem)
    assert csr.dns_names == ("www.example.org",)
    assert csr.public_key_sha256 == request.public_key_sha256
    assert public_key_sha256(load_private_key(subject.keys.private_key_pem()).public_key()) == csr.public_key_sha256
    assert request.replaces_certificate_id == "cert-1"
    assert request.create_time == ManualClock().now()


def test_a_retry_sends_the_same_request(subject: Subject) -> None:
    """While a request is pending, beginning again returns it, also after a restart."""
    first = begin(subject.keys)
    key = subject.keys.private_key_pem()
    assert begin(subject.keys, replaces="other") == first
    again = subject.restart()
    assert begin(again) == first == again.pending()
    assert again.private_key_pem() == key


def test_recorded_order_survives_a_restart(subject: Subject) -> None:
    """Which order the request became is noted beside it; nothing else of it changes."""
    first = begin(subject.keys)
    recorded = subject.keys.record_order("order-7")
    assert recorded.order_id == "order-7"
    pending = subject.restart().pending()
    assert pending == recorded
    assert pending.csr_pem == first.csr_pem


def test_recording_an_order_without_a_request_is_misuse(subject: Subject) -> None:
    """An order belongs to a request."""
    with pytest.raises(RuntimeError):
        subject.keys.record_order("order-7")


def test_abandoned_request_gives_way_to_a_new_key(subject: Subject) -> None:
    """After `abandon` the next request has another key; abandoning nothing is no error."""
    first = begin(subject.keys)
    subject.keys.abandon()
    subject.keys.abandon()
    assert subject.keys.pending() is None
    assert begin(subject.keys).public_key_sha256 != first.public_key_sha256


def test_new_request_has_a_new_key_by_default(subject: Subject) -> None:
    """The current version's key is not used again unless that is asked for."""
    current = generate_private_key(KeyType.EC_P256)
    subject.set_current(private_key_pem(current))
    assert begin(subject.keys).public_key_sha256 != public_key_sha256(current.public_key())


def test_reused_key_is_the_current_versions(subject: Subject) -> None:
    """With `reuse_key` the CSR is for the current version's key."""
    current = generate_private_key(KeyType.EC_P256)
    subject.set_current(private_key_pem(current))
    assert begin(subject.keys, reuse_key=True).public_key_sha256 == public_key_sha256(current.public_key())


def test_reuse_without_a_current_version_makes_a_key(subject: Subject) -> None:
    """The first request of a lineage has a new key whatever the setting."""
    assert begin(subject.keys, reuse_key=True).public_key_sha256


def test_requests_are_told_apart_by_id(subject: Subject) -> None:
    """Two requests of one lineage have different ids, also with the same key; one keeps its id."""
    current = generate_private_key(KeyType.EC_P256)
    subject.set_current(private_key_pem(current))
    begin(subject.keys, reuse_key=True)
    first = subject.keys.request_id()
    subject.keys.record_order("order-7")
    assert subject.keys.request_id() == first
    subject.keys.abandon()
    begin(subject.keys, reuse_key=True)
    assert subject.keys.request_id() not in {None, first}


def test_forgetting_an_older_request_spares_the_pending_one(subject: Subject) -> None:
    """`forget` drops the request that it names and no other."""
    request = begin(subject.keys)
    subject.keys.forget("0123456789abcdef")
    assert subject.keys.pending() == request
    subject.keys.forget(subject.keys.request_id())
    assert subject.keys.pending() is None
