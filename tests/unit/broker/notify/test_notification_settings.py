"""The section `notifications`: what is wrong with it is told at once, each with its key and what to write."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.settings import load_settings
from certplane.errors import ConfigurationError

BROKER = """\
server: {tls: {cert: /c.pem, key: /k.pem}, mtls: {agent_ca_bundle: /ca.pem}}
policy: {path: /policy.yml}
issuer: {acme: {directory_url: https://acme.example/dir, account_key: /a.pem, dns_provider: cloudflare}}
notifications:
"""
HOOK = "webhook: {url: https://hooks.example/}"
MAIL = "server: mail.example:587, sender: a@example.org, recipients: [b@example.org]"

MISTAKES = {
    "no place": ("a: {after: 1m}", "a.webhook: is required; write one of webhook, mail and apprise"),
    "two places": (f"a: {{{HOOK}, apprise: {{url_secret: x}}}}", "a.apprise: webhook and apprise are there; write one"),
    "a name": (f"A B: {{{HOOK}}}", "notifications.A B: must be named with 1 to 64 of a-z"),
    "no URL": ("a: {webhook: {}}", "a.webhook.url: is required; write url, or url_secret"),
    "two URLs": (
        "a: {webhook: {url: https://h.example/, url_secret: x}}",
        "a.webhook.url: and `url_secret` are both there",
    ),
    "a name of a template": (
        'a: {webhook: {url: https://h.example/, template: \'{"a": "$nosuch"}\'}}',
        "a.webhook.template: names $nosuch, which no message has; known are message_id, notifier, kind, severity",
    ),
    "a template that makes no JSON": (
        "a: {webhook: {url: https://h.example/, template: '{\"a\": $subject}'}}",
        "a.webhook.template: makes no JSON: Expecting value in line 1; names stand inside quotes",
    ),
    "a dollar": (
        "a: {webhook: {url: https://h.example/, content_type: text/plain, template: '5 $'}}",
        "a.webhook.template: has a $ that begins no name; write $$ for a dollar",
    ),
    "a content type": ("a: {webhook: {url: https://h.example/, content_type: json}}", "content_type: must be like"),
    "too long": (
        "a: {webhook: {url: https://h.example/, timeout: 2m}}",
        "timeout: must be more than 0s, and at most 1m",
    ),
    "half a login": (f"a: {{mail: {{{MAIL}, username_secret: u}}}}", "a.mail.password_secret: is required beside"),
    "a password in the clear": (
        f"a: {{mail: {{{MAIL}, tls: none, username_secret: u, password_secret: p}}}}",
        "a.mail.tls: is none: the password would be sent in the clear; use starttls or tls",
    ),
    "nobody to mail": (
        "a: {mail: {server: 'm.example:25', sender: a@b.example, recipients: []}}",
        "a.mail.recipients: must name at least one",
    ),
    "an address": (
        "a: {mail: {server: 'm.example:25', sender: Ops, recipients: ['a@b.example']}}",
        "a.mail.sender: must be an address like ops@example.org",
    ),
    "a day": (
        f"a: {{{HOOK}, digest: monday}}",
        "a.digest: must be a day and a time in UTC, like `monday 08:00`, or never",
    ),
    "an hour": (f"a: {{{HOOK}, digest: 'monday 24:00'}}", "a.digest: must be a day and a time in UTC"),
    "a share": (
        f"a: {{{HOOK}, rules: [{{life_left: 100}}]}}",
        "rules[0].life_left: is 100, must be a number of per cent",
    ),
    "a severity": (
        f"a: {{{HOOK}, rules: [{{severity: ok}}]}}",
        "rules[0].severity: is ok, must be warning or critical",
    ),
    "a health": (
        f"a: {{{HOOK}, rules: [{{healths: [BAD]}}]}}",
        "rules[0].healths[0]: is 'BAD', must be one of EXPIRED",
    ),
    "no trouble": (f"a: {{{HOOK}, rules: [{{healths: [OK]}}]}}", "rules[0].healths: has OK, which is no trouble"),
    "nothing to tell": (
        f"a: {{{HOOK}, rules: []}}",
        "a.rules: is empty, and there is no digest: nothing would be told",
    ),
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


def test_a_digest_alone_is_enough(tmp_path: Path) -> None:
    """Who wants the week's message and no other."""
    file = tmp_path / "broker.yml"
    file.write_text(f"{BROKER}  a: {{{HOOK}, rules: [], digest: sunday 00:00, repeat: 0s}}\n")
    notifier = load_settings(file).notifications["a"]
    assert (str(notifier.digest), notifier.rules, notifier.repeat) == ("sunday 00:00", (), timedelta())
    assert notifier.kind == "webhook"
