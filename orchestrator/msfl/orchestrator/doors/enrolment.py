"""The door for sites that join: a registration token in, a client certificate out.

    site                                         orchestrator                       keyring
      Begin(token_id)  ─────────────────────────▶  fresh nonce, kept 60 s
      Enrol(token_id, csr, nonce, proof) ───────▶  nonce used up ─▶ enrol ─────────▶ proof, expiry, address, once
      ◀── certificate, federation root ────────────────────────────────────────────

The token's secret never crosses the wire; `proof` shows that the site has it. The orchestrator decides nothing here.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

import grpc

from msfl.orchestrator.doors.turned_away import Note, no_note
from msfl.orchestrator.keyring.client import KeyringClient
from msfl.orchestrator.keyring.keyring import EnrolmentRefusal
from msfl.protos.channel import peer_ip
from msfl.protos.messages import PROTOCOL
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import EnrolmentServicer

NONCE_LIFE_S = 60.0
MAX_NONCES = 1000


class EnrolmentDoor(EnrolmentServicer):
    def __init__(
        self,
        keyring: KeyringClient,
        federation_root: bytes,
        changed: Callable[[], None] = lambda: None,
        turned_away: Note = no_note,
    ) -> None:
        """`changed` is called when a site joined, or may have been frozen by a second use of its token."""
        self._keyring = keyring
        self._changed = changed
        self._turned_away = turned_away
        self._federation_root = federation_root
        self._lock = threading.Lock()
        self._nonces: dict[bytes, float] = {}

    def Begin(self, request: wire.BeginEnrolment, context: grpc.ServicerContext) -> wire.EnrolmentNonce:
        if request.protocol != PROTOCOL:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this orchestrator speaks protocol {PROTOCOL}")
        nonce = secrets.token_bytes(32)
        now = time.monotonic()
        with self._lock:
            self._nonces = {n: t for n, t in self._nonces.items() if now - t < NONCE_LIFE_S}
            while len(self._nonces) >= MAX_NONCES:  # Anybody may begin: who begins without end keeps nobody out.
                self._nonces.pop(next(iter(self._nonces)))
            self._nonces[nonce] = now
        return wire.EnrolmentNonce(nonce=nonce)

    def Enrol(self, request: wire.EnrolmentProof, context: grpc.ServicerContext) -> wire.EnrolmentCertificate:
        with self._lock:
            begun = self._nonces.pop(request.nonce, None)
        if begun is None or time.monotonic() - begun > NONCE_LIFE_S:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this enrolment took too long; begin again")
        answer = self._keyring.enrol(
            token_id=request.token_id,
            csr_pem=request.csr_pem,
            nonce=request.nonce,
            proof=request.proof,
            peer_ip=peer_ip(context),
            again=request.again,
        )
        self._changed()
        if isinstance(answer, EnrolmentRefusal):
            # The token's id is no secret; what is none is not repeated here.
            which = f"token {request.token_id}" if answer.code != "unknown_token" else ""
            self._turned_away("enrolment", answer.code, which, peer_ip(context))
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{answer.code}: {answer.message}")
            raise AssertionError("abort returns never")
        return wire.EnrolmentCertificate(certificate_pem=answer.certificate_pem, federation_root=self._federation_root)
