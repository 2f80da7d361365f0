"""Unix sockets under paths of any length: an address holds 107 bytes, and a home may lie deeper than that.

A longer path is reached through its folder's descriptor, `/proc/self/fd/<n>/<name>`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 100


def bind(listener: socket.socket, path: Path) -> None:
    with address(path) as short:
        listener.bind(short)


def connect(connection: socket.socket, path: Path) -> None:
    with address(path) as short:
        connection.connect(short)


@contextmanager
def address(path: Path) -> Iterator[str]:
    """An address for `path` that fits, for the `with` block."""
    if len(os.fsencode(path)) < LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
