"""The steps of an installation, each a place where a test may kill the agent (`certplane.runtime.failpoints`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from certplane.runtime.failpoints import failpoint

DISK_STEPS = (
    "write",  # a version's files, beside its place
    "publish",  # the version appears under its number
    "forget",  # the pending key is dropped: the version holds it
    "keep",  # files that stand at configured paths are kept, as version 0 or under replaced/
    "hold",  # link mode: `held` points at what was kept
    "link",  # link mode, per path: the path becomes a link, to identical content or to nothing yet
    "derive",  # the PKCS#12 file appears in the version
    "permit",  # the new version's files get owner and mode of those they replace, or what is configured
    "prepare",  # copy mode, per path: the new file beside its place
    "journal",  # copy mode: from here on the copy is finished, not undone
    "commit",  # copy mode, per path: the new file in its place
    "switch",  # `current` points at the version
    "release",  # link mode: `held` points at `current`
    "relink",  # link mode, per path: from `held` to `current`
    "finish",  # `held` or the journal is removed
    "remove",  # prune: the version disappears under its number, then its files
)
ACTIVATION_STEPS = (
    "install",
    "reload",
    "verify",
    "confirm",
    "rollback",
    "reload_again",
    "verify_again",
    "reinstate",
    "reload_last",
    "record",
)

FAILPOINTS = tuple(
    f"install.{name}.{side}" for name in (*DISK_STEPS, *ACTIVATION_STEPS) for side in ("before", "after")
)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Pass the failpoints around one step; what raises inside has no `after`."""
    before = f"install.{name}.before"
    if before not in FAILPOINTS:
        raise ValueError(f"not a step: {name}")
    failpoint(before)
    yield
    failpoint(f"install.{name}.after")
