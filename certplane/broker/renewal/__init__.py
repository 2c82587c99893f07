"""When each certificate should be renewed: what the CA advises (ARI, RFC 9773), and what operators ask for.

Start at `model` (the values), then `ports` (what it needs from the store and the CA).
"""
