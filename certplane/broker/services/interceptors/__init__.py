"""What every call passes before a servicer sees it.

Start with `edge`, the one interceptor, which says the order; `authentication` decides who calls, `first_use` with
which of its certificates, `access` who may call what, `allowances` how often and how much, out of `buckets` and by the
`work` that a call is; `handlers` runs the four kinds of handlers, `metrics` counts, `access_log` tells.
"""
