"""`policy.guard`: a reload that removes much is refused with what it would remove, until somebody confirms it."""

from __future__ import annotations

from pathlib import Path

import pytest

from certplane.broker.policy.changes import compare
from certplane.broker.policy.document import PolicyDocument, read_policy
from certplane.broker.policy.guard import UnconfirmedError, summary
from certplane.broker.policy.source import FilePolicySource
from certplane.config.document import Document
from certplane.errors import ConfigurationError


def _text(hosts: int, *, profiles: str = "[web, mail]", first: int = 0) -> str:
    lines = [
        "profiles:",
        "  web: {type: multi_san, dns_names: [a.example]}",
        "  mail: {type: multi_san, dns_names: [mail.example]}",
        "operators: {alice: {identity: alice.example, roles: [viewer]}}",
        "hosts:",
    ]
    lines += [f"  h{n}: {{identity: h{n}.example, profiles: {profiles}}}" for n in range(first, first + hosts)]
    return "\n".join([*lines, ""])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.yml"


@pytest.mark.parametrize(
    ("guard", "before", "after", "phrase"),
    [
        pytest.param(10, _text(20), _text(17), "would remove 3 of 20 hosts (15 %) and 6 of 40 grants (15 %)", id="hosts"),
        pytest.param(
            10, _text(20), _text(20, profiles="[web]"), "0 of 20 hosts (0 %) and 20 of 40 grants (50 %)", id="grants"
        ),
        pytest.param(10, _text(20), _text(20, first=10), "would remove 10 of 20 hosts (50 %)", id="replaced"),
        pytest.param(0, _text(20), _text(18), "policy.guard allows 0 %: host h18.example, host h19.example", id="none"),
        pytest.param(
            100, _text(2), "operators: {alice: {identity: alice.example}}\n", "would lock out all of the policy in force: 2 hosts", id="everybody"
        ),
        pytest.param(
            100, _text(2), _text(2, profiles="[]"), "would leave no host or service a profile", id="every profile"
        ),
        pytest.param(10, _text(30), _text(15), "host h15.example", id="first of many"),
        pytest.param(10, _text(30), _text(15), "host h24.example and 5 more", id="many"),
    ],
)  # fmt: skip
def test_what_removes_much_is_to_be_confirmed(path: Path, guard: int, before: str, after: str, phrase: str) -> None:
    """It is refused with its numbers and what to do, stays refused, and is taken once it is confirmed."""
    path.write_text(before)
    source = FilePolicySource(path, guard=guard)
    good = source.reload()
    path.write_text(after)
    for _ in range(2):
        with pytest.raises(UnconfirmedError) as caught:
            source.reload()
        (problem,) = caught.value.problems
        assert phrase in problem.message
        assert "`certplane-broker reload --confirm`" in problem.remedy
        assert source.current is good
        assert not source.changed(), "what is refused isn't asked about at every look"
    taken = source.reload(confirmed=True)
    assert source.current is taken is not good
    assert source.loaded.text() == after.encode()
    assert source.reload() is source.current, "what is in force is asked about no more"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(_text(20), _text(18), id="as much as is allowed"),
        pytest.param(_text(3), _text(2), id="one host of three"),
        pytest.param(_text(2), _text(2).replace("h1, ", "h1, ").replace("h1.example, profiles: [web, mail]", "h1.example, profiles: []"), id="all profiles of one host"),
        pytest.param(_text(2), _text(50), id="many more"),
        pytest.param(_text(0), _text(2), id="from none"),
        pytest.param(_text(20), _text(20) + "  more: {identity: more.example}\n", id="one more"),
    ],
)  # fmt: skip
def test_what_removes_little_is_taken(path: Path, before: str, after: str) -> None:
    """No more than the guard allows, or what one identity alone loses."""
    path.write_text(before)
    source = FilePolicySource(path, guard=10)
    source.reload()
    path.write_text(after)
    assert source.reload() is source.current


def test_nobody_can_be_confirmed_away(path: Path) -> None:
    """A policy without any identity is a template's mistake whoever confirms it."""
    path.write_text(_text(2))
    source = FilePolicySource(path, guard=10)
    source.reload()
    path.write_text("hosts: {}\n")
    with pytest.raises(ConfigurationError, match="gives nothing to anybody") as caught:
        source.reload(confirmed=True)
    assert not isinstance(caught.value, UnconfirmedError)


def test_summary() -> None:
    """One line for the log and the audit event: what there was and is, and the first losses by name."""

    def read(text: str) -> PolicyDocument:
        return read_policy(Document.parse(text.encode(), "policy.yml"))

    before, after = read(_text(3)), read(_text(2, profiles="[web]"))
    assert summary(compare(before, before)) == ""
    assert summary(compare(before, after)) == (
        "hosts 3 -> 2 (+0 -1); grants 6 -> 2 (+0 -4); lost: host h2.example, grant h0.example mail, grant h1.example mail"
    )


def test_plan_changes_nothing(path: Path) -> None:
    """What a text would change, and whether it would have to be confirmed; what is in force stays."""
    path.write_text(_text(20))
    source = FilePolicySource(path, guard=10)
    good = source.reload()
    policy, changes, unconfirmed = source.plan(_text(10).encode(), "the new policy")
    assert (len(policy.host_names), changes.before_hash) == (10, good.hash)
    assert "would remove 10 of 20" in unconfirmed
    assert source.plan(_text(19).encode(), "the new policy")[2] == ""
    with pytest.raises(ConfigurationError, match="the new policy:1: host: is not a known key"):
        source.plan(b"host: {}\n", "the new policy")
    assert source.current is good
