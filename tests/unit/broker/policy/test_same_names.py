"""Names that many hosts share: what their first certificates take, and what is said of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.budget.model import IssuerLimits, Limit, LimitScope
from certplane.broker.commands import policy_rows
from certplane.broker.policy.document import PolicyDocument, read_policy
from certplane.broker.policy.same_names import same_names, warnings
from certplane.config.document import Document

WEEK = timedelta(weeks=1)
NAMES = Limit("names", LimitScope.NAMES, 5, WEEK)
BUDGETS = {
    "first": IssuerLimits("first", "https://ca.example/dir", "configuration", (NAMES,)),
    "free": IssuerLimits("free", "https://free.example/dir", "none"),
    "again": IssuerLimits("again", "https://ca.example/dir", "configuration", (NAMES,)),
}


def policy(profile: str, hosts: int, *more: str) -> PolicyDocument:
    return read_policy(Document.parse(text(profile, hosts, *more).encode(), "policy.yml"))


def text(profile: str, hosts: int, *more: str) -> str:
    lines = [f"  h{n}: {{identity: h{n}.id, profiles: [web], labels: {{dc: dc{n % 2}}}}}" for n in range(hosts)]
    return "\n".join([f"profiles: {{web: {{type: multi_san, {profile}}}}}", "hosts:", *lines, *more]) + "\n"


@pytest.mark.parametrize(
    ("profile", "hosts", "found"),
    [
        pytest.param("dns_names: [a.test]", 5, [], id="as-many-as-fit"),
        pytest.param("dns_names: [a.test]", 6, [(6, WEEK / 5)], id="one-more"),
        pytest.param("dns_names: [a.test]", 105, [(105, 20 * WEEK)], id="a-hundred-more"),
        pytest.param("dns_names: ['{label}.test']", 105, [], id="names-of-their-own"),
        pytest.param("dns_names: ['{labels.dc}.test']", 17, [(9, 4 * WEEK / 5), (8, 3 * WEEK / 5)], id="some-share"),
        pytest.param("dns_names: [a.test], acme: {issuers: [free]}", 105, [], id="an-issuer-without-limits"),
        pytest.param("dns_names: [a.test], acme: {issuers: [unknown]}", 105, [], id="an-issuer-that-is-not-there"),
    ],
)
def test_what_takes_time(profile: str, hosts: int, found: list[tuple[int, timedelta]]) -> None:
    """A certificate for each holder, a place for each at once, and then one after the other; the longest first."""
    assert [(each.identities, each.duration) for each in same_names(policy(profile, hosts), BUDGETS)] == found


def test_a_ca_counts_all_who_ask() -> None:
    """Whatever the profile, and by whichever of our accounts; an operator holds no certificate."""
    more = "services: {api: {identity: api.id, profiles: [web]}}"
    made = read_policy(
        Document.parse(
            (
                "profiles:\n  web: {type: multi_san, dns_names: [a.test]}\n"
                "  other: {type: multi_san, dns_names: [a.test], acme: {issuers: [again]}}\nhosts:\n"
                + "".join(f"  h{n}: {{identity: h{n}.id, profiles: [{'web' if n else 'other'}]}}\n" for n in range(5))
                + f"{more}\noperators: {{alice: {{identity: alice.id}}}}\n"
            ).encode(),
            "policy.yml",
        )
    )
    (found,) = same_names(made, BUDGETS)
    assert (found.identities, found.dns_names, found.limit) == (6, ("a.test",), NAMES)


def test_it_is_told_with_ways_out(tmp_path: Path) -> None:
    """By `policy validate` with a broker.yml, as a notice; of very many sets the first few are named."""
    path = tmp_path / "policy.yml"
    path.write_text(text("dns_names: [a.test, b.test, c.test, d.test]", 40))
    (notice,) = policy_rows(path, (), BUDGETS)["notices"]
    assert notice.startswith(
        "40 identities get the same names by profile web (a.test, b.test, c.test and 1 more), each with a key of its own, "
        "and the CA issues 5 per 168h for these: it takes 49d 0h until each has its first certificate"
    )
    assert "{label}" in notice
    assert "acme.issuers" in notice
    assert policy_rows(path, ())["notices"] == []
    many = same_names(policy("dns_names: [a.test]", 6), BUDGETS) * 7
    assert len(warnings(many)) == 6
    assert warnings(many)[-1] == "so it is for 2 more sets of names"
