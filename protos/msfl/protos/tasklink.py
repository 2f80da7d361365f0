"""The only door of a contained process: JSON frames over one unix socket.

A worker (beside the data) and an aggregator (at the centre) know their host process, the gateway or the
orchestrator, through one unix stream socket and nothing else. The contained process dials; a keeper stands between
(`msfl.runtime.keeper`), so that a host which is killed can come back to a process that works on.

    contained                               host
       │ ── Hello(release, public_key) ──▶   │
       │ ◀── Task(task_id, verb, …) ──────   │     at most one task at a time
       │ ── Progress(task_id, …) ────────▶   │     any number
       │ ── Alive(task_id) ──────────────▶   │     every few seconds while a task is worked on
       │ ── Result(task_id, …) ──────────▶   │     or Failed(task_id, code, detail)
       │ ◀── Stop() ───────────────────────  │

A frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON, `{"frame": <name>, …fields}`; the closed
table `_FRAMES` is the only way from a name to a type. Tensors never travel here: they lie as safetensors files in
the `inbox` and `outbox` folders which both sides share, and frames carry bare file names.

`Failed.detail` may hold a traceback: it stays on the host (log file, mode 0600) and never crosses the site's border.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from msfl.protos import unix_sockets
from msfl.protos.nesting import too_deep

MAX_FRAME_BYTES = 8 * 1024 * 1024
WEIGHTS_NAME = "weights.safetensors"
"""Where a worker leaves its weights in the outbox, each time over those of before."""
_LENGTH = struct.Struct(">I")

JsonObject: TypeAlias = dict[str, Any]


class BrokenFrame(ValueError):
    """The peer sent bytes that are not a frame of this protocol."""


@dataclass(frozen=True)
class Hello:
    """`task` is the keeper's word, not the process's (`msfl.runtime.keeper`): the task that it was given last."""

    release: str
    public_key: str = ""  # base64 X25519, aggregator only: the keyring seals the run's site keys to it
    task: str = ""


@dataclass(frozen=True)
class Task:
    """One verb. `files` maps an input's name to a bare file name in the inbox; `document` holds its parameters."""

    task_id: str
    verb: str
    round: int
    config: JsonObject
    document: JsonObject = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a task is: `done` of `total` steps, and named finite numbers (loss, dice)."""

    task_id: str
    phase: str
    done: int
    total: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Alive:
    """The process still works on the task. Progress alone is no sign of life: one batch may take minutes."""

    task_id: str


@dataclass(frozen=True)
class Result:
    """A finished task. `files` maps an output's name to a bare file name in the outbox."""

    task_id: str
    document: JsonObject
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    task_id: str
    code: str
    detail: str


@dataclass(frozen=True)
class Stop:
    pass


Frame: TypeAlias = Hello | Task | Progress | Alive | Result | Failed | Stop
_FRAMES: dict[str, type[Frame]] = {t.__name__: t for t in (Hello, Task, Progress, Alive, Result, Failed, Stop)}


def encode(frame: Frame) -> bytes:
    body = json.dumps({"frame": type(frame).__name__, **asdict(frame)}, allow_nan=False).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise BrokenFrame(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Frame:
    """Raises BrokenFrame for anything that is not exactly one known frame with exactly its fields."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BrokenFrame("a frame is not JSON") from error
    if too_deep(raw):
        raise BrokenFrame("a frame is nested too deep")
    name = raw.pop("frame", None) if isinstance(raw, dict) else None
    if not isinstance(name, str) or name not in _FRAMES:
        raise BrokenFrame("a frame of unknown kind")
    kind = _FRAMES[name]
    known = {f.name: f for f in fields(kind)}
    if unknown := set(raw) - set(known):
        raise BrokenFrame(f"{kind.__name__} has unknown fields {sorted(unknown)}")
    for name, value in raw.items():
        if not _fits(known[name].type, value):
            raise BrokenFrame(f"{kind.__name__}.{name} has the wrong type")
    try:
        return kind(**raw)
    except TypeError as error:
        raise BrokenFrame(f"{kind.__name__} lacks fields") from error


def _fits(annotation: object, value: object) -> bool:
    match annotation:
        case "str":
            return isinstance(value, str)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "dict[str, str]":
            return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        case "dict[str, float]":
            return isinstance(value, dict) and all(
                isinstance(v, int | float) and not isinstance(v, bool) for v in value.values()
            )
        case _:
            return isinstance(value, dict)


class TaskLink:
    """One connected socket, one frame at a time. One receiver; any number of threads may send.

    `silence_s`: how long to wait for the peer's next bytes, or for it to take ours, before TimeoutError.
    """

    def __init__(self, connection: socket.socket, silence_s: float | None = None) -> None:
        connection.settimeout(silence_s)
        self._connection = connection
        self._sending = threading.Lock()

    @classmethod
    def dial(cls, path: Path) -> TaskLink:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        unix_sockets.connect(connection, path)
        return cls(connection)

    def send(self, frame: Frame, *, patience_s: float = -1) -> None:
        """Raises OSError; TimeoutError also when another thread has been sending for `patience_s` (-1: no matter)."""
        body = encode(frame)
        if not self._sending.acquire(timeout=patience_s):
            raise TimeoutError("another frame is stuck on its way")
        try:
            self._connection.sendall(body)
        finally:
            self._sending.release()

    def receive(self) -> Frame | None:
        """The next frame, or None when the peer has closed. Raises BrokenFrame, TimeoutError."""
        head = self._exactly(_LENGTH.size)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MAX_FRAME_BYTES:
            raise BrokenFrame(f"the peer announces {length} bytes, over the limit of {MAX_FRAME_BYTES}")
        body = self._exactly(length)
        if body is None:
            raise BrokenFrame("the peer closed inside a frame")
        return decode(body)

    def _exactly(self, n: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < n:
            part = self._connection.recv(min(n - len(parts), 1 << 20))
            if not part:
                if parts:
                    raise BrokenFrame("the peer closed inside a frame")
                return None
            parts += part
        return bytes(parts)

    def close(self) -> None:
        """Whoever waits in `receive` hears that it is closed."""
        with contextlib.suppress(OSError):  # The peer was first.
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
