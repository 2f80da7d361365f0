"""Of several processes that would act with one folder, only one does.

The lock is the kernel's, on the folder itself: it goes with the process, however that ends, and nobody has to clear it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_one(folder: Path, otherwise: Exception) -> Iterator[None]:
    """Raises `otherwise` where another one holds the folder."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise otherwise from error
        yield
    finally:
        os.close(lock)
