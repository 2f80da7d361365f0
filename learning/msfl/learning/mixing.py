"""One round at the centre: every update read in step with the model they started from, checked, and mixed.

    for each block:  model ─┬─▶ change = update − model ─▶ finite? how large? ─▶ strategy.mix ─▶ sealed next model
    every update  ──────────┘        (one of each site in memory, never more)

A value is looked at before it is mixed, but that a stream is whole shows at its end only. So what was mixed counts once
every stream has ended well; until then it lies in a file without a name. When an update turns out to be bad, that file
is thrown away, `UpdateRefused` names the site, and the caller mixes again without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from msfl.learning.examination import UpdateRefused
from msfl.learning.sealed_tensors import Block, SealedTensors
from msfl.learning.strategies import Strategy
from msfl.protos.parcel import BadParcel
from msfl.protos.sealing import SealBroken
from msfl.protos.tensors import BadTensors, all_finite, must_match
from msfl.protos.wire_formats import FLOAT32, decode, head_as

_T = TypeVar("_T")
EXPLODED = 1e3
"""An update whose change, root mean square over all values, is this many times the model's (or 1, where the model is
smaller) is no training result. Weights of a network are of the order of 1 or below."""


@contextmanager
def refusing(site: str) -> Iterator[None]:
    """Whatever is wrong with the bytes of a site's stream becomes its refusal."""
    try:
        yield
    except SealBroken as error:
        raise UpdateRefused(site, f"seal_{error.code}", str(error)) from error
    except BadTensors as error:
        raise UpdateRefused(site, f"update_{error.code}", str(error)) from error
    except (BadParcel, ValueError, RecursionError) as error:  # or JSON nested thousands of levels deep
        raise UpdateRefused(site, "update_malformed", str(error)) from error


def must_be_like(site: str, update: SealedTensors, model: SealedTensors, wire: str = FLOAT32) -> None:
    """Exactly the model's names, shapes and places, of the wire format's type. Raises UpdateRefused."""
    if update.head == head_as(model.head, wire):
        return
    with refusing(site):
        if wire == FLOAT32:
            must_match(update.table(), model.table())
        raise BadTensors("layout", "the tensors lie in another order, or the header is spelled differently")


def mix(
    strategy: Strategy,
    model: SealedTensors,
    updates: Mapping[str, SealedTensors],
    wire: str,
    write: Callable[[Block, Block], None],
) -> dict[str, float]:
    """Hand each block of the model and of the next one to `write`; each site's change as its L2 norm.

    Raises UpdateRefused.

    `updates` in site order, for which the strategy has begun; all streams are read to their ends.
    """
    squares = dict.fromkeys(updates, 0.0)
    scale, n = 0.0, 0
    for current, pieces in read_ahead(in_step(model, updates, wire)):
        for site, piece in zip(updates, pieces, strict=True):
            squares[site] += _change(site, piece, current)
        scale += _square(current)
        n += current.size
        write(current, strategy.mix(current, pieces))
    limit = EXPLODED**2 * max(n, scale)
    for site, square in squares.items():
        if square > limit:
            raise UpdateRefused(site, "update_exploded", f"its change has the norm {math.sqrt(square):.3g}")
    return {site: math.sqrt(square) for site, square in squares.items()}


def survey(strategy: Strategy, model: SealedTensors, updates: Mapping[str, SealedTensors], wire: str) -> None:
    """A pass that only looks. Raises UpdateRefused."""
    for current, pieces in read_ahead(in_step(model, updates, wire)):
        for site, piece in zip(updates, pieces, strict=True):
            _change(site, piece, current)
        strategy.look(current, pieces)


def in_step(
    model: SealedTensors, updates: Mapping[str, SealedTensors], wire: str
) -> Iterator[tuple[Block, list[Block]]]:
    """The same block of the model and of every update, whatever the wire format. Raises UpdateRefused."""
    ahead = {site: _Values(update, wire) for site, update in updates.items()}
    for current in model.blocks():
        pieces = []
        for site, values in ahead.items():
            with refusing(site):
                pieces.append(values.like(current))
        yield current, pieces
    for site, values in ahead.items():
        with refusing(site):
            values.must_have_ended()


class _Values:
    """An update's values in step with the model's blocks; differences are added to them."""

    def __init__(self, update: SealedTensors, wire: str) -> None:
        self._pieces = update.pieces()
        self._wire = wire
        self._held = bytearray()

    def like(self, current: Block) -> Block:
        """Raises SealBroken, BadTensors."""
        if self._wire == FLOAT32:
            piece = next(self._pieces, None)
            if piece is None or len(piece) != current.nbytes:
                raise BadTensors("layout", "fewer values than the model has, or in other places")
            return np.frombuffer(piece, dtype="<f4")
        n = 2 * current.size
        while len(self._held) < n:
            piece = next(self._pieces, None)
            if piece is None:
                raise BadTensors("layout", "fewer values than the model has")
            self._held += piece
        words = np.frombuffer(bytes(self._held[:n]), dtype="<u2")
        del self._held[:n]
        return current + decode(words, self._wire)

    def must_have_ended(self) -> None:
        """Raises SealBroken, BadTensors. Only now is the stream known to be whole."""
        if self._held or next(self._pieces, None) is not None:
            raise BadTensors("layout", "more values than the model has")


def read_ahead(rows: Iterator[_T]) -> Iterator[_T]:
    """The same rows; the next one is read and opened in a thread of its own while this one is used.

    Blocks stay valid for as long as that needs (`sealed_tensors`), and no longer.
    """
    with ThreadPoolExecutor(1, "read ahead") as reader:
        coming = reader.submit(next, rows, None)
        while (row := coming.result()) is not None:
            coming = reader.submit(next, rows, None)
            yield row


def finite_blocks(site: str, tensors: SealedTensors) -> Iterator[Block]:
    """Raises UpdateRefused."""
    with refusing(site):
        for block in tensors.blocks():
            if not all_finite(block):
                raise BadTensors("not_finite", "NaN or infinity")
            yield block


def _change(site: str, piece: Block, current: Block) -> float:
    """The squared norm of a block's change: one pass that also finds every NaN and infinity."""
    square = _square(piece - current)
    if math.isfinite(square):
        return square
    if np.isfinite(piece).all():
        raise UpdateRefused(site, "update_exploded", "the square of its change is beyond float32")
    raise UpdateRefused(site, "update_not_finite", "NaN or infinity among its values")


def _square(values: Block) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(values, values))
