"""The client library: certificates of a Certplane broker for Python programs, asynchronous and synchronous.

    async with Client.from_config("client.yml") as client:
        async with CertificateKeeper(client, profile="api", folder="tls") as keeper:
            server = await asyncio.start_server(handle, port=8443, ssl=keeper.ssl_context())

Start with `CertificateKeeper`, which keeps one certificate fresh; `Client` has the calls. `SyncClient` and
`SyncCertificateKeeper` are the same without an event loop. docs/integrating.md has whole programs.

The names in `__all__` are public and follow semantic versioning: within a major version none goes away and no call
that worked fails. Names that begin with an underscore, and other modules of `certplane`, are not. Times are aware and
in UTC, spans are `timedelta`, PEM is text (private keys: bytes). DNS names are canonical (lower case, A-labels) and
sorted, serial numbers are lower-case hexadecimal digits without leading zeros. Everything that is raised on purpose is
a `CertplaneError`.
"""

from certplane.caller.errors import OrderFailedError, OrderUnderWayError
from certplane.caller.values import (
    Certificate,
    CertificateNews,
    Identity,
    IssuedCertificate,
    Order,
    OrderState,
    RevocationReason,
)
from certplane.client.client import Client
from certplane.client.keeper import CertificateKeeper
from certplane.client.sync import SyncCertificateKeeper, SyncClient
from certplane.errors import (
    CertplaneError,
    ConfigurationError,
    OperationError,
    ProblemDocument,
    Reason,
    Refusal,
    RefusalError,
    Violation,
)
from certplane.pki.keys import KeyType
from certplane.rpc.proxy import ProxyUse

__all__ = [
    "Certificate",
    "CertificateKeeper",
    "CertificateNews",
    "CertplaneError",
    "Client",
    "ConfigurationError",
    "Identity",
    "IssuedCertificate",
    "KeyType",
    "OperationError",
    "Order",
    "OrderFailedError",
    "OrderState",
    "OrderUnderWayError",
    "ProblemDocument",
    "ProxyUse",
    "Reason",
    "Refusal",
    "RefusalError",
    "RevocationReason",
    "SyncCertificateKeeper",
    "SyncClient",
    "Violation",
]
