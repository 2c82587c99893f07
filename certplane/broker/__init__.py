"""certplane-broker: the central server that issues certificates to hosts under policy.

Five-minute path: `certplane.broker.app` wires everything; `certplane.broker.issuance` is the story of one certificate;
`certplane.broker.ports` has the interfaces that it depends on; `certplane.broker.services` is what callers see.
"""
