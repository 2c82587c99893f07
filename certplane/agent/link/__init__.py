"""The agent's side of the broker's gRPC interface: one persistent mTLS channel.

    broker.py       the `Broker` port: the calls; `convert` turns their messages into the agent's values
    stream.py       keeps a status stream open; `open_stream` is one, `session` what it has heard and has to say
    answering.py    carries out the broker's directives and answers them
    messages.py     the messages of a stream
    diagnosis.py    why there is no connection, which gRPC doesn't say

Messages stop here: what others see are the values of `certplane.agent.model` and `certplane.fleet_report`.
"""
