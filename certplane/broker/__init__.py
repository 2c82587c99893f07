"""certplane-broker: the central server that issues certificates to hosts under policy.

Five-minute path: `certplane.broker.app` wires everything; `certplane.broker.issuance` is the story of one certificate;
`certplane.broker.ports` says what the story needs from outside; `certplane.broker.services` is what callers see.
"""
