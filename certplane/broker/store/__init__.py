"""The broker's one database behind its ports: orders, certificates, keys, deny-list, reports, audit log.

    stores.py          opens and closes it all: start here
    orders.py          single flight; order_rows.py every write of an order; limits.py the durable limits
    repeats.py         counts of repeated audit events
    members.py         the brokers of the database; roles.py what one of them does for all
    upkeep.py          what is old and ended is removed
    certificates.py  deny_list.py  identities.py  enrollments.py  audit_log.py
    change_feed.py     what other programs change in the database
    fleet.py  reports.py  fleet_rows.py    what hosts report, many of them in one statement
    writer.py          one thread, one queue: everything that is written passes here
    batch.py           group commit: what is one job's failure, and what is everybody's
    checkpoint.py      SQLite's log into its file, off the commit path
    transactions.py    what sessions of both databases share
    sqlite.py  files.py     connections; the lock, the file, the checks at the start
    postgresql.py      the same for a server
    schema.py  statements.py  migrate.py  migrations/
    cells.py           dataclasses as rows and as JSON, by the types of their fields; rows.py times and events

Nothing is written but through the writer, and nothing is acknowledged before it is on the disk.
"""

from certplane.broker.store.stores import Stores, open_stores

__all__ = ["Stores", "open_stores"]
