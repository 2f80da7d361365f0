"""`MemoryRunStore` and `MemoryArtifacts`: the centre's two seams without a disk, for the contract tests and the engine.

They keep the promises of `msfl.orchestrator.store.interface`; only `local` and `adopt` touch files, in `folder`,
because their promise is a file.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from msfl.orchestrator.store.interface import GapInUpload, Size, StoredEvent, StoreUnavailable


class MemoryRunStore:
    """`full`: the disk is, and nothing more is kept."""

    def __init__(self) -> None:
        self.full = False
        self.refused = 0
        self._lock = threading.Lock()
        self._events: dict[str, list[str]] = {}

    def append(self, run_id: str, text: str) -> int:
        with self._lock:
            if self.full:
                self.refused += 1
                raise StoreUnavailable("runs.sqlite cannot be written (the disk is full)")
            self._events.setdefault(run_id, []).append(text)
            return len(self._events[run_id])

    def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        with self._lock:
            return [StoredEvent(n, t) for n, t in enumerate(self._events.get(run_id, []), start=1) if n > after]

    def runs(self) -> list[str]:
        with self._lock:
            return list(self._events)


class MemoryArtifacts:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._growing: dict[tuple[str, str], bytes] = {}
        self._whole: dict[tuple[str, str], bytes] = {}

    @property
    def keys(self) -> set[str]:
        """Of everything that is whole."""
        return {key for _, key in self._whole}

    def size(self, run_id: str, key: str) -> Size:
        name = _name(run_id, key)
        if name in self._whole:
            return Size(len(self._whole[name]), True)
        return Size(len(self._growing.get(name, b"")), False)

    def append(self, run_id: str, key: str, offset: int, data: bytes) -> None:
        name = _name(run_id, key)
        if name in self._whole:
            return
        have = self._growing.get(name, b"")
        if offset > len(have):
            raise GapInUpload(len(have), offset)
        self._growing[name] = have + data[len(have) - offset :]

    def finish(self, run_id: str, key: str, total: int) -> None:
        name = _name(run_id, key)
        if name in self._whole:
            return
        have = self._growing.get(name, b"")
        if len(have) != total:
            raise GapInUpload(len(have), total)
        self._whole[name] = have
        self._growing.pop(name, None)

    def adopt(self, run_id: str, files: Mapping[str, Path]) -> None:
        for key, file in files.items():
            self._whole[_name(run_id, key)] = file.read_bytes()
            file.unlink()

    def local(self, run_id: str, key: str) -> Path:
        name = _name(run_id, key)
        if name not in self._whole:
            raise FileNotFoundError(f"no artifact {key} in run {run_id}")
        file = self._folder / f"{run_id}-{key.replace('/', '-')}"
        file.write_bytes(self._whole[name])
        return file

    def remove(self, run_id: str, key: str) -> None:
        name = _name(run_id, key)
        self._whole.pop(name, None)
        self._growing.pop(name, None)

    def kept(self, run_id: str) -> frozenset[str]:
        return frozenset(key for run, key in {**self._whole, **self._growing} if run == run_id)


def _name(run_id: str, key: str) -> tuple[str, str]:
    parts = [run_id, *key.split("/")]
    if "/" in run_id or any(not part or part.startswith((".", "-")) or ".." in part or "\0" in part for part in parts):
        raise ValueError(f"not an artifact key: {run_id}/{key}")
    return run_id, key
