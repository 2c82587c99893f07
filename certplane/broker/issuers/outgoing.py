"""Where the broker may call out to (design, fixed decision 15): https, and only hosts that the configuration names.

A CA's answers are full of URLs. Each one is checked here before it is fetched, so that no answer makes the broker call
a host that its operator did not choose.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import ssl
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from certplane.config.bundles import read_ca_bundle
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.bundle import encode_certificates
from certplane.runtime.clock import SystemClock

HTTPS_PORT = 443

_NO_URL = re.compile(r"""[\x00-\x20\\<>"^`{|}\x7f]""")

logger = logging.getLogger(__name__)


class ForbiddenUrlError(ValueError):
    """A URL that the broker doesn't call; the text says why and is safe to show."""


class AllowedHosts:
    """The hosts that may be called: that of one URL, and those of an allow-list.

    An entry is `host` (port 443) or `host:port`; a host on another port is another host.
    """

    def __init__(self, url: str, also: Iterable[str] = ()) -> None:
        """Allow the host of `url` and those of `also`.

        Raises:
            ForbiddenUrlError: `url` isn't an https URL with a host, or an entry isn't a host.
        """
        self._allowed = frozenset([authority(url), *(authority(f"https://{entry}/") for entry in also)])

    def check(self, url: object) -> str:
        """Return `url` if it may be called.

        Raises:
            ForbiddenUrlError: it may not.
        """
        if not isinstance(url, str):
            raise ForbiddenUrlError("a URL is missing")
        self.place(url)
        return url

    def place(self, url: str) -> tuple[str, int]:
        """The host and port of `url`, if it may be called. Raises as `check`."""
        host, port = where = authority(url)
        if where not in self._allowed:
            raise ForbiddenUrlError(f"a URL on {host}:{port}, which is neither the directory's host nor allowed")
        return where


def check_endpoint(url: str, *, secret: bool = True, private_http: bool = False) -> str:
    """Return the configured `url` if it may be called: https, or http to this machine.

    Args:
        url: As it is configured.
        secret: Whether credentials are sent there; without them http may go anywhere, since there is nothing to read.
        private_http: Whether the operator has said that credentials may go in the clear over a private network.

    Raises:
        ForbiddenUrlError: it may not.
    """
    host, _ = authority(url, schemes=("https", "http"))
    if not url.lower().startswith("http:") or _is_loopback(host) or not secret:
        return url
    if not private_http:
        raise ForbiddenUrlError("it must be https: credentials are sent to it")
    if _is_public(host):
        raise ForbiddenUrlError(
            "it must be https: credentials are sent to it, and its address is on no private network"
        )
    return url


def configured_endpoint(url: str, key: str, *, secret: bool = True, private_http: bool = False) -> str:
    """As `check_endpoint`, for the value of a configuration's `key`.

    Raises:
        ConfigurationError: it may not be called.
    """
    try:
        return check_endpoint(url, secret=secret, private_http=private_http)
    except ForbiddenUrlError as error:
        raise ConfigurationError([ConfigurationProblem("", None, key, str(error), "use an https URL")]) from error


def environment_proxy(host: str, port: int) -> str:
    """The URL of the proxy that the environment names for https to this host, empty for none.

    `https_proxy`, else `all_proxy`, unless `no_proxy` has the host, a domain above it, or a network that it is in.
    """
    proxies = getproxies_environment()
    proxy = proxies.get("https") or proxies.get("all") or ""
    if not proxy or any(_matches(entry, host, port) for entry in proxies.get("no", "").lower().split(",")):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _matches(entry: str, host: str, port: int) -> bool:
    """Whether an entry of `no_proxy` has the host: `*`, a network, or a name or address with or without a port."""
    entry = entry.strip()
    if "/" in entry:
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    name = entry.lstrip(".")
    return name == "*" or (bool(name) and f".{host}:{port}".endswith((f".{name}", f".{name}:{port}")))


def trusted_roots(ca_bundle: Path | None, key: str) -> ssl.SSLContext:
    """What verifies servers by the PEM file that `key` names, or by the public roots. Blocks.

    Raises:
        ConfigurationError: the file can't be read, or holds no certificates.
    """
    try:
        return roots_context(ca_bundle)
    except ConfigurationError as error:
        raise ConfigurationError([replace(each, key=key) for each in error.problems]) from error


def roots_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """`trusted_roots` where no key is known; a problem names the file alone.

    The file is read by `certplane.pki.pem`, and not by OpenSSL: that passes over what it can't read, such as a first
    certificate behind a byte order mark, and each call would then end with "unable to get issuer certificate". What of
    it is of use now is what counts (`certplane.pki.bundle`); what isn't, or soon won't be, is logged.
    """
    if ca_bundle is None:
        return ssl.create_default_context()
    bundle = read_ca_bundle(ca_bundle, at=ConfigurationProblem("", None, "", ""), only_cas=False)
    now = SystemClock().now()
    problem = bundle.nothing_left(now)
    for line in [problem] if problem else bundle.warnings(now):
        logger.warning("%s: %s", ca_bundle, line)
    roots = bundle.pem(now) or encode_certificates(bundle.certificates)
    return ssl.create_default_context(cadata=roots.decode("ascii"))


def authority(url: str, schemes: tuple[str, ...] = ("https",)) -> tuple[str, int]:
    """The host, in lower case, and the port of `url`.

    Raises:
        ForbiddenUrlError: it isn't of these schemes, or names no plain host.
    """
    # What parsers are known to read differently never gets to a second parser.
    if not url.isascii() or _NO_URL.search(url):
        raise ForbiddenUrlError("a URL with characters that no URL has")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ForbiddenUrlError("a URL that can't be read") from error
    if parts.scheme not in schemes:
        raise ForbiddenUrlError(f"a URL that isn't {schemes[0]}")
    if not host or "@" in parts.netloc or "%" in parts.netloc:
        raise ForbiddenUrlError("a URL without a plain host")
    return host.rstrip("."), port or (HTTPS_PORT if parts.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_public(host: str) -> bool:
    """Whether it is an address of the public network; a name may lead anywhere and is the operator's word."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False
