"""How much a contained process may keep on the host's disk, watched from outside.

A folder that is bound into a container has no limit of its own, and a limit on one file's size (RLIMIT_FSIZE) leaves
the number of files open. So somebody looks, a few times a second at most, and ends who has too much:

    every file below the folders        its blocks, not its length: a sparse file costs what it costs
    every name below them               files, folders, links: each takes an inode
    files without a name, still open    a process can write for ever into what it has unlinked

Both runtimes use it, with what they know of their processes (`pids`). Nothing is opened but folders, and never through
a link: the process may swap one for another at any moment.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# Deeper than any honest work is, and shallow enough for one descriptor a level.
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Quota:
    """`files` counts every name, folders included."""

    bytes: int
    files: int


@dataclass(frozen=True)
class Usage:
    bytes: int
    files: int

    def excess(self, quota: Quota) -> str:
        """What is too much, as one sentence; empty when nothing is."""
        if self.files > quota.files:
            return f"it keeps more than {quota.files} files, or folders too deep"
        if self.bytes > quota.bytes:
            return f"it keeps more than {quota.bytes} bytes on disk"
        return ""


def measure(folders: Iterable[Path], quota: Quota, pids: Iterable[int] = ()) -> Usage:
    """What lies below `folders`, and what `pids` hold there without a name; not counted further once it is too much."""
    used = files = 0
    devices = set()
    for folder in folders:
        try:
            top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # Not made yet, or swapped for something that no longer lies here.
        devices.add(os.fstat(top).st_dev)
        open_folders = [top]
        iterators = [os.scandir(top)]
        try:
            while iterators:
                entry = next(iterators[-1], None)
                if entry is None:
                    iterators.pop().close()
                    os.close(open_folders.pop())
                    continue
                files += 1
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:  # It was there a moment ago.
                    continue
                used += found.st_blocks * 512
                try:
                    if stat.S_ISDIR(found.st_mode):
                        if len(open_folders) >= _MAX_DEPTH:
                            return Usage(used, quota.files + 1)
                        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                        inner = os.open(entry.name, flags, dir_fd=open_folders[-1])
                        open_folders.append(inner)
                        iterators.append(os.scandir(inner))
                except PermissionError:
                    # Its own folders are ours to look into, unless it has shut one to hide what it keeps there.
                    if found.st_uid == os.geteuid():
                        return Usage(used, quota.files + 1)
                except OSError:  # It was there a moment ago.
                    continue
                if Usage(used, files).excess(quota):
                    return Usage(used, files)
        finally:
            for iterator in iterators:
                iterator.close()
            for descriptor in open_folders:
                os.close(descriptor)
    return Usage(used + _nameless(pids, devices), files)


def _nameless(pids: Iterable[int], devices: set[int]) -> int:
    """Bytes on `devices` in files that `pids` hold open, or mapped, and that have no name any more."""
    held: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # It has ended, or is not ours to look at.
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found = os.stat(f"/proc/{pid}/fd/{name}")
                    if stat.S_ISREG(found.st_mode) and found.st_nlink == 0 and found.st_dev in devices:
                        held[found.st_dev, found.st_ino] = found.st_blocks * 512
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                if not line.endswith(" (deleted)"):
                    continue
                span, _, offset, device, inode = line.split()[:5]
                major, minor = (int(part, 16) for part in device.split(":"))
                if (key := (os.makedev(major, minor), int(inode))) in held or key[0] not in devices:
                    continue
                begin, end = (int(part, 16) for part in span.split("-"))
                held[key] = int(offset, 16) + end - begin
    return sum(held.values())


class Watch:
    """Looks until `stop`, and calls `exceeded` once, from its own thread, with the sentence that says what was."""

    def __init__(
        self,
        folders: Iterable[Path],
        quota: Quota,
        exceeded: Callable[[str], None],
        *,
        pids: Callable[[], Iterable[int]] = tuple,
        deadline: float | None = None,
        every_s: float = 0.5,
    ) -> None:
        """`deadline`: on the monotonic clock, when the process has had its time."""
        self._folders = tuple(folders)
        self._quota = quota
        self._exceeded = exceeded
        self._pids = pids
        self._deadline = deadline
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="quota", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()

    def _look(self) -> None:
        pause = self._every_s
        while not self._over.wait(pause):
            began = time.monotonic()
            if self._deadline is not None and began >= self._deadline:
                return self._exceeded("it has had all its time")
            if excess := measure(self._folders, self._quota, self._pids()).excess(self._quota):
                return self._exceeded(excess)
            # A folder with very many files takes its time to look through: never more than a tenth of a processor.
            pause = max(self._every_s, 9 * (time.monotonic() - began))
