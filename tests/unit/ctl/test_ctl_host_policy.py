"""Hosts in a policy's text: found, added and removed where they stand, with nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from certplane.ctl.host_policy import Holder, PolicyText, difference
from certplane.errors import OperationError

TEXT = """\
version: 1
profiles:
  web:
    dns_names: [www.example.com]
hosts:
  web1: {identity: web1.example.net, profiles: [web]}  # the first
  # the shop's
  web2:
    identity: web2.example.net
    profiles:
      - web
      - shop

services:
  builder: {identity: builder.example.net}
operators:
  alice: {identity: alice.example.net}
"""
WEB1 = Holder("hosts", "web1", "web1.example.net", ("web",))
WEB2 = Holder("hosts", "web2", "web2.example.net", ("web", "shop"))
BUILDER = Holder("services", "builder", "builder.example.net", ())


def changed(before: str, after: str) -> list[str]:
    """The lines that differ, without what tells where."""
    return [
        line for line in difference(before, after, "policy.yml") if line[0] in "+-" and line[:3] not in ("+++", "---")
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("web1", WEB1), ("web1.example.net", WEB1), ("web2", WEB2), ("builder", BUILDER),
        ("builder.example.net", BUILDER), ("alice", None), ("alice.example.net", None), ("web", None),
    ],
)  # fmt: skip
def test_who_is_there(name: str, found: Holder | None) -> None:
    """A host or a service, by label or identity; an operator is neither."""
    assert PolicyText(TEXT).find(name) == found


def test_an_identity_goes_before_a_label() -> None:
    """A label that is another host's identity doesn't hide that host."""
    text = "hosts:\n  b.test: {identity: a.test}\n  x: {identity: b.test}\n"
    found = PolicyText(text).find("b.test")
    assert found is not None
    assert found.label == "x"


def test_a_new_host() -> None:
    """One line after the last host, as that is indented."""
    after = PolicyText(TEXT).with_host("web3", "web3.example.net", ["web", "shop"])
    assert changed(TEXT, after) == ["+  web3: {identity: web3.example.net, profiles: [web, shop]}"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("version: 1\n", id="no-section"),
        pytest.param("version: 1", id="no-last-newline"),
        pytest.param("hosts:\noperators: {}\n", id="nothing-in-it"),
        pytest.param("hosts:  # none yet\noperators: {}\n", id="nothing-and-a-comment"),
        pytest.param("hosts: {}\noperators: {}\n", id="empty-braces"),
        pytest.param("hosts: {a: {identity: a.test}}\n", id="in-braces"),
        pytest.param("hosts:\n    a:\n        identity: a.test", id="four-spaces-no-last-newline"),
        pytest.param("hosts:\n  a:\n    identity: a.test\n    labels:\n      ring: canary\n\n# end\n", id="deep"),
        pytest.param("x: &p [web]\nhosts:\n  a: &a {identity: a.test, profiles: *p}\n  b: *a\nz: 1\n", id="aliases"),
        pytest.param("hosts:\n  a: {identity: a.test,\n      profiles: [web]}\nz: 1\n", id="over-lines"),
        pytest.param("hosts:\r\n  a: {identity: a.test}\r\nz: 1\r\n", id="crlf"),
    ],
)
def test_a_new_host_in_every_layout(text: str) -> None:
    """What was there means the same, and the host is there."""
    before: dict[str, Any] = yaml.safe_load(text)
    after = yaml.safe_load(PolicyText(text).with_host("new", "new.test", ["web"]))
    assert after.pop("hosts") == {
        **(before.pop("hosts", None) or {}),
        "new": {"identity": "new.test", "profiles": ["web"]},
    }
    assert after == before


@pytest.mark.parametrize(
    ("holder", "lines"),
    [
        pytest.param(
            WEB1,
            ["-  web1: {identity: web1.example.net, profiles: [web]}  # the first",
             "+  web1: {identity: web1.example.net, profiles: [web, mail]}  # the first"],
            id="in-brackets",
        ),
        pytest.param(WEB2, ["+      - mail"], id="a-line-each"),
        pytest.param(
            BUILDER,
            ["-  builder: {identity: builder.example.net}",
             "+  builder: {identity: builder.example.net, profiles: [mail]}"],
            id="none-yet",
        ),
    ],
)  # fmt: skip
def test_a_profile_more(holder: Holder, lines: list[str]) -> None:
    """Where the others are."""
    assert changed(TEXT, PolicyText(TEXT).with_profiles(holder, ["mail"])) == lines


@pytest.mark.parametrize(
    "text",
    ["hosts:\n  a:\n    identity: a.test\n", "hosts:\n  a: {identity: a.test, profiles: []}\n",
     "hosts:\n  a:\n    profiles:\n    identity: a.test\n", "hosts:\n  a:\n    profiles:\n    - web\n    identity: a.test\n"],
)  # fmt: skip
def test_a_profile_more_in_every_layout(text: str) -> None:
    """The list has it at its end."""
    places = PolicyText(text)
    holder = places.find("a")
    assert holder is not None
    after = PolicyText(places.with_profiles(holder, ["mail", "x y"])).find("a")
    assert after is not None
    assert after.profiles == (*holder.profiles, "mail", "x y")


@pytest.mark.parametrize(("holder", "count"), [pytest.param(WEB1, 1, id="a-line"), pytest.param(WEB2, 5, id="a-block")])
def test_a_host_less(holder: Holder, count: int) -> None:
    """Its own lines are gone, and nothing else."""
    after = PolicyText(TEXT).without(holder)
    gone = changed(TEXT, after)
    assert len(gone) == count
    assert all(line.startswith("-") for line in gone)
    assert PolicyText(after).find(holder.label) is None


def test_the_last_host() -> None:
    """Its section goes with it."""
    assert yaml.safe_load(PolicyText(TEXT).without(BUILDER)).keys() == {"version", "profiles", "hosts", "operators"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("hosts: [", "can't be read", id="no-yaml"),
        pytest.param("- a\n", "is no mapping", id="a-list"),
        pytest.param("", "is no mapping", id="empty"),
        pytest.param("hosts: [a]\n", "is no mapping", id="hosts-a-list"),
        pytest.param("x: &h {a: {}}\nhosts: *h\n", "is no mapping", id="hosts-an-alias"),
    ],
)
def test_what_a_person_must_do_by_hand(text: str, said: str) -> None:
    """A layout that isn't seen through is never guessed at."""
    with pytest.raises(OperationError, match=said):
        PolicyText(text).with_host("a", "a.test", ["web"])


def test_profiles_that_are_anothers_too() -> None:
    """A list that an alias shares would be changed for all of them."""
    text = "p: &p [web]\nhosts:\n  a: {identity: a.test, profiles: *p}\n"
    with pytest.raises(OperationError, match="another's too"):
        PolicyText(text).with_profiles(Holder("hosts", "a", "a.test", ("web",)), ["mail"])
    with pytest.raises(OperationError, match="one pair of braces"):
        PolicyText("hosts: {a: {identity: a.test}}\n").without(Holder("hosts", "a", "a.test", ()))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f\x85"), min_size=1))
def test_any_name_stays_what_it_is(name: str) -> None:
    """Quoted where YAML would take it for a number, a word or a structure."""
    names = [str(label) for label in ("true", "1", "on", "~", "1e3", "2026-01-01", "a: b", name)]
    for each in names:
        after = yaml.safe_load(PolicyText("version: 1\n").with_host(each, each, [each]))
        assert after["hosts"] == {each: {"identity": each, "profiles": [each]}}
