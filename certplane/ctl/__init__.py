"""certplanectl: what operators ask of the broker, from anywhere that has an operator's identity.

`cli` is the command line, `client` the calls, `view` what is shown, `settings` where the broker and the identity are.
"""
