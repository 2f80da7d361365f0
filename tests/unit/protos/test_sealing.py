"""A gateway seals what its worker made; the aggregator opens it: any length, pieces of any size, little memory."""

from __future__ import annotations

import io
import itertools
import os
import tracemalloc
from collections.abc import Iterator

import pytest

from msfl.protos.sealing import CHUNK, SALT, TAG, StreamHeader, open_sealed, seal

KEY = bytes(range(32))
HEADER = StreamHeader("run-7", "train/3", 3, "site-a", 1, "up", "result")
HEAD = 4 + len(HEADER.encode()) + SALT


def round_trip(pieces: list[bytes]) -> tuple[bytes, bytes]:
    sealed, opened = io.BytesIO(), io.BytesIO()
    assert seal(KEY, HEADER, pieces, sealed, salt=bytes(SALT)) == len(sealed.getvalue())
    sealed.seek(0)
    assert open_sealed(KEY, HEADER, sealed, opened) == len(opened.getvalue())
    return sealed.getvalue(), opened.getvalue()


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7])
def test_what_was_sealed_comes_out_at_every_length(n: int) -> None:
    whole = bytes(itertools.islice(itertools.cycle(range(251)), n))
    sealed, opened = round_trip([whole])
    assert opened == whole
    n_chunks = max(1, -(-n // CHUNK))
    assert len(sealed) == HEAD + n + n_chunks * TAG


@pytest.mark.parametrize("size", [1000, CHUNK // 3, CHUNK, CHUNK + 1, 5 * CHUNK])
def test_the_pieces_do_not_show(size: int) -> None:
    whole = bytes(itertools.islice(itertools.cycle(range(251)), 2 * CHUNK + 99))
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    assert round_trip(pieces) == round_trip([b"", whole, b""])


def test_the_layout_is_the_written_one() -> None:
    sealed, _ = round_trip([b"abc"])
    assert sealed[4 : 4 + len(HEADER.encode())] == (
        b'{"artifact":"result","attempt":1,"direction":"up","round":3,"run_id":"run-7","site":"site-a","task_id":"train/3"}'
    )
    # A known answer: whoever changes layout, nonce or derivation changes the protocol, and has to give it a new name.
    assert sealed[HEAD:].hex() == "0c9d676fc6b35441ada4c150b5fee9b7a09227"


def test_the_same_file_twice_looks_different() -> None:
    one, two = io.BytesIO(), io.BytesIO()
    seal(KEY, HEADER, [b"the same"], one, salt=bytes([1]) * SALT)
    seal(KEY, HEADER, [b"the same"], two, salt=bytes([2]) * SALT)
    assert one.getvalue()[HEAD:] != two.getvalue()[HEAD:]


def test_memory_does_not_grow_with_the_stream() -> None:
    block = bytes(CHUNK)

    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield block

    with open(os.devnull, "wb") as nowhere:
        tracemalloc.start()
        try:
            seal(KEY, HEADER, pieces(), nowhere, salt=bytes(SALT))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 3 * CHUNK


def test_a_source_that_gives_less_than_asked_is_read_to_its_end() -> None:
    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 100_000))

    sealed = io.BytesIO()
    whole = bytes(range(256)) * 5000
    seal(KEY, HEADER, [whole], sealed, salt=bytes(SALT))
    out = io.BytesIO()
    open_sealed(KEY, HEADER, Dribble(sealed.getvalue()), out)
    assert out.getvalue() == whole
