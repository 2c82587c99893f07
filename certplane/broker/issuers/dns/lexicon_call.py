"""The process that calls lexicon once: `python -m certplane.broker.issuers.dns.lexicon_call`.

A call in JSON comes on standard input (`LexiconProvider` makes it), the result leaves as the last line of standard
output: `{"result": "done"}`, or `unavailable` or `rejected` with a `message`. Providers print what they like: that goes
to standard error. A message may quote a provider and holds no credential: their texts are cut out, and of HTTP errors,
whose URL may hold a key, only status and host are told. A crash leaves no dump with the credentials, as nowhere.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

from certplane.runtime.secrecy import keep_memory_private

_SHORTEST_SECRET = 4
"""Shorter texts are left standing: cutting out every `1` would leave nothing of a message."""


def main() -> None:
    """Do what standard input says."""
    keep_memory_private()  # before a credential is read
    call = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        result = _result(call)
    sys.stdout.write(f"\n{json.dumps(result)}\n")


def _result(call: Mapping[str, Any]) -> dict[str, str]:
    try:
        _perform(call)
    except Exception as error:  # noqa: BLE001 - eighty providers raise what they like
        kind, message = _judge(error)
        return {"result": kind, "message": _without(call["secrets"], message)}
    return {"result": "done"}


def _perform(call: Mapping[str, Any]) -> None:
    # Loaded here, where a failure to load is a result too.
    import dns.resolver  # noqa: PLC0415
    from lexicon.client import Client  # noqa: PLC0415
    from lexicon.config import ConfigResolver  # noqa: PLC0415

    if call["resolvers"]:
        # By the SOA, as the public suffix list knows neither private names nor zones below a registered domain.
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = [_address(host) for host, _ in call["resolvers"]]
        resolver.nameserver_ports = {_address(host): port for host, port in call["resolvers"]}
        dns.resolver.default_resolver = resolver
    name, value = call["name"], call["value"]
    config: Any = ConfigResolver  # its constructor has no annotations
    with Client(config().with_dict(dict(call["config"]))) as operations:
        if call["operation"] == "create":
            if operations.create_record("TXT", name, value) is False:
                raise RuntimeError("it says that the record was not created")
        elif operations.delete_record(None, "TXT", name, value) is False and operations.list_records(
            "TXT", name, value
        ):
            raise RuntimeError("it says that the record was not deleted")


def _judge(error: Exception) -> tuple[str, str]:
    """Whether it may pass, and what to tell."""
    import dns.exception  # noqa: PLC0415
    import requests  # noqa: PLC0415

    name = type(error).__name__
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status, host = error.response.status_code, urlsplit(error.response.url).hostname
        if status in {408, 425, 429} or status >= 500:
            return "unavailable", f"{host} answered with HTTP status {status}"
        remedy = "; check the credentials and what they may do" if status in {401, 403} else ""
        return "rejected", f"{host} answered with HTTP status {status}{remedy}"
    if isinstance(error, (requests.RequestException, dns.exception.DNSException, OSError)):
        # Their texts have URLs too.
        return "unavailable", f"it can't be reached, or its zone can't be found: {name}"
    return "rejected", f"{name}: {error}"


def _address(host: str) -> str:
    return str(socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)[0][4][0])


def _without(secrets: Iterable[str], message: str) -> str:
    forms = {form for secret in secrets for form in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret))}
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= _SHORTEST_SECRET:
            message = message.replace(form, "[secret]")
    return message


if __name__ == "__main__":
    main()
