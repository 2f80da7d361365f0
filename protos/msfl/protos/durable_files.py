"""One file, whole or not at all, and on the disk on return: contents first, then the name, then the folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# What an operating system says of a disk that is full, over quota, read-only or failing.
DISK_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def write_durably(file: Path, data: bytes, mode: int = 0o600) -> None:
    """Its folder must be there. Raises OSError; then the file is what it was."""
    temporary = file.with_name(f".{file.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as target:
        target.write(data)
        target.flush()
        os.fsync(target.fileno())
    os.replace(temporary, file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Names that were made or taken away in it are so after a power cut, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
