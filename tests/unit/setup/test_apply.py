"""A plan of files and folders: what would be done, what is done, and that a second run changes nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from certplane.errors import OperationError
from certplane.runtime.files import Owner
from certplane.setup.apply import DiffersError, apply, would
from certplane.setup.look import State, look
from certplane.setup.plan import MakeFolder, Note, Plan, WriteFile

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users, which root alone may")
NOBODY = Owner(65534, 65534)


def plan_in(folder: Path, text: str = "a: 1\n", *, mode: int = 0o640, secret: bool = False) -> Plan:
    """A folder with a file in it."""
    return Plan(
        (
            MakeFolder(folder / "new", 0o755),
            WriteFile(folder / "new" / "file.yml", text, mode, secret=secret),
            Note("then start it"),
        )
    )


def states(plan: Plan) -> list[State]:
    return [finding.state for finding in look(plan)]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_missing_is_made_with_its_modes(tmp_path: Path) -> None:
    """Folders and files appear with the modes of the plan, whatever the umask says."""
    said: list[str] = []
    before = os.umask(0o077)
    try:
        changed = apply(plan_in(tmp_path), said.append)
    finally:
        os.umask(before)
    assert changed == 2
    assert mode_of(tmp_path / "new") == 0o755
    assert mode_of(tmp_path / "new" / "file.yml") == 0o640
    assert (tmp_path / "new" / "file.yml").read_text() == "a: 1\n"
    assert said == [f"made {tmp_path}/new/ (mode 0755)", f"made {tmp_path}/new/file.yml (mode 0640)", "then start it"]


def test_a_second_run_changes_nothing_and_says_so(tmp_path: Path) -> None:
    """A plan that was carried out keeps all of it, down to the files' inodes."""
    apply(plan_in(tmp_path), lambda _: None)
    before = (tmp_path / "new" / "file.yml").stat()
    said: list[str] = []
    assert apply(plan_in(tmp_path), said.append) == 0
    assert said[:2] == [f"kept {tmp_path}/new/", f"kept {tmp_path}/new/file.yml"]
    after = (tmp_path / "new" / "file.yml").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """A dry run says what a run would do, with the new file's text, and makes nothing."""
    lines = would(look(plan_in(tmp_path)))
    assert lines == [
        f"would make {tmp_path}/new/ (mode 0755)",
        f"would make {tmp_path}/new/file.yml (mode 0640)",
        "    a: 1",
        "then start it",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_secret_is_shown_neither_new_nor_as_a_difference(tmp_path: Path) -> None:
    """The text of a secret file is in no line of a dry run."""
    new = would(look(plan_in(tmp_path, "hunter2\n", secret=True)))
    apply(plan_in(tmp_path, "swordfish\n", secret=True), lambda _: None)
    other = would(look(plan_in(tmp_path, "hunter2\n", secret=True)))
    assert "hunter2" not in "".join(new + other)
    assert "swordfish" not in "".join(other)


def test_a_file_that_differs_stops_all_of_it_with_the_difference(tmp_path: Path) -> None:
    """Nothing is made where one file differs, and the lines of the difference are told."""
    (tmp_path / "old.yml").write_text("a: 1\nb: 2\n")
    (tmp_path / "old.yml").chmod(0o644)
    plan = Plan((MakeFolder(tmp_path / "new", 0o755), WriteFile(tmp_path / "old.yml", "a: 1\nb: 3\n")))
    said: list[str] = []
    with pytest.raises(DiffersError, match=r"old\.yml has another text; nothing was changed; .*--replace"):
        apply(plan, said.append)
    assert "-b: 2" in said
    assert "+b: 3" in said
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "old.yml").read_text() == "a: 1\nb: 2\n"


def test_replacing_keeps_the_old_one(tmp_path: Path) -> None:
    """With `replace` the new text is in force and the old one is beside it, with its mode; a third one gets a number."""
    (tmp_path / "old.yml").write_text("first\n")
    (tmp_path / "old.yml").chmod(0o600)
    apply(Plan((WriteFile(tmp_path / "old.yml", "second\n"),)), lambda _: None, replace=True)
    assert (tmp_path / "old.yml").read_text() == "second\n"
    assert (tmp_path / "old.yml.before-init").read_text() == "first\n"
    assert mode_of(tmp_path / "old.yml.before-init") == 0o600
    apply(Plan((WriteFile(tmp_path / "old.yml", "third\n"),)), lambda _: None, replace=True)
    assert (tmp_path / "old.yml.before-init").read_text() == "first\n"
    assert (tmp_path / "old.yml.before-init.1").read_text() == "second\n"


def test_a_copy_of_a_run_that_was_interrupted_is_not_made_again(tmp_path: Path) -> None:
    """Where the old text is kept already, replacing it makes no second copy."""
    (tmp_path / "old.yml").write_text("first\n")
    (tmp_path / "old.yml.before-init").write_text("first\n")
    apply(Plan((WriteFile(tmp_path / "old.yml", "second\n"),)), lambda _: None, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.yml", "old.yml.before-init"]


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """A link in a file's place differs; replacing it keeps the link and leaves what it leads to alone."""
    (tmp_path / "elsewhere").write_text("precious\n")
    (tmp_path / "file").symlink_to("elsewhere")
    plan = Plan((WriteFile(tmp_path / "file", "mine\n"),))
    with pytest.raises(DiffersError, match="is a symbolic link"):
        apply(plan, lambda _: None)
    apply(plan, lambda _: None, replace=True)
    assert (tmp_path / "file").read_text() == "mine\n"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file.before-init").readlink() == Path("elsewhere")
    assert (tmp_path / "elsewhere").read_text() == "precious\n"


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_of_another_kind_is_never_replaced(tmp_path: Path, replace: bool) -> None:
    """A folder in a file's place, or a file in a folder's, stays, whoever asks."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for step in (WriteFile(tmp_path / "folder", "x\n"), MakeFolder(tmp_path / "file", 0o755)):
        with pytest.raises(DiffersError, match="move it away"):
            apply(Plan((step,)), lambda _: None, replace=replace)


def test_a_shared_folder_is_used_as_it_is(tmp_path: Path) -> None:
    """A folder that needn't be exact keeps the mode that it has; one that must be exact may only be more closed."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    assert states(Plan((MakeFolder(tmp_path / "there", 0o700),))) == [State.KEEP]
    exact = Plan((MakeFolder(tmp_path / "there", 0o700, exact=True),))
    assert states(exact) == [State.DIFFERS]
    apply(exact, lambda _: None, replace=True)
    assert mode_of(tmp_path / "there") == 0o700
    assert states(Plan((MakeFolder(tmp_path / "there", 0o755, exact=True),))) == [State.KEEP]


def test_a_wrong_mode_alone_is_a_difference(tmp_path: Path) -> None:
    """The same text that others may read isn't the same file."""
    (tmp_path / "file").write_text("x\n")
    (tmp_path / "file").chmod(0o644)
    (finding,) = look(Plan((WriteFile(tmp_path / "file", "x\n", 0o600),)))
    assert (finding.state, finding.why) == (State.DIFFERS, "has the mode 0644 instead of 0600")


@ROOT_ONLY
def test_what_root_makes_belongs_to_its_owner_from_its_first_moment(tmp_path: Path) -> None:
    """Folders and files get the owner of the plan, and another owner is a difference."""
    plan = Plan(
        (MakeFolder(tmp_path / "theirs", 0o700, NOBODY, exact=True), WriteFile(tmp_path / "file", "x\n", 0o600, NOBODY))
    )
    apply(plan, lambda _: None)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in tmp_path.iterdir()} == {(NOBODY.uid, NOBODY.gid)}
    assert states(plan) == [State.KEEP, State.KEEP]
    os.chown(tmp_path / "theirs", 0, 0)
    (finding, _) = look(plan)
    assert (finding.state, finding.why) == (State.DIFFERS, "belongs to root:0 instead of nobody:65534")


@ROOT_ONLY
def test_a_folder_that_root_may_not_write_in_is_told_before_anything_is_made(tmp_path: Path) -> None:
    """Another user's: a dry run says what a run would, and no step before it is done."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY.uid, NOBODY.gid)
    plan = Plan((MakeFolder(tmp_path / "new", 0o755), MakeFolder(theirs / "below", 0o755)))
    for each in (look, lambda it: apply(it, lambda _: None)):
        with pytest.raises(OperationError, match="root writes keys only where nobody else may"):
            each(plan)
    assert [*tmp_path.iterdir()] == [theirs]


def test_a_folder_left_half_made_is_made_anew(tmp_path: Path) -> None:
    """What a killed run left under the hidden name is in nobody's way."""
    (tmp_path / ".new.certplane-new").mkdir()
    apply(plan_in(tmp_path), lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_disk_that_refuses_is_told_with_its_path(tmp_path: Path) -> None:
    """A folder above that isn't there is a cause with a remedy, not a traceback."""
    with pytest.raises(OperationError, match=f"{tmp_path}/gone doesn't exist"):
        apply(Plan((WriteFile(tmp_path / "gone" / "file", "x\n"),)), lambda _: None)
