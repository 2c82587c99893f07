"""The same for a program without an event loop: the standard library's HTTP server, a thread for each connection.

python threaded_server.py client.yml api 8443
"""

import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from certplane.client import SyncCertificateKeeper, SyncClient


def main(config: str, profile: str, port: int) -> None:
    """Serve this folder until the program is stopped."""
    with SyncClient.from_config(config) as client:
        with SyncCertificateKeeper(client, profile=profile, folder="tls") as keeper:
            server = ThreadingHTTPServer(("", port), SimpleHTTPRequestHandler)
            context = keeper.ssl_context()
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            print("serving", keeper.current.certificate.serial_number, flush=True)
            server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
