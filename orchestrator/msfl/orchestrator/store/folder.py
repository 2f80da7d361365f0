"""`ArtifactStore` in a folder: `<root>/<run>/<key with ~ for />`; `.<file>.part` grows, and no key can name it.

All files of a run lie in one folder, so that one sync of it makes the names of many durable. While a part grows the
kernel is asked to begin writing it: what is left for the sync at its end is little.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from msfl.orchestrator.store.interface import GapInUpload, Size, StoreUnavailable
from msfl.protos.durable_files import DISK_TROUBLE
from msfl.protos.writeback import start_writing

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:.\-]*(/[A-Za-z0-9][A-Za-z0-9_:.\-]*)*")


class FolderArtifacts:
    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def _file(self, run_id: str, key: str) -> Path:
        # Keys are made by the run machine, never taken from a peer; this is the second belt.
        if not _KEY.fullmatch(f"{run_id}/{key}") or ".." in key or ".." in run_id:
            raise ValueError(f"not an artifact key: {run_id}/{key}")
        return self._root / run_id / key.replace("/", "~")

    def size(self, run_id: str, key: str) -> Size:
        file = self._file(run_id, key)
        if file.exists():
            return Size(bytes=file.stat().st_size, complete=True)
        try:
            with open(_part(file), "rb") as part:
                # Whoever hears of these bytes does not send them again.
                os.fdatasync(part.fileno())
                return Size(bytes=os.fstat(part.fileno()).st_size, complete=False)
        except FileNotFoundError:
            return Size(bytes=0, complete=False)

    def append(self, run_id: str, key: str, offset: int, data: bytes) -> None:
        file = self._file(run_id, key)
        if file.exists():
            return
        if offset == 0:
            with self._room():
                file.parent.mkdir(parents=True, exist_ok=True)
        with self._room(), _open_to_write(_part(file)) as part:
            have = os.fstat(part.fileno()).st_size
            if offset > have:
                raise GapInUpload(have, offset)
            # To its own place, never to wherever the end is by now: a site that gave up a call that hung sends the same
            # bytes again, while that call's last part may still be on its way here.
            part.seek(have)
            written = part.write(memoryview(data)[have - offset :])
            if have + written < offset + len(data):
                # The disk took a part of it; the next write would say why.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            start_writing(part.fileno(), have, have + written)

    def finish(self, run_id: str, key: str, total: int) -> None:
        file = self._file(run_id, key)
        if file.exists():
            return
        part = _part(file)
        have = part.stat().st_size if part.exists() else 0
        if have != total:
            raise GapInUpload(have, total)
        try:
            with self._room():
                _make_durable({part: file})
        except FileNotFoundError:
            raise GapInUpload(0, total) from None  # It was given up, and removed, at this moment.

    def adopt(self, run_id: str, files: Mapping[str, Path]) -> None:
        targets = {file: self._file(run_id, key) for key, file in files.items()}
        with self._room():
            (self._root / run_id).mkdir(parents=True, exist_ok=True)
            _make_durable({_on_its_disk(file, target): target for file, target in targets.items()})

    def local(self, run_id: str, key: str) -> Path:
        file = self._file(run_id, key)
        if not file.exists():
            raise FileNotFoundError(f"no artifact {key} in run {run_id}")
        return file

    def remove(self, run_id: str, key: str) -> None:
        file = self._file(run_id, key)
        file.unlink(missing_ok=True)
        _part(file).unlink(missing_ok=True)

    def kept(self, run_id: str) -> frozenset[str]:
        try:
            names = os.listdir(self._file(run_id, "any").parent)
        except FileNotFoundError:
            return frozenset()
        whole = (name[1:].removesuffix(".part") if name.startswith(".") else name for name in names)
        return frozenset(name.replace("~", "/") for name in whole)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            what = f"{self._root} cannot be written ({error.strerror}): free or mount its disk; nothing is lost"
            raise StoreUnavailable(what) from error


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _on_its_disk(file: Path, target: Path) -> Path:
    """The file, or its copy where the store has a disk of its own: a name can only be moved within one."""
    if file.stat().st_dev == target.parent.stat().st_dev:
        return file
    shutil.copyfile(file, _part(target))
    file.unlink()
    return _part(target)


def _open_to_write(part: Path) -> BinaryIO:
    """Made when it is not there; what it holds stays."""
    return open(os.open(part, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0)


def _make_durable(moves: Mapping[Path, Path]) -> None:
    """Contents first, then the names: after a power cut an artifact is whole or not there."""
    for source in moves:
        with open(source, "rb") as f:
            os.fsync(f.fileno())
    for source, target in moves.items():
        os.replace(source, target)
    for parent in {target.parent for target in moves.values()}:
        folder = os.open(parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
