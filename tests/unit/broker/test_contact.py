"""What an account's contact may be: one address as CAs take it; everything else is told before the first order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from certplane.broker.contact import ContactEmail
from certplane.broker.settings import load_settings
from certplane.errors import ConfigurationError
from tests.support.broker_files import BrokerFiles


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param("", "", id="empty"),
        pytest.param("hostmaster@certplane.net", "hostmaster@certplane.net", id="plain"),
        pytest.param("Ops.Team+le@Mail.Certplane.NET", "Ops.Team+le@mail.certplane.net", id="case-and-tag"),
        pytest.param("o'brien@xn--mnchen-3ya.de", "o'brien@xn--mnchen-3ya.de", id="a-label"),
    ],
)
def test_contacts_that_cas_take(text: str, kept: str) -> None:
    """The address is kept, its domain in lower case."""
    assert ContactEmail.parse(text) == kept


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "mailto:hostmaster@certplane.net", "the broker adds; write 'hostmaster@certplane.net'", id="mailto"
        ),
        pytest.param("MAILTO:a@b.net", "begins with mailto:", id="mailto-in-capitals"),
        pytest.param("admin", "no e-mail address; write one like", id="no-at"),
        pytest.param("admin@", "no e-mail address", id="no-domain"),
        pytest.param("@certplane.net", "no e-mail address", id="no-local-part"),
        pytest.param("\u00e4@certplane.net", "isn't ASCII", id="local-part-beyond-ascii"),
        pytest.param("a@m\u00fcnchen.de", "write its A-label, xn--mnchen-3ya.de", id="domain-beyond-ascii"),
        pytest.param("a@b.net ", "white space around it; write 'a@b.net'", id="space-after"),
        pytest.param("\ta@b.net", "white space around it", id="tab-before"),
        pytest.param("a b@c.net", "before the @", id="space-inside"),
        pytest.param("Ops <ops@b.net>", "a name beside the address; write 'ops@b.net'", id="display-name"),
        pytest.param("<ops@b.net>", "write 'ops@b.net'", id="angle-brackets"),
        pytest.param("a@b.net,c@d.net", "several addresses", id="comma"),
        pytest.param("a@b.net; c@d.net", "several addresses", id="semicolon"),
        pytest.param("a@b@c.net", "several addresses", id="two-ats"),
        pytest.param("a@localhost", "no domain of the internet", id="one-label"),
        pytest.param("a@192.0.2.1", "a domain that ends with a number", id="address"),
        pytest.param("a@b.net.", "a domain that ends with a dot", id="final-dot"),
        pytest.param("a@-b.net", "a domain that", id="bad-label"),
        pytest.param("a@*.b.net", "no domain of the internet", id="wildcard"),
        pytest.param("a..b@c.net", "before the @", id="empty-part"),
        pytest.param("a?subject=x@c.net", "mailto: URL", id="header-fields"),
        pytest.param("a%40b@c.net", "mailto: URL", id="percent"),
        pytest.param('"a b"@c.net', "before the @", id="quoted"),
        pytest.param(f"{'a' * 65}@c.net", "before the @", id="long-local-part"),
    ],
)
def test_contacts_that_cas_refuse(text: str, said: str) -> None:
    """Each says what is wrong and what to write."""
    with pytest.raises(ValueError, match=re.escape(said)):
        ContactEmail.parse(text)


@pytest.mark.parametrize("value", [["a@b.net", "c@d.net"], {"to": "a@b.net"}, "admin"])
def test_told_with_line_and_key(tmp_path: Path, value: object) -> None:
    """A contact that can't be used keeps the broker from starting, with the place to mend; a list is none."""
    files = BrokerFiles(tmp_path)
    files.settings["issuer"]["acme"]["account_email"] = value
    files.write()
    with pytest.raises(ConfigurationError) as caught:
        load_settings(files.config)
    [problem] = caught.value.problems
    assert (problem.key, problem.line is None) == ("issuer.acme.account_email", False)


@pytest.mark.parametrize(
    ("email", "private", "warned"),
    [
        pytest.param("ops@example.com", False, True, id="example.com"),
        pytest.param("ops@mail.example.org", False, True, id="below-example.org"),
        pytest.param("ops@certplane.test", False, True, id="test"),
        pytest.param("ops@certplane.net", False, False, id="public"),
        pytest.param("ops@notexample.com", False, False, id="another-name"),
        pytest.param("ops@corp.internal", True, False, id="private-ca"),
        pytest.param("", False, False, id="none"),
    ],
)
def test_reserved_domains_are_warned_of(tmp_path: Path, email: str, private: bool, warned: bool) -> None:
    """A public CA refuses them; what a private one takes is its business."""
    files = BrokerFiles(tmp_path)
    files.settings["issuer"]["acme"] |= {"account_email": email} | ({"ca_bundle": "/x.pem"} if private else {})
    files.write()
    notices = load_settings(files.config).notices
    assert [("issuer.acme.account_email" in notice, "public CAs refuse it" in notice) for notice in notices] == (
        [(True, True)] if warned else []
    )
