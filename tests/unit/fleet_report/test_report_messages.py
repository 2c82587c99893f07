"""The codec of reports: what a host writes the broker reads, and what it mustn't write is refused by its field's name."""

import dataclasses
import functools
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from certplane.fleet_report.fields import FieldError
from certplane.fleet_report.messages import (
    ACTORS,
    CAUSES,
    HEALTHS,
    STATES,
    STEPS,
    read_facts,
    read_status,
    write_facts,
    write_status,
)
from certplane.fleet_report.model import (
    AgentMode,
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostFacts,
    RenewalCause,
    RenewalStep,
)
from certplane.runtime.health import HealthActor, HealthWord
from certplane.v1 import renewal_pb2 as pb

NOW = datetime(2026, 11, 28, 3, 14, 15, 926535, tzinfo=UTC)
DAY = timedelta(days=1)
HELD = HeldCertificate("1f", NOW, NOW + DAY, "c1", 2, NOW)
FULL = CertificateStatus(
    "web", CertificateState.FAILED, "profile", ("a.test", "b.test"), RenewalStep.REQUEST, HELD, HELD, HELD, NOW, "due",
    "refused: é", 1, 2, NOW + DAY, NOW + 2 * DAY, NOW - DAY, "r261123-k7qx",
)  # fmt: skip
LEAST = CertificateStatus("web", CertificateState.ABSENT)
EPOCH = CertificateStatus("web", CertificateState.ABSENT, issued=HeldCertificate("0"), update_time=datetime.fromtimestamp(0, UTC))  # fmt: skip


def written(status: CertificateStatus) -> pb.CertificateStatus:
    message = pb.CertificateStatus()
    write_status(status, message)
    return pb.CertificateStatus.FromString(message.SerializeToString())


@pytest.mark.parametrize("status", [FULL, LEAST, EPOCH], ids=["full", "least", "the epoch"])
def test_what_is_written_is_read(status: CertificateStatus) -> None:
    """Every field, and none that isn't there."""
    assert read_status(written(status)) == status


@pytest.mark.parametrize("state", CertificateState)
@pytest.mark.parametrize("step", [None, *RenewalStep])
def test_every_state_and_step_is_read(state: CertificateState, step: RenewalStep | None) -> None:
    """The protocol knows all that a certificate can be."""
    status = dataclasses.replace(LEAST, state=state, failed_step=step)
    assert read_status(written(status)) == status


def test_every_field_is_the_messages() -> None:
    """A full status leaves no field of its message unset but the broker's."""
    assert all(getattr(FULL, field.name) != field.default for field in dataclasses.fields(FULL))
    message = written(FULL)
    fields = {field.name for field, _ in message.ListFields()}
    assert fields == {name for name in pb.CertificateStatus.DESCRIPTOR.fields_by_name if not name.startswith("health")}
    held = {field.name for field, _ in message.issued.ListFields()}
    assert held == set(pb.CertificateStatus.Held.DESCRIPTOR.fields_by_name)


def test_every_word_has_its_number() -> None:
    """Of the enums of the protocol."""
    assert set(STATES.values()) == set(CertificateState)
    assert set(STEPS.values()) == set(RenewalStep)
    assert set(CAUSES.values()) == set(RenewalCause)
    assert set(HEALTHS.values()) == set(HealthWord)
    assert set(ACTORS.values()) == set(HealthActor)


WRONG_FACTS: dict[str, dict[str, object]] = {
    "run_interval": {"run_interval": Duration(seconds=-1)},
    "broker_roots_sha256": {"broker_roots_sha256": ["AB" * 32]},
    "features": {"features": [f"f{n}" for n in range(21)]},
}


@pytest.mark.parametrize(("field", "values"), WRONG_FACTS.items(), ids=WRONG_FACTS)
def test_facts_that_are_none_are_refused(field: str, values: dict[str, object]) -> None:
    """With the field's name, as every field of a host's message."""
    with pytest.raises(FieldError) as refused:
        read_facts(pb.StreamRenewalStatusRequest.Hello(agent_version="1", **values))  # type: ignore[arg-type]  # each its own
    assert refused.value.field == field


def test_a_newer_agents_mode_is_none_that_is_known() -> None:
    """Nothing that must be understood: the host is taken for a daemon."""
    hello = pb.StreamRenewalStatusRequest.Hello(agent_version="9", agent_mode=pb.AgentMode.ValueType(99))
    assert read_facts(hello) == HostFacts("9")


WRONG: dict[str, tuple[str, str, object]] = {
    "no name": ("name", "name", ""),
    "a long name": ("name", "name", "n" * 65),
    "a profile of other characters": ("profile", "profile", "a/b"),
    "no state": ("state", "state", 0),
    "another release's state": ("state", "state", 99),
    "another release's step": ("failed_step", "failed_step", 99),
    "101 names": ("dns_names", "dns_names", [f"n{n}.test" for n in range(101)]),
    "a name that is none": ("dns_names", "dns_names", ["A.test"]),
    "a long reason": ("renew_reason", "renew_reason", "é" * 251),
    "a long error": ("last_error", "last_error", "x" * 2001),
    "a negative count": ("request_failures", "request_failures", -1),
    "another negative count": ("activation_failures", "activation_failures", -1),
    "no time": ("renew_time", "renew_time.seconds", 2**62),
    "no serial number": ("issued.serial_number", "issued.serial_number", ""),
    "a serial number with zeros": ("served.serial_number", "served.serial_number", "01"),
    "another's id": ("installed.certificate_id", "installed.certificate_id", "a b"),
    "a negative version": ("issued.version", "issued.version", -1),
    "no time of a held one": ("served.not_after_time", "served.not_after_time.nanos", -1),
}


@pytest.mark.parametrize(("field", "path", "value"), WRONG.values(), ids=WRONG)
def test_what_a_field_must_not_hold_is_refused(field: str, path: str, value: object) -> None:
    """By the field's name, whatever it is."""
    message = written(FULL)
    *outer, last = path.split(".")
    inner = functools.reduce(getattr, outer, message)
    if isinstance(value, list):
        getattr(inner, last)[:] = value
    else:
        setattr(inner, last, value)
    with pytest.raises(FieldError) as caught:
        read_status(message)
    assert caught.value.field == field


def test_names_are_sorted_and_texts_made_printable() -> None:
    """As the broker keeps and shows them."""
    message = written(FULL)
    message.dns_names[:] = ["b.test", "a.test"]
    message.last_error = "two\nlines"
    status = read_status(message)
    assert (status.dns_names, status.last_error) == (("a.test", "b.test"), "two lines")


def test_facts_of_a_host_are_the_messages() -> None:
    """Every fact is a field of hello, and of what operators see, under its name."""
    facts = HostFacts("1.2.0", AgentMode.TIMER, timedelta(hours=1), ("ab" * 32,), ("identity",))
    hello, host = pb.StreamRenewalStatusRequest.Hello(), pb.Host()
    write_facts(facts, hello)
    write_facts(facts, host)
    assert read_facts(hello) == facts
    assert {field.name for field, _ in host.ListFields()} == {field.name for field in dataclasses.fields(HostFacts)}


@pytest.mark.parametrize("version", ["", "1\n2", "1" * 65, "é" * 33])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    """A host's version is for operators to read."""
    with pytest.raises(FieldError) as caught:
        read_facts(pb.StreamRenewalStatusRequest.Hello(agent_version=version))
    assert caught.value.field == "agent_version"
