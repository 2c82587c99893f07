"""Secrets of DNS APIs by name, read at each use so that a new one needs no restart, and never logged.

`env` reads the environment, `files` reads below one directory; `source` chooses by the configuration. Vault and OpenBao
are not here yet: choosing them is an error when the broker starts.
"""
