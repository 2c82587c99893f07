"""A public CA in memory, and the `Issuer` and `Revoker` that speak to it. Its certificates are real ones."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from certplane.broker.model import DnsChallenge, IssuerOrder, IssuerOrderStatus, Profile, RevocationReason
from certplane.errors import ProblemDocument, Reason, RefusalError
from certplane.runtime.clock import Clock
from tests.fakes.dns import FakeDns
from tests.fakes.faults import FaultScript


@dataclass(frozen=True)
class CaOrder:
    """An order as the CA keeps it; `finalisations` counts the CSRs that it accepted (RFC 8555 7.4 allows one)."""

    url: str
    dns_names: tuple[str, ...]
    status: IssuerOrderStatus
    challenges: tuple[DnsChallenge, ...] = ()
    finalisations: int = 0
    csr_der: bytes = b""
    fullchain_pem: str = ""


class FakeCa:
    """The CA's side: orders, the certificates that it made, and how it behaves.

    `fork` copies it as it is now; what one copy does later the other doesn't see.
    """

    def __init__(self, clock: Clock, dns: FakeDns) -> None:
        self.clock = clock
        self.dns = dns
        self.orders: dict[str, CaOrder] = {}
        self.issued: list[str] = []
        """Every leaf made, PEM."""
        self.replaced: list[str] = []
        """What each new order said that it replaces, PEM; empty for nothing."""
        self.revoked: dict[int, RevocationReason] = {}
        self.takes_replaces = True
        """New orders are taken for the renewals that they say they are."""
        self.lifetime = timedelta(days=90)
        self.reuses_pending = False
        """Hands back a pending or ready order of the same names, whatever the key, as Boulder does."""
        self.shares_challenges = False
        """Orders of one name are given one challenge, as by a CA that hands out pending authorizations again."""
        self.reuses_authorizations = False
        """New orders are ready at once."""
        self.slow = False
        """A finalised order stays `processing` until `complete`."""
        self.unhurried = 0
        """So many answers to challenges find the order still pending."""
        self.wrong_key = False
        """Certifies another key than the CSR's."""
        self.wrong_names = False
        """Adds a name that nobody asked for."""
        self.sends: Callable[[str], str] = str
        """What it makes of a chain when it hands it out."""

    def fork(self, dns: FakeDns) -> FakeCa:
        """The same CA beside a copy of the DNS."""
        other = copy.copy(self)
        other.dns = dns
        other.orders = dict(self.orders)
        other.issued = list(self.issued)
        other.replaced = list(self.replaced)
        other.revoked = dict(self.revoked)
        return other

    @property
    def finalisations(self) -> int:
        """CSRs accepted, over all orders."""
        return sum(order.finalisations for order in self.orders.values())

    def create(self, dns_names: tuple[str, ...]) -> CaOrder:
        if self.reuses_pending:
            for known in self.orders.values():
                if known.dns_names == dns_names and known.status in (
                    IssuerOrderStatus.PENDING,
                    IssuerOrderStatus.READY,
                ):
                    return known
        number = len(self.orders) + 1
        url = f"https://ca.test/order/{number}"
        ready = self.reuses_authorizations
        challenges = (
            () if ready else tuple(_challenge(0 if self.shares_challenges else number, name) for name in dns_names)
        )
        order = CaOrder(url, dns_names, IssuerOrderStatus.READY if ready else IssuerOrderStatus.PENDING, challenges)
        self.orders[url] = order
        return order

    def look(self, url: str) -> CaOrder:
        if url not in self.orders:
            raise RefusalError(
                Reason.ISSUER_REJECTED,
                "the CA doesn't know the order",
                problems=(ProblemDocument("urn:ietf:params:acme:error:malformed", "No such order", 404),),
            )
        return self.orders[url]

    def forget(self, url: str) -> None:
        """Purge an order, as a CA does after a while."""
        del self.orders[url]

    def set_status(self, url: str, status: IssuerOrderStatus) -> None:
        self.orders[url] = replace(self.orders[url], status=status)

    def validate(self, url: str) -> CaOrder:
        """What the CA does once it is told that the records stand: look for them."""
        order = self.look(url)
        if order.status is not IssuerOrderStatus.PENDING:
            return order
        if self.unhurried:
            self.unhurried -= 1
            return order
        lacking = [c for c in order.challenges if (c.record_name, c.record_value) not in self.dns.visible()]
        if not lacking:
            self.orders[url] = replace(order, status=IssuerOrderStatus.READY, challenges=())
            return self.orders[url]
        self.orders[url] = replace(order, status=IssuerOrderStatus.INVALID, challenges=())
        raise RefusalError(
            Reason.ISSUER_REJECTED,
            "a challenge failed",
            problems=(
                ProblemDocument(
                    "urn:ietf:params:acme:error:unauthorized", "Incorrect TXT record", 403, lacking[0].domain
                ),
            ),
        )

    def finalize(self, url: str, csr_der: bytes) -> CaOrder:
        order = self.look(url)
        if order.status is not IssuerOrderStatus.READY:
            raise RefusalError(
                Reason.ISSUER_REJECTED,
                "the CA refused the request",
                problems=(
                    ProblemDocument("urn:ietf:params:acme:error:orderNotReady", f"Order is {order.status}", 403),
                ),
            )
        leaf_pem, fullchain_pem = self._certify(order.dns_names, csr_der)
        self.issued.append(leaf_pem)
        self.orders[url] = replace(
            order,
            status=IssuerOrderStatus.PROCESSING if self.slow else IssuerOrderStatus.VALID,
            finalisations=order.finalisations + 1,
            csr_der=csr_der,
            fullchain_pem=fullchain_pem,
        )
        return self.orders[url]

    def complete(self) -> None:
        """Let every processing order become valid."""
        for url, order in self.orders.items():
            if order.status is IssuerOrderStatus.PROCESSING:
                self.set_status(url, IssuerOrderStatus.VALID)

    def _certify(self, dns_names: tuple[str, ...], csr_der: bytes) -> tuple[str, str]:
        csr = x509.load_der_x509_csr(csr_der)
        public_key: CertificatePublicKeyTypes = csr.public_key()
        if self.wrong_key:
            public_key = ec.generate_private_key(ec.SECP256R1()).public_key()
        names = (*dns_names, "surprise.test") if self.wrong_names else dns_names
        now = self.clock.now()
        issuer_key, issuer = _intermediate()
        leaf = (
            _builder(issuer.subject, "", public_key, now - timedelta(hours=1), self.lifetime)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(issuer_key, hashes.SHA256())
        )
        leaf_pem, issuer_pem = (
            certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in (leaf, issuer)
        )
        return leaf_pem, leaf_pem + issuer_pem


class FakeIssuer:
    """`Issuer` on a `FakeCa`; `faults` go by method name."""

    def __init__(self, ca: FakeCa, *, name: str = "fake-ca", directory: str = "https://ca.test/directory") -> None:
        self.ca = ca
        self.faults = FaultScript()
        self._name = name
        self._directory = directory

    @property
    def name(self) -> str:
        return self._name

    @property
    def directory(self) -> str:
        return self._directory

    async def create_order(
        self, csr_der: bytes, profile: Profile, timeout: timedelta, *, replaces: str = ""
    ) -> IssuerOrder:
        async with self.faults.around("create_order"):
            self.ca.replaced.append(replaces)
            known = bool(replaces) and self.ca.takes_replaces
            return replace(_shown(self.ca.create(_names(csr_der))), replaces=known)

    async def get_order(self, url: str, timeout: timedelta) -> IssuerOrder:
        async with self.faults.around("get_order"):
            return _shown(self.ca.look(url))

    async def answer_challenges(self, order: IssuerOrder, timeout: timedelta) -> IssuerOrder:
        async with self.faults.around("answer_challenges"):
            return _shown(self.ca.validate(order.url))

    async def finalize(self, order: IssuerOrder, csr_der: bytes, timeout: timedelta) -> IssuerOrder:
        async with self.faults.around("finalize"):
            return _shown(self.ca.finalize(order.url, csr_der))

    async def download(self, order: IssuerOrder, timeout: timedelta) -> str:
        async with self.faults.around("download"):
            found = self.ca.look(order.url)
            if found.status is IssuerOrderStatus.VALID:
                return self.ca.sends(found.fullchain_pem)
            if found.status is IssuerOrderStatus.PROCESSING:
                raise RefusalError(Reason.ISSUER_UNAVAILABLE, "the CA is still at work")
            raise RefusalError(Reason.ISSUER_REJECTED, f"the order is {found.status}")


class FakeRevoker:
    """`Revoker` on a `FakeCa`."""

    def __init__(self, ca: FakeCa) -> None:
        self.ca = ca
        self.faults = FaultScript()

    async def revoke(self, certificate_pem: str, reason: RevocationReason, timeout: timedelta) -> None:
        async with self.faults.around("revoke"):
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
            self.ca.revoked.setdefault(certificate.serial_number, reason)


def _shown(order: CaOrder) -> IssuerOrder:
    return IssuerOrder(order.url, order.status, order.challenges if order.status is IssuerOrderStatus.PENDING else ())


def _names(csr_der: bytes) -> tuple[str, ...]:
    csr = x509.load_der_x509_csr(csr_der)
    sans = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(sorted({name.lower() for name in sans.get_values_for_type(x509.DNSName)}))


def _challenge(number: int, name: str) -> DnsChallenge:
    domain = name.removeprefix("*.")
    value = hashlib.sha256(f"{number} {name}".encode()).hexdigest()[:43]
    url = f"https://ca.test/authz/{number}/{name}"
    return DnsChallenge(domain, f"_acme-challenge.{domain}", value, url, f"{url}/dns")


def _builder(
    issuer: x509.Name,
    common_name: str,
    public_key: CertificatePublicKeyTypes,
    not_before: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + lifetime)
    )


@cache
def _intermediate() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The issuing CA of all fake CAs of this process, below a root that is never sent."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    root = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Fake Root")])
    certificate = (
        _builder(root, "Fake Issuing CA", key.public_key(), _EPOCH, timedelta(days=365 * 60))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    return key, certificate


_EPOCH = datetime.fromisoformat("2020-01-01T00:00:00+00:00")
