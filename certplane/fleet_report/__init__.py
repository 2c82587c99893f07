"""What a host reports of its certificates, as agent, broker and operator know it: one value, one codec of messages.

    model.py      the values; they know neither gRPC nor JSON nor SQL
    fields.py     what a field may hold
    messages.py   between the values and the messages of renewal.proto: it alone imports certplane.v1

A field of a report is added in renewal.proto, in `model`, and where the agent finds it (`agent.reporting.report`).
"""
