"""What people see of the broker's messages. Pure: values in, rows and lines out.

words.py         health, state and times as words, with their colours
fleet.py         hosts and certificates as rows, totals
host.py          one host in full
summary.py       the five questions of a night
renewals.py      what a renewal will do, does, and did
orders.py        orders
audit.py         audit events
policy.py        plans, problems, versions
brokers.py       brokers, reloads
trust.py         CAs of a bundle
"""
