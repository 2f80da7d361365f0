"""One document, and after it tensors if there are any; whatever else is authentic and still no parcel."""

from __future__ import annotations

import io
import struct

import pytest

from msfl.protos.parcel import MAX_DOCUMENT_BYTES, BadParcel, pack, unpack


def parcel(body: bytes, length: int | None = None, tail: bytes = b"") -> io.BytesIO:
    return io.BytesIO(struct.pack(">Q", len(body) if length is None else length) + body + tail)


def test_a_document_and_tensors_come_out_as_they_went_in() -> None:
    tensors = bytes(range(256)) * 9000
    packed = b"".join(pack({"n_train": 4, "loss": 0.5}, io.BytesIO(tensors)))
    out = io.BytesIO()
    assert unpack(io.BytesIO(packed), out) == ({"n_train": 4, "loss": 0.5}, len(tensors))
    assert out.getvalue() == tensors


def test_a_document_may_come_alone() -> None:
    packed = b"".join(pack({}, None))
    assert unpack(io.BytesIO(packed), None) == ({}, 0)


def test_the_same_document_packs_to_the_same_bytes() -> None:
    assert list(pack({"a": 1, "b": 2}, None)) == list(pack({"b": 2, "a": 1}, None))


def test_numbers_that_are_none_are_not_packed() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        next(pack({"loss": float("nan")}, None))


@pytest.mark.parametrize(
    "source",
    [
        io.BytesIO(b""),
        io.BytesIO(b"\0\0\0"),
        parcel(b"", length=MAX_DOCUMENT_BYTES + 1),
        parcel(b"", length=2**64 - 1),
        parcel(b"{}", length=3),
        parcel(b"[]"),
        parcel(b"{"),
        parcel(b'{"loss": NaN}'),
        parcel(b'{"loss": -Infinity}'),
        parcel(b'{"n": 1, "n": 2}'),
        parcel(b'{"a": ' * 100_000 + b"1" + b"}" * 100_000),
        parcel(b'{"a": ' * 600 + b"1" + b"}" * 600),
        parcel('{"a": 1}'.encode("utf-16")),
        parcel(b'{"a": "\xff"}'),
        parcel(b"{}", tail=b"tensors"),
    ],
)
def test_what_is_no_parcel_is_refused(source: io.BytesIO) -> None:
    with pytest.raises(BadParcel):
        unpack(source, None)
