"""The ledger of the CAs' limits: what may be ordered now, who goes first, and when the rest can go.

Start with `model` (limits, buckets, who waits), then `gcra` (how a bucket fills) and `claims` (which buckets an order
needs). All of that is pure. `ports` has the ledger that all brokers of a database share; `certplane.broker.store`
keeps it, `certplane.broker.issuance` asks it right before an order is made at a CA.
"""
