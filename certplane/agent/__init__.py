"""certplane-agent: one per host. Keys are made here and never leave.

Five-minute path: `certplane.agent.app` connects everything and runs; `certplane.agent.host` says what is on this host's
disk; `certplane.agent.lineage_runner` renews one certificate, or the identity; `certplane.agent.renewal` decides
what is due, purely; `certplane.agent.request` asks the broker; `certplane.agent.install` keeps versions on disk and
switches them; `certplane.agent.enrollment` talks to the internal CA, `certplane.agent.link` to the broker.
`certplane.agent.ports` says how they meet.
"""
