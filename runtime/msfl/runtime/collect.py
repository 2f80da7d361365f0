"""Taking a file out of a folder that a contained process can write to.

The process may leave there anything that has a name, and may change it at any moment: a symbolic link to a file of the
host, a FIFO that never answers, a hard link, a device, a file that grows while it is read. So nothing is checked by
path and read later; one handle is taken without following links or opening anything, checked, opened, and copied by
reading, under a bound, into memory or a file of one's own. What was checked is what is used.

    name        one bare name of plain characters
    folder      no link itself; the process may have swapped it
    file        regular, one link, at most `max_bytes`, the same size to the end
    result      new file, mode 0600, outside every folder that the process sees
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from msfl.policies.refusals import Code, Refused, refuse

_BARE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class CollectedFile:
    path: Path
    size: int  # bytes
    sha256: str  # 64 hex digits


def collect(folder: Path, name: str, into: Path, max_bytes: int) -> CollectedFile:
    """Copy `folder/name`, written by a contained process, to the new file `into`.

    `folder` is F/outbox. Raises Refused (output_blocked), whose fields say what was wrong; FileExistsError when `into`
    exists; ValueError when `into` lies in F, where the process could change it again.
    """
    _must_be_outside(folder, into)
    source, size = open_output(folder, name, max_bytes)
    try:
        target = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            digest = _copy(source, target, size, name)
        except BaseException:
            into.unlink()
            raise
    finally:
        os.close(source)
    return CollectedFile(into, size, digest)


def open_output(folder: Path, name: str, max_bytes: int) -> tuple[int, int]:
    """A descriptor of `folder/name`, for whoever copies it while reading, and its size in bytes. As `collect`.

    The process can still write to the file: read every byte once, into memory of one's own, and no more than the size.
    """
    if not _BARE_NAME.fullmatch(name):
        raise _blocked("it is not a plain file name", name)
    handle = _open(folder, name)
    try:
        size = _checked_size(handle, name, max_bytes)
        # The file that was checked, whatever has its name by now. O_NONBLOCK: the process may hold a lease on it, for
        # whose end an open would wait.
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), size
    except OSError as error:
        raise _blocked("it cannot be opened", name) from error
    finally:
        os.close(handle)


def take_over(folder: Path, name: str, into: Path, max_bytes: int) -> None:
    """Move `folder/name` to the new file `into` without copying it. As `collect`.

    For sealed files only: the process may have kept a descriptor and can change the bytes later, which then do not
    open any more. It made them, so it could have made them so at once.
    """
    _must_be_outside(folder, into)
    source, _ = open_output(folder, name, max_bytes)
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Exactly the file that was checked, whatever has its name by now. Only with a folder given does Python follow
        # the link that /proc shows.
        os.link(str(source), into, src_dir_fd=descriptors, follow_symlinks=True)
    finally:
        os.close(descriptors)
        os.close(source)
    (folder / name).unlink(missing_ok=True)


def _must_be_outside(folder: Path, into: Path) -> None:
    if into.resolve().is_relative_to(folder.parent.resolve()):
        raise ValueError(f"collect into a folder outside {folder.parent}: the contained process can write to {into}")


def _open(folder: Path, name: str) -> int:
    """A handle of what has the name, which opens nothing yet: opening alone can wait, or do something to a device."""
    try:
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _blocked("its folder is not a folder any more", name) from error
    try:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError as error:
        raise _blocked("it is not there", name) from error
    except OSError as error:
        raise _blocked("it cannot be looked at", name) from error
    finally:
        os.close(parent)


def _checked_size(source: int, name: str, max_bytes: int) -> int:
    found = os.fstat(source)
    if stat.S_ISLNK(found.st_mode):
        raise _blocked("it is a link", name)
    if not stat.S_ISREG(found.st_mode):
        raise _blocked("it is not a regular file", name)
    if found.st_nlink != 1:
        raise _blocked("it has other names (hard links)", name)
    if found.st_size > max_bytes:
        raise _blocked(f"it has {found.st_size} bytes, more than {max_bytes}", name)
    return found.st_size


def _copy(source: int, target: int, size: int, name: str) -> str:
    digest = hashlib.sha256()
    with os.fdopen(target, "wb") as file:
        left = size
        while block := os.read(source, min(_BLOCK, left + 1)):
            if len(block) > left:
                raise _blocked("it grew while it was read", name)
            left -= len(block)
            digest.update(block)
            file.write(block)
        if left:
            raise _blocked("it shrank while it was read", name)
    return digest.hexdigest()


def _blocked(why: str, name: str) -> Refused:
    shown = name if _BARE_NAME.fullmatch(name) else repr(name)[:80]
    return Refused(refuse(Code.OUTPUT_BLOCKED, f"The output {shown} was not taken: {why}.", output=shown, why=why))
