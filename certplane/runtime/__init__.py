"""What both programs run on: the clock, bounded pools, back-off, failpoints, logging set-up, progress, spans.

Nothing here knows a certificate. Start with `certplane.runtime.clock`.
"""
