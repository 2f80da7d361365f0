"""`ArtifactStore` in a folder: `<root>/<run>/<key with / as folders>`; `.<file>.part` grows, and no key can name it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

from msfl.orchestrator.store.interface import GapInUpload, Size

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:.\-]*(/[A-Za-z0-9][A-Za-z0-9_:.\-]*)*")


class FolderArtifacts:
    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def _file(self, run_id: str, key: str) -> Path:
        # Keys are made by the run machine, never taken from a peer; this is the second belt.
        if not _KEY.fullmatch(f"{run_id}/{key}") or ".." in key or ".." in run_id:
            raise ValueError(f"not an artifact key: {run_id}/{key}")
        return self._root / run_id / key

    def size(self, run_id: str, key: str) -> Size:
        file = self._file(run_id, key)
        if file.exists():
            return Size(bytes=file.stat().st_size, complete=True)
        part = _part(file)
        return Size(bytes=part.stat().st_size if part.exists() else 0, complete=False)

    def append(self, run_id: str, key: str, offset: int, data: bytes) -> None:
        file = self._file(run_id, key)
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(_part(file), os.O_WRONLY | os.O_CREAT, 0o600)
        with open(descriptor, "wb", buffering=0) as part:
            have = os.fstat(descriptor).st_size
            if offset > have:
                raise GapInUpload(have, offset)
            # To its own place, never to wherever the end is by now: a site that gave up a call that hung sends the same
            # bytes again, while that call's last part may still be on its way here.
            part.seek(have)
            _write_all(part, data[have - offset :])

    def finish(self, run_id: str, key: str, total: int) -> None:
        file = self._file(run_id, key)
        if file.exists():
            return
        part = _part(file)
        have = part.stat().st_size if part.exists() else 0
        if have != total:
            raise GapInUpload(have, total)
        _make_durable(part, file)

    def adopt(self, run_id: str, key: str, file: Path) -> None:
        target = self._file(run_id, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        _make_durable(file, target)

    def local(self, run_id: str, key: str) -> Path:
        file = self._file(run_id, key)
        if not file.exists():
            raise FileNotFoundError(f"no artifact {key} in run {run_id}")
        return file

    def remove(self, run_id: str, key: str) -> None:
        file = self._file(run_id, key)
        file.unlink(missing_ok=True)
        _part(file).unlink(missing_ok=True)


def _write_all(part: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[part.write(left) :]


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _make_durable(source: Path, target: Path) -> None:
    """Contents first, then the name: after a power cut the artifact is whole or not there."""
    with open(source, "rb") as f:
        os.fsync(f.fileno())
    os.replace(source, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
