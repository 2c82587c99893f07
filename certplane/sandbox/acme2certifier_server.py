"""What acme2certifier's own Python runs: its WSGI application on a loopback port. Never imported by Certplane.

    python -P acme2certifier_server.py PORT DNS_PORT

The application is acme2certifier's, untouched; its configuration is in ACME_SRV_CONFIGFILE. Two things around it are
the sandbox's: it looks for challenges at DNS_PORT, since its configuration knows addresses and no ports; and it is told
that its clients speak HTTPS, as whatever stands in front of it in earnest tells it.
"""

from __future__ import annotations

import sys
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def address_string(self) -> str:
        """Without a look into the DNS."""
        return str(self.client_address[0])


def main() -> None:
    """Serve until killed."""
    import dns.resolver  # noqa: PLC0415 - it is in acme2certifier's environment, too

    port, dns_port = int(sys.argv[1]), int(sys.argv[2])
    reset = dns.resolver.BaseResolver.reset

    def reset_to_port(resolver: Any) -> None:
        reset(resolver)
        resolver.port = dns_port

    setattr(dns.resolver.BaseResolver, "reset", reset_to_port)  # noqa: B010 - mypy takes no assignment to a method
    from acme2certifier.share.acme2certifier_wsgi import (  # type: ignore[import-not-found] # noqa: PLC0415 - only there
        application,
    )

    def behind_https(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.url_scheme"] = "https"
        return application(environ, start_response)

    with make_server("127.0.0.1", port, behind_https, server_class=_Server, handler_class=_Quiet) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
