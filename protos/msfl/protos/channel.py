"""TLS and gRPC: the one place that knows certificates on the wire.

    people, enrolment   server-authenticated TLS; the client pins the federation's own CA, no public one
    gateways            mutual TLS; the client certificate's SAN URI `msfl://site/<site>` is who speaks

There is no insecure channel, not even for tests: a test federation makes its own CA in a moment.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

MAX_MESSAGE_BYTES = 4 << 20
SITE_URI = "msfl://site/"
_OPTIONS = (
    # Four times less work for gRPC than with its 16 KiB; a frame is still half a second on a line of 4 Mbit/s.
    ("grpc.http2.max_frame_size", 1 << 18),
    # A fixed window instead of one that grows with what the line carries: memory is bounded, whatever the line.
    # It is full at 14 MB/s where an answer takes 300 ms.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Where data are being sent, gRPC waits for the answer to a ping for this time instead, and by default for a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
SERVER_OPTIONS = (
    *_OPTIONS,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Two servers on one port would share its connections at random.
    ("grpc.so_reuseport", 0),
)


def server_credentials(key_pem: bytes, certificate_pem: bytes) -> grpc.ServerCredentials:
    """Server-authenticated TLS."""
    return grpc.ssl_server_credentials([(key_pem, certificate_pem)])


def mutual_server_credentials(key_pem: bytes, certificate_pem: bytes, ca_pem: bytes) -> grpc.ServerCredentials:
    """TLS that demands a client certificate of the federation's CA."""
    return grpc.ssl_server_credentials([(key_pem, certificate_pem)], ca_pem, require_client_auth=True)


def dial(
    endpoint: str, ca_pem: bytes, client_key: bytes | None = None, client_certificate: bytes | None = None
) -> grpc.Channel:
    """A TLS channel to `host:port`, trusting the given CA alone. It connects when it is first used."""
    credentials = grpc.ssl_channel_credentials(ca_pem, client_key, client_certificate)
    return grpc.secure_channel(endpoint, credentials, _OPTIONS)


def peer_site(context: grpc.ServicerContext) -> str | None:
    """The site that the verified client certificate names; None when it names none or several."""
    certificate = peer_certificate(context)
    names = () if certificate is None else _site_uris(certificate)
    return (names[0].removeprefix(SITE_URI) or None) if len(names) == 1 else None


def peer_certificate(context: grpc.ServicerContext) -> bytes | None:
    """The client certificate that TLS verified when the connection was made, PEM."""
    certificates: list[bytes] = context.auth_context().get("x509_pem_cert", [])
    return certificates[0] if len(certificates) == 1 else None


@lru_cache(maxsize=4096)
def key_sha256(certificate_pem: bytes) -> str:
    """Which certificate it is, for revocation: the hash of its public key (SubjectPublicKeyInfo), which is made anew
    with every request. Raises ValueError when it cannot be read."""
    public = x509.load_pem_x509_certificate(certificate_pem).public_key()
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@lru_cache(maxsize=4096)
def _site_uris(certificate_pem: bytes) -> tuple[str, ...]:
    try:
        extension = x509.load_pem_x509_certificate(certificate_pem).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except (ValueError, x509.ExtensionNotFound):
        return ()
    uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    return tuple(uri for uri in uris if uri.startswith(SITE_URI))


def inside(peer: str, cidrs: Iterable[str]) -> bool:
    """Whether an address, as `peer_ip` gives it, lies in one of the ranges. No ranges, no address."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(cidr) for cidr in cidrs)


def peer_ip(context: grpc.ServicerContext) -> str:
    """The peer's address as plain text; an IPv4 address inside IPv6 is the IPv4 address. Empty for a unix socket."""
    kind, _, rest = unquote(context.peer()).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def make_csr(site: str) -> tuple[bytes, bytes]:
    """A fresh private key, which stays where this runs, and a request for its certificate: both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, csr.public_bytes(Encoding.PEM)
