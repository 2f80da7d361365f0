"""The keyring's door: a unix socket (0600) in a folder (0700), one JSON line in, one JSON line out per connection.

    {"do": "enrol", …} ▸ {"certificate"} | {"refused", "message"}
    {"do": "renew", …} ▸ {"certificate"} | {"refused", "message"}
    {"do": "sites"} ▸ {"sites"}
    {"do": "standings"} ▸ {"standings"}
    {"do": "freeze", …} ▸ {"done"}
    {"do": "unfreeze", …} ▸ {"done"}
    {"do": "hand_over", …} ▸ {"sealed"} | {"bad_secret"}
    {"do": "token", …} ▸ {"token"} | {"refusal"}
    {"do": "server_certificate", …} ▸ {"key", "certificate"}
    {"do": "show"} ▸ {"envelope", "public_key"}         a checkpoint of its audit log

Each of them: {"disk_full"} where the disk does not take what must be written first; nothing was done then.

The table `_DO` is closed. A request that does not fit ends the connection without an answer. One process serves a
folder at a time, under a file lock: the keyring's own lock, which makes a token single use, holds within one process.
"""

from __future__ import annotations

import base64
import json
import socketserver
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from msfl.orchestrator.keyring.keyring import EnrolmentRefusal, Keyring, SecretUnusable, held
from msfl.policies.refusals import Refused
from msfl.protos import unix_sockets
from msfl.protos.durable_files import DISK_TROUBLE

JsonObject: TypeAlias = dict[str, Any]
MAX_LINE = 4 << 20
log = structlog.get_logger()


def _enrol(keyring: Keyring, asked: JsonObject) -> JsonObject:
    answer = keyring.enrol(
        token_id=asked["token_id"],
        csr_pem=_bytes(asked["csr"]),
        nonce=_bytes(asked["nonce"]),
        proof_=_bytes(asked["proof"]),
        peer_ip=asked["peer_ip"],
        now=datetime.now(UTC),
        again=asked["again"] is True,
    )
    if isinstance(answer, EnrolmentRefusal):
        say = log.critical if answer.code == "token_used" else log.warning
        say("enrolment refused", token=asked["token_id"], code=answer.code, peer=asked["peer_ip"])
        return {"refused": answer.code, "message": answer.message}
    return {"certificate": _text(answer.certificate_pem)}


def _renew(keyring: Keyring, asked: JsonObject) -> JsonObject:
    answer = keyring.renew(
        certificate_pem=_bytes(asked["certificate"]),
        csr_pem=_bytes(asked["csr"]),
        proof=_bytes(asked["proof"]),
        now=datetime.now(UTC),
    )
    if isinstance(answer, EnrolmentRefusal):
        log.warning("renewal refused", code=answer.code, why=answer.message)
        return {"refused": answer.code, "message": answer.message}
    return {"certificate": _text(answer.certificate_pem)}


def _sites(keyring: Keyring, asked: JsonObject) -> JsonObject:
    return {"sites": keyring.sites()}


def _standings(keyring: Keyring, asked: JsonObject) -> JsonObject:
    return {
        "standings": {
            site: {
                "cidrs": standing.cidrs,
                "revoked": sorted(standing.revoked),
                "frozen": None if standing.frozen is None else asdict(standing.frozen),
            }
            for site, standing in keyring.standings().items()
        }
    }


def _freeze(keyring: Keyring, asked: JsonObject) -> JsonObject:
    log.warning("the operator freezes a site", site=asked["site"], why=asked["why"], by=asked["by"])
    return {"done": keyring.freeze(asked["site"], str(asked["why"]), str(asked["by"]), datetime.now(UTC))}


def _unfreeze(keyring: Keyring, asked: JsonObject) -> JsonObject:
    log.warning("the operator lifts a freeze", site=asked["site"], by=asked["by"])
    return {"done": keyring.unfreeze(asked["site"], str(asked["by"]), datetime.now(UTC))}


def _hand_over(keyring: Keyring, asked: JsonObject) -> JsonObject:
    wrapped = {site: _bytes(box) for site, box in asked["wrapped"].items()}
    try:
        public, earlier, least = _bytes(asked["public"]), str(asked.get("earlier", "")), int(asked.get("min_sites", 0))
        return {"sealed": _text(keyring.hand_over(asked["run_id"], wrapped, public, datetime.now(UTC), earlier, least))}
    except SecretUnusable as error:
        log.warning("run secret unusable", run=asked["run_id"], why=str(error))
        return {"bad_secret": error.site}


def _token(keyring: Keyring, asked: JsonObject) -> JsonObject:
    token = keyring.issue_token(
        federation=asked["federation"],
        site=asked["site"],
        endpoint=asked["endpoint"],
        link_endpoint=asked["link_endpoint"],
        registry=asked["registry"],
        federation_root_sha256=asked["federation_root_sha256"],
        life=timedelta(hours=asked["hours"]),
        cidrs=tuple(asked["cidrs"]),
        now=datetime.now(UTC),
    )
    return {"token": token.encode()}


def _server_certificate(keyring: Keyring, asked: JsonObject) -> JsonObject:
    key, certificate = keyring.server_certificate(tuple(map(str, asked["names"])), datetime.now(UTC))
    return {"key": _text(key), "certificate": _text(certificate)}


def _show(keyring: Keyring, asked: JsonObject) -> JsonObject:
    shown = keyring.witnessed(partial(datetime.now, UTC))
    return {"envelope": _text(shown.envelope), "public_key": shown.public_key}


_DO: dict[str, Callable[[Keyring, JsonObject], JsonObject]] = {
    "enrol": _enrol,
    "renew": _renew,
    "sites": _sites,
    "standings": _standings,
    "freeze": _freeze,
    "unfreeze": _unfreeze,
    "hand_over": _hand_over,
    "token": _token,
    "server_certificate": _server_certificate,
    "show": _show,
}


class _Handler(socketserver.StreamRequestHandler):
    server: KeyringServer

    def handle(self) -> None:
        line = self.rfile.readline(MAX_LINE)
        try:
            asked = json.loads(line)
            answer = _DO[asked.pop("do")](self.server.keyring, asked)
        except Refused as error:
            log.warning("refused", code=error.refusal.code.value, why=error.refusal.message)
            answer = {"refusal": error.refusal.to_json()}
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            log.error("the keyring does nothing that it cannot write down", why=error.strerror)
            answer = {"disk_full": error.strerror}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.error("a request that does not fit", why=repr(error))
            return
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class KeyringServer(socketserver.ThreadingUnixStreamServer):
    """Raises PermissionError when others may enter the folder, RuntimeError when another keyring serves it."""

    daemon_threads = True
    request_queue_size = 128  # Sites that enrol at the same moment.

    def __init__(self, socket_file: Path, keyring: Keyring) -> None:
        folder = socket_file.parent
        if folder.stat().st_mode & 0o077:
            raise PermissionError(f"others may enter {folder}, where the federation's keys lie: chmod 700 it")
        self._held = ExitStack()
        self._held.enter_context(held(folder))
        socket_file.unlink(missing_ok=True)
        self.keyring = keyring
        self._socket_file = socket_file
        with unix_sockets.address(socket_file) as short:
            super().__init__(short, _Handler)
        socket_file.chmod(0o600)

    def server_close(self) -> None:
        super().server_close()
        # Before the lock: afterwards the name may be a successor's.
        self._socket_file.unlink(missing_ok=True)
        self._held.close()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
