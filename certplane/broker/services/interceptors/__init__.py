"""What every call passes before a servicer sees it, as far as it is gRPC's.

Start with `edge`, the one interceptor, which says the order. Who calls, whether it may and how much is decided in
`certplane.broker.identity`; here `peer` reads the connection, `handlers` runs the four kinds of handlers,
`open_streams` checks the callers of streams, `status` ends calls, `access_log` tells.
"""
