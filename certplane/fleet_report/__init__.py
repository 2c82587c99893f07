"""What a host reports of its certificates, as agent, broker and operator know it: one value, and one codec of messages.

model.py      the values; they know neither gRPC nor JSON nor SQL
"""
