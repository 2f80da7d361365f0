"""Frames (`msfl.protos.tasklink`) over a socket that nobody waits for: whole in both directions, not read but carried.

A frame is its length, four bytes, big-endian, and as many bytes. A length beyond what a frame may have ends the line.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from msfl.protos.tasklink import MAX_FRAME_BYTES

LENGTH = struct.Struct(">I")
_BLOCK = 1 << 16


class FrameLine:
    """One connected socket, whole frames in both directions, never waited for."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.waiting = bytearray()  # to be sent
        self.open = True
        self._heard = bytearray()

    def hear(self) -> Iterator[bytes]:
        """The frames that have come whole, with their lengths; afterwards `open` says whether there may be more."""
        try:
            data = self.connection.recv(_BLOCK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.open = bool(data)
        self._heard += data
        while len(self._heard) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._heard)
            if length > MAX_FRAME_BYTES:  # The host shall see it, and that there is nothing behind it.
                yield bytes(self._heard[: LENGTH.size])
                self.open = False
                return
            if len(self._heard) < LENGTH.size + length:
                return
            yield bytes(self._heard[: LENGTH.size + length])
            del self._heard[: LENGTH.size + length]

    def say(self, frame: bytes) -> None:
        self.waiting += frame
        self.flush()

    def flush(self) -> None:
        try:
            while self.waiting:
                del self.waiting[: self.connection.send(self.waiting)]
        except BlockingIOError:
            return
        except OSError:
            self.open = False
            self.waiting.clear()
