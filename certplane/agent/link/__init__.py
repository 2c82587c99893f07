"""The agent's side of the broker's gRPC interface: one persistent mTLS channel.

`certplane.agent.link.broker` is the `Broker` port; `convert` turns messages into the agent's values, and is where they
stop; `diagnosis` finds out why there is no connection, which gRPC doesn't say.
"""
