"""What `cryptography` raises for what it can't read: one list, so that no parser of a stranger's bytes forgets one."""

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

READ_ERRORS: Final = (
    ValueError,
    TypeError,
    OverflowError,
    NotImplementedError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""Of a certificate or a CSR, when it is loaded, and when a part of it is asked for that is parsed only then."""
