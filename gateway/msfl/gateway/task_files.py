"""What a task takes in and what it gives out at a site, file by file.

    inputs    download ▸ open while it arrives, into a private file ▸ JSON joins the document, tensors move to the inbox
    output    read from the outbox ▸ egress gate ▸ seal in the same pass ▸ `result.sealed`, which may be uploaded

Nothing is half sent: the sealed file exists only after the last check. What fails raises `CannotDo` with a code that
may leave the site.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from blake3 import blake3

from msfl.gateway.differences import Patch, differences
from msfl.gateway.egress import CheckedTensors, check_document, field_names, head_of
from msfl.gateway.forms import Known
from msfl.gateway.home import Home
from msfl.gateway.judge import Accepted
from msfl.gateway.record import RunRecord
from msfl.policies.decide import allowed_outputs
from msfl.policies.orders import stream_of
from msfl.policies.refusals import Code, Refusal, Refused
from msfl.protos.messages import Input, TaskOrder
from msfl.protos.notes import BadNote, Note, note_in
from msfl.protos.parcel import BadParcel, Unpacking, beginning
from msfl.protos.sealing import Buffer, Opening, SealBroken, Sealing, StreamHeader, run_key
from msfl.protos.tasklink import WEIGHTS_NAME, Result
from msfl.protos.tensors import BadTensors
from msfl.protos.wire_formats import FLOAT32
from msfl.runtime.collect import open_output
from msfl.runtime.removal import empty

JsonObject: TypeAlias = dict[str, Any]
Download: TypeAlias = Callable[[str, Callable[[bytes], None]], int]
"""Fetch a sealed stream by its key, hand its pieces on as they arrive, and say how many bytes they were."""


_WRITTEN_OVER = frozenset({"000.safetensors", WEIGHTS_NAME})
# What a worker makes faster than it can be removed is ended by its quota.
CLEARING_S = 20.0


class CannotDo(Exception):
    """A step of a task failed for a reason that may leave the site."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True)
class Sealed:
    """A result that may leave, and what a custodian may want to know of it.

    `fields` are the names of what its document holds, `withheld` of what was taken out of it; `weights` is how weights
    go with it (`float32`, or 16-bit differences to the model), empty for none. `blake3` is of the sealed bytes.
    """

    file: Path
    blake3: str
    fields: tuple[str, ...]
    withheld: tuple[str, ...]
    weights: str


class TaskFiles:
    """The files of one run at one site. `folder` is the run's own, `folder/box` all of it that the worker can see."""

    def __init__(self, home: Home, run_id: str, site: str, folder: Path) -> None:
        self._home = home
        self._run_id = run_id
        self._site = site
        self._folder = folder
        self._box = folder / "box"
        self.inbox = self._box / "inbox"
        self._held: dict[Path, str] = {}  # models in the inbox that this process has verified, by their hash
        self._wire = FLOAT32

    def take_inputs(
        self, order: TaskOrder, download: Download, wire: str = FLOAT32
    ) -> tuple[JsonObject, dict[str, str], int]:
        """Fetch and open every sealed input. JSON joins the task's document, tensors become files in the inbox.

        The document, bare file names by input, bytes received. `wire` is the run's wire format. Raises CannotDo.
        """
        self._wire = wire
        document = dict(order.document)
        files: dict[str, str] = {}
        received = 0
        for i, wanted in enumerate(order.inputs):
            bare = f"{i:03d}.safetensors"
            said, tensors, n = self._fetch(wanted, self.inbox / bare, download)
            document.update(said)
            received += n
            if tensors:
                files[wanted.name] = bare
        return document, files, received

    def _fetch(self, wanted: Input, target: Path, download: Download) -> tuple[JsonObject, int, int]:
        """One input and, when it is a note, the file that it is about: document, bytes of tensors, bytes received."""
        header = StreamHeader(
            run_id=self._run_id,
            task_id=wanted.task_id,
            round=wanted.round,
            site=self._site,
            attempt=1,
            direction="down",
            artifact=wanted.artifact,
        )
        document, received = self._read(header, wanted.key, download)
        try:
            note = note_in(document)
        except BadNote as error:
            raise CannotDo("input_broken", str(error)) from error
        if note is None:
            return document, 0, received
        if note.base and note.base == self._held.get(target):
            n, patched = self._patch(note, target, download)
            received += n
            if patched:
                return {}, target.stat().st_size, received
        n, tensors = self._store(note, target, download)
        self._held[target] = note.blake3
        return {}, tensors, received + n

    def _patch(self, note: Note, model: Path, download: Download) -> tuple[int, bool]:
        """The model that lies here becomes the next one by a difference; bytes received, and whether it did.

        When it did not, nothing is lost: what lies here is not used, and the whole model is fetched.
        """
        self._held.pop(model, None)
        with open(model, "r+b", buffering=0) as file:
            patch = Patch(file, head_of(model), self._wire)
            unpacking = Unpacking(patch.feed)
            opening = Opening(note.difference_secret, note.difference_header(self._run_id), unpacking.feed)
            with _opening():
                received = download(note.difference_key, opening.feed)
                opening.close()
                unpacking.close()
            if patch.close() != note.blake3:
                return received, False
        self._held[model] = note.blake3
        return received, True

    def _read(self, header: StreamHeader, name: str, download: Download) -> tuple[JsonObject, int]:
        """A stream for this site alone, which holds a document: it, and the bytes received."""
        unpacking = Unpacking(_unexpected)
        opening = Opening(self._key(), header, unpacking.feed)
        with _opening():
            received = download(name, opening.feed)
            opening.close()
            return unpacking.close(), received

    def _store(self, note: Note, target: Path, download: Download) -> tuple[int, int]:
        """The file that a note is about, opened while it arrives: bytes received, bytes of tensors.

        The worker can see `target` grow, and is told of it only afterwards; unless all of it is verified it is gone.
        """
        digest = blake3()
        with _overwriting(target) as tensors, _opening():

            def take(piece: memoryview) -> None:
                tensors.write(piece)
                digest.update(piece)

            unpacking = Unpacking(take)
            opening = Opening(note.secret, note.header(self._run_id), unpacking.feed)
            received = download(note.key, opening.feed)
            opening.close()
            unpacking.close()
            if note.blake3 != f"blake3:{digest.hexdigest()}":
                raise CannotDo("input_broken", f"{note.key} is not the file that the note is about")
        return received, unpacking.tensor_bytes

    def gate_and_seal(
        self,
        accepted: Accepted,
        order: TaskOrder,
        attempt: int,
        asked: Mapping[str, Any],
        result: Result,
        template: Path | None,
    ) -> Sealed:
        """The sealed result, all of it checked. Raises CannotDo."""
        rules = allowed_outputs(accepted.policy)
        document = {k: v for k, v in result.document.items() if k != "peak_rss_mib"}
        record, candidates = accepted.request.dataset, asked.get("candidates")
        names = frozenset((*record.channel_names, *record.labels))
        if order.verb == "evaluate" and isinstance(candidates, list):
            names = frozenset(name for name in candidates if isinstance(name, str))
        split = str(asked.get("split"))
        known = Known(names, len(record.channel_names), record.n_train, record.n_test, split)
        passed = check_document(order.verb, document, accepted.release.statement.outputs, rules, known)
        if isinstance(passed, Refusal):
            raise CannotDo(passed.code.value, passed.message)
        # By the round, not by what the centre calls it: a local model leaves where the policy lets it.
        stream = stream_of(order.round) if order.verb == "train" else ""
        may_send = template is not None and (stream == "federated" or rules.local_model)
        if set(result.files) - ({"weights"} if may_send else set()):
            raise CannotDo(Code.OUTPUT_BLOCKED.value, f"the worker left files that {order.verb} may not send")
        header = StreamHeader(
            run_id=self._run_id,
            task_id=order.task_id,
            round=order.round,
            site=self._site,
            attempt=attempt,
            direction="up",
            artifact="result",
        )
        sealed = self._folder / "result.sealed"
        wire = str(accepted.resolved.get("wire", FLOAT32)) if stream == "federated" else FLOAT32
        try:
            with _overwriting(sealed) as out:
                hashed = _Hashed(out)
                sealing = Sealing(self._key(), header, hashed, salt=secrets.token_bytes(32))
                begins = beginning(passed, tensors="weights" in result.files)
                sealing.write(begins)
                if "weights" in result.files:
                    assert template is not None
                    pieces = self._checked(result.files["weights"], template, rules.weights_max_bytes, len(begins))
                    if wire != FLOAT32:
                        pieces = differences(pieces, template, self._folder, order.round, wire)
                    for piece in pieces:
                        sealing.write(piece)
                sealing.close()
        except (Refused, BadTensors) as error:
            raise CannotDo(Code.OUTPUT_BLOCKED.value, str(error)) from error
        except SealBroken as error:
            raise CannotDo(Code.MALFORMED_DOCUMENT.value, f"the order's names cannot be sealed: {error}") from error
        fields, made = field_names(passed), field_names(document)
        return Sealed(
            file=sealed,
            blake3=f"blake3:{hashed.digest.hexdigest()}",
            fields=fields,
            withheld=tuple(name for name in made if name not in fields),
            weights=wire if "weights" in result.files else "",
        )

    def _checked(self, name: str, template: Path, max_bytes: int, at: int) -> Iterator[bytes | memoryview]:
        """As `CheckedTensors.pieces`. Raises Refused, BadTensors."""
        source, size = open_output(self._box / "outbox", name, max_bytes)
        with open(source, "rb", buffering=0) as file:
            yield from CheckedTensors(file, size, head_of(template), max_bytes).pieces(at)

    def clear(self) -> None:
        """Nothing of a task stays in the boxes but the files that the next round writes over.

        The outbox is the worker's, which may be at work in it: there may be anything in it that has a name.
        """
        for box in (self.inbox, self._box / "outbox"):
            empty(box, keep=_WRITTEN_OVER, patience_s=CLEARING_S)
            box.mkdir(mode=0o700, exist_ok=True)
        self._held = {file: digest for file, digest in self._held.items() if file.name in _WRITTEN_OVER}

    def _key(self) -> bytes:
        return run_key(*RunRecord(self._folder).secret(), self._run_id, self._site)


class _Hashed:
    """A file that is written to, and the hash of all that was."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.digest = blake3()

    def write(self, data: Buffer) -> None:
        self.digest.update(data)
        self._out.write(data)


@contextmanager
def _opening() -> Iterator[None]:
    """What does not open stops the task with a code."""
    try:
        yield
    except (SealBroken, BadParcel) as error:
        raise CannotDo("input_broken", str(error)) from error


def _unexpected(piece: memoryview) -> None:
    raise BadParcel("tensors where a document was expected")


@contextmanager
def _overwriting(file: Path) -> Iterator[BinaryIO]:
    """A file that is written over from its beginning, and as long as what was written; gone when that raises.

    Its pages and blocks are used again: for a model of 125 MB that saves a third of what writing it costs.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb", buffering=0) as out:
        try:
            yield out
        except BaseException:
            file.unlink()
            raise
        os.ftruncate(descriptor, out.tell())
