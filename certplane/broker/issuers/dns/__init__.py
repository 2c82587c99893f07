"""dns-01: TXT records written through a provider, found on every authoritative server, and removed again.

| module | owns |
|---|---|
| `solver` | `DnsSolver`, the port `ChallengeSolver`; start here |
| `settings` | the section `dns`, and the DNS keys of `issuer.acme`; `routing` makes `Routes` of them |
| `routes` | which provider, credentials and servers a record gets, by zone |
| `delegation` | CNAMEs of challenge names followed to where records may stand |
| `lookup` | zones by SOA walk, and their servers; it asks by `resolvers` and `name_servers` |
| `preflight` | what can be known before an order is spent: by `caa`, `standing`, and `dnssec` over `signatures` |
| `batching` | one call of what many orders want in a zone; `account_limits`: budget and circuit breaker of an account |
| `provider` | `DnsProvider`: what a DNS API has to do for it, and `ProviderSettings`, its section of broker.yml |
| `providers` | the registry |
| `cloudflare`, `rfc2136`, `httpreq`, `acme_dns`, `exec`, `lexicon` | the providers, each with its section |
| `lexicon_call` | the process that calls lexicon |
| `propagation` | the look at every authoritative server |
| `asking` | one question to one server; `dns_wire`: its bytes, and the reader of most answers |
| `dns_messages` | what an answer means; `http_client`: the guarded client of the HTTP providers |

A provider is added by one module with its section and adapter, a field of `providers.ProviderSections`, and its keys in
docs/configuration.md. Only a provider whose package is large or slow to load is two: its section in a package's
`__init__`, which settings import, and its adapter beside that.

Records are added beside what stands there, never replaced, and removed by id or by name and value: an apex and its
wildcard share a name, and so do brokers. A CNAME at a challenge's name is followed when the record is planned, so that
the journal holds where it stands.
"""
