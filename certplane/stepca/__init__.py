"""What agent and broker say to step-ca, the internal CA: where it is, what it is known by, what its tokens are.

    exchange.py   one HTTPS request and its answer
    trust.py      the root, by fingerprint or bundle
    token.py      a one-time token, as far as it can be judged before it is sent
    server.py     a server's own certificate: got with a token, renewed with itself
    errors.py     what can go wrong

How a host gets its identity, and renews and recovers it, is `certplane.agent.enrollment`.
"""
