"""Strict configuration files: YAML into frozen dataclasses, every mistake reported with file, line, key and remedy.

No program's settings are known here. `document` reads a file into nodes that know their place, `decoding` turns
nodes into dataclasses, `durations` reads `1h30m`, `files` reads the certificates and keys that settings point at.
"""
