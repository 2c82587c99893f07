"""policy.yml and what it decides: who an identity is, and which certificates it may have.

`document` reads the file into a `PolicyDocument`; `decision` says yes or why not, purely; `source` keeps the last good
document in force. Policy is the only authority: a CSR conveys a key and names, policy decides on both.

`first_use` is a rule of its own: which certificate of a host's identity is in use, and when two holders contest it.
"""
