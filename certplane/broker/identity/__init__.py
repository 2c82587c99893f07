"""Who is this, may it call, and how much: everything that is decided about a caller before its request is read.

Start at `admission`, which lets a call in and says the order. `authentication` decides who calls, by certificate, trust
bundle, policy and deny-list; `first_use` is the rule which of a host's certificates is the one in use, `activation`
asks it for a call; `access` is the table of who may call what; `allowances` says how often and how much, out of
`buckets` and by the `work` that a call is; `denials` audits what is refused. `standing` is asked later, about orders
and certificates of an identity that called before.
"""
