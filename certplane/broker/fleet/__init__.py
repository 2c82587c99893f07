"""The fleet: what each host holds, wants and serves, the streams it is connected by, and who watches.

Start at `model` (the values), then `ports` (what it needs from the store).
"""
