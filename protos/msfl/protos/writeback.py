"""Asks the kernel to begin writing what was written to a file, while more of it is made: less is left for its sync.

A hint: whether it is taken changes when bytes are written, never whether they are durable.
"""

from __future__ import annotations

import ctypes

STRIDE = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2  # <fcntl.h>: start writing, do not wait


def start_writing(descriptor: int, before: int, now: int) -> None:
    """To be called after each write, with the file's length before and after it; takes whole strides."""
    begin, end = before - before % STRIDE, now - now % STRIDE
    if begin < end:
        ctypes.CDLL(None).sync_file_range(
            descriptor, ctypes.c_int64(begin), ctypes.c_int64(end - begin), _SYNC_FILE_RANGE_WRITE
        )
