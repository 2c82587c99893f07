"""Alembic's scripts for the broker's schema, packaged with the program and run by it at its start (`store.migrate`).

To add one: change `schema.py` and `SCHEMA_REVISION`, then write `versions/NNNN_what_it_does.py` by hand after the
newest. A released migration is never changed. Migrations go forward only: the way back is the copy made before.

Brokers of the release before run beside the new one, so a migration only adds (ADR 0037); a test refuses one that does
more, unless `READABLE_FROM` says whom it shuts out. A new word of an enum that is stored is refused too: one release
must know it before the next one writes it.
"""
