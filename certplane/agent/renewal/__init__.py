"""When a certificate of this host is due and what is to be done about it: pure, no disk, no network, no clock.

Places to start:
    plan      `next_step`: facts and a moment in, one step out (`Wait`, `Request` or `Activate`)
    status    how a lineage's status changes with each event; whoever acts saves it before and after
    health    how bad it is, in one word: for `status`, `check` and monitors
    failures  what an error means for the next try
"""
