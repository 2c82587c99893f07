"""Doing what a plan says, and telling it. Blocks.

Nothing is made before all of the plan has been looked at: a file that is there and differs stops it as a whole, unless
the caller says `replace`, and then the old one stays beside it as `NAME.before-init`. Each folder and each file appears
whole, with its mode and owner, or not at all, so that a run that was killed is finished by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from certplane.errors import OperationError
from certplane.runtime.disk_errors import explain, user_name
from certplane.runtime.failpoints import failpoint
from certplane.runtime.files import Directory, Owner, open_directory, temporary_name
from certplane.setup.look import Finding, State, look
from certplane.setup.plan import MakeFolder, Note, Plan, WriteFile

FAILPOINTS = ("setup.folder.before", "setup.folder.made", "setup.file.before", "setup.file.kept", "setup.file.after")
"""Every place where a test may end this module's work."""

_KEPT = ".before-init"


class DiffersError(OperationError):
    """Something stands where a step would write, and isn't what it would write."""


def would(findings: Sequence[Finding], *, replace: bool = False) -> list[str]:
    """The lines of `--dry-run`: what a run would do, with the whole text of a new file that isn't secret."""
    lines = []
    for finding in findings:
        lines += [_told(finding, replace=replace, dry=True), *(f"    {line}" for line in finding.diff)]
        if isinstance(finding.step, WriteFile) and finding.state is State.MAKE and not finding.step.secret:
            lines += [f"    {line}".rstrip() for line in finding.step.text.splitlines()]
    return lines


def refuse_differences(
    findings: Iterable[Finding], *, replace: bool = False, say: Callable[[str], None] = lambda _: None
) -> None:
    """Whether all of it can be made, before anything is.

    Args:
        findings: of `look`.
        replace: as of `apply`.
        say: told the lines of each difference that isn't allowed.

    Raises:
        DiffersError: something differs.
    """
    found = [each for each in findings if _stops(each, replace=replace)]
    if not found:
        return
    for each in found:
        for line in each.diff:
            say(line)
    if any(each.in_the_way for each in found):
        remedy = "nothing was changed; move it away"
    else:
        remedy = f"nothing was changed; correct what is there, or add --replace, which keeps the old one as NAME{_KEPT}"
    raise DiffersError("; ".join(f"{each.path} {each.why}" for each in found), remedy=remedy)


def apply(plan: Plan, say: Callable[[str], None], *, replace: bool = False) -> int:
    """Make what is missing, in order; returns how many folders and files were made or changed.

    Args:
        plan: the steps.
        say: told a line for each step, or, where something differs that may not, the lines of the difference.
        replace: write over what differs, and keep the old one.

    Raises:
        DiffersError: something differs and `replace` is false; nothing was changed.
        OperationError: the disk refused; what was made stays, and the next run goes on from there.
    """
    findings = look(plan)
    refuse_differences(findings, replace=replace, say=say)
    changed = 0
    for finding in findings:
        if finding.state in {State.MAKE, State.DIFFERS}:
            _make(finding)
            changed += 1
        say(_told(finding, replace=replace, dry=False))
    return changed


def _stops(finding: Finding, *, replace: bool) -> bool:
    return finding.state is State.DIFFERS and (finding.in_the_way or not replace)


def _told(finding: Finding, *, replace: bool, dry: bool) -> str:
    step = finding.step
    if isinstance(step, Note):
        return step.text
    what = f"{step.path}{'/' if isinstance(step, MakeFolder) else ''}"
    whose = "" if step.owner is None else f", of {user_name(step.owner.uid)}"
    if finding.state is State.KEEP:
        return f"{'would keep' if dry else 'kept'} {what}"
    if finding.state is State.MAKE:
        return f"{'would make' if dry else 'made'} {what} (mode {step.mode:04o}{whose})"
    if _stops(finding, replace=replace):
        return f"would stop: {what} {finding.why}"
    return f"{'would change' if dry else 'changed'} {what} (mode {step.mode:04o}{whose}): it {finding.why}"


def _make(finding: Finding) -> None:
    step = finding.step
    assert not isinstance(step, Note)
    try:
        with open_directory(step.path.parent) as folder:
            if isinstance(step, WriteFile):
                _write(step, folder, keep=finding.state is State.DIFFERS)
            elif finding.state is State.MAKE:
                _make_folder(step, folder)
            else:
                _permit_folder(step, folder)
    except OSError as error:
        cause, remedy = explain(error, step.path)
        raise OperationError(cause, remedy=remedy) from error


def _write(step: WriteFile, folder: Directory, *, keep: bool) -> None:
    failpoint("setup.file.before")
    if keep:
        _keep(step.path.name, folder)
        failpoint("setup.file.kept")
    folder.replace(step.path.name, step.text.encode(), mode=step.mode, owner=step.owner)
    failpoint("setup.file.after")


def _keep(name: str, folder: Directory) -> None:
    """Copy a file beside itself, so that there is no moment without it; a copy of a run before does."""
    target = folder.link_target(name)
    for number in count():
        kept = f"{name}{_KEPT}{f'.{number}' if number else ''}"
        there = folder.status(kept)
        if target is not None:
            if there is None:
                folder.replace_with_link(kept, target)
            if folder.link_target(kept) == target:
                return
        else:
            status = folder.status(name)
            assert status is not None
            data = folder.read(name)
            if there is None:
                owner = Owner(status.st_uid, status.st_gid) if os.geteuid() == 0 else None
                folder.replace(kept, data, mode=status.st_mode & 0o777, owner=owner)
                return
            if folder.link_target(kept) is None and folder.read(kept) == data:
                return


def _make_folder(step: MakeFolder, above: Directory) -> None:
    """Under a hidden name, then renamed: one that has another owner than it should never exists under its own."""
    failpoint("setup.folder.before")
    temporary = temporary_name(step.path.name)
    above.discard_tree(temporary)
    with above.make(temporary, mode=step.mode):
        pass
    if step.owner is not None:
        os.chown(above.path / temporary, step.owner.uid, step.owner.gid, follow_symlinks=False)
    failpoint("setup.folder.made")
    above.rename(temporary, step.path.name)
    above.sync()


def _permit_folder(step: MakeFolder, above: Directory) -> None:
    if step.owner is None:
        status = above.status(step.path.name)
        assert status is not None
        owner = Owner(status.st_uid, status.st_gid)
    else:
        owner = step.owner
    above.permit(step.path.name, mode=step.mode, owner=owner)
