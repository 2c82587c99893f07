"""What an admin does about identities over gRPC: one-time tokens for new machines, and shutting out old ones.

    settings.py         the section `bootstrap` of broker.yml
    provisioner_key.py  the key of a provisioner of the identity CA, and the signature of a token
    tokens.py           who gets a token, what it says, and its audit event
    denying.py          what shuts an identity out, by its name or by its certificates, and its audit events

The identity CA itself is never called from here: whoever holds a provisioner's key makes tokens that the CA accepts.
"""
