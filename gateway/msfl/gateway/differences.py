"""A site's side of the 16-bit wire formats: updates go as differences to the model that came, models come as
differences to the one before. The worker knows nothing of it: it gets and gives float32.

    up     the worker's weights ─▶ gate ─▶ minus inbox/000.safetensors, plus what was left over ─▶ 16 bits ─▶ sealed
    down   inbox/000.safetensors (the model of the round before, if this gateway put it there) ─▶ plus the difference
           ─▶ the same file; used only if its hash is the note's, otherwise the whole model is fetched

`left-over-<round>.f32` in the run's folder holds what rounding lost, as plain float32 in the order of the tensors. The
file of the round before stays until the next one is made, so that a round that is done again gives the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from blake3 import blake3

from msfl.gateway.egress import head_of
from msfl.protos.wire_formats import decode, encode_difference, head_as


def differences(
    pieces: Iterable[bytes | memoryview], base: Path, folder: Path, round: int, wire: str
) -> Iterator[bytes | memoryview]:
    """A checked float32 tensors file as the same in a 16-bit format.

    `pieces` begins with the file's head; `base` is a file with the same head; `folder` keeps what is left over.
    """
    head = head_of(base)
    before = max((f for f in folder.glob("left-over-*.f32") if _round(f) < round), key=_round, default=None)
    fresh = folder / f"left-over-{round:06d}.f32"
    stream = iter(pieces)
    next(stream)
    yield head_as(head, wire)
    with ExitStack() as files:
        model = files.enter_context(base.open("rb"))
        model.seek(len(head))
        kept = files.enter_context(fresh.open("wb", buffering=0))
        lost = files.enter_context(before.open("rb")) if before is not None else None
        for piece in stream:
            values = np.frombuffer(piece, dtype="<f4")
            then = np.frombuffer(model.read(len(piece)), dtype="<f4")
            left = np.zeros_like(values) if lost is None else np.frombuffer(lost.read(len(piece)), dtype="<f4")
            words, _, left_over = encode_difference(values, then, left, wire)
            kept.write(left_over.view(np.uint8).data)
            yield words.view(np.uint8).data
    for old in folder.glob("left-over-*.f32"):
        if old not in (before, fresh):
            old.unlink()


def _round(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


class Patch:
    """Adds a difference to a model on disk, in place, while it arrives; `feed` gets a tensors file of 16-bit words.

    What comes out is known by its hash alone: a difference of another length, or to another model, gives another one.
    """

    def __init__(self, model: BinaryIO, head: bytes, wire: str) -> None:
        self._model = model
        self._model.seek(len(head))
        self._skip = len(head_as(head, wire))
        self._hash = blake3(head)
        self._odd = b""
        self._wire = wire

    def feed(self, piece: memoryview) -> None:
        skipped = min(self._skip, len(piece))
        self._skip -= skipped
        data = self._odd + bytes(piece[skipped:])
        whole = len(data) - len(data) % 2
        self._odd = data[whole:]
        at = self._model.tell()
        old = np.frombuffer(self._model.read(2 * whole), dtype="<f4")
        added = decode(np.frombuffer(data[:whole], dtype="<u2")[: old.size], self._wire)
        new = (old + added).tobytes()
        self._model.seek(at)
        self._model.write(new)
        self._hash.update(new)

    def close(self) -> str:
        """`blake3:<hex>` of the model as it is now."""
        return f"blake3:{self._hash.hexdigest()}"
