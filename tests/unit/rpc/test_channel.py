"""From a URL to a channel's target and options."""

from __future__ import annotations

import pytest

from certplane.rpc.channel import channel_options, target_from_url
from certplane.rpc.credentials import KeyPair


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://broker.example:8443", "dns:///broker.example:8443"),
        ("https://broker.example:8443/", "dns:///broker.example:8443"),
        ("https://broker.example", "dns:///broker.example:443"),
        ("HTTPS://Broker.Example:1", "dns:///broker.example:1"),
        ("https://192.0.2.1:8443", "dns:///192.0.2.1:8443"),
        ("https://[2001:db8::1]:8443", "dns:///[2001:db8::1]:8443"),
    ],
)
def test_target(url: str, target: str) -> None:
    """`https://host[:port]` is the target; without a port it is 443."""
    assert target_from_url(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "http://broker.example:8443",
        "broker.example:8443",
        "https://",
        "https://:8443",
        "https://broker.example:0",
        "https://broker.example:65536",
        "https://broker.example:port",
        "https://user@broker.example",
        "https://user:secret@broker.example",
        "https://broker.example/v1",
        "https://broker.example?x=1",
        "https://broker.example/#x",
        "https://[2001:db8::1",
        "",
    ],
)
def test_url_that_is_no_target(url: str) -> None:
    """Anything else is refused with a text that says why, never with what it held."""
    with pytest.raises(ValueError) as caught:
        target_from_url(url)
    assert "secret" not in str(caught.value)


def test_options() -> None:
    """The server's name and the user agent are options only where they are given."""
    plain = dict(channel_options())
    assert plain["grpc.http2.max_pings_without_data"] == 0
    assert plain["grpc.max_receive_message_length"] == 65536
    assert "grpc.ssl_target_name_override" not in plain
    named = dict(channel_options(server_name="broker.internal", user_agent="x/1"))
    assert named["grpc.ssl_target_name_override"] == named["grpc.default_authority"] == "broker.internal"
    assert named["grpc.primary_user_agent"] == "x/1"


def test_key_pair_does_not_show_its_key() -> None:
    """A pair in a log line or a traceback doesn't show its key."""
    assert "secret" not in f"{KeyPair(b'secret', b'chain')!r}"
