"""The fleet: what each host holds, wants and serves, the streams it is connected by, and who watches.

Start at `model` (the values), then `ports` (what it needs from the store). Streams: `hub` is what the servicer talks to
and puts the rest together: `session` (one stream's protocol, pure), `stream` (its sending and recording), `registry`
(who is connected), `supervision` (time passing), `plan_teller` (what hosts don't know), `recording`. Of the whole
fleet: `view`, `health`, `health_watch`, `watching`, `requests`.
"""
