"""What people see of the broker's messages. Pure: values in, rows and lines out.

words.py         health, state and times as words, with their colours
fleet.py         hosts and certificates as rows, totals
host.py          one host in full
summary.py       the five questions of a night
renewals.py      what a renewal will do, does, and did
orders.py        orders
rollout_words.py rollouts in words: states, rings, bars
rollouts.py      rollouts: plans, facts, rows, what has changed
selections.py    which certificates are picked
incidents.py     incidents
audit.py         audit events
policy.py        plans, problems, versions
brokers.py       brokers, reloads
trust.py         CAs of a bundle
"""
