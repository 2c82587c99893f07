"""When a certificate of this host is due and what is to be done about it: pure, no disk, no network, no clock.

Places to start: `plan.plan_renewal` (facts and a moment in, one step out), `status` (how a lineage's status changes
with each event, the waiting times between tries included).
"""
