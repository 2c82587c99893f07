"""The broker's gRPC edge: messages come in here, and go no further.

- `interceptors`: what every call passes: let in by `certplane.broker.identity`, errors mapped, logged, counted.
- `certificates`, `enrollment`: the servicers, one a proto service; `convert` is from messages to values and back.
- `operations`: health, reflection and channelz, for known identities too.
- `trust`: the broker's own certificate and the CA bundle, loaded, checked and swapped while it runs.
- `server`: options, and one server out of all of it.

Start with `server`, then `interceptors.edge`.
"""
