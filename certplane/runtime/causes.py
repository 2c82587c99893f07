"""What causes a failure, and who can act on it, as a short text that is the same wherever one cause is at work.

Twenty hosts whose orders wait for one name server, or three whose reload fails for one service, are one trouble: what
they say differs in times, names and serial numbers, and the cause doesn't. It is the `Reason` of a refusal or the step
that failed, and what that is about where the error names it: a server, a unit, the policy's profile.
"""

import re
from collections.abc import Collection
from typing import Final

from certplane.errors import Reason
from certplane.runtime.health import MOST_CAUSE, HealthActor

_DOTTED: Final = r"((?>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+))"
_NAME: Final = re.compile(rf"(?<=//){_DOTTED}(?![(@])|(?<![\w./@-]){_DOTTED}(?![(@/])")
"""The host of a URL, or a name by itself, in no path: a server's, or a unit's such as nginx.service."""
_PROOF: Final = "_acme-challenge."

_ACTORS: Final = {
    Reason.DNS_UNAVAILABLE: HealthActor.DNS,
    Reason.DNS_REJECTED: HealthActor.DNS,
    Reason.ISSUER_UNAVAILABLE: HealthActor.ISSUER,
    Reason.ISSUER_RATE_LIMITED: HealthActor.ISSUER,
    Reason.ISSUER_REJECTED: HealthActor.ISSUER,
    Reason.DRAINING: HealthActor.NOBODY,
    Reason.STREAM_DISPLACED: HealthActor.NOBODY,
    Reason.STREAM_TIMED_OUT: HealthActor.NOBODY,
    Reason.KEY_REUSED: HealthActor.HOST,
    Reason.KEY_WEAK: HealthActor.HOST,
    Reason.CSR_INVALID: HealthActor.HOST,
    Reason.REQUEST_INVALID: HealthActor.HOST,
    Reason.IDENTITY_EXPIRED: HealthActor.HOST,
}
"""Who can act on a refusal; of all others it is whoever keeps the broker and its policy."""
_OF_POLICY: Final = frozenset({Reason.PROFILE_NOT_ALLOWED, Reason.NAMES_NOT_ALLOWED, Reason.KEY_WEAK})
_REASONS: Final = frozenset(map(str, Reason))


def cause_text(word: str, subject: str = "") -> str:
    """A cause: a reason or a step, and what it is about."""
    return f"{word.upper()} {subject}".strip()[:MOST_CAUSE]


def cause_of_error(
    error: str, step: str, profile: str = "", own_names: Collection[str] = ()
) -> tuple[str, HealthActor]:
    """The cause of a step that failed with `error`, and who can act on it.

    Args:
        error: What the host says of it; of a request that the broker refused `<reason>: <message>`.
        step: The step, as in `RenewalStep`.
        profile: The policy profile that the certificate is of: what a refusal of the policy is about.
        own_names: The certificate's names: never what its trouble is about.
    """
    word, _, message = error.partition(":")
    if word not in _REASONS:
        return cause_text(step, subject_of(error, own_names)), HealthActor.HOST
    reason = Reason(word)
    subject = profile if reason in _OF_POLICY else subject_of(message, own_names)
    return cause_text(reason, subject), _ACTORS.get(reason, HealthActor.OPERATOR)


def subject_of(message: str, own_names: Collection[str] = ()) -> str:
    """The server or the unit that a message is about; empty if it names none."""
    for found in _NAME.finditer(message):
        name = (found[1] or found[2]).lower()
        if not name.rpartition(".")[2][0].isalpha() or name.startswith(_PROOF):
            continue
        if not any(_is_below(name, own.removeprefix("*.")) for own in own_names):
            return name
    return ""


def _is_below(name: str, own: str) -> bool:
    return name == own or name.endswith(f".{own}")
