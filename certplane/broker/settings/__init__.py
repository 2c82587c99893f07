"""broker.yml as frozen values: the public format's keys with their defaults, and Certplane's own after them.

A section is a dataclass, a field a key: the sections are the reference of the format, and docs/configuration.md tells
it in words. Paths are kept as written; the files behind them are read, and judged, by those who use them
(`Source.problem` gives them the place to name). Secrets stand in a secret source and are named here; the vault token is
the format's one exception.

| section | where |
|---|---|
| the whole file | `file` |
| `server`, `policy`, `metrics`, `logging` | `server` |
| `issuer`, `issuers` | `issuers`; a CA's keys: `certplane.broker.issuers.acme_settings` |
| a DNS provider's, below `issuer.acme` | beside its adapter, in `certplane.broker.issuers.dns` |
| `dns` | `certplane.broker.issuers.dns.settings` |
| `secrets` | beside its adapters, in `certplane.broker.secrets` |
| `notifications` | `certplane.broker.notify.receivers`, and `.settings` for the rules |
| `store`, `audit`, `rate_limits` | `records` |
| `bootstrap` | `certplane.broker.enrolling.settings` |

What an adapter takes stands beside the adapter, so that nothing is copied from one class into another; adapters never
import this package.
"""

from certplane.broker.settings.file import BrokerSettings, load_settings, parse_settings
from certplane.broker.settings.records import RateLimitSettings, StoreDriver
from certplane.broker.settings.server import LoggingSettings

__all__ = ["BrokerSettings", "LoggingSettings", "RateLimitSettings", "StoreDriver", "load_settings", "parse_settings"]
