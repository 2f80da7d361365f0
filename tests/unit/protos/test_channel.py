"""Who speaks, and from where: read from what TLS verified and from the address gRPC names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from msfl.protos.channel import make_csr, peer_ip, peer_site

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-z")])


class Call:
    """What the two functions read of a gRPC context."""

    def __init__(self, peer: str = "", certificates: list[bytes] | None = None) -> None:
        self._peer = peer
        self._auth = {} if certificates is None else {"x509_pem_cert": certificates}

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth


def certificate(*names: x509.GeneralName) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("peer", "ip"),
    [
        ("ipv4:127.0.0.1:50051", "127.0.0.1"),
        ("ipv6:[::1]:50051", "::1"),
        ("ipv6:%5B::1%5D:50051", "::1"),
        ("ipv6:[::ffff:10.1.2.3]:50051", "10.1.2.3"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:50051", "10.1.2.3"),
        ("ipv6:[0:0:0:0:0:ffff:0a01:0203]:50051", "10.1.2.3"),
        ("ipv6:[2001:db8::7]:443", "2001:db8::7"),
        ("ipv6:[fe80::1%eth0]:443", "fe80::1"),
        ("unix:/run/x.sock", ""),
        ("unix:", ""),
        ("", ""),
    ],
)
def test_an_address_has_one_form(peer: str, ip: str) -> None:
    assert peer_ip(Call(peer)) == ip


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def test_the_certificate_names_the_site() -> None:
    assert peer_site(Call(certificates=[certificate(uri("msfl://site/site-a"))])) == "site-a"
    other = uri("spiffe://example.org/x")
    assert peer_site(Call(certificates=[certificate(other, uri("msfl://site/site-a"))])) == "site-a"


@pytest.mark.parametrize(
    "names",
    [
        (),
        (x509.DNSName("site-a"),),
        (uri("https://site/site-a"),),
        (uri("msfl://site/"),),
        (uri("msfl://site/site-a"), uri("msfl://site/site-b")),
    ],
)
def test_a_certificate_that_names_no_site_or_two_is_nobodys(names: tuple[x509.GeneralName, ...]) -> None:
    # The subject's common name says site-z; it is for people to read, and no identity.
    assert peer_site(Call(certificates=[certificate(*names)])) is None


def test_without_a_certificate_nobody_speaks() -> None:
    one = certificate(uri("msfl://site/site-a"))
    assert peer_site(Call()) is None
    assert peer_site(Call(certificates=[])) is None
    assert peer_site(Call(certificates=[b"no certificate"])) is None
    assert peer_site(Call(certificates=[one, one])) is None


def test_a_request_is_signed_by_the_key_that_stays() -> None:
    key, csr = make_csr("site-a")
    request = x509.load_pem_x509_csr(csr)
    assert request.is_signature_valid
    assert request.public_key() == load_pem_private_key(key, None).public_key()
    assert make_csr("site-a")[0] != key
