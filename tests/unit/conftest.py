"""Property tests have no time limit per example: the suites of a whole team may share two cores."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("certplane", deadline=None)
settings.load_profile("certplane")
