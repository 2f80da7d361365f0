"""A site's certificate through its life: what it says, when to renew it, whether a new one is ours, who asks for one.

    enrolled ──▶ valid ── less than a third of its life left ──▶ renew: new key, new request, signed by the key in use
                   │                                                  │ refused, or no answer: try again, ever sooner
                   └── not renewed in time ──▶ expired ──▶ only a new registration token helps

Key and certificate are one PEM file, so that no crash can leave the one without the other. Pure: bytes and times in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from msfl.protos.channel import SITE_URI

_BEGIN = b"-----BEGIN CERTIFICATE-----"
_ABOUT = b"msfl/renew/v1|"


@dataclass(frozen=True)
class Identity:
    """A private key and its certificate, PEM."""

    key_pem: bytes
    certificate_pem: bytes

    def __repr__(self) -> str:
        return "Identity(…)"

    def to_pem(self) -> bytes:
        return self.key_pem + self.certificate_pem

    @classmethod
    def from_pem(cls, both: bytes) -> Identity:
        """Raises ValueError when it is not a key followed by a certificate."""
        key, mark, rest = both.partition(_BEGIN)
        if b"PRIVATE KEY-----" not in key or not mark:
            raise ValueError("a private key and then its certificate, both PEM, are expected here")
        return cls(key, mark + rest)


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says. `names`: DNS names, addresses and URIs it is for; `fits_key`: None when no key was at
    hand to compare it with."""

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    signed_by_ca: bool
    fits_key: bool | None = None


def certificate_facts(certificate_pem: bytes, ca_pem: bytes, key_pem: bytes | None = None) -> CertificateFacts:
    """Raises ValueError when one of them cannot be read."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    names: list[str] = []
    try:
        said = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        names += said.get_values_for_type(x509.DNSName)
        names += map(str, said.get_values_for_type(x509.IPAddress))
        names += said.get_values_for_type(x509.UniformResourceIdentifier)
    fits = None
    if key_pem is not None:
        try:
            fits = load_pem_private_key(key_pem, None).public_key() == certificate.public_key()
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError("the private key cannot be read") from error
    return CertificateFacts(
        names=tuple(names),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        signed_by_ca=_signed_by(certificate, x509.load_pem_x509_certificate(ca_pem)),
        fits_key=fits,
    )


def _signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def renewal_due(
    not_before: datetime, not_after: datetime, now: datetime, since_last_try: timedelta | None = None
) -> bool:
    """Less than a third of the life is left, and the last try, if any, is a twentieth of what is left (at most an hour)
    ago. Never once it has expired: then nobody would sign."""
    left = not_after - now
    if not timedelta(0) < left < (not_after - not_before) / 3:
        return False
    return since_last_try is None or since_last_try >= min(timedelta(hours=1), left / 20)


def unfit(identity: Identity, site: str, ca_pem: bytes, now: datetime) -> str | None:
    """Why a certificate that came back is not one for this site, this key, this CA and this moment; None when it is."""
    try:
        facts = certificate_facts(identity.certificate_pem, ca_pem, identity.key_pem)
    except ValueError as error:
        return f"it cannot be read ({error})"
    if facts.names != (f"{SITE_URI}{site}",):
        return f"it is for {', '.join(facts.names) or 'nobody'}, not for {site}"
    if not facts.fits_key:
        return "it is for another key"
    if not facts.signed_by_ca:
        return "the federation's CA did not sign it"
    if not facts.not_before <= now < facts.not_after:
        return f"it is valid from {facts.not_before:%Y-%m-%d %H:%M} to {facts.not_after:%Y-%m-%d %H:%M} UTC, not now"
    return None


def sign_renewal(identity: Identity, csr_pem: bytes) -> bytes:
    """Shows that whoever holds the certificate in use asks for the new one: ECDSA, SHA-256, DER."""
    key = load_pem_private_key(identity.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.sign(_renewal(csr_pem), ec.ECDSA(SHA256()))


def renewal_is_signed(certificate: x509.Certificate, csr_pem: bytes, proof: bytes) -> bool:
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return False
    try:
        public.verify(proof, _renewal(csr_pem), ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _renewal(csr_pem: bytes) -> bytes:
    return _ABOUT + hashlib.sha256(csr_pem).digest()
