"""`TlsProxy`: somebody on the line who holds every TLS key there is: he ends TLS on both sides, and reads everything.

    gateway ══ TLS ══▶ TlsProxy: plain text, kept ══ TLS ══▶ centre

To the gateway he is the centre, with a certificate that the stolen key of the CA made; to the centre he is the site,
with the site's own stolen identity. What he reads is HTTP/2, as the two ends wrote it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msfl.protos.certificates import Identity


class TlsProxy:
    """`read`: every byte that passed, by way."""

    def __init__(self, folder: Path, port: int, ca_pem: bytes, as_centre: Identity, as_site: Identity) -> None:
        self.read: dict[str, bytearray] = {"up": bytearray(), "down": bytearray()}
        self.port = 0
        self._target = port
        self._front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._back = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._back.load_verify_locations(cadata=ca_pem.decode())
        for context, identity, name in ((self._front, as_centre, "centre"), (self._back, as_site, "site")):
            file = folder / f"stolen-{name}.pem"
            file.write_bytes(identity.key_pem + identity.certificate_pem)
            context.load_cert_chain(file)
            context.set_alpn_protocols(["h2"])

    @property
    def passed(self) -> dict[str, int]:
        return {way: len(read) for way, read in self.read.items()}

    @contextmanager
    def up(self) -> Iterator[TlsProxy]:
        ready, over = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        async def serve() -> None:
            server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._front)
            self.port = int(server.sockets[0].getsockname()[1])
            ready.set()
            await over.wait()
            server.close()
            relays = asyncio.all_tasks() - {asyncio.current_task()}
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="tls proxy")
        thread.start()
        assert ready.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()
            loop.close()

    async def _relay(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        far, to_far = await asyncio.open_connection(
            "127.0.0.1", self._target, ssl=self._back, server_hostname="127.0.0.1"
        )
        ways = [
            asyncio.create_task(self._pump("up", near, to_far)),
            asyncio.create_task(self._pump("down", far, to_near)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for writer in (to_near, to_far):
                writer.transport.abort()

    async def _pump(self, way: str, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                self.read[way] += data
                target.write(data)
                await target.drain()
