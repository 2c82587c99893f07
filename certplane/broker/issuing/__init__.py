"""The process that does ACME and DNS (docs/adr/0024), and the ports of `certplane.broker.ports` over it.

| module | owns |
|---|---|
| `messages` | every message that crosses, and the calls with their results |
| `connection` | frames on a socket pair: lengths, bounds, what isn't a message |
| `remote` | in the broker: `Issuer`, `Revoker`, `ChallengeSolver`, `OrderPreflight`, `RenewalInfoSource` by calls |
| `supervision` | in the broker: `IssuingProcess`, which keeps one child running; start here |
| `child` | in the broker: one child from its start to its end |
| `answering` | in the child: calls to the adapters, and what became of them |
| `program` | in the child: its start from the broker's settings, its signals, its end (`__main__` runs it) |
| `log_lines` | records of the child's log, sent and written again |

The broker's half loads no adapter, the child's no gRPC server and no database.
"""
