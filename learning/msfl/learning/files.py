"""Files that are there whole or not at all: written under a temporary name beside their place, then renamed.

A process may be killed at any moment. Whoever looks for a file under its name finds the old one, the new one or none,
never a half. `durable=True` also survives a power cut: the bytes and the folder's entry are on disk before it returns.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blake3 import blake3


def write_whole(path: Path, chunks: Iterable[bytes | memoryview], *, durable: bool = False) -> None:
    """Write `chunks` to `path` (mode 0600) in one step. Raises OSError."""
    temporary = path.with_name(f".{path.name}.part")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.rename(path)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def blake3_of_file(path: Path) -> str:
    digest = blake3()
    with path.open("rb", buffering=0) as file:  # Not mapped: that would count as this process's memory.
        while piece := file.read(1 << 20):
            digest.update(piece)
    return f"blake3:{digest.hexdigest()}"


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8, finite numbers: what a plan's hash is taken of. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def json_hash(value: object) -> str:
    """`sha256:<hex>` of the canonical JSON."""
    return f"sha256:{hashlib.sha256(canonical_json(value)).hexdigest()}"


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises OSError, ValueError when it is not one JSON object."""
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} does not hold a JSON object")
    return value
