"""Enrolment: how a host gets, keeps and gets back its identity from the internal CA (step-ca).

`certplane.agent.enrollment.identity` is the story (enroll, renew, re-key, recover; what survives a crash);
`certplane.agent.enrollment.stepca` is the CA's side of it, over `certplane.stepca` (one HTTPS request, which CA is
believed, what a one-time token says). `tokenfile` reads the token. Nothing here knows gRPC or the broker.
"""
