"""Notes: how one sealed file reaches every site of a run.

    aggregator   seals a model once, for `ALL`          aggregate/3/ALL/down/weights      as big as the model
                 and for each site a note               aggregate/3/site-a/down/weights   some hundred bytes
    gateway      opens its note with the site's own run key, downloads the file that it names, opens that with the
                 note's secret, and uses it only if its plaintext has the note's hash

The hash is BLAKE3, which takes a third of the time of SHA-256: every site takes it of every model.

The note is a parcel without tensors whose document has one entry, `broadcast`.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from msfl.protos.messages import output_key
from msfl.protos.sealing import EVERYBODY, KEY, StreamHeader

JsonObject: TypeAlias = dict[str, Any]
ENTRY = "broadcast"
DIFFERENCE, LEFT_OVER = "difference", "left-over"
"""Artifacts beside a model: it as a difference to the one before, and what rounding lost of it."""
_MOST_LETTERS = 256
_BLAKE3 = re.compile(r"blake3:[0-9a-f]{64}")


class BadNote(ValueError):
    """An authentic document that is no note."""


@dataclass(frozen=True)
class Note:
    """`blake3` is the hash of the tensors file, as `blake3:<hex>`; `secret` opens the stream of this header alone.

    Where `base` is given, the same model can also be had as a 16-bit difference to the tensors file with that hash:
    the artifact `DIFFERENCE` of the same task, opened by `difference_secret`.
    """

    task_id: str
    round: int
    artifact: str
    secret: bytes
    blake3: str
    base: str = ""
    difference_secret: bytes = b""

    @property
    def key(self) -> str:
        """Where the centre keeps the file that this note is about."""
        return output_key(self.task_id, EVERYBODY, self.artifact)

    @property
    def difference_key(self) -> str:
        return output_key(self.task_id, EVERYBODY, DIFFERENCE)

    def difference_header(self, run_id: str) -> StreamHeader:
        return broadcast_header(run_id, self.task_id, self.round, DIFFERENCE)

    def header(self, run_id: str) -> StreamHeader:
        return broadcast_header(run_id, self.task_id, self.round, self.artifact)

    def to_document(self) -> JsonObject:
        said: JsonObject = {
            "task_id": self.task_id,
            "round": self.round,
            "artifact": self.artifact,
            "secret": _text(self.secret),
            "blake3": self.blake3,
        }
        if self.base:
            said |= {"base": self.base, "difference_secret": _text(self.difference_secret)}
        return {ENTRY: said}


def broadcast_header(run_id: str, task_id: str, round: int, artifact: str) -> StreamHeader:
    return StreamHeader(run_id, task_id, round, EVERYBODY, attempt=1, direction="down", artifact=artifact)


def note_in(document: JsonObject) -> Note | None:
    """The note that a document is; None for any other document. Raises BadNote."""
    if ENTRY not in document:
        return None
    said = document[ENTRY]
    if set(document) != {ENTRY} or not isinstance(said, dict):
        raise BadNote("a note holds nothing but itself")
    try:
        secrets = {k: base64.b64decode(said[k], validate=True) for k in ("secret", "difference_secret") if k in said}
        note = Note(**{**said, **secrets})
    except (KeyError, TypeError, ValueError) as error:
        raise BadNote("a note of other fields") from error
    texts = (note.task_id, note.artifact, note.blake3, note.base)
    if not all(isinstance(t, str) for t in texts) or type(note.round) is not int or len(note.secret) != KEY:
        raise BadNote("a note of other types")
    if not all(t.isascii() and len(t) <= _MOST_LETTERS for t in texts):  # They are asked for, by name, over the line.
        raise BadNote("a note whose names are none")
    if not _BLAKE3.fullmatch(note.blake3):
        raise BadNote("a note without a hash")
    if note.base and (not _BLAKE3.fullmatch(note.base) or len(note.difference_secret) != KEY):
        raise BadNote("a note about a difference to nothing")
    return note


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
