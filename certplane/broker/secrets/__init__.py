"""Secrets by name (DNS credentials, the database's password), read at use so that a new one needs no restart.

`env` reads the environment, `files` reads below one directory, `vault` asks Vault or OpenBao; `source` chooses by the
configuration. None of them logs a secret, or quotes one in a message.
"""
