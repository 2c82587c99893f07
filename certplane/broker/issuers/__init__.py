"""Where public certificates come from: the ACME issuer, and under `dns` the TXT records that prove control of names.

| module | owns |
|---|---|
| `acme` | `AcmeIssuer`: the steps of an order (RFC 8555), async, each within its deadline; start here |
| `acme_client` | one blocking ACME client; one HTTP exchange a method |
| `acme_network` | what goes over the wire: signatures, nonces, limits on what a CA may send back |
| `acme_resources` | a CA's JSON as checked values |
| `acme_directory` | what a CA offers |
| `acme_registration` | the account: found or made, bound, its contact, its change of key |
| `acme_account` | the account key's file |
| `acme_limits` | what a rate limit is about |
| `renewal_info` | `AcmeRenewalInfo`: what a CA says about renewals (RFC 9773), beside the orders |
| `certificate_ids` | how a certificate is named at its CA |
| `dns` | `DnsSolver`, its providers, and the look at every authoritative server |
| `attempts` | deadlines, and repeating what is safe to repeat |
| `answers`, `outgoing` | text and times that outsiders send; where the broker may call |

Everything that comes from outside is size-limited, checked and made printable here; only `RefusalError` leaves,
and `RenewalInfoError` from who is asked about renewals.
"""
