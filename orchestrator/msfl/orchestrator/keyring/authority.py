"""The federation's certificate authority: a CA for nothing but this federation's orchestrator and gateways.

    CA            10 years, path length 0, made once
    orchestrator  server certificate, 1 year, for its host names and addresses
    gateway       client certificate, 30 days, SAN URI msfl://site/<site>; whatever else a request asks for is ignored
    renewal       the same again, for whoever shows a certificate of ours in force and signs with its key

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
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from msfl.protos.certificates import renewal_is_signed
from msfl.protos.channel import SITE_URI

CA_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=365)
SITE_LIFE = timedelta(days=30)
_CA_OF = "msfl federation "
_LEEWAY = timedelta(minutes=5)  # clocks of hospitals differ
# What the library raises for bytes that are no certificate or request; three of them are no ValueError.
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class BadRequest(ValueError):
    """The certificate request cannot be read, or is not signed by its own key."""


def create_ca(federation: str, now: datetime) -> tuple[bytes, bytes]:
    """Key and certificate, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{_CA_OF}{federation}")])
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


def federation_of(ca_pem: bytes) -> str:
    """The federation that a CA was made for."""
    (name,) = x509.load_pem_x509_certificate(ca_pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value).removeprefix(_CA_OF)


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


def sign_site(
    ca_key: bytes, ca_pem: bytes, csr_pem: bytes, site: str, now: datetime, life: timedelta = SITE_LIFE
) -> bytes:
    """The site's client certificate, PEM. Only the request's public key is used. Raises BadRequest."""
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        public = csr.public_key()
    except _UNREADABLE as error:
        raise BadRequest("the certificate request cannot be read") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1 | ec.SECP384R1):
        raise BadRequest("the certificate request is for a key that is neither P-256 nor P-384")
    if not csr.is_signature_valid:
        raise BadRequest("the certificate request is not signed by its own key")
    uri = x509.UniformResourceIdentifier(f"{SITE_URI}{site}")
    return _issue(ca_key, ca_pem, site, public, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, now, life)


def renewing_site(ca_pem: bytes, certificate_pem: bytes, csr_pem: bytes, proof: bytes, now: datetime) -> str:
    """The site that asks for a new certificate: named by the certificate in use, whose key signed the request. A
    request that names another site is nobody's. Raises BadRequest."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        ca = x509.load_pem_x509_certificate(ca_pem)
        asked = _asks_for(x509.load_pem_x509_csr(csr_pem))
    except _UNREADABLE as error:
        raise BadRequest("the certificate, or the request for a new one, cannot be read") from error
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        when = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise BadRequest(f"the certificate in use expired at {when}: the site needs a new registration token")
    try:
        PolicyBuilder().store(Store([ca])).time(now).build_client_verifier().verify(certificate, [])
    except VerificationError as error:
        raise BadRequest("the certificate in use is no site's of this federation") from error
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = [u for u in names.get_values_for_type(x509.UniformResourceIdentifier) if u.startswith(SITE_URI)]
    if len(uris) != 1:
        raise BadRequest("the certificate in use names no site")
    site = uris[0].removeprefix(SITE_URI)
    if not renewal_is_signed(certificate, csr_pem, proof):
        raise BadRequest(f"the request is not signed with the key of the certificate that {site} uses")
    if asked != {site}:
        raise BadRequest(f"{site} asks for a certificate that is not its own")
    return site


def _asks_for(csr: x509.CertificateSigningRequest) -> set[str]:
    """Every site that a request names, anywhere."""
    names = {str(attribute.value) for attribute in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
    try:
        said = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return names
    return names | {str(name.value).removeprefix(SITE_URI) for name in said}


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
