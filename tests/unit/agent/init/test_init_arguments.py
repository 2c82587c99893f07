"""The arguments of `certplane-agent init`: a profile, and the service of the profile before it."""

from __future__ import annotations

import argparse

import pytest

from certplane.agent.init.parser import add_parser


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), [])
    return parser.parse_args(["init", *arguments])


def test_a_service_is_of_the_profile_before_it() -> None:
    """Again and again; a profile without one has none, and a second call begins with none at all."""
    words = ["--profile", "web", "--service", "nginx", "--profile", "api", "--profile", "mail", "--service", "postfix"]
    assert parsed(*words).profiles == [("web", "nginx"), ("api", ""), ("mail", "postfix")]
    assert parsed().profiles == []


@pytest.mark.parametrize(
    "words",
    ["--service nginx --profile web", "--profile web --service nginx --service haproxy", "--profile web --service iis"],
)
def test_a_service_without_a_profile_of_its_own_is_misuse(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any profile, a second one, or a kind that isn't known: status 2, and the argument is named."""
    with pytest.raises(SystemExit, match="2"):
        parsed(*words.split())
    assert "--service" in capsys.readouterr().err
