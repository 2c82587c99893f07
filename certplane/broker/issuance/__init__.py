"""The story of a certificate: from a caller's CSR to a stored, audited and handed-out certificate.

Pure asynchronous domain code: it reaches the world through `certplane.broker.ports` alone and knows neither gRPC, ACME
nor SQL. Read in this order:

| module | owns |
|---|---|
| `authority` | `RegistrationAuthority`, the public face: each call's order of rules |
| `commands` | what callers ask, and what they get |
| `authorisation` | what is asked before anything is done: CSR, policy, the key, the certificate that is replaced |
| `wants` | why an order is wanted, and who hears that a limit holds it up |
| `caching` | pure: which stored certificate answers a request |
| `tenure` | which orders are this broker's to run: taken, given back, taken anew |
| `dispatch` | who runs the orders: a task each, resumed at the start, parked at the stop |
| `flights` | the orders under way, and those who wait for them |
| `elsewhere` | orders that another broker runs, for those who wait for them here |
| `execution` | one order's run to its end: step after step, and what follows from each outcome |
| `steps` | the steps at the CA, each journalled before the next, and their outcomes; `FAILPOINTS` |
| `order_context` | what all orders under way share; the lease asked before each step outside |
| `failover` | which issuer an order goes to, and which ones are out |
| `holds` | what the issuers are not to be asked for now, and which are out of reach |
| `validation` | the DNS part of that way: records journalled, written, seen, answered for, removed |
| `storing` | pure: what is stored of an issued certificate |
| `journal` | the durable side of an order under way: every write, retried as long as it takes |
| `epoch` | when those who wait are told to ask again |
| `queue` | whose turn it is: one ACME order at a time per name set |
| `lanes` | the same, among the orders of all brokers of a database |
| `outcome` | pure: what a failure means for an order |
| `condition` | which profiles wait for a person |
| `delivery` | the hand-out: all is asked again, recorded, then given |
| `revocation` | taking certificates back |
| `events` | the audit events of all of these |
| `settings`, `context` | limits and times; the ports together |
| `waiting` | waiting for events with injected time; work that a cancellation must not tear |
"""
