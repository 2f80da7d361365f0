"""A zip is unpacked whole or not at all, into an empty folder, where nothing can climb out or blow up.

Everything is judged from the directory of the archive before a byte is written (`verdict`, pure): a name that leads
elsewhere, a link, a password, sizes that no scanner makes. What is then written is held against what was declared.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from msfl.imaging.faults import Fault, unusable
from msfl.imaging.workspace import Unusable

_ENCRYPTED = 0x1
_CHUNK = 1 << 20
_LONGEST_NAME = 1000


@dataclass(frozen=True)
class Limits:
    """`ratio` is of what comes out to the size of the file: images shrink to a half or a third, bombs to nothing."""

    files: int = 200_000
    file_bytes: int = 4 << 30
    total_bytes: int = 64 << 30
    ratio: int = 60
    levels: int = 6  # of archives in archives

    def inside(self, archive: Path) -> Limits:
        """For all archives inside this one together, however deep: what it may unpack to itself."""
        return replace(self, total_bytes=min(self.total_bytes, self.ratio * archive.stat().st_size + _CHUNK))

    def less(self, done: Unpacked) -> Limits:
        return replace(self, files=self.files - done.files, total_bytes=self.total_bytes - done.total_bytes)


@dataclass(frozen=True)
class Unpacked:
    files: int
    total_bytes: int


def verdict(entries: Sequence[zipfile.ZipInfo], archive_bytes: int, limits: Limits) -> Unusable | None:
    """Why these entries are not unpacked, or None."""
    files = [entry for entry in entries if not entry.is_dir()]
    total = sum(entry.file_size for entry in files)
    if any(entry.flag_bits & _ENCRYPTED for entry in files):
        return unusable(Fault.ENCRYPTED, "The archive has a password.")
    if len(files) > limits.files:
        return unusable(Fault.TOO_LARGE, f"The archive holds {len(files)} files, more than {limits.files}.")
    if total > limits.total_bytes or any(entry.file_size > limits.file_bytes for entry in files):
        return unusable(Fault.TOO_LARGE, f"The archive unpacks to {total >> 20} MiB, more than is allowed.")
    if total > limits.ratio * archive_bytes + _CHUNK:
        times = total // max(archive_bytes, 1)
        return unusable(Fault.TOO_LARGE, f"The archive unpacks to {times} times its size; images do not shrink so far.")
    if not all(0 <= entry.header_offset < archive_bytes for entry in entries):
        return unusable(Fault.TRUNCATED, "The archive is damaged.")
    seen = set()
    for entry in entries:
        mode = entry.external_attr >> 16
        if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
            return unusable(Fault.ARCHIVE_UNSAFE, "The archive holds a link or a device.")
        path = PurePosixPath(entry.filename)
        odd = "\\" in entry.filename or "\0" in entry.filename or ":" in path.parts[0] if path.parts else True
        long = len(entry.filename.encode()) > _LONGEST_NAME or any(len(part.encode()) > 255 for part in path.parts)
        if long:
            return unusable(Fault.ARCHIVE_UNSAFE, "The archive holds a name that is too long for a file.")
        if odd or path.is_absolute() or ".." in path.parts:
            return unusable(Fault.ARCHIVE_UNSAFE, "The archive holds a name that leads out of its folder.")
        if path in seen:
            return unusable(Fault.ARCHIVE_UNSAFE, "The archive holds two files of one name.")
        seen.add(path)
    return None


def unpack(archive: Path, into: Path, limits: Limits | None = None) -> Unpacked:
    """Unpack into the empty folder `into`. Raises Unusable; then `into` is gone."""
    limits = limits or Limits()
    try:
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            if problem := verdict(entries, archive.stat().st_size, limits):
                raise problem
            if (total := sum(e.file_size for e in entries)) > shutil.disk_usage(into).free:
                raise unusable(
                    Fault.DISK_FULL, f"The archive unpacks to {total >> 20} MiB; the disk of HOME has not that much."
                )
            for entry in entries:
                if not entry.is_dir():
                    _write(file, entry, into / entry.filename)
            return Unpacked(sum(not entry.is_dir() for entry in entries), total)
    except Unusable:
        shutil.rmtree(into, ignore_errors=True)
        raise
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        shutil.rmtree(into, ignore_errors=True)
        raise unusable(Fault.TRUNCATED, "The archive is damaged.") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        shutil.rmtree(into, ignore_errors=True)
        raise unusable(Fault.ARCHIVE_UNSAFE, "The archive holds a file where it holds a folder, too.") from error
    except (NotImplementedError, RuntimeError, UnicodeError) as error:
        # zipfile's words for compressions and encryptions that it does not know.
        shutil.rmtree(into, ignore_errors=True)
        raise unusable(Fault.UNREADABLE, "The archive is of a kind that cannot be read here.") from error


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with archive.open(entry) as source, target.open("xb") as out:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise unusable(Fault.ARCHIVE_UNSAFE, "The archive holds more than it declares.")
            out.write(chunk)
