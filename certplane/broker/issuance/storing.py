"""What is stored of a certificate that the CA has issued. Pure."""

from __future__ import annotations

from datetime import datetime

from certplane.broker.model import CertificateRecord, Order, Profile
from certplane.pki.chain import IssuedChain
from certplane.pki.lifetime import renew_time


def record_of(
    order: Order, chain: IssuedChain, profile: Profile | None, certificate_id: str, now: datetime
) -> CertificateRecord:
    """The record of `order`'s certificate; its renewal time is capped and has the phase of its host.

    Args:
        order: What was asked for.
        chain: What the CA made, checked.
        profile: The order's profile as policy has it now; None if it is gone.
        certificate_id: The record's id.
        now: When it is stored.
    """
    facts = chain.facts
    renew_before = profile.renew_before if profile is not None else None
    return CertificateRecord(
        certificate_id=certificate_id,
        order_id=order.order_id,
        identity=order.identity,
        profile=order.profile,
        profile_hash=order.profile_hash,
        issuer=order.issuer,
        dns_names=order.dns_names,
        public_key_sha256=order.public_key_sha256,
        serial_number=facts.serial_number,
        certificate_pem=chain.certificate_pem,
        chain_pem=chain.chain_pem,
        not_before=facts.not_before,
        not_after=facts.not_after,
        renew_time=renew_time(facts.not_before, facts.not_after, renew_before, order.identity),
        create_time=now,
        acme_order_url=order.acme_order_url,
    )
