"""What each kind of service needs of a certificate: which files, how it is reloaded, where it is looked at. Pure.

The reload commands are those that the polkit rule of the units allows, and the ports those of Debian's configurations.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Service(StrEnum):
    """A kind of service."""

    NGINX = "nginx"
    HAPROXY = "haproxy"
    POSTFIX = "postfix"
    APACHE = "apache"
    DOVECOT = "dovecot"


@dataclass(frozen=True, slots=True)
class Preset:
    """What agent.yml says for a service.

    Attributes:
        outputs: the outputs that it reads, by key, with the ending of each file's name.
        unit: what systemd reloads.
        verify: `host:port` where it serves the certificate.
        starttls: how TLS begins there; empty where the connection begins with it.
        lines: how its own configuration names the files, as a person would write it; `{output}` stands for a path.
    """

    outputs: tuple[tuple[str, str], ...]
    unit: str
    verify: str
    starttls: str
    lines: tuple[str, ...]


_PAIR = (("key", "key"), ("fullchain", "pem"))
PRESETS: Final = {
    Service.NGINX: Preset(
        _PAIR, "nginx.service", "127.0.0.1:443", "", ("ssl_certificate {fullchain};", "ssl_certificate_key {key};")
    ),
    Service.HAPROXY: Preset(
        # one file: HAProxy would open two during a switch
        (("combined", "combined"),),
        "haproxy.service",
        "127.0.0.1:443",
        "",
        ("bind :443 ssl crt {combined}",),
    ),
    Service.POSTFIX: Preset(
        # one file here too (postconf(5), smtpd_tls_chain_files: the key before its certificate)
        (("combined", "combined"),),
        "postfix.service",
        "127.0.0.1:25",
        "smtp",
        ("smtpd_tls_chain_files = {combined}", "smtpd_tls_security_level = may"),
    ),
    Service.APACHE: Preset(
        _PAIR, "apache2.service", "127.0.0.1:443", "", ("SSLCertificateFile {fullchain}", "SSLCertificateKeyFile {key}")
    ),
    Service.DOVECOT: Preset(
        _PAIR, "dovecot.service", "127.0.0.1:993", "", ("ssl_cert = <{fullchain}", "ssl_key = <{key}")
    ),
}

NO_SERVICE: Final = Preset((*_PAIR, ("combined", "combined")), "", "", "", ())
"""For a certificate whose service nobody named: all forms, so that one of them fits."""
