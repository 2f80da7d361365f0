"""Files that pretend to be the weights of `fakes.models`: each with the code that names what is wrong with it.

The same go through both checks, the gateway's on their way out of a site (`test_hostile_weights.py`) and the
aggregator's (`test_hostile_updates.py`). Pickles among them would leave `EXECUTED` behind if anybody loaded them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fakes.models import zeros
from msfl.learning import weights as weight_files

EXECUTED = Path(tempfile.gettempdir()) / f"msfl-pickle-was-loaded-{os.getpid()}"


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(EXECUTED),)


def safetensors(header: dict[str, Any] | str | bytes, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _zip_pt() -> bytes:
    """As `torch.save` writes it: a zip with a pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Bomb()))
        archive.writestr("archive/version", "3")
        archive.writestr("archive/data/0", bytes(28))
    return file.getvalue()


DRIFT, SHIFT = entry([3], 0, 12), entry([2, 2], 12, 28)
DATA = bytes(28)
HEAD = bytes(next(weight_files.encoded(zeros())))
_D, _S = json.dumps(DRIFT), json.dumps(SHIFT)

TENSOR_TRICKS: dict[str, tuple[str, bytes]] = {
    # not the model's tensors
    "an extra tensor": (
        "template",
        safetensors({"drift": DRIFT, "shift": SHIFT, "note": entry([1], 28, 32)}, DATA + b"spy!"),
    ),
    "an extra tensor of no size": (
        "template",
        safetensors({"drift": DRIFT, "shift": SHIFT, "Jane Doe": entry([0], 28, 28)}, DATA),
    ),
    "a missing tensor": ("template", safetensors({"drift": DRIFT}, bytes(12))),
    "another name": ("template", safetensors({"drift": DRIFT, "shift2": SHIFT}, DATA)),
    "a name that looks the same": ("template", safetensors({"drift": DRIFT, "shi\u0192t": SHIFT}, DATA)),
    "another shape of the same size": ("template", safetensors({"drift": DRIFT, "shift": entry([4], 12, 28)}, DATA)),
    "the same tensors, spelled otherwise": ("layout", safetensors({"drift": DRIFT, "shift": SHIFT}, DATA)),
    # not numbers
    "NaN": ("not_finite", HEAD + DATA[:-4] + struct.pack("<f", np.nan)),
    "infinity": ("not_finite", HEAD + struct.pack("<f", np.inf) + DATA[4:]),
    "minus infinity": ("not_finite", HEAD + struct.pack("<f", -np.inf) + DATA[4:]),
    "a NaN with a message in it": ("not_finite", HEAD + b"spy\x7f" + DATA[4:-4] + b"\x01\x02\xff\x7f"),
    # another type
    "float64": ("dtype", safetensors({"drift": entry([3], 0, 24, "F64"), "shift": entry([2, 2], 24, 40)}, bytes(40))),
    "bfloat16": ("dtype", safetensors({"drift": entry([3], 0, 6, "BF16"), "shift": entry([2, 2], 6, 22)}, bytes(22))),
    "a type that there is not": (
        "dtype",
        safetensors({"drift": entry([3], 0, 12, "__import__"), "shift": SHIFT}, DATA),
    ),
    # more than tensors
    "covert metadata": (
        "metadata",
        safetensors({"__metadata__": {"patient": "Doe"}, "drift": DRIFT, "shift": SHIFT}, DATA),
    ),
    "much covert metadata": (
        "metadata",
        safetensors({"__metadata__": {"k": "x" * 19_000}, "drift": DRIFT, "shift": SHIFT}, DATA),
    ),
    "a member too many": ("layout", safetensors({"drift": {**DRIFT, "x": 1}, "shift": SHIFT}, DATA)),
    "a tail behind the tensors": ("layout", safetensors({"drift": DRIFT, "shift": SHIFT}, DATA + b"tail")),
    # one name for two things
    "a duplicate name": ("duplicate_name", safetensors(f'{{"drift": {_D}, "shift": {_S}, "drift": {_D}}}', DATA)),
    "a duplicate member": (
        "duplicate_name",
        safetensors(f'{{"drift": {_D[:-1]}, "dtype": "F32"}}, "shift": {_S}}}', DATA),
    ),
    # offsets
    "overlapping tensors": ("layout", safetensors({"drift": DRIFT, "shift": entry([2, 2], 8, 24)}, bytes(24))),
    "a hidden gap": ("layout", safetensors({"drift": DRIFT, "shift": entry([2, 2], 16, 32)}, bytes(32))),
    "an end that is missing": ("layout", safetensors({"drift": DRIFT, "shift": SHIFT}, DATA[:-1])),
    "offsets beyond 64 bits": (
        "layout",
        safetensors({"drift": DRIFT, "shift": entry([2, 2], (1 << 64) + 12, (1 << 64) + 28)}, DATA),
    ),
    "offsets below zero": ("layout", safetensors({"drift": entry([3], -12, 0), "shift": SHIFT}, DATA)),
    "offsets the wrong way round": ("layout", safetensors({"drift": entry([3], 12, 0), "shift": SHIFT}, DATA)),
    "offsets that are fractions": ("layout", safetensors({"drift": entry([3], 0.0, 12.0), "shift": SHIFT}, DATA)),
    "offsets that are truths": ("layout", safetensors({"drift": entry([3], False, 12), "shift": SHIFT}, DATA)),
    "a size beyond 64 bits": ("layout", safetensors({"drift": entry([1 << 39, 1 << 39], 0, 12), "shift": SHIFT}, DATA)),
    "a side below zero": ("layout", safetensors({"drift": entry([-3], 0, 12), "shift": SHIFT}, DATA)),
    "a side that is a fraction": ("layout", safetensors({"drift": entry([3.0], 0, 12), "shift": SHIFT}, DATA)),
    # headers
    "a giant header": ("header_unreadable", struct.pack("<Q", 1 << 62) + b"{}"),
    "a header of five million bytes": ("header_unreadable", safetensors(b" " * 5_000_000 + b"{}", DATA)),
    "a header longer than the file": ("header_unreadable", safetensors({"drift": DRIFT}, b"", length=1000)),
    "a header that is a list": ("header_unreadable", safetensors("[]", DATA)),
    "a header that is no text": ("header_unreadable", safetensors(b"\xff\xfe{}", DATA)),
    "a header without a bottom": ("header_unreadable", safetensors('{"a":' * 100_000, DATA)),
    "an entry that is a number": ("layout", safetensors({"drift": 1, "shift": SHIFT}, DATA)),
    # other things altogether
    "a pickle": ("header_unreadable", pickle.dumps(_Bomb())),
    "a pickle of the oldest kind": ("header_unreadable", pickle.dumps(_Bomb(), protocol=0)),
    "a zip of torch": ("header_unreadable", _zip_pt()),
    "a pickle behind a header": ("layout", HEAD + pickle.dumps(_Bomb())),
}
