"""Which fleet a command is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from certplane.ctl.contexts import choose, chosen
from certplane.ctl.settings import CtlSettings, load_settings
from certplane.errors import ConfigurationError, OperationError
from tests.unit.ctl.test_ctl_settings import FLEET, RIGHT

TWO = f"contexts:\n  prod: {FLEET}\n  lab: {FLEET.replace('b.example', 'lab.example')}\n"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where choices are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CERTPLANECTL_CONTEXT", raising=False)
    return tmp_path / "state" / "certplane" / "contexts.json"


def settings(folder: Path, text: str) -> CtlSettings:
    (folder / "ctl.yml").write_text(text)
    return load_settings(folder / "ctl.yml")


def test_the_first_that_says_so(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--context, the variable, what was chosen, the file's own; each before the next."""
    two = settings(tmp_path, f"{TWO}context: prod\n")
    assert chosen(two, None).name == "prod"
    choose(two, "lab")
    assert chosen(two, None).name == "lab"
    assert chosen(settings(tmp_path, TWO), None).name == "lab"
    monkeypatch.setenv("CERTPLANECTL_CONTEXT", "prod")
    assert chosen(two, None).name == "prod"
    assert chosen(two, "lab").name == "lab"
    assert str(chosen(two, "lab").settings.broker.all_urls[0]) == "https://lab.example:443"


def test_a_choice_is_of_one_file_and_of_its_user(state: Path, tmp_path: Path) -> None:
    """Another ctl.yml has its own; the file is its owner's alone, and the other choices stay in it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = settings(tmp_path / "a", TWO), settings(tmp_path / "b", TWO)
    choose(a, "lab")
    choose(b, "prod")
    assert (chosen(a, None).name, chosen(b, None).name) == ("lab", "prod")
    assert state.stat().st_mode & 0o777 == 0o600
    assert len(json.loads(state.read_text())["contexts"]) == 2


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1, "contexts": 3}', b"\xff" * 9])
def test_choices_that_are_none(state: Path, tmp_path: Path, content: bytes) -> None:
    """Only a default depends on them: they are as if there were none, and the next choice puts them right."""
    state.parent.mkdir(parents=True)
    state.write_bytes(content)
    two = settings(tmp_path, TWO)
    with pytest.raises(ConfigurationError, match="has several contexts; add --context NAME, or choose one with"):
        chosen(two, None)
    choose(two, "lab")
    assert chosen(two, None).name == "lab"


def test_what_there_is_not(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who said a name that there is not, and which there are; a file without contexts has none to choose."""
    two, one = settings(tmp_path, TWO), settings(tmp_path, RIGHT)
    with pytest.raises(ConfigurationError, match="has no context test, as --context says; use one of: prod, lab"):
        chosen(two, "test")
    with pytest.raises(ConfigurationError, match="has no context test; use one of: prod, lab"):
        choose(two, "test")
    with pytest.raises(ConfigurationError, match="has no context lab; add it, or drop --context"):
        chosen(one, "lab")
    with pytest.raises(ConfigurationError, match="add `contexts:` to it"):
        choose(one, "lab")
    assert chosen(one, None).name == ""
    choose(two, "lab")
    gone = settings(tmp_path, TWO.replace("lab:", "prod2:"))
    with pytest.raises(ConfigurationError, match="has no context lab, as `certplanectl context use` says"):
        chosen(gone, None)
    monkeypatch.setenv("CERTPLANECTL_CONTEXT", "nowhere")
    with pytest.raises(ConfigurationError, match=r"as \$CERTPLANECTL_CONTEXT says"):
        chosen(two, None)
    with pytest.raises(ConfigurationError, match=r"drop \$CERTPLANECTL_CONTEXT"):
        chosen(one, None)


def test_the_only_one_needs_no_choice(state: Path, tmp_path: Path) -> None:
    """A file with one context is for it."""
    assert chosen(settings(tmp_path, f"contexts: {{prod: {FLEET}}}\n"), None).name == "prod"


def test_nowhere_to_keep_it(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that can't be written, or no home at all, is told with what helps all the same."""
    two = settings(tmp_path, TWO)
    state.parent.parent.write_text("a file in the way")
    with pytest.raises(OperationError, match=r"can't be written: .*; make it writable, set \$CERTPLANECTL_CONTEXT"):
        choose(two, "lab")
    with pytest.raises(ConfigurationError, match="has several contexts"):
        chosen(two, None)
    monkeypatch.delenv("XDG_STATE_HOME")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OperationError, match="has no home to keep the choice in"):
        choose(two, "lab")
