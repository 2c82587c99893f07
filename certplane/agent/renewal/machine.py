"""The states of one certificate as a picture: which may follow which, in what is saved.

    absent --> due --> requesting --> issued --> installing --> reloading --> verifying --> serving
                ^          |            |            |              |             |            |
                |          v            | (a window) |              |             |            |
                +------- failed         v            +-------> degraded <---------+            |
                ^                     issued                       |                           |
                +--------------------------------------------------+---------------------------+
                                     (its time has come, or an operator's)

Without a `verify`, `waiting` stands where `serving` does. A failed activation ends in `degraded` and begins again with
`installing`, never with `requesting`: that takes a certificate's own time, or an operator. A restart finds whatever was
saved last and comes to rest from there (`renewal.status.planned`), so that the states at rest follow every state.

`FOLLOWS` is what tests hold every saved status against; nothing in the program looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping

from certplane.fleet_report.model import CertificateState

_S = CertificateState

AT_REST = frozenset({_S.WAITING, _S.SERVING, _S.DUE, _S.FAILED, _S.DEGRADED, _S.ISSUED})
"""States in which the agent waits for a moment, an answer of its clock, or somebody."""

_BEGIN = frozenset({_S.REQUESTING, _S.INSTALLING})

FOLLOWS: Mapping[CertificateState, frozenset[CertificateState]] = {
    _S.ABSENT: frozenset({_S.DUE, _S.WAITING, _S.ISSUED, _S.INSTALLING, _S.DEGRADED}),  # see `status.not_shown`
    _S.WAITING: AT_REST | {_S.INSTALLING},
    _S.DUE: AT_REST | _BEGIN,
    _S.REQUESTING: AT_REST | {_S.INSTALLING},
    _S.ISSUED: AT_REST | {_S.INSTALLING},
    _S.INSTALLING: AT_REST | {_S.RELOADING},
    _S.RELOADING: AT_REST | {_S.VERIFYING, _S.INSTALLING},
    _S.VERIFYING: AT_REST | {_S.INSTALLING},
    _S.SERVING: AT_REST | {_S.INSTALLING},
    _S.FAILED: AT_REST | {_S.INSTALLING},
    _S.DEGRADED: AT_REST | {_S.INSTALLING},
}
"""What may be saved after what, itself aside. Only `due` leads to `requesting`, only `installing` to `reloading`, only
`reloading` to `verifying`."""
