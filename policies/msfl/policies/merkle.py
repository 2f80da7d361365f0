"""The Merkle tree of RFC 6962, section 2.1, as far as an audit log needs it: append a leaf, say the root.

    leaf hash  SHA-256(0x00 ‖ leaf)        node hash  SHA-256(0x01 ‖ left ‖ right)        empty tree  SHA-256("")

A log that only grows keeps the roots of its full subtrees, one per binary digit of its size: a few hundred bytes, and
the root of a million entries costs twenty hashes. Whoever knows the root of the first n leaves can check n leaves.
"""

from __future__ import annotations

import hashlib


class Tree:
    """`size` leaves were appended."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # roots of full subtrees, the largest, which is the leftmost, first

    def append(self, leaf: bytes) -> None:
        node, full = hashlib.sha256(b"\0" + leaf).digest(), self.size
        while full & 1:
            node, full = _node(self._peaks.pop(), node), full >> 1
        self._peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        if not self._peaks:
            return hashlib.sha256().digest()
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = _node(peak, root)
        return root


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
