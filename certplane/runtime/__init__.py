"""What both programs run on: the clock, bounded pools, back-off, failpoints, logging set-up, terminal progress.

Nothing here knows a certificate. Start with `certplane.runtime.clock`.
"""
