"""Removing what a contained process has left, whatever that is, and also while it goes on leaving more.

`shutil.rmtree` ends with an exception at a thousand folders in each other, at a folder that was shut, at a name that
vanished meanwhile; each of them would be the contained process's way to end its host. Here nothing is followed, no path
is longer than one name, and two descriptors suffice for any depth: what lies in a folder of a folder is lifted to the
top before the folder goes. Time is bounded: a process that makes files faster than they go is the quota's business.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Collection
from pathlib import Path

_LIFTED = ".lifted-{}"


def remove_tree(folder: Path, patience_s: float = 600.0) -> bool:
    """Remove `folder`, if there is one; whether nothing of it is left. A link goes itself, not what it leads to."""
    empty(folder, patience_s=patience_s)
    with contextlib.suppress(OSError):  # Something is left in it, or it was no folder and is gone.
        folder.rmdir()
    return not os.path.lexists(folder)


def empty(folder: Path, keep: Collection[str] = (), patience_s: float = 600.0) -> bool:
    """Remove what is in `folder` but the plain files whose names are in `keep`; whether nothing else is left.

    What is no folder goes itself.
    """
    try:
        top = _open(folder)
    except FileNotFoundError:
        return True
    except OSError:  # A link, a file: whatever took the folder's name.
        folder.unlink(missing_ok=True)
        return True
    try:
        give_up = time.monotonic() + patience_s
        lifted = 0
        while names := [name for name in os.listdir(top) if not _stays(top, name, keep)]:
            before = lifted
            gone = False
            for name in names:
                if time.monotonic() > give_up:
                    return False
                removed, lifted = _remove(top, name, lifted)
                gone = gone or removed
            if not gone and lifted == before:
                return False  # Not ours to remove: another user's, or a mount.
        return True
    finally:
        os.close(top)


def _stays(top: int, name: str, keep: Collection[str]) -> bool:
    if name not in keep:
        return False
    try:
        found = os.stat(name, dir_fd=top, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _remove(top: int, name: str, lifted: int) -> tuple[bool, int]:
    """Remove what has this name in `top`, or lift what is in it; whether it is gone, and how many were lifted."""
    try:
        os.unlink(name, dir_fd=top)
        return True, lifted
    except FileNotFoundError:
        return True, lifted
    except OSError:  # A folder, most likely.
        pass
    try:
        folder = _open(Path(name), at=top)
    except OSError:
        return False, lifted
    try:
        for inner in os.listdir(folder):
            try:
                os.unlink(inner, dir_fd=folder)
            except OSError:
                # A folder in a folder: its turn comes when it lies at the top.
                with contextlib.suppress(OSError):  # It vanished, or that name is taken: the next pass sees.
                    lifted += 1
                    os.rename(inner, _LIFTED.format(lifted), src_dir_fd=folder, dst_dir_fd=top)
    finally:
        os.close(folder)
    try:
        os.rmdir(name, dir_fd=top)
    except OSError:
        return False, lifted
    return True, lifted


def _open(folder: Path, at: int | None = None) -> int:
    """A descriptor of the folder itself, never through a link; a folder that was shut is opened to us first."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(folder, flags | os.O_PATH, dir_fd=at)
    try:
        here = f"/proc/self/fd/{handle}"
        if os.stat(here).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            with contextlib.suppress(PermissionError):  # Another user's; what can be done is tried all the same.
                os.chmod(here, 0o700)
        return os.open(here, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)
