"""When a certificate is renewed: one rule for broker and agent, for public certificates and identities alike."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

SHORT_LIFETIME = timedelta(days=10)
"""Below it a certificate is renewed at half of its life, as public CAs advise, since a third leaves too few tries."""

_PHASE_WINDOW = 1 / 20
"""Share of the lifetime over which hosts spread: 4.5 days of 90, 72 minutes of 24 hours."""


def renew_time(not_before: datetime, not_after: datetime, renew_before: timedelta | None, phase_key: str) -> datetime:
    """The moment from which a certificate is due.

    Unset `renew_before`: when a third of the lifetime is left, half when the lifetime is under `SHORT_LIFETIME`, and
    earlier by the phase: a fixed share, given by `phase_key`, of a twentieth of the lifetime, so that hosts enrolled
    together don't renew together. Set: the smaller of it and half of the lifetime, without a phase.

    The answer is never before 45 % of the lifetime, so that no setting makes a fresh certificate due.

    Args:
        not_before: Start of the validity.
        not_after: End of the validity.
        renew_before: The configured span before `not_after`, positive; None to derive it.
        phase_key: What the phase is fixed to: the host's name and the certificate's, say.

    Raises:
        ValueError: the validity is empty, or `renew_before` isn't positive.
    """
    lifetime = not_after - not_before
    if lifetime <= timedelta():
        raise ValueError("a certificate's validity must not be empty")
    if renew_before is not None:
        if renew_before <= timedelta():
            raise ValueError("renew_before must be positive")
        return not_after - min(renew_before, lifetime / 2)
    left = lifetime / 2 if lifetime < SHORT_LIFETIME else lifetime / 3
    return not_after - left - lifetime * _PHASE_WINDOW * _phase(phase_key)


def _phase(key: str) -> float:
    """Uniform in [0, 1), the same for the same key on every machine and in every release."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / (1 << 48)
