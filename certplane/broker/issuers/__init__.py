"""Where public certificates come from: the ACME issuer, and under `dns` the TXT records that prove control of names.

| module | owns |
|---|---|
| `acme` | `AcmeIssuer`: the steps of an order (RFC 8555), each within its deadline; start here |
| `acme_orders`, `acme_chains` | orders at the CA, what of them may be repeated; which chain is kept |
| `acme_exchanges` | the account's session, and repeating until the deadline |
| `acme_registration` | the account: found or made, bound, its contact, its change of key |
| `acme_client` | one exchange a method, and the messages |
| `acme_signing` | JWS, nonces, badNonce |
| `acme_ca` | `AcmeCa`: one CA as configured; its connections and its directory, for all that ask it |
| `acme_http` | what goes over the wire, and the connections that are kept |
| `acme_connection`, `acme_sockets` | one connection (h11), and limits on what a CA may send back; how it is opened |
| `acme_errors` | `AcmeError`, and what a refusal means |
| `acme_directory`, `acme_resources` | a CA's JSON as checked values |
| `acme_account` | the account key's file |
| `acme_limits`, `acme_settling` | what a rate limit is about; for how long a CA may not know what it named |
| `renewal_info` | `AcmeRenewalInfo`: what a CA says about renewals (RFC 9773), beside the orders |
| `caa_identity` | what a CA is called in CAA records, and in standing ones |
| `challenge_kinds`, `standing_records` | how names are proved to a CA; the records of dns-persist-01 |
| `certificate_ids` | how a certificate is named at its CA |
| `dns` | `DnsSolver`, its providers, and the look at every authoritative server |
| `attempts` | deadlines, and repeating what is safe to repeat |
| `answers`, `outgoing` | text and times that outsiders send; where the broker may call |

Everything that comes from outside is size-limited, checked and made printable here; only `RefusalError` leaves,
and `RenewalInfoError` from who is asked about renewals.
"""
