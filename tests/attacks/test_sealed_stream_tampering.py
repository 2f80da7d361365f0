"""Sealed streams: who relays one can drop it, and nothing else.

The relay here holds many sealed streams and rearranges them at will: it cuts, swaps, repeats, extends, relabels and
flips bits. Nothing it makes opens, and the code says what was done where that can be told.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from msfl.protos.sealing import (
    CHUNK,
    SALT,
    TAG,
    SealBroken,
    StreamHeader,
    open_sealed,
    open_with,
    run_key,
    seal,
    seal_to,
    unwrap_run_secret,
    wrap_run_secret,
)

KEY = bytes(range(32))
HEADER = StreamHeader("run-7", "train/3", 3, "site-a", 1, "up", "result")
HEAD = 4 + len(HEADER.encode()) + SALT
CELL = CHUNK + TAG


@cache
def sealed(n: int = 2 * CHUNK + 500, header: StreamHeader = HEADER, key: bytes = KEY, salt: int = 1) -> bytes:
    out = io.BytesIO()
    pieces = [bytes([i]) * min(CHUNK, n - i * CHUNK) for i in range(-(-n // CHUNK))]
    seal(key, header, pieces, out, salt=bytes([salt]) * SALT)
    return out.getvalue()


def code(stream: bytes, header: StreamHeader = HEADER, key: bytes = KEY) -> str:
    with pytest.raises(SealBroken) as error:
        open_sealed(key, header, io.BytesIO(stream), io.BytesIO())
    return error.value.code


def cells(stream: bytes) -> tuple[bytes, list[bytes]]:
    body = stream[HEAD:]
    return stream[:HEAD], [body[i : i + CELL] for i in range(0, len(body), CELL)]


def test_the_untouched_stream_opens() -> None:
    out = io.BytesIO()
    assert open_sealed(KEY, HEADER, io.BytesIO(sealed()), out) == 2 * CHUNK + 500 == len(out.getvalue())


# ------------------------------------------------------------------- the length


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_cut_at_a_chunk_border_is_seen(kept: int) -> None:
    head, body = cells(sealed())
    assert code(head + b"".join(body[:kept])) == "truncated"


def test_a_cut_at_the_border_of_a_stream_of_whole_chunks_is_seen() -> None:
    assert code(sealed(2 * CHUNK)[:-CELL]) == "truncated"


@pytest.mark.parametrize("left", [0, 3, 4, 20, HEAD - 1, HEAD, HEAD + TAG - 1])
def test_a_cut_before_the_first_chunk_is_seen(left: int) -> None:
    assert code(sealed(5)[:left]) in {"truncated", "header_differs"}


def test_a_cut_inside_a_chunk_is_seen() -> None:
    assert code(sealed()[:-1]) == "tag"
    assert code(sealed()[: HEAD + CELL + 5]) == "truncated"


@pytest.mark.parametrize("more", [b"\0", b"\0" * 16, b"\0" * CELL])
def test_nothing_can_be_put_behind_a_stream(more: bytes) -> None:
    assert code(sealed() + more) == "tag"  # the last chunk was short: what follows runs into it
    assert code(sealed(2 * CHUNK) + more) == "too_long"


def test_a_stream_cannot_be_continued_by_its_own_chunks() -> None:
    head, body = cells(sealed(2 * CHUNK))
    assert code(head + b"".join([*body, body[1]])) == "too_long"
    assert code(head + b"".join([body[0], *body])) == "tag"


def test_an_empty_stream_is_a_message_too() -> None:
    assert open_sealed(KEY, HEADER, io.BytesIO(sealed(0)), io.BytesIO()) == 0
    assert code(sealed(0)[:-TAG]) == "truncated"


# -------------------------------------------------------------------- the order


def test_chunks_do_not_change_places() -> None:
    head, (first, second, last) = cells(sealed())
    assert code(head + second + first + last) == "tag"
    assert code(head + first + first + last) == "tag"
    assert code(head + first + last) == "tag"


def test_chunks_of_two_streams_do_not_mix() -> None:
    # Same key, same header, same place: a retry of the same result, sealed with its own salt.
    head, body = cells(sealed())
    _, other = cells(sealed(salt=2))
    assert code(head + body[0] + other[1] + body[2]) == "tag"


def test_a_salt_of_another_stream_opens_nothing() -> None:
    _, body = cells(sealed())
    head, _ = cells(sealed(salt=2))
    assert code(head + b"".join(body)) == "tag"


# --------------------------------------------------------------------- the bits


@pytest.mark.parametrize("place", [HEAD - SALT, HEAD, HEAD + CHUNK // 2, HEAD + CELL - 1, HEAD + CELL, -TAG - 1, -1])
def test_one_flipped_bit_after_the_header_is_seen(place: int) -> None:
    stream = bytearray(sealed())
    stream[place] ^= 0x10
    assert code(bytes(stream)) == "tag"


def test_every_single_bit_of_a_small_stream_counts() -> None:
    whole = sealed(9)
    for place in range(len(whole)):
        for bit in range(8):
            stream = bytearray(whole)
            stream[place] ^= 1 << bit
            with pytest.raises(SealBroken):
                open_sealed(KEY, HEADER, io.BytesIO(stream), io.BytesIO())


# ------------------------------------------------------------------- the header

OTHERS: dict[str, Callable[[StreamHeader], StreamHeader]] = {
    "run": lambda h: replace(h, run_id="run-8"),
    "task": lambda h: replace(h, task_id="train/4"),
    "round": lambda h: replace(h, round=4),
    "site": lambda h: replace(h, site="site-b"),
    "attempt": lambda h: replace(h, attempt=2),
    "direction": lambda h: replace(h, direction="down"),
    "artifact": lambda h: replace(h, artifact="weights"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=list(OTHERS))
def test_a_stream_is_not_taken_for_another(other: Callable[[StreamHeader], StreamHeader]) -> None:
    assert code(sealed(header=other(HEADER))) == "header_differs"


@pytest.mark.parametrize("other", OTHERS.values(), ids=list(OTHERS))
def test_a_header_written_over_the_old_one_does_not_help(other: Callable[[StreamHeader], StreamHeader]) -> None:
    # The relay takes an old stream and gives it the header that is expected now.
    old = other(HEADER)
    body = sealed(header=old)[4 + len(old.encode()) :]
    wanted = HEADER.encode()
    assert code(struct.pack(">I", len(wanted)) + wanted + body) == "tag"


def test_another_spelling_of_the_same_header_is_another_header() -> None:
    spelled = HEADER.encode().replace(b":", b": ")
    stream = struct.pack(">I", len(spelled)) + spelled + sealed()[4 + len(HEADER.encode()) :]
    assert code(stream) == "header_differs"


def test_a_header_that_announces_gigabytes_is_not_read() -> None:
    assert code(b"\xff\xff\xff\xff" + sealed()[4:]) == "header_unreadable"


# --------------------------------------------------------------------- the keys


def test_a_stream_replayed_under_another_key_does_not_open() -> None:
    assert code(sealed(), key=bytes(32)) == "tag"


def test_a_key_belongs_to_one_run_and_one_site() -> None:
    secret, site_key = bytes([1]) * 32, bytes([2]) * 32
    mine = run_key(secret, site_key, "run-7", "site-a")
    others = {
        run_key(secret, site_key, "run-8", "site-a"),
        run_key(secret, site_key, "run-7", "site-b"),
        run_key(secret, bytes([3]) * 32, "run-7", "site-a"),
        run_key(bytes([3]) * 32, site_key, "run-7", "site-a"),
        run_key(site_key, secret, "run-7", "site-a"),
    }
    assert len(others) == 5
    assert mine not in others


@pytest.mark.parametrize(("secret", "site_key"), [(b"", bytes(32)), (bytes(32), b""), (bytes(31), bytes(32))])
def test_a_lost_key_does_not_quietly_become_an_empty_one(secret: bytes, site_key: bytes) -> None:
    # HKDF would take both; then one broken lock would be enough.
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        run_key(secret, site_key, "run-7", "site-a")


def test_nothing_is_sealed_with_a_short_key_or_salt() -> None:
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        seal(b"", HEADER, [b"x"], io.BytesIO(), salt=bytes(32))
    with pytest.raises(ValueError, match="a salt has 32 bytes"):
        seal(KEY, HEADER, [b"x"], io.BytesIO(), salt=b"")


def test_a_wrapped_run_secret_serves_one_run_one_site_and_one_centre(boxes: tuple[bytes, bytes, bytes]) -> None:
    private, public, stranger = boxes
    wrapped = wrap_run_secret(public, KEY, "run-7", "site-a", KEY)
    assert unwrap_run_secret(private, wrapped, "run-7", "site-a", KEY) == KEY
    flipped = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    for key, box, run, site, site_key in (
        (private, wrapped, "run-8", "site-a", KEY),
        (private, wrapped, "run-7", "site-b", KEY),
        (private, wrapped, "run-7", "site-a", bytes(32)),
        (stranger, wrapped, "run-7", "site-a", KEY),
        (private, flipped, "run-7", "site-a", KEY),
        (private, wrapped[:-1], "run-7", "site-a", KEY),
        (private, b"", "run-7", "site-a", KEY),
    ):
        with pytest.raises(SealBroken) as error:
            unwrap_run_secret(key, box, run, site, site_key)
        assert error.value.code == "box"
    of_two = wrap_run_secret(public, KEY, "run-7", "site-a", KEY, 2)
    assert unwrap_run_secret(private, of_two, "run-7", "site-a", KEY, 2) == KEY
    for least in (0, 1, 3):
        with pytest.raises(SealBroken):
            unwrap_run_secret(private, of_two, "run-7", "site-a", KEY, least)


def test_a_box_opens_for_its_purpose_only(boxes: tuple[bytes, bytes, bytes]) -> None:
    private, public, _ = boxes
    box = seal_to(public, b"keys of the run", b"msfl/aggregator-keys/v1|run-7")
    assert open_with(private, box, b"msfl/aggregator-keys/v1|run-7") == b"keys of the run"
    with pytest.raises(SealBroken):
        open_with(private, box, b"msfl/aggregator-keys/v1|run-8")


@pytest.fixture(scope="module")
def boxes() -> tuple[bytes, bytes, bytes]:
    """A centre's private and public key, and a stranger's private key; fixed, so that tests repeat."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.from_private_bytes(bytes([7]) * 32)
    return private.private_bytes_raw(), private.public_key().public_bytes_raw(), bytes([8]) * 32
