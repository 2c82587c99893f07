"""An HTTPS server whose certificate is kept fresh: no restart, no file to watch, no connection lost.

    python https_server.py client.yml api 8443

The three lines with `Client`, `CertificateKeeper` and `ssl_context` are all that is about certificates.
"""

import asyncio
import logging
import sys
from asyncio import StreamReader, StreamWriter

from certplane.client import CertificateKeeper, Client

BODY = b"served by certplane.client\n"


async def answer(reader: StreamReader, writer: StreamWriter) -> None:
    """One connection: an answer to each request until the client hangs up."""
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(config: str, profile: str, port: int) -> None:
    """Serve until the program is stopped."""
    async with Client.from_config(config) as client:
        async with CertificateKeeper(client, profile=profile, folder="tls") as keeper:
            server = await asyncio.start_server(answer, port=port, ssl=keeper.ssl_context(), backlog=1000)
            keeper.on_change(lambda issued: print("new certificate", issued.certificate.serial_number, flush=True))
            print("serving", keeper.current.certificate.serial_number, flush=True)
            await server.serve_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
