"""Throw-away servers on loopback, for the demo and for tests: what Certplane talks to, and nothing of Certplane itself.

Places to start:

- `parts` finds the programs that we did not write (step-ca, Pebble, BIND, PostgreSQL, grpcurl) and says which are left
  out;
- `ports` holds the two roles that are played either by a real part or by our own stand-in: `IdentityCa` (`step_ca`,
  else `identity_ca`) and `DnsServer` (`bind`, else `dns`); `servers` chooses;
- `pebble`, `postgres` and `cloudflare_api` are the other servers;
- `fault_proxy` stands in front of an ACME server or a DNS API and does to its exchanges what `faults` knows of them;
- `process` starts programs and stops them again, also when this process is killed;
- `deployment` puts a whole Certplane together.

Every server is an async context manager that listens on a free loopback port and keeps its files and its log in a
folder that the caller names. None may be reachable from another machine, and no key in here is worth anything outside
it. Nothing under `certplane.agent` or `certplane.broker` may import this package.
"""
