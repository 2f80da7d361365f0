"""The federation's certificate authority: a CA for nothing but this federation's orchestrator and gateways.

    CA            10 years, path length 0, made once
    orchestrator  server certificate, 1 year, for its host names and addresses
    gateway       client certificate, 30 days, SAN URI msfl://site/<site>; whatever else a request asks for is ignored

Bytes in, bytes out; time is an argument.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from msfl.protos.channel import SITE_URI

CA_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=365)
SITE_LIFE = timedelta(days=30)
_LEEWAY = timedelta(minutes=5)  # clocks of hospitals differ


class BadRequest(ValueError):
    """The certificate request cannot be read, or is not signed by its own key."""


def create_ca(federation: str, now: datetime) -> tuple[bytes, bytes]:
    """Key and certificate, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"msfl federation {federation}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return _pem(key), certificate.public_bytes(Encoding.PEM)


def issue_server(ca_key: bytes, ca_pem: bytes, hosts: tuple[str, ...], now: datetime) -> tuple[bytes, bytes]:
    """Key and certificate of the orchestrator, PEM. `hosts` are names and addresses it is dialled by."""
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    certificate = _issue(
        ca_key, ca_pem, "msfl orchestrator", key.public_key(), names, ExtendedKeyUsageOID.SERVER_AUTH, now, SERVER_LIFE
    )
    return _pem(key), certificate


def sign_site(ca_key: bytes, ca_pem: bytes, csr_pem: bytes, site: str, now: datetime) -> bytes:
    """The site's client certificate, PEM. Only the request's public key is used. Raises BadRequest."""
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        public = csr.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadRequest("the certificate request cannot be read") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1 | ec.SECP384R1):
        raise BadRequest("the certificate request is for a key that is neither P-256 nor P-384")
    if not csr.is_signature_valid:
        raise BadRequest("the certificate request is not signed by its own key")
    uri = x509.UniformResourceIdentifier(f"{SITE_URI}{site}")
    return _issue(ca_key, ca_pem, site, public, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, now, SITE_LIFE)


def _issue(
    ca_key: bytes,
    ca_pem: bytes,
    name: str,
    public: ec.EllipticCurvePublicKey,
    alternatives: list[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    now: datetime,
    life: timedelta,
) -> bytes:
    issuer_key = load_pem_private_key(ca_key, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(ca_pem)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
