"""The section `audit.sinks`: what is wrong with it is told at once, each with its key and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from certplane.broker.settings import load_settings
from certplane.errors import ConfigurationError

BROKER = """\
server: {tls: {cert: /c.pem, key: /k.pem}, mtls: {agent_ca_bundle: /ca.pem}}
policy: {path: /policy.yml}
issuer: {acme: {directory_url: https://acme.example/dir, account_key: /a.pem, dns_provider: cloudflare}}
audit:
"""
FILE = "file: {path: /var/log/audit.jsonl}"

MISTAKES = {
    "no place": ("sinks: {a: {}}", "a.file: is required; write one of file, syslog and otlp"),
    "two places": (
        f"sinks: {{a: {{{FILE}, otlp: {{endpoint: 'https://o.example'}}}}}}",
        "a.otlp: file and otlp are there",
    ),
    "a name": (f"sinks: {{A B: {{{FILE}}}}}", "audit.sinks.A B: must be named with 1 to 64 of a-z"),
    "half a pair": (
        "sinks: {a: {syslog: {server: 's.example:6514', cert: /c.pem}}}",
        "a.syslog.key: is required beside the other one",
    ),
    "a facility": (
        "sinks: {a: {syslog: {server: 's.example:6514', facility: mail}}}",
        "a.syslog.facility: is 'mail', must be one of authpriv, audit, local0",
    ),
    "too close": (f"sinks: {{a: {{{FILE}, required: true, max_lag: 5s}}}}", "a.max_lag: must be at least 30s"),
    "nothing to copy": (f"{{enabled: false, sinks: {{a: {{{FILE}}}}}}}", "sinks: have nothing to copy"),
}


@pytest.mark.parametrize(("entry", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told(tmp_path: Path, entry: str, problem: str) -> None:
    """With the line, the key, and what to write instead."""
    file = tmp_path / "broker.yml"
    file.write_text(f"{BROKER}  {entry}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file)
    (told,) = caught.value.problems
    assert (told.line, problem in str(told)) == (5, True), told
