"""certplane-agent: one per host. Keys are made here and never leave.

Five-minute path: `certplane.agent.app` wires everything and runs the loop; `certplane.agent.renewal` decides what is
due, purely; `certplane.agent.install` keeps versions on disk and switches them; `certplane.agent.enrollment` talks to
the internal CA, `certplane.agent.link` to the broker. `certplane.agent.ports` says how they meet.
"""
