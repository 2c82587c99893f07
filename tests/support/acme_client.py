"""A small ACME client for tests of the sandbox's CAs. The broker has its own; this one must not be a part of what is tested."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import josepy
from acme import challenges, client, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.sandbox.dns_endpoint import DnsEndpoint


class AcmeClient:
    """The `acme` package's client with a new account, for tests that need an ACME CA to do something; blocking."""

    def __init__(self, directory_url: str, roots_file: Path) -> None:
        self.key = josepy.JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
        network = client.ClientNetwork(
            self.key, alg=josepy.ES256, verify_ssl=str(roots_file), user_agent="certplane-tests"
        )
        directory = client.ClientV2.get_directory(directory_url, network)
        self.acme = client.ClientV2(directory, network)
        self.session = network.session
        self.acme.new_account(messages.NewRegistration.from_data(terms_of_service_agreed=True))

    def order(self, key: ec.EllipticCurvePrivateKey, names: list[str]) -> messages.OrderResource:
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return self.acme.new_order(csr.public_bytes(Encoding.PEM))

    def issue(
        self, dns: DnsEndpoint, key: ec.EllipticCurvePrivateKey, names: list[str], *, spoil: bool = False
    ) -> list[x509.Certificate]:
        order = self.order(key, names)
        for authorization in order.authorizations:
            challenge = next(c for c in authorization.body.challenges if isinstance(c.chall, challenges.DNS01))
            response, value = challenge.response_and_validation(self.key)
            name = challenge.validation_domain_name(authorization.body.identifier.value)
            asyncio.run(dns.add(name, "TXT", value[::-1] if spoil else value))
            self.acme.answer_challenge(challenge, response)
        deadline = datetime.now() + timedelta(seconds=20)  # noqa: DTZ005 (the acme package wants naive local time)
        order = self.acme.poll_authorizations(order, deadline)
        order = self.acme.finalize_order(order, deadline, fetch_alternative_chains=True)
        self.alternatives = [x509.load_pem_x509_certificates(pem.encode()) for pem in order.alternative_fullchains_pem]
        return x509.load_pem_x509_certificates(order.fullchain_pem.encode())

    def close(self) -> None:
        self.session.close()
