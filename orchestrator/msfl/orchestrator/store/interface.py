"""The two seams of the centre's memory.

`RunStore` keeps each run's events in order and nothing else: appending is durable before it returns, so whoever got
an acknowledgement may rely on it. `ArtifactStore` keeps sealed streams, which it cannot read. What cannot be kept now,
because the disk is full or read-only, raises `StoreUnavailable`: nothing has changed, and the same call may be tried
again later.

An artifact grows by `append` at exactly its present size (resume by offset; a repeated part is ignored, a gap is
refused), and exists for readers only after `finish`, which makes it durable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from msfl.policies.refusals import CannotProceed


@dataclass(frozen=True)
class StoredEvent:
    sequence: int
    text: str


@dataclass(frozen=True)
class Size:
    bytes: int
    complete: bool


class GapInUpload(ValueError):
    """A part starts beyond what is there. The sender asks for the offset and goes on from it."""

    def __init__(self, have: int, offset: int) -> None:
        super().__init__(f"a part starts at {offset}, but only {have} bytes are here")
        self.have = have


class StoreUnavailable(CannotProceed):
    """The store cannot write now: the disk is full or read-only. Nothing was kept; try again later."""


class StoreDamaged(CannotProceed):
    """What the store holds is not what was put into it. Nobody may go on from it."""


class RunStore(Protocol):
    def append(self, run_id: str, text: str) -> int:
        """Keep one more event; its sequence number, counting from 1 within the run. Durable on return.

        Raises StoreUnavailable.
        """
        ...

    def events(self, run_id: str, after: int = 0) -> list[StoredEvent]: ...

    def runs(self) -> list[str]:
        """Every run that has an event, in the order in which they began."""
        ...


class ArtifactStore(Protocol):
    def size(self, run_id: str, key: str) -> Size: ...

    def append(self, run_id: str, key: str, offset: int, data: bytes) -> None:
        """Raises GapInUpload, StoreUnavailable."""
        ...

    def finish(self, run_id: str, key: str, total: int) -> None:
        """Make the artifact durable and visible. Raises GapInUpload when it is not `total` bytes long,
        StoreUnavailable."""
        ...

    def adopt(self, run_id: str, files: Mapping[str, Path]) -> None:
        """Take over finished local files by key; durable on return, and the files are gone. Raises StoreUnavailable."""
        ...

    def local(self, run_id: str, key: str) -> Path:
        """A finished artifact as a local file, to be read only. Raises FileNotFoundError."""
        ...

    def remove(self, run_id: str, key: str) -> None: ...

    def kept(self, run_id: str) -> frozenset[str]:
        """The keys of all that takes room, finished or not."""
        ...
