"""Certplane: a certificate control plane for servers outside Kubernetes.

Where to start:
    `certplane.agent`: the program on each host: identity, keys, installation.
    `certplane.broker`: the central program: policy, issuance, audit.
    `certplane.rpc`: the gRPC edge that both share; the wire contract itself is proto/certplane/v1.
    `certplane.sandbox`: throw-away servers for the demo and the tests.
"""

__version__ = "0.1.0"
