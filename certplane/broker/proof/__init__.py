"""How the audit log proves itself (ADR 0043). Pure: octets in, findings out.

    chain.py        each writer's events as a chain of hashes
    checkpoints.py  how far a chain had come at a time, signed
    signatures.py   which signatures are missing, or were made too late
    verify.py       what does not hold in a log that is read
    lines.py        a log as lines of JSON, to be verified without the database

Who can write to the database can change events and compute all hashes after them anew; they can't sign. So what stands
before a signed checkpoint is proven by its key, and what stands after the last one by nobody but its chain.
"""
