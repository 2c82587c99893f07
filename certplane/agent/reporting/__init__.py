"""What the broker is told of this host's certificates: made from each saved status, kept on disk until it was heard.

Start at `report` (a status as the broker wants it: pure), then `recording` (every saved status becomes a report), then
`spool` (what is kept, and how it survives a crash). `certplane.agent.link.stream` sends it.
"""
