"""One gateway at a time serves a home: two would both answer every offer, and each would spoil the other's records.

The lock is the kernel's, on the folder itself: it goes with the process, however that ends, and nobody has to clear it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msfl.policies.refusals import CannotProceed


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Raises CannotProceed where another gateway serves the home."""
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise CannotProceed(f"Another gateway serves {home} already: stop that one first.") from error
    finally:
        os.close(folder)
