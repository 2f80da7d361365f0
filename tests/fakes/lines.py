"""`Line`: a bad line between a gateway and the centre: a TCP proxy on loopback that knows nothing of what it carries.

    gateway ──▶ Line ── reader ▸ queue of (due, bytes), bounded ▸ writer ──▶ centre        and the same the other way

    Weather    bandwidth and latency of one direction; loss as what TCP makes of it
    cut        every connection ends now, with a reset; new ones are welcome
    cut_after  the same as soon as so many more bytes have passed one way, and only then
    refusing   new ones are reset for a while, as with a centre that is down
    hole       nothing passes, nobody hears of it (no FIN, no reset); new ones are taken, and pass nothing
    forget     the connections of now are dead for ever, and nobody hears of it; new ones work, as with a firewall that
               has lost its table

Real loss takes netem, which not every kernel has. What is imitated is what TCP hands on of 5 % loss: now and then
nothing for 200 to 600 ms (a retransmission timeout), and afterwards half the bandwidth for a second (the congestion
window). Every wait is drawn from the weather's seed. The buffers of the line are small, as a router's should be.
"""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

Way: TypeAlias = Literal["up", "down"]
PIECE_BYTES = 16 << 10
BUFFER_PIECES = 16
SOCKET_BUFFER_BYTES = 64 << 10
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Weather:
    """`bits_per_s` 0: no limit. `latency_s` of one way. `loss`: the share of stalls, per 64 KiB about."""

    bits_per_s: float = 0.0
    latency_s: float = 0.0
    loss: float = 0.0
    seed: int = 1


FAIR = Weather()
# 300 ms there and back, and 5 % of loss.
FAR_AND_LOSSY = Weather(bits_per_s=4e6, latency_s=0.15, loss=0.05)


class Line:
    """`passed` counts the bytes that were delivered, by way. Every thread ends with `close`."""

    def __init__(self, port: int, weather: Weather = FAIR) -> None:
        self.weather = weather
        self.passed: dict[Way, int] = {"up": 0, "down": 0}
        self.connections = 0
        self._target = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._refusing = False
        self._cut_at: tuple[Way, float] | None = None
        self._open = threading.Event()  # Not set: in a hole.
        self._open.set()
        self._closed = False
        self._door = socket.create_server(("127.0.0.1", 0))
        self._door.settimeout(0.2)
        self.port = int(self._door.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="line", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ what may happen to it

    def cut(self) -> None:
        for pair in self._taken():
            pair.reset()

    def cut_after(self, way: Way, n_bytes: float) -> None:
        with self._lock:
            self._cut_at = (way, self.passed[way] + n_bytes)

    @property
    def to_be_cut(self) -> bool:
        return self._cut_at is not None

    def forget(self) -> None:
        for pair in self._taken():
            pair.forgotten.set()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Cut, and nobody comes in again."""
        self._refusing = True
        self.cut()
        try:
            yield
        finally:
            self._refusing = False

    @contextmanager
    def hole(self) -> Iterator[None]:
        """What fell into it is not lost: TCP would send it again."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def close(self) -> None:
        self._closed = True
        self._open.set()
        self._thread.join()
        self._door.close()
        self.cut()

    # ------------------------------------------------------------ threads

    def _taken(self) -> list[_Pair]:
        with self._lock:
            return list(self._pairs)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._door.accept()
            except TimeoutError:
                continue
            if self._refusing:
                _reset(near)
                continue
            try:
                far = socket.create_connection(self._target, 5.0)
            except OSError:
                _reset(near)
                continue
            with self._lock:
                self.connections += 1
                pair = _Pair(near, far)
                self._pairs.add(pair)
            self._pump(pair, "up", near, far)
            self._pump(pair, "down", far, near)

    def _pump(self, pair: _Pair, way: Way, source: socket.socket, target: socket.socket) -> None:
        under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(BUFFER_PIECES)
        for end in (source, target):
            end.settimeout(None)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        chance = random.Random(f"{self.weather.seed} {self.connections} {way}")
        for part, arguments in (
            (self._read, (pair, source, under_way)),
            (self._write, (pair, way, target, under_way, chance)),
        ):
            threading.Thread(target=part, args=arguments, name=f"line {way}", daemon=True).start()

    def _read(self, pair: _Pair, source: socket.socket, under_way: queue.Queue[tuple[float, bytes]]) -> None:
        while True:
            try:
                piece = source.recv(PIECE_BYTES)
            except OSError:
                piece = b""
            while not pair.over.is_set():
                with contextlib.suppress(queue.Full):
                    under_way.put((time.monotonic() + self.weather.latency_s, piece), timeout=0.2)
                    break
            if not piece or pair.over.is_set():
                return

    def _write(
        self,
        pair: _Pair,
        way: Way,
        target: socket.socket,
        under_way: queue.Queue[tuple[float, bytes]],
        chance: random.Random,
    ) -> None:
        free_at = slow_until = time.monotonic()
        while not pair.over.is_set():
            try:
                due, piece = under_way.get(timeout=0.2)
            except queue.Empty:
                continue
            weather, now = self.weather, time.monotonic()
            if chance.random() < weather.loss * len(piece) / (4 * PIECE_BYTES):
                due = max(due, now) + chance.uniform(0.2, 0.6)
                slow_until = due + 1.0
            start = max(due, free_at, now - 0.02)
            if weather.bits_per_s:
                takes = 8 * len(piece) / weather.bits_per_s
                start = free_at = start + (2 * takes if start < slow_until else takes)
            if pair.over.wait(max(0.0, start - now)):
                break
            while not self._open.wait(0.2) or pair.forgotten.is_set():
                if pair.over.wait(0.2 if pair.forgotten.is_set() else 0.0):
                    break
            if pair.over.is_set() or not self._deliver(way, target, piece):
                break
        pair.reset()
        with self._lock:
            self._pairs.discard(pair)

    def _deliver(self, way: Way, target: socket.socket, piece: bytes) -> bool:
        """False: the connection has ended."""
        if not piece:
            return False
        try:
            target.sendall(piece)
        except OSError:
            return False
        with self._lock:
            self.passed[way] += len(piece)
            now = self._cut_at is not None and self._cut_at[0] == way and self.passed[way] >= self._cut_at[1]
            if now:
                self._cut_at = None
        if now:
            self.cut()
        return True


class _Pair:
    """One connection: its two sockets, and whether it is over, or dead without anybody's knowledge."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._ends = (near, far)
        self.over, self.forgotten = threading.Event(), threading.Event()

    def reset(self) -> None:
        self.over.set()
        for end in self._ends:
            _reset(end)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RDWR)  # Wakes whoever is reading.
    end.close()
