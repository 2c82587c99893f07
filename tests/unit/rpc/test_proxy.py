"""Which proxy gRPC takes, by its own rules."""

from __future__ import annotations

import pytest

from certplane.rpc.channel import channel_options
from certplane.rpc.proxy import Proxy, ProxyUse, proxy_for

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environment", "host", "shown"),
    [
        pytest.param({}, "broker.example", "", id="none"),
        pytest.param({"https_proxy": PROXY}, "broker.example", f"{PROXY} (https_proxy)", id="https_proxy"),
        pytest.param({"http_proxy": PROXY}, "broker.example", f"{PROXY} (http_proxy)", id="http_proxy"),
        pytest.param({"HTTPS_PROXY": PROXY}, "broker.example", "", id="gRPC reads lower case only"),
        pytest.param({"https_proxy": "http://other:1", "grpc_proxy": PROXY}, "x", f"{PROXY} (grpc_proxy)", id="first"),
        pytest.param({"https_proxy": ""}, "broker.example", "", id="empty"),
        pytest.param({"https_proxy": "https://proxy:1"}, "broker.example", "", id="another scheme is passed over"),
        pytest.param({"https_proxy": "http://[::1"}, "broker.example", "", id="no URL"),
        pytest.param({"https_proxy": PROXY, "no_proxy": "a.test, broker.example"}, "broker.example", "", id="no_proxy"),
        pytest.param({"https_proxy": PROXY, "no_proxy": ".example"}, "broker.example", "", id="suffix"),
        pytest.param({"https_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, "10.1.2.3", "", id="network"),
        pytest.param(
            {"https_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, "11.1.2.3", f"{PROXY} (https_proxy)", id="other"
        ),
        pytest.param(
            {"https_proxy": PROXY, "no_grpc_proxy": "x.test", "no_proxy": "broker.example"},
            "broker.example",
            f"{PROXY} (https_proxy)",
            id="no_grpc_proxy comes before no_proxy",
        ),
        pytest.param(
            {"https_proxy": "http://u:secret@p:1"}, "h", "http://p:1 (https_proxy)", id="no password is shown"
        ),
    ],
)
def test_proxy_of_the_environment(environment: dict[str, str], host: str, shown: str) -> None:
    """grpc_proxy, https_proxy and http_proxy, in that order, unless an exception has the host."""
    proxy = Proxy.of_environment(host, environment)
    assert ("" if proxy is None else str(proxy)) == shown
    assert "secret" not in repr(proxy)


def test_none_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """GRPC itself would take the proxy: the channel's option says no."""
    monkeypatch.setenv("https_proxy", PROXY)
    assert proxy_for("broker.example", ProxyUse.NONE) is None
    assert proxy_for("broker.example", ProxyUse.ENVIRONMENT) is not None
    assert dict(channel_options())["grpc.enable_http_proxy"] == 0
    assert dict(channel_options(proxy=ProxyUse.ENVIRONMENT))["grpc.enable_http_proxy"] == 1
