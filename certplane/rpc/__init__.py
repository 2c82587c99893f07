"""The gRPC edge that both programs share.

- `certplane.rpc.status`: the one table between a `Reason` and a gRPC code, and `google.rpc.Status` both ways.
- `certplane.rpc.credentials`: TLS credentials of either side; a server's never resume, and swap while it runs.
- `certplane.rpc.channel`: how an agent or a tool opens its channel.
- `certplane.rpc.tracing`, `certplane.rpc.otlp`: spans of calls, and where they are sent.

Start with `certplane.rpc.status`.
"""
