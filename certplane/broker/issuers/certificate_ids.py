"""How a certificate is named at its CA (RFC 9773 4.1), to ask when it should be renewed and to say what replaces it."""

from __future__ import annotations

from base64 import urlsafe_b64encode

from cryptography import x509


def certificate_id(certificate: x509.Certificate) -> str:
    """The certificate's name at its CA (RFC 9773 4.1): authority key identifier and serial number, base64url.

    Raises:
        ValueError: it has no key identifier of its issuer.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise ValueError("the certificate doesn't say which key has signed it") from error
    key_identifier = extension.value.key_identifier
    if not key_identifier:
        raise ValueError("the certificate doesn't say which key has signed it")
    serial = certificate.serial_number
    # The content of the DER INTEGER: a leading zero octet where the first bit is set belongs to it.
    bits = (serial if serial >= 0 else ~serial).bit_length()
    octets = serial.to_bytes(bits // 8 + 1, "big", signed=True)
    return f"{_base64url(key_identifier)}.{_base64url(octets)}"


def _base64url(octets: bytes) -> str:
    return urlsafe_b64encode(octets).decode().rstrip("=")
