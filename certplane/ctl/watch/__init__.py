"""`certplanectl watch`: the fleet, live. On a terminal a full screen, else lines.

Start with `command`, which chooses. `feed` follows the broker and outlives its restarts; `lines` are plain displays.
Of the full screen `fleet` keeps a row for each host and `known` all else that was heard; `screen` is what keys make,
`drawing` the lines of it all (with `table`, `summary`, `detail`, `rollouts`,
`page`): pure. `polling` asks what pages need, and `streams` hears what is told of rollouts; `rollout_lines` follows one
without a full screen. `terminal` is the application around them, and the only module that needs Textual.
"""
