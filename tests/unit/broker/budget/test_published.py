"""Which limits an issuer has, and how they are written in broker.yml."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml

from certplane.broker.budget import published
from certplane.broker.budget.claims import claim_of, refused_needs, urgency_of
from certplane.broker.budget.model import Exemption, IssuerLimits, Limit, LimitScope
from certplane.broker.budget.published import LimitModel, LimitSettings, LimitsSettings, limits_of
from certplane.broker.model import Scope, ScopeKind
from tests.fakes.clock import ManualClock

PRODUCTION = "https://acme-v02.api.letsencrypt.org/directory"
STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"
OWN = LimitSettings("own", LimitScope.ACCOUNT, 2, timedelta(hours=1))


@pytest.mark.parametrize(
    ("url", "said", "source", "amounts"),
    [
        pytest.param(PRODUCTION, None, "letsencrypt", [300, 50, 5, 5], id="production"),
        pytest.param(STAGING, None, "letsencrypt", [1500, 30_000, 200], id="staging"),
        pytest.param("https://ca.test/dir", None, "none", [], id="a CA that nobody knows"),
        pytest.param(PRODUCTION, LimitsSettings(LimitModel.NONE), "none", [], id="none is asked for"),
        pytest.param("https://proxy.test/dir", LimitsSettings(LimitModel.LETSENCRYPT), "letsencrypt", [300, 50, 5, 5], id="by its name"),
        pytest.param(PRODUCTION, LimitsSettings(own=(OWN,)), "configuration", [2], id="own"),
    ],
)  # fmt: skip
def test_limits_of_an_issuer(url: str, said: LimitsSettings | None, source: str, amounts: list[int]) -> None:
    """What is written wins; then the directory decides; of others nothing is known."""
    found = limits_of("ca", url, said)
    assert (found.source, [limit.amount for limit in found.limits]) == (source, amounts)


def test_published_limits_say_where_they_are_from() -> None:
    """Source and date are data, to be looked at when the CA changes them."""
    data = yaml.safe_load((Path(published.__file__).parent / "limits" / "letsencrypt.yml").read_text())
    assert data["source"] == "https://letsencrypt.org/docs/rate-limits/"
    assert date.fromisoformat(data["date"]) > date(2026, 1, 1)
    refills = {limit.name: limit.rate.interval for limit in limits_of("ca", PRODUCTION).limits}
    # As that page has them: 36 seconds, 202 minutes, 34 hours, 12 minutes.
    assert [round(span.total_seconds() / 60, 1) for span in refills.values()] == [0.6, 201.6, 2016.0, 12.0]


def test_a_wildcard_belongs_to_its_domain() -> None:
    """An order has one bucket for each registered domain and each name that is proved, whatever it is a wildcard of."""
    limits = limits_of("ca", PRODUCTION)
    names = ("*.shop.example.co.uk", "example.co.uk", "shop.example.co.uk", "www.example.org")
    needs = claim_of(limits, names, urgency=urgency_of("order", None, ManualClock().now())).needs
    subjects = {limit.name: [need.label for need in needs if need.limit == limit] for limit in limits.limits}
    assert list(subjects.values()) == [
        [""],
        ["example.co.uk", "example.org"],
        [", ".join(names)],
        ["example.co.uk", "shop.example.co.uk", "www.example.org"],
    ]
    assert [need.takes for need in needs] == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        pytest.param(Scope(ScopeKind.ACCOUNT), {"new_orders_per_account"}, id="account"),
        pytest.param(Scope(ScopeKind.DOMAIN, "example.org"), {"certificates_per_registered_domain"}, id="domain"),
        pytest.param(Scope(ScopeKind.DOMAIN, "another.test"), set(), id="another domain"),
        pytest.param(Scope(ScopeKind.NAME_SET), {"certificates_per_exact_set_of_names"}, id="names"),
        pytest.param(Scope(ScopeKind.NAME, "www.example.org"), {"authorization_failures_per_name"}, id="name"),
    ],
)
def test_a_refusal_is_about_a_limit(scope: Scope, names: set[str]) -> None:
    """What the CA means is the bucket that it counts by; what is none of them says nothing to the ledger."""
    claim = claim_of(
        limits_of("ca", PRODUCTION), ("www.example.org",), urgency=urgency_of("order", None, ManualClock().now())
    )
    assert {need.limit.name for need in refused_needs(claim, [scope], "too many failed authorizations")} == names


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param(LimitSettings("a", LimitScope.ACCOUNT, 1_000_001, timedelta(hours=1)), "more than", id="amount"),
        pytest.param(LimitSettings("a", LimitScope.ACCOUNT, 1, timedelta(days=400)), "from 1s", id="long"),
        pytest.param(LimitSettings("a", LimitScope.ACCOUNT, 1, timedelta(milliseconds=1)), "from 1s", id="short"),
        pytest.param(
            LimitSettings("a", LimitScope.NAMES, 1, timedelta(hours=1), (Exemption.SAME_NAMES,)),
            "same_names",
            id="exempt from itself",
        ),
        pytest.param(LimitsSettings(own=(OWN, OWN)), "twice", id="twice"),
        pytest.param(LimitsSettings(LimitModel.NONE, (OWN,)), "beside", id="word and list"),
    ],
)
def test_limits_that_no_ca_means_are_refused(settings: LimitSettings | LimitsSettings, said: str) -> None:
    """With what is wrong and what to write."""
    (problem,) = settings.problems()
    assert said in problem.message
    assert problem.remedy or said == "from 1s"


def test_spans_are_written_as_in_the_configuration() -> None:
    """In hours, where it is a number of them."""
    spans = [timedelta(days=7), timedelta(minutes=90), timedelta(seconds=5), timedelta(hours=3)]
    texts = [Limit("a", LimitScope.ACCOUNT, 5, span).text for span in spans]
    assert texts == ["5 per 168h", "5 per 90m", "5 per 5s", "5 per 3h"]
    assert IssuerLimits("a", "https://a.test", "none").limits == ()
