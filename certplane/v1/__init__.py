"""Messages and stubs generated from proto/certplane/v1 by scripts/gen-protos; never edited.

Imported only by the edge: `certplane.rpc`, `certplane.broker.services`, `certplane.agent.link` and `certplane.ctl`.
"""
