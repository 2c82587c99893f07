"""Alembic's scripts for the broker's schema, packaged with the program and run by it at its start (`store.migrate`).

To add one: change `schema.py` and `SCHEMA_REVISION`, then write `versions/NNNN_what_it_does.py` by hand after the
newest. A released migration is never changed. Migrations go forward only: the way back is the copy made before.
"""
