"""What `doctor` measures on both sides: a disk, and a line to a server step by step. Judging is `health.py`'s.

    name ▸ TCP ▸ TLS (with the certificate in hand; one byte is read, as TLS 1.3 refuses a client only then) ▸ Health

Every function ends: each step has `PATIENCE_S`. What fails is a fact, no exception.
"""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import grpc

from msfl.policies.refusals import CannotProceed
from msfl.protos.certificates import Identity
from msfl.protos.channel import dial
from msfl.protos.health import DiskFacts, Fault, LineFacts, Peer, Step, StepFacts, Unmeasured
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import LinkStub

PATIENCE_S = 5.0
_T = TypeVar("_T")


def attempt(measure: Callable[[], _T], failures: tuple[type[Exception], ...] = ()) -> _T | Unmeasured:
    """What `measure` finds, or why not: files that are not there, or hold something else, what cannot proceed, and
    `failures`."""
    expected: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, LookupError, CannotProceed, *failures)
    try:
        return measure()
    except expected as error:
        return Unmeasured(f"{type(error).__name__}: {error}")


# --------------------------------------------------------------------------------------------------------------- disk


def disk(folder: Path, largest: int = 0) -> DiskFacts:
    """Raises OSError when the folder is not there. Writes a nameless file for a moment."""
    space = os.statvfs(folder)
    refused = ""
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(4096))
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        refused = os.strerror(error.errno) if error.errno else str(error)
    return DiskFacts(
        where=str(folder),
        free_bytes=space.f_bavail * space.f_frsize,
        # Some file systems count none.
        free_inodes=space.f_favail if space.f_files else None,
        refused=refused,
        largest=largest,
    )


def largest_file(*folders: Path) -> int:
    """In bytes; 0 without any. Files that vanish meanwhile do not count."""
    return max((size for folder in folders for size in _sizes(folder)), default=0)


def total_bytes(folder: Path) -> int:
    return sum(_sizes(folder))


def _sizes(folder: Path) -> list[int]:
    sizes = []
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.lstat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:
                continue
    return sizes


# --------------------------------------------------------------------------------------------------------------- line


@dataclass
class _Timer:
    steps: list[StepFacts]

    def done(self, step: Step, began: float) -> None:
        self.steps.append(StepFacts(step, time.monotonic() - began))

    def failed(self, step: Step, began: float, fault: Fault, said: object = "") -> None:
        self.steps.append(StepFacts(step, time.monotonic() - began, fault, str(said)))


def line(endpoint: str, ca_pem: bytes, identity_file: Path) -> LineFacts:
    """From a site to the orchestrator's door for gateways. Raises OSError, ValueError: the identity is of no use."""
    steps = _Timer([])
    context = _context(ca_pem)
    context.load_cert_chain(identity_file)
    peer = None
    if _tls(endpoint, context, steps, reads=True) is not None:
        peer = _health(endpoint, ca_pem, Identity.from_pem(identity_file.read_bytes()), steps)
    return LineFacts(endpoint, tuple(steps.steps), peer)


def port(endpoint: str, ca_pem: bytes) -> tuple[LineFacts, bytes]:
    """A server of ours on this machine, whatever name its certificate is for; the certificate it shows, DER."""
    steps = _Timer([])
    context = _context(ca_pem)
    context.check_hostname = False
    served = _tls(endpoint, context, steps, reads=False)
    return LineFacts(endpoint, tuple(steps.steps)), served or b""


def _context(ca_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    return context


def _tls(endpoint: str, context: ssl.SSLContext, steps: _Timer, *, reads: bool) -> bytes | None:
    """The certificate of the other end, DER; None when a step failed."""
    host, _, number = endpoint.rpartition(":")
    began = time.monotonic()
    try:
        socket.getaddrinfo(host, int(number), type=socket.SOCK_STREAM)
    except OSError as error:
        steps.failed(Step.DNS, began, Fault.NO_NAME, error)
        return None
    steps.done(Step.DNS, began)
    connection = _connected(host, int(number), steps)
    if connection is None:
        return None
    began = time.monotonic()
    with connection:
        try:
            secure = context.wrap_socket(connection, server_hostname=host)
        except OSError as error:
            steps.failed(Step.TLS, began, _tls_fault(error), getattr(error, "verify_message", "") or error)
            return None
    with secure:
        served = secure.getpeercert(binary_form=True)
        # The other end has been satisfied with us only once it sends something; gRPC cuts the line without a word.
        try:
            if reads and not secure.recv(1):
                steps.failed(Step.TLS, began, Fault.OUR_CERTIFICATE)
                return None
        except TimeoutError as error:
            steps.failed(Step.TLS, began, Fault.NO_REPLY, error)
            return None
        except OSError as error:
            steps.failed(Step.TLS, began, Fault.OUR_CERTIFICATE, error)
            return None
    steps.done(Step.TLS, began)
    return served


def _connected(host: str, number: int, steps: _Timer) -> socket.socket | None:
    """To the first address that takes us; the failure told is the last one's."""
    began = time.monotonic()
    try:
        connection = socket.create_connection((host, number), PATIENCE_S)
    except ConnectionRefusedError as error:
        steps.failed(Step.TCP, began, Fault.REFUSED, error)
    except TimeoutError as error:
        steps.failed(Step.TCP, began, Fault.NO_ANSWER, error)
    except OSError as error:
        steps.failed(Step.TCP, began, Fault.UNREACHABLE, error)
    else:
        steps.done(Step.TCP, began)
        return connection
    return None


def _tls_fault(error: OSError) -> Fault:
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault.THEIR_CERTIFICATE
    if isinstance(error, TimeoutError):
        return Fault.NO_REPLY
    reason = (error.reason if isinstance(error, ssl.SSLError) else "") or ""
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return Fault.NOT_TLS
    return Fault.CUT


def _health(endpoint: str, ca_pem: bytes, identity: Identity, steps: _Timer) -> Peer | None:
    """The quickest of three answers: its round trip bounds how wrong the difference of the clocks can be."""
    channel = dial(endpoint, ca_pem, identity.key_pem, identity.certificate_pem)
    ask = LinkStub(channel).Health
    began = time.monotonic()
    best: tuple[float, float, wire.HealthAnswer] | None = None
    try:
        for _ in range(3):
            sent, sent_at = time.monotonic(), time.time()
            answer = ask(wire.HealthQuestion(), timeout=PATIENCE_S)
            trip = time.monotonic() - sent
            if best is None or trip < best[0]:
                best = trip, answer.time - (sent_at + trip / 2), answer
    except grpc.RpcError as error:
        steps.failed(Step.RPC, began, _rpc_fault(error.code()), f"{error.code().name}: {error.details()}")
        return None
    finally:
        channel.close()
    assert best is not None
    trip, skew, answer = best
    steps.steps.append(StepFacts(Step.RPC, trip))
    return Peer(answer.protocol, answer.software, timedelta(seconds=skew), timedelta(seconds=trip / 2))


def _rpc_fault(status: grpc.StatusCode) -> Fault:
    match status:
        case grpc.StatusCode.UNIMPLEMENTED:
            return Fault.OTHER_SOFTWARE
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return Fault.NOT_ADMITTED
        case _:
            return Fault.NO_REPLY
