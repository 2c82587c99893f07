"""What every call passes before a servicer sees it.

Start with `edge`, the one interceptor, which says the order; `authentication` decides who calls, `first_use` with
which of its certificates, `access` who may call
what, `buckets` how often; `handlers` runs the four kinds of handlers, `metrics` counts.
"""
