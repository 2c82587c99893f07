"""Benchmarks, run by `scripts/bench`: every figure is a ratio of two things measured in turn in one run.

Machines are shared and noisy: ratios are results, and processor time beside them; what is absolute (a start, memory)
holds for the machine and the Python that are named with it. A section measures A and B alternately, three rounds
or more, and reports the median of the rounds' ratios with their extremes.

    load.py       drives a gRPC server (ghz) and reads what came of it
    reference.py  the bare grpc.aio server and client that ours are compared with
    issue.py      IssueCertificate from the cache
    audit.py      durable audit events
    agent.py      memory and start of the agent, and a run with nothing due
    start.py      start and memory of the broker
    ctl.py        certplanectl, till the first byte of an answer
    streams.py    status streams: how many, what they cost, how fast a fleet is told, comes back and reports
    reports.py    their reports, in the store alone
    fleet.py      a fleet's files, its broker, and the processes (hosts.py, over wire.py) that play its hosts
    growth.py     start and calls with a large fleet's store, and how long each holds the event loop
    growth_fill.py  a store as large as a fleet's after years, made once and kept
    orders.py     orders at a CA: many at once, what CA and DNS API get of them, and certbot over the same
"""
