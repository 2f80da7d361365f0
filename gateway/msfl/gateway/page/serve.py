"""Where the page listens: loopback, or any address with a TLS certificate. Cookies and passwords cross no network in
the clear, and no proxy's word about who calls is believed.

`origins` are what browsers call the page: those of loopback, or the names in the certificate. Nothing else is answered,
so that a foreign name which someone makes point here (DNS rebinding) opens nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from cryptography import x509
from starlette.types import ASGIApp

from msfl.policies.refusals import CannotProceed

MOST_AT_ONCE = 64
_HEAD_BYTES = 16 << 10


@dataclass(frozen=True)
class Door:
    listener: socket.socket
    origins: tuple[str, ...]
    cert: Path | None = None
    key: Path | None = None


def listen(host: str, port: int, cert: Path | None, key: Path | None) -> Door:
    """Raises CannotProceed."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise CannotProceed(f"--host {host}: give an address of this machine, such as 127.0.0.1") from None
    if (cert is None) != (key is None):
        raise CannotProceed("--cert and --key belong together: give both, or neither")
    if cert is None and not address.is_loopback:
        raise CannotProceed(
            f"without TLS the page is served on this machine only, not at {host}: passwords would cross the network in "
            "the clear. Give --cert and --key, or leave --host out and use a tunnel: ssh -L 8780:127.0.0.1:8780"
        )
    names = _names(cert) if cert is not None else ["127.0.0.1", "localhost", "[::1]"]
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        listener = socket.create_server((str(address), port), family=family)
    except OSError as error:
        raise CannotProceed(f"nothing can listen at {host}, port {port}: {error.strerror}; try --port") from error
    scheme, usual = ("https", 443) if cert is not None else ("http", 80)
    bound = int(listener.getsockname()[1])
    return Door(listener, tuple(_origin(scheme, n, bound, usual) for n in names), cert, key)


def _origin(scheme: str, name: str, port: int, usual: int) -> str:
    return f"{scheme}://{name}" if port == usual else f"{scheme}://{name}:{port}"


def _names(cert: Path) -> list[str]:
    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise CannotProceed(f"{cert} is no certificate with names in it: {error}") from error
    hosts = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    for ip in names.get_values_for_type(x509.IPAddress):
        hosts.append(f"[{ip}]" if ip.version == 6 else str(ip))
    if not hosts:
        raise CannotProceed(f"{cert} names no host: browsers would refuse it")
    return hosts


def serve(app: ASGIApp, door: Door) -> None:
    """Until SIGTERM or Ctrl-C."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        limit_concurrency=MOST_AT_ONCE,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        ssl_certfile=door.cert,
        ssl_keyfile=door.key,
    )
    uvicorn.Server(config).run(sockets=[door.listener])
