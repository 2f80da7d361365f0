"""glibc's allocator, set for processes that move megabytes all day: orchestrators, gateways, aggregators and workers.

As it comes, glibc maps every buffer of a stream anew from the kernel, has each page cleared, and gives it back a moment
later; and it keeps an arena per thread, none of which shrinks. Kept memory is reused instead, and there is one arena:
a third less processor time per round, and memory that does not grow with the number of rounds (`benchmarks/round.py`,
whose arm `floor+M` shows the same for bare gRPC).

A worker that trains on CPU needs it, too: with glibc's moving threshold it depends on what was freed first whether each
activation is mapped anew. nnU-Net took 25 000 page faults a second so, and a tenth more processor time per batch
(`benchmarks/whole_run.py`).
"""

from __future__ import annotations

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
KEEP_BYTES = 128 << 20
"""Buffers up to this size come from the heap, and so much free memory is kept at its end."""
PAD_BYTES = 16 << 20


def keep_memory() -> bool:
    """To be called before threads are started. False: this is not glibc, and nothing was changed."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, KEEP_BYTES),
        (_M_TRIM_THRESHOLD, KEEP_BYTES),
        (_M_TOP_PAD, PAD_BYTES),
    )
    return all(libc.mallopt(which, value) == 1 for which, value in settings)
