"""Configured paths as links through `current`: one rename switches all of them.

Where a file stands at a path, replacing it by a link to another certificate would make a mixed pair for as long as the
next path takes. So the way goes over identical content:

    1. what stands there is kept, and `held` points at it
    2. each path becomes a link through `held`: the same bytes as before, or still nothing
    3. `current` points at the new version, which no path shows yet
    4. `held` points at `current`: every path switches at once
    5. each path becomes a link through `current`: the same bytes again; `held` is removed

Every step is durable before the next and can be done again, so that whatever a crash leaves is read off the disk and
finished by the next `show`. On disk there is never a mixed pair. A reader that opens key and certificate one after the
other may still have one of each version if the switch falls between; one that reads `combined`, or resolves `current`
once and opens both there, can't.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from certplane.agent.install.access import FileAccess, setting_owners
from certplane.agent.install.keeping import keep, permissions_of
from certplane.agent.install.material import Outputs, Part
from certplane.agent.install.outputs import HAS_CONTENT, Output, Standing, survey
from certplane.agent.install.pointers import CURRENT, HELD, Pointers
from certplane.agent.install.steps import step
from certplane.agent.install.versions import VersionDirectories
from certplane.runtime.files import open_directory


class LinkedOutputs:
    """Shows a version at the configured paths of one lineage."""

    def __init__(
        self,
        lineage: Path,
        outputs: Outputs,
        versions: VersionDirectories,
        pointers: Pointers,
        access: Mapping[Part, FileAccess],
    ) -> None:
        self._lineage = lineage
        self._outputs = outputs
        self._access = access
        self._versions = versions
        self._pointers = pointers

    def show(self, number: int) -> None:
        """Make the paths show a version, atomically; finishes what a crash left.

        Raises:
            OutputError, UnsafeDirectoryError, OSError: the version shown before stays.
        """
        found = survey(self._lineage, self._outputs)
        shown = self._shown()
        self._permit(number, shown, found)
        strangers = self._strangers(found, shown)
        if strangers or self._is_held():
            self._hold(found, strangers=strangers, first_use=not self._pointers.stands(CURRENT))
        else:
            self._link(found, CURRENT, "link")
        if shown != number:
            with step("switch"):
                self._pointers.point(CURRENT, f"versions/{number}")
        if self._pointers.target(HELD) is not None:
            self._release()

    def _shown(self) -> int | None:
        """The version that `current` names; None if it names none that is there."""
        number = self._pointers.number(CURRENT)
        return None if number is None or self._versions.get(number) is None else number

    def _permit(self, number: int, shown: int | None, found: Sequence[Output]) -> None:
        """A first version takes over from the files that stand there, a later one from the one before it.

        What is configured goes over that, also where it has changed since the version was first shown.
        """
        permissions = {}
        if shown is None:
            permissions = permissions_of(found)
        elif number > shown:
            permissions = self._versions.permissions(shown)
        elif not self._access:
            return
        with step("permit"):
            self._versions.permit(number, permissions)
            present = self._versions.permissions(number)
            wanted = {part: access.over(present[part]) for part, access in self._access.items()}
            with setting_owners(self._lineage):
                self._versions.own(number, wanted)

    def _strangers(self, found: Sequence[Output], shown: int | None) -> bool:
        """Whether bytes stand at a path that `current` doesn't show. Those that it shows become links directly."""
        files = {} if shown is None else self._versions.read(shown)
        return any(output.standing in HAS_CONTENT and output.data != files.get(output.part) for output in found)

    def _is_held(self) -> bool:
        return self._pointers.target(HELD) not in {None, CURRENT}

    def _hold(self, found: Sequence[Output], *, strangers: bool, first_use: bool) -> None:
        held = [output for output in found if output.standing is not Standing.CURRENT]
        if strangers:
            target = keep(self._lineage, self._versions, held, first_use=first_use)
            if self._pointers.target(HELD) != target:
                with step("hold"):
                    self._pointers.point(HELD, target)
        self._link(held, HELD, "link")

    def _release(self) -> None:
        with step("release"):
            self._pointers.point(HELD, CURRENT)
        self._link(survey(self._lineage, self._outputs), CURRENT, "relink")
        with step("finish"):
            self._pointers.remove(HELD)

    def _link(self, found: Sequence[Output], pointer: str, name: str) -> None:
        for output in found:
            target = str(self._lineage / pointer / output.part)
            if output.target != target:
                with step(name), open_directory(output.path.parent) as directory:
                    directory.replace_with_link(output.path.name, target)
