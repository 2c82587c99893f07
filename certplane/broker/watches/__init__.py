"""Services that watch their certificates (`WatchMyCertificates`): they are told what hosts are told on their streams.

Begin with `news` (what a service is told, pure), then `session` (one call as a protocol, pure), `desk` (all calls of
this broker) and `elsewhere` (what other brokers do). `recording` and `places` let all brokers know who watches where.
"""
