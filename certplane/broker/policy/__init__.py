"""policy.yml and what it decides: who an identity is, and which certificates it may have.

`document` reads the file into a `PolicyDocument`; `decision` says yes or why not, purely; `source` keeps the last good
document in force. Policy is the only authority: a CSR conveys a key and names, policy decides on both.
"""
