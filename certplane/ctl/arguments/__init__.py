"""What may be typed: each command with its arguments and examples. Nothing here loads gRPC: `--help` answers at once.

    command.py   a command, and the options that many share
    fleet.py     fleet, certs, summary, watch, renew, revoke, forget
    machines.py  host, token
    rollouts.py  rollout, incident
    broker.py    orders, audit, policy, brokers, broker, trust, health, context

What a command does is in `certplane.ctl.commands`, named by `Command.run`.
"""
