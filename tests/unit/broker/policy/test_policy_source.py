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
    """A file that went away is told, whether it is asked for a change or to load it; the last one stays."""
    source = FilePolicySource(path)
    good = source.reload()
    path.unlink()
    with pytest.raises(ConfigurationError, match="does not exist"):
        source.changed()
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


def test_issuers_that_profiles_name_are_the_brokers(path: Path) -> None:
    """A profile with an issuer that broker.yml doesn't have is refused with its line, and what was in force stays."""
    source = FilePolicySource(path, issuers=["default", "second"])
    path.write_text(ONE.replace("]}", "], acme: {issuers: [second, default]}}"))
    good = source.reload()
    path.write_text(ONE.replace("]}", "], acme: {issuers: [second, third]}}"))
    with pytest.raises(ConfigurationError) as caught:
        source.reload()
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, "profiles.one.acme.issuers[1]")
    assert "default, second" in problem.remedy
    assert source.current is good


def test_the_order_of_issuers_is_part_of_a_profile(path: Path) -> None:
    """Another list is another profile to the cache; a profile that names none has the hash that it always had."""
    hashes = []
    for issuers in ("", ", acme: {issuers: [a, b]}", ", acme: {issuers: [b, a]}"):
        path.write_text(ONE.replace("]}", f"]{issuers}}}"))
        profile = FilePolicySource(path).reload().find_profile("one")
        assert profile is not None
        hashes.append(profile.hash)
    assert len(set(hashes)) == 3
    assert hashes[0] == "832160849bda063a230df237fef15278db01626de44266095794c19c4d93c669"


def test_an_issuer_is_named_once(path: Path) -> None:
    """The same issuer again in a profile's list is a mistake."""
    path.write_text(ONE.replace("]}", "], acme: {issuers: [a, a]}}"))
    with pytest.raises(ConfigurationError, match="is a again"):
        FilePolicySource(path).reload()


FLEET = ONE + "hosts:\n  a: {identity: a.host.example, profiles: [one]}\n  b: {identity: b.host.example}\n"
OPERATORS = "operators:\n  alice: {identity: alice.example, roles: [viewer]}\n"


@pytest.mark.parametrize(
    ("before", "after", "phrase"),
    [
        pytest.param(FLEET, ONE + "hosts: {}\n", "gives nothing to anybody", id="hosts-gone"),
        pytest.param(FLEET, "", "gives nothing to anybody", id="empty-file"),
        pytest.param(OPERATORS, ONE, "gives nothing to anybody", id="operators-gone"),
        pytest.param(FLEET + OPERATORS, ONE + OPERATORS, "would lock out all of the policy in force: 2 hosts and services", id="operators-left"),
        pytest.param(
            FLEET, FLEET.replace(", profiles: [one]", ""), "would leave no host or service a profile", id="profiles-taken"
        ),
        pytest.param(
            FLEET, ONE + "services:\n  s: {identity: s.example}\n", "would leave no host or service a profile", id="others-without"
        ),
    ],
)  # fmt: skip
def test_a_reload_shuts_nobody_out_altogether(path: Path, before: str, after: str, phrase: str) -> None:
    """A file that takes everything from everybody is refused while a broker runs, and what was in force stays."""
    path.write_text(before)
    source = FilePolicySource(path)
    good = source.reload()
    path.write_text(after)
    with pytest.raises(ConfigurationError, match=phrase) as caught:
        source.reload()
    assert caught.value.problems[0].remedy
    assert source.current is good


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(FLEET, FLEET.replace("  b: {identity: b.host.example}\n", ""), id="one-of-two"),
        pytest.param(OPERATORS, FLEET, id="operators-to-hosts"),
        pytest.param(FLEET, FLEET.replace(".host.", ".other."), id="all-replaced"),
        pytest.param(OPERATORS, OPERATORS.replace("alice", "bob"), id="operators-stay-operators"),
    ],
)  # fmt: skip
def test_a_reload_may_do_less(path: Path, before: str, after: str) -> None:
    """Taking something from somebody is what policies are for."""
    path.write_text(before)
    source = FilePolicySource(path)
    source.reload()
    path.write_text(after)
    assert source.reload() is source.current


def test_a_start_may_have_operators_only(path: Path) -> None:
    """Who means to take everybody's certificates away restarts the broker: a start takes what is there."""
    path.write_text(OPERATORS)
    assert FilePolicySource(path).reload().host_names == ()


def test_who_holds_a_snapshot_keeps_all_of_it(path: Path) -> None:
    """What a policy is made of is let go in pieces when it is replaced, and not what somebody still has."""
    source = FilePolicySource(path)
    before = source.reload()
    path.write_text(TWO)
    source.reload()
    assert [profile.name for profile in before.profiles] == ["one"]
