"""`Recorder`: a line between gateway and centre that reads everything, in clear, as it passes the gateway's socket.

It ends TLS with the centre's own certificate and key and begins it anew with the site's: what a sealed run is told to
survive, a proxy that reads everything. What it took down is cut into HTTP/2 streams and these into gRPC messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from msfl.protos.v1 import federation_pb2 as wire

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _PADDED = 0, 0x8


@dataclass
class Recorded:
    """One connection."""

    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)


class Recorder:
    """Every thread and socket ends with `close`."""

    def __init__(self, port: int, server_pem: Path, identity_pem: Path, ca_pem: Path) -> None:
        self.connections: list[Recorded] = []
        self._target = port
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(server_pem)
        self._client = ssl.create_default_context(cafile=ca_pem)
        self._client.load_cert_chain(identity_pem)
        for context in (self._server, self._client):
            context.set_alpn_protocols(["h2"])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recorder", daemon=True)
        self._thread.start()
        self._listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._server), self._loop
        ).result(10)
        self.port = int(self._listening.sockets[0].getsockname()[1])

    def close(self) -> None:
        async def end() -> None:
            self._listening.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await asyncio.open_connection("127.0.0.1", self._target, ssl=self._client, server_hostname="127.0.0.1")
        taken = Recorded()
        self.connections.append(taken)
        try:
            await asyncio.gather(self._pump(reader, far[1], taken.up), self._pump(far[0], writer, taken.down))
        finally:
            for end in (writer, far[1]):
                end.close()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, taken: bytearray) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while piece := await source.read(1 << 18):
                taken += piece
                target.write(piece)
                await target.drain()
        target.close()

    # ------------------------------------------------------------------------------------------ what was said

    def raw_up(self) -> bytes:
        """Every byte that left the gateway, frame heads and compressed headers included."""
        return b"".join(bytes(c.up) for c in self.connections)

    def calls_up(self) -> Iterator[list[bytes]]:
        """Of each call the messages that the gateway sent."""
        for connection in self.connections:
            for body in _bodies(bytes(connection.up)).values():
                yield list(_messages(body))

    def uploads(self) -> dict[str, bytes]:
        """The sealed results, by run and key."""
        found: dict[str, bytes] = {}
        for head, *parts in self.calls_up():
            with contextlib.suppress(DecodeError):
                said = wire.UploadHead.FromString(head)
                if parts and "/up/" in said.key and said.offset == 0:
                    found[f"{said.run_id} {said.key}"] = b"".join(parts)
        return found

    def wrapped_secret(self, run_id: str) -> bytes:
        for head, *_ in self.calls_up():
            with contextlib.suppress(DecodeError):
                said = wire.OfferAnswer.FromString(head)
                if said.run_id == run_id and said.verdict == "allow":
                    return bytes(said.wrapped_secret)
        raise AssertionError(f"no answer for {run_id} came by")


def _bodies(taken: bytes) -> dict[int, bytes]:
    """The DATA of each HTTP/2 stream."""
    assert taken.startswith(_PREFACE), taken[:24]
    bodies: dict[int, bytearray] = defaultdict(bytearray)
    source = io.BytesIO(taken[len(_PREFACE) :])
    while len(head := source.read(9)) == 9:
        length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        payload = source.read(length)
        if kind == _DATA:
            data = payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload
            bodies[int.from_bytes(head[5:]) & 0x7FFFFFFF] += data
    return {stream: bytes(body) for stream, body in bodies.items()}


def _messages(body: bytes) -> Iterator[bytes]:
    at = 0
    while at + 5 <= len(body):
        compressed, length = struct.unpack_from(">BI", body, at)
        assert compressed == 0, "a compressed message would hide what it holds"
        yield body[at + 5 : at + 5 + length]
        at += 5 + length
