"""Copies of the audit log elsewhere (`audit.sinks`): a file, a syslog server over TLS, an OpenTelemetry collector.

One broker of a database copies for all (role `audit_sinks`), from the database: an event is copied when it is durable,
in the order in which events became so, and each sink has a position in the database, so that a restart, or another
broker, goes on where one has ended. A sink that is away costs nobody anything but the room that the log has anyway; one
that is `required` has decisions refused while it is too far behind (`gate`).

| module | owns |
|---|---|
| `settings` | the section |
| `ports` | where events and positions are read, and what takes events |
| `position` | which events a sink has. Pure |
| `forwarding` | the work: read, hand over, note |
| `gate` | whether decisions may be made while a required sink is behind |
| `file`, `syslog`, `otlp` | the adapters |
"""
