"""What is typed of a rollout."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.ctl import cli
from certplane.ctl.rollout_spec import deadline_of, rings_of, spec_of
from certplane.errors import ConfigurationError
from certplane.v1 import certificate_pb2, rollout_pb2

NOW = datetime(2026, 11, 20, 2, 3, 4, tzinfo=UTC)
Spec = rollout_pb2.RolloutSpec
_HOUR = timedelta(hours=1)


def spec(line: str) -> Spec:
    """Of the options of `rollout plan`."""
    options = cli._parser().parse_args(["rollout", "plan", *shlex.split(line)])
    return spec_of(options, "rollout plan", NOW)


@pytest.mark.parametrize(
    ("text", "rings"),
    [
        pytest.param("canary", [("canary", ["ring=canary"], 0, False, None)], id="a-word-is-a-label"),
        pytest.param("dc=fra1", [("dc-fra1", ["dc=fra1"], 0, False, None)], id="a-label"),
        pytest.param("dc=fra1+tier=web", [("dc-fra1-tier-web", ["dc=fra1", "tier=web"], 0, False, None)], id="two"),
        pytest.param("10%", [("10-percent", [], 10, False, None)], id="a-share"),
        pytest.param("rest:90m", [("rest", [], 0, True, 1.5 * _HOUR)], id="rest-that-bakes"),
        pytest.param("ring=rest", [("ring-rest", ["ring=rest"], 0, False, None)], id="a-ring-called-rest"),
        pytest.param(
            "canary:1h, 10%:1d,10%,rest",
            [
                ("canary", ["ring=canary"], 0, False, _HOUR),
                ("10-percent", [], 10, False, 24 * _HOUR),
                ("10-percent-2", [], 10, False, None),
                ("rest", [], 0, True, None),
            ],
            id="several",
        ),
    ],
)
def test_rings(text: str, rings: list[tuple[str, list[str], int, bool, timedelta | None]]) -> None:
    """Each with what picks its hosts, how long it bakes, and a name of its own."""
    made = [
        (
            ring.name, list(ring.labels), ring.percent, ring.rest,
            ring.bake_duration.ToTimedelta() if ring.HasField("bake_duration") else None,
        )
        for ring in rings_of(text)
    ]  # fmt: skip
    assert made == rings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("canary,,rest", "an empty ring can't be understood; write rings like canary:1h", id="empty"),
        pytest.param("", "an empty ring can't be understood", id="nothing"),
        pytest.param("rest,canary", "behind rest there is nobody left; put rest at the end", id="behind-rest"),
        pytest.param("0%", "0% is no share; write 1% to 100%", id="none-of-them"),
        pytest.param("101%", "101% is no share", id="more-than-all"),
        pytest.param("canary:soon", "soon is no time to bake; write it like canary:1h", id="bake"),
        pytest.param("canary:", "nothing is no time to bake", id="no-bake"),
        pytest.param("dc=", "dc= is no label; write rings like", id="label-without-value"),
        pytest.param("a=b+", "an empty label is no label", id="half-a-label"),
        pytest.param("a b", "a b can't be understood", id="a-space"),
    ],
)
def test_rings_that_cant_be_understood(text: str, said: str) -> None:
    """Cause and remedy."""
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        rings_of(text)


@given(
    st.lists(
        st.one_of(
            st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True).filter(lambda word: word != "rest"),
            st.integers(1, 100).map(lambda number: f"{number}%"),
            st.tuples(st.text("ab.-_é", min_size=1, max_size=50), st.text("xyzé", min_size=1, max_size=50)).map(
                "=".join
            ),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_names_of_rings(picks: list[str]) -> None:
    """Whatever picks them, each has a name that the broker takes, and no two the same."""
    names = [ring.name for ring in rings_of(",".join(picks))]
    assert len(set(names)) == len(picks)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) for name in names)


def test_all_that_can_be_said() -> None:
    """Each option is a field of the specification."""
    made = spec(
        "--issuer letsencrypt --issued-before 2026-11-20 --rekey --rings canary,10%,rest --revoke after-served "
        "--as keyCompromise --success installed --max-percent-of-name 25 --halt-after 3 --halt-percent 10 "
        "--silent-after 5m --deadline 36h --reason 'ticket 4711'"
    )
    assert list(made.selection.issuers) == ["letsencrypt"]
    assert made.selection.issued_before_time.ToDatetime(UTC) == datetime(2026, 11, 20, tzinfo=UTC)
    assert (made.action, made.revoke, made.success) == (
        Spec.ACTION_REKEY,
        Spec.REVOKE_AFTER_SERVED,
        Spec.SUCCESS_INSTALLED,
    )
    assert made.revocation_reason == certificate_pb2.REVOCATION_REASON_KEY_COMPROMISE
    assert (made.max_percent_of_name, made.halt.failed_hosts, made.halt.failed_percent) == (25, 3, 10)
    assert made.halt.silent_after.ToTimedelta() == timedelta(minutes=5)
    assert made.deadline.ToDatetime(UTC) == NOW + 36 * _HOUR
    assert (made.reason, [ring.name for ring in made.rings]) == ("ticket 4711", ["canary", "10-percent", "rest"])


def test_what_is_left_out() -> None:
    """The broker's defaults: a new certificate each, all at once, nothing revoked."""
    made = spec("--all")
    assert (made.action, made.revoke, made.success) == (Spec.ACTION_RENEW, Spec.REVOKE_NEVER, Spec.SUCCESS_SERVED)
    assert {field.name for field, _ in made.ListFields()} == {"selection", "action", "success", "revoke", "reason"}
    moved = spec("--issuer a --move-to b")
    assert (moved.action, moved.issuer) == (Spec.ACTION_MOVE, "b")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param("--rings canary", "rollout plan: nothing is selected", id="nothing"),
        pytest.param(
            "--all --as superseded", "nothing is revoked; add --revoke after-served", id="a-reason-for-nothing"
        ),
        pytest.param("--all --deadline 2026-11-19", "--deadline 2026-11-19: is past; name a time to come", id="past"),
        pytest.param("--all --deadline soon", "is neither a span nor a time; write it like 36h", id="no-time"),
        pytest.param("--issued-before tomorrow", "is neither a span nor a time; write it like 7d", id="no-age"),
    ],
)
def test_misuse(line: str, said: str) -> None:
    """Cause and remedy."""
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        spec(line)


@pytest.mark.parametrize("line", ["--all --rekey --move-to b", "--all --halt-percent 0", "--all --revoke at-once"])
def test_what_the_parser_refuses(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that exclude each other, numbers and words that are none."""
    with pytest.raises(SystemExit):
        spec(line)
    assert "error: argument" in capsys.readouterr().err


def test_a_deadline() -> None:
    """A span from now, or a time in UTC."""
    assert deadline_of("1d", NOW) == NOW + 24 * _HOUR
    assert deadline_of("2026-11-21T00:00:00Z", NOW) == datetime(2026, 11, 21, tzinfo=UTC)
