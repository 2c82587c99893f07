"""What happens to audit events beside their rows in the database.

    fallback.py   the failure modes: the log and the spill file (fail_open), the mirror in the log
    spill.py      the spill file: appended to by the fallback, taken back into the database at a start
    spill_lock.py one broker for a spill file, and which one that was before
    denials.py    repeated denials counted together before they fill the log
    repeats.py    repeated reports and hand-outs counted together, durably
    windows.py    which of many equal events are written, and which counted; pure
    coalescing.py when summaries are written

The events themselves, and the trail that makes them, are in `certplane.broker.events`. Their rows are written by the
store, in the transaction of the change that they record; it knows this package by the ports `AuditFallback` and
`AuditImport` alone.
"""

from certplane.broker.audit.denials import DenialCoalescer
from certplane.broker.audit.fallback import SpillFallback
from certplane.broker.audit.repeats import RepeatCoalescer
from certplane.broker.audit.spill import SpillFile, import_spill
from certplane.broker.audit.spill_lock import SpillLock

__all__ = ["DenialCoalescer", "RepeatCoalescer", "SpillFallback", "SpillFile", "SpillLock", "import_spill"]
