"""`Centre`: a real gateways' door with admission, over real connections; its methods do nothing but say who got in.

The keyring's word and the federation's list are fetched when a story says so (`admission.refresh`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc

from fakes.keyrings import Applicant, make_token
from msfl.orchestrator.doors.admission import Admission
from msfl.orchestrator.doors.turned_away import TurnedAway
from msfl.orchestrator.keyring.client import KeyringDown
from msfl.orchestrator.keyring.keyring import Enrolled, Keyring, SiteStanding
from msfl.policies.trust import NOTHING_REVOKED
from msfl.protos.audit_log import AuditLog, read_entries
from msfl.protos.certificates import Identity
from msfl.protos.channel import SERVER_OPTIONS, dial, make_csr, mutual_server_credentials

PATIENCE_S = 20
HERE = ("127.0.0.0/8",)


class Centre:
    def __init__(self, folder: Path) -> None:
        self.folder, self.made_at = folder, datetime.now(UTC)
        now = self.made_at
        self.keyring = Keyring.create(folder / "keyring", "msfl-01", now)
        self.down = False
        self.revoked = NOTHING_REVOKED
        self._log = folder / "audit/log.jsonl"
        self._audit = AuditLog(self._log, "orchestrator msfl-01")
        note = TurnedAway(self._audit, lambda: datetime.now(UTC)).note
        self.admission = Admission(self._ask, lambda: self.revoked, turned_away=note)
        self.calls: list[str] = []
        self.streaming = threading.Event()
        key, certificate = self.keyring.server_certificate(("127.0.0.1",), now)
        self._server = grpc.server(ThreadPoolExecutor(4), interceptors=(self.admission,), options=SERVER_OPTIONS)
        handlers = {
            "Ask": grpc.unary_unary_rpc_method_handler(self._answer),
            "Watch": grpc.unary_stream_rpc_method_handler(self._stream),
            "Send": grpc.stream_unary_rpc_method_handler(self._take),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Door", handlers),))
        credentials = mutual_server_credentials(key, certificate, self.keyring.ca_pem)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def _ask(self) -> dict[str, SiteStanding]:
        if self.down:
            raise KeyringDown("it does not answer")
        return self.keyring.standings()

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls.append("Ask")
        return request

    def _stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        over = threading.Event()
        context.add_callback(over.set)
        yield b"first"
        over.wait(PATIENCE_S)

    def _take(self, request: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        for _ in request:
            self.streaming.set()
        return b"taken"

    def join(self, site: str = "site-a", cidrs: tuple[str, ...] = HERE) -> Identity:
        now = datetime.now(UTC)
        key, csr = make_csr(site)
        token = make_token(self.keyring, site, cidrs=(*cidrs, "10.1.0.0/16"), now=now)
        answer = Applicant(token).enrol(self.keyring, csr=csr, now=now)
        assert isinstance(answer, Enrolled)
        return Identity(key, answer.certificate_pem)

    def dial(self, identity: Identity) -> grpc.Channel:
        return dial(f"127.0.0.1:{self.port}", self.keyring.ca_pem, identity.key_pem, identity.certificate_pem)

    def turned_away(self) -> list[tuple[str, str]]:
        """Who, and why, as the centre's audit log has it."""
        entries = read_entries(self._log)
        assert all((e.action, e.object, e.fields["peer"]) == ("turned away", "gateways", "127.0.0.1") for e in entries)
        return [(str(e.fields["who"]), str(e.fields["code"])) for e in entries]

    def close(self) -> None:
        self._server.stop(0).wait()
        self._audit.close()


@contextmanager
def line(centre: Centre, identity: Identity) -> Iterator[grpc.Channel]:
    channel = centre.dial(identity)
    yield channel
    channel.close()


def ask(channel: grpc.Channel) -> str:
    try:
        return str(channel.unary_unary("/Door/Ask")(b"hello", timeout=PATIENCE_S).decode())
    except grpc.RpcError as error:
        return f"{error.code().name} {(error.details() or '').partition(':')[0]}"
