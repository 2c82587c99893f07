"""A certificate of the fleet with its holder, as operators get it."""

from __future__ import annotations

from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.fleet.view import CertificateView
from certplane.broker.services.fleet_convert import fleet_certificate
from certplane.fleet_report.model import CertificateState, CertificateStatus
from certplane.runtime.health import Health, HealthWord


def test_whose_it_is_is_said_with_label_and_labels() -> None:
    """By what its holder is picked with."""
    host = IndexedHost(name="web1.example", label="web1", labels={"ring": "canary", "dc": "fra1"})
    certificate = IndexedCertificate("web", "shop", CertificateState.SERVING, issuer="le", public_key_sha256="aa")
    status = CertificateStatus("web", CertificateState.SERVING)
    message = fleet_certificate(CertificateView(host, certificate, status, Health(HealthWord.OK)))
    assert (message.host, message.label, dict(message.labels)) == ("web1.example", "web1", dict(host.labels))
    assert (message.issuer, message.public_key_sha256, message.certificate.name) == ("le", "aa", "web")
