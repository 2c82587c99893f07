"""Certificates of a profile whose names are made of labels: each host's own, at each question that is asked."""

from __future__ import annotations

import pytest

from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.model import CertificateRecord, OrderState
from certplane.broker.policy.document import PolicyDocument, read_policy
from certplane.config.document import Document
from certplane.errors import Reason, RefusalError
from tests.support.issuance import NO_WAIT, World, caller, csr, issue, settle


def labels(first: str = "fra1", second: str = "fra1") -> PolicyDocument:
    """Two hosts with a data centre each."""
    text = (
        "profiles: {shop: {type: multi_san, dns_names: ['{label}.{labels.dc}.test']}}\n"
        f"hosts: {{web1: {{identity: web1.test, profiles: [shop], labels: {{dc: {first}}}}}, "
        f"web2: {{identity: web2.test, profiles: [shop], labels: {{dc: {second}}}}}}}\n"
    )
    return read_policy(Document.parse(text.encode(), "policy.yml"))


def asks(key: str, name: str) -> str:
    return csr(key, (name,))


async def started() -> tuple[World, RegistrationAuthority]:
    """A broker with this policy."""
    world = World()
    authority = await world.started()
    world.policies.policy = labels()
    return world, authority


async def issued(authority: RegistrationAuthority, host: str, key: str, name: str) -> CertificateRecord:
    command = issue(key, csr_pem=asks(key, name), request_id=key)
    found = (await authority.issue(caller(f"{host}.test"), command)).certificate
    assert found is not None
    return found


async def test_each_host_gets_its_own() -> None:
    """And the audit log has its literal names; the same one is handed out again."""
    world, authority = await started()
    first = await issued(authority, "web1", "one", "web1.fra1.test")
    second = await issued(authority, "web2", "two", "web2.fra1.test")
    assert (first.dns_names, second.dns_names) == (("web1.fra1.test",), ("web2.fra1.test",))
    assert first.profile_hash != second.profile_hash
    assert (await issued(authority, "web1", "one", "web1.fra1.test")).certificate_id == first.certificate_id
    expected = {name for event in world.database.events for name in event.expected_dns_names}
    assert expected == {"web1.fra1.test", "web2.fra1.test"}


async def test_anothers_names_are_refused() -> None:
    """The refusal, and the audit log, say what this host may have."""
    world, authority = await started()
    with pytest.raises(RefusalError, match=r"lacks web2\.fra1\.test") as caught:
        await issued(authority, "web2", "one", "web1.fra1.test")
    assert caught.value.refusal.reason is Reason.NAMES_NOT_ALLOWED
    assert world.database.events[-1].expected_dns_names == ("web2.fra1.test",)
    assert not world.orders


async def test_another_label_ends_an_order_under_way() -> None:
    """Asked again before anything that can't be undone: the names aren't the host's any more."""
    world, authority = await started()
    gate = world.issuer.faults.hold("answer_challenges")
    command = issue("one", csr_pem=asks("one", "web1.fra1.test"), wait=NO_WAIT)
    await authority.issue(caller(), command)
    await settle()
    world.policies.policy = labels(first="ams1")
    gate.set()
    await world.run_on()
    assert world.order.state is OrderState.FAILED
    assert world.order.error is not None
    assert world.order.error.reason is Reason.NAMES_NOT_ALLOWED


async def test_another_hosts_label_changes_nothing() -> None:
    """An order, and what is stored, stay what they are: the profile's hash is each identity's own."""
    world, authority = await started()
    gate = world.issuer.faults.hold("answer_challenges")
    command = issue("one", csr_pem=asks("one", "web1.fra1.test"), wait=NO_WAIT)
    await authority.issue(caller(), command)
    await settle()
    world.policies.policy = labels(second="ams1")
    gate.set()
    await world.run_on()
    assert world.order.state is OrderState.ISSUED
