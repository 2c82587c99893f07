"""`policy test`: a policy is held against cases, and each that fails is told with its line and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from certplane.broker.cli import main
from certplane.broker.policy.cases import Outcome, run_cases
from certplane.broker.policy.document import PolicyDocument, read_policy
from certplane.config.document import Document
from certplane.errors import ConfigurationError

POLICY = """\
profiles:
  web: {type: multi_san, dns_names: [a.example, b.example], key_types: [ec-p256]}
  mail: {type: multi_san, dns_names: [mail.example]}
hosts:
  web1: {identity: web1.example, profiles: [web]}
operators:
  alice: {identity: alice.example, roles: [viewer]}
"""


def _policy() -> PolicyDocument:
    return read_policy(Document.parse(POLICY.encode(), "policy.yml"))


@pytest.mark.parametrize(
    ("case", "outcome", "why"),
    [
        pytest.param("identity: web1.example, profile: web", Outcome.ALLOWED, "", id="the profile's own names"),
        pytest.param(
            "identity: WEB1.example., profile: web, dns_names: [B.example, a.example]", Outcome.ALLOWED, "", id="any order and case"
        ),
        pytest.param(
            "identity: x.example, profile: web", Outcome.IDENTITY_UNKNOWN, "the policy has no identity x.example", id="stranger"
        ),
        pytest.param(
            "identity: web1.example, profile: mail", Outcome.PROFILE_NOT_ALLOWED, "gives this identity the profiles web only", id="another's profile"
        ),
        pytest.param(
            "identity: web1.example, profile: none", Outcome.PROFILE_NOT_ALLOWED, "the policy has no profile none", id="no such profile"
        ),
        pytest.param(
            "identity: alice.example, profile: web", Outcome.PROFILE_NOT_ALLOWED, "gives this identity no profile", id="operator"
        ),
        pytest.param(
            "identity: web1.example, profile: web, dns_names: [a.example]", Outcome.NAMES_NOT_ALLOWED, "this one lacks b.example", id="a name less"
        ),
        pytest.param(
            "identity: web1.example, profile: web, dns_names: [a.example, b.example, c.example]",
            Outcome.NAMES_NOT_ALLOWED, "asks for c.example", id="a name more",
        ),
        pytest.param(
            "identity: web1.example, profile: web, key_type: rsa-2048", Outcome.KEY_WEAK, "takes no rsa-2048 keys", id="another key"
        ),
    ],
)  # fmt: skip
def test_outcomes(case: str, outcome: Outcome, why: str) -> None:
    """A case has the outcome that the broker's decision would have, with a reason for the policy's author."""
    document = Document.parse(f"cases: [{{{case}, expect: {outcome}}}]\n".encode(), "cases.yml")
    (result,) = run_cases(document, _policy())
    assert (result.outcome, result.passed) == (outcome, True)
    assert why in result.why


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "cases: has no case, so that nothing would be tested", id="empty"),
        pytest.param("cases: []\n", "cases: has no case", id="no cases"),
        pytest.param("version: 2\ncases: []\n", "is 2; this program reads version 1", id="another version"),
        pytest.param("cases: [{identity: a.example, profile: web}]\n", "cases[0].expect: is required", id="no outcome"),
        pytest.param(
            "cases: [{identity: a.example, profile: web, expect: RATE_LIMITED}]\n", "must be one of allowed, IDENTITY", id="no policy's reason"
        ),
        pytest.param(
            "cases: [{identity: a.example, profile: web, expect: allowed, names: [a]}]\n", "names: is not a known key", id="unknown key"
        ),
        pytest.param(
            "cases: [{identity: a.example, profile: web, expect: allowed, dns_names: [a..b]}]\n", "cases[0].dns_names[0]", id="no name"
        ),
    ],
)  # fmt: skip
def test_files_that_test_nothing_are_refused(text: str, problem: str) -> None:
    """What isn't a file of cases is a mistake with its line, never a success."""
    with pytest.raises(ConfigurationError) as caught:
        run_cases(Document.parse(text.encode(), "cases.yml"), _policy())
    assert problem in " | ".join(map(str, caught.value.problems))


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yml"
    path.write_text(POLICY)
    return path


def test_command_says_which_case_failed_and_why(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 0 where all cases pass; 1 where one fails, with its line, what was expected, what came, and why."""
    cases = tmp_path / "cases.yml"
    good = "cases:\n  - {identity: web1.example, profile: web, expect: allowed}\n"
    cases.write_text(good)
    command = ["policy", "test", str(cases), "--policy", str(policy)]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    (row,) = map(json.loads, said.out.splitlines())
    assert (row["result"], row["outcome"]) == ("passed", "allowed")
    assert said.err == "certplane-broker: 0 of 1 case failed\n"
    cases.write_text(good + "  - {identity: web1.example, profile: mail, expect: allowed}\n")
    assert main([*command, "--json"]) == 1
    said = capsys.readouterr()
    assert [json.loads(line)["result"] for line in said.out.splitlines()] == ["passed", "failed"]
    why = "the policy gives this identity the profiles web only"
    assert (
        said.err == f"{cases}:3: cases[1]: expected allowed, got PROFILE_NOT_ALLOWED: {why}\n"
        "certplane-broker: 1 of 2 cases failed\n"
    )


def test_command_refuses_two_files_from_standard_input(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard input has one file."""
    assert main(["policy", "test", "-", "--policy", "-"]) == 2
    assert "standard input has one file; name the other one's path" in capsys.readouterr().err
