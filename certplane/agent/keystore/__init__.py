"""Private keys that wait for their certificate: one pending request per lineage, durable before the CSR is sent.

Start with `pending.FilePendingKeys(directory, clock=..., key_type=...)`, where `directory` is the lineage's.
"""
