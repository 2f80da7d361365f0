"""The aggregator: the model at the centre, the only process there that may see what single sites sent.

    verb        in                                            out
    open        run_id, sealed_keys (with min_sites)          –
    plan        {site: sealed fingerprint}, recipients        plan_hash, plan_summary, n_parameters, weights_blake3;
                or plan and model of an earlier run           plan/ALL, weights/ALL, plan/<site>, weights/<site>
    aggregate   round r, model r − 1, {site: sealed update},  sites (with update_norm), refused, weights_blake3;
                recipients, min_sites, left-over r − 1        weights/ALL (the model of round r), weights/<site>;
                                                              with a 16-bit wire also difference/ALL, left-over/ALL
    issue       plan, model r, recipients                     plan/<site>, weights/<site> for sites that came later
    candidates  model b, {site: sealed local model},          refused; local:<site>/ALL, federated/<site>,
                recipients; left-over b                       local:<other>/<site>; unrounded/ALL, unrounded/<site>
    collect     task_id, {site: sealed summaries}             sites, refused
    export      plan, model b                                 weights_blake3, weights_sha256; model (zip), weights

Every stream that comes from a site is `up`, artifact `result`, of the attempt that `attempts` names (1 where it names
none); every stream that goes out is `down`. A model is sealed once, for `ALL`, and what a site gets is a note that
opens it (`msfl.protos.notes`). The keys come sealed to a key pair that is made at the start and never written down.

An update is checked value by value while it is mixed (`msfl.learning.mixing`); a bad one is refused by name, and what
had been mixed with it is thrown away. The sum goes in sorted site order, in float64, block by block: the result does
not depend on who was fast, and memory not on the number of sites.

Nothing is remembered between verbs but the keys: plan and models come back as the sealed files that earlier verbs made.
The same verb asked again does the same again, in this process or in another.
"""

from __future__ import annotations

import base64
import binascii
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from msfl.learning import weights as weight_files
from msfl.learning.contract import FederatedModel, JsonObject, Weights
from msfl.learning.examination import OPTIONAL_FIELDS, UNROUNDED, UpdateRefused, summaries_document, training_document
from msfl.learning.files import blake3_of_file, canonical_json, json_hash
from msfl.learning.mixing import finite_blocks, mix, must_be_like, refusing, survey
from msfl.learning.sealed_tensors import Block, SealedTensors, SealedWriter, read_weights
from msfl.learning.strategies import STRATEGIES, WEIGHTINGS
from msfl.learning.tasks import OpenProgress, Outcome, TaskRefusal, Verb, Workplace, parameter
from msfl.learning.weights import as_bytes
from msfl.protos.notes import DIFFERENCE, LEFT_OVER, Note, broadcast_header
from msfl.protos.parcel import BadParcel, Unpacking, pack
from msfl.protos.sealing import (
    EVERYBODY,
    MIN_SITES,
    SealBroken,
    StreamHeader,
    broadcast_key,
    open_with,
    opened_chunks,
    seal,
)
from msfl.protos.tasklink import Task
from msfl.protos.tensors import BadTensors
from msfl.protos.wire_formats import DTYPES, FLOAT32, encode_difference, head_as

SALT_BYTES = 32
PLAN, WEIGHTS, BEFORE = f"{EVERYBODY}/plan", f"{EVERYBODY}/weights", f"{EVERYBODY}/{LEFT_OVER}"
EARLIER_PLAN, EARLIER_WEIGHTS = f"{EVERYBODY}/earlier-plan", f"{EVERYBODY}/earlier-weights"
"""Under which names a task brings the plan, a model, and what rounding lost; no site is called so."""
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first moment a zip can hold


@dataclass(frozen=True)
class _Run:
    """What `open` brought: the run, a key for every site's streams, and one for what goes to all. `min_sites`: of the
    job that the sites have verified; 0 where their gateways did not say."""

    run_id: str
    keys: Mapping[str, bytes]
    min_sites: int = 0


class Aggregator:
    """The verbs of the centre. `entropy(n)` gives n random bytes: the key pair and the salts come from it."""

    def __init__(self, model: FederatedModel, place: Workplace, *, entropy: Callable[[int], bytes]) -> None:
        self._model = model
        self._place = place
        self._entropy = entropy
        self._private = entropy(32)
        public = X25519PrivateKey.from_private_bytes(self._private).public_key()
        self.public_key = base64.b64encode(public.public_bytes_raw()).decode()
        self._run: _Run | None = None
        self.verbs: Mapping[str, Verb] = {
            "open": self._open,
            "plan": self._make_plan,
            "aggregate": self._aggregate,
            "issue": self._issue,
            "candidates": self._candidates,
            "collect": self._collect,
            "export": self._export,
        }

    # ------------------------------------------------------------------ verbs

    def _open(self, task: Task, open_progress: OpenProgress) -> Outcome:
        """Asked again when sites have joined; then all keys come again."""
        run_id = parameter(task, "run_id", str)
        sealed = parameter(task, "sealed_keys", str)
        try:
            info = b"msfl/aggregator-keys/v1|" + run_id.encode()
            plain = open_with(self._private, base64.b64decode(sealed, validate=True), info)
            keys = {site: base64.b64decode(key, validate=True) for site, key in json.loads(plain).items()}
        except (SealBroken, binascii.Error) as error:
            raise TaskRefusal("keys_unreadable", f"the run keys were not sealed to this process: {error}") from error
        if self._run is not None and self._run.run_id != run_id:
            raise TaskRefusal("other_run", f"this process serves the run {self._run.run_id}, not {run_id}")
        min_sites = int.from_bytes(keys.pop(MIN_SITES, b""), "big")
        self._run = _Run(run_id, keys, min_sites)
        return Outcome()

    def _make_plan(self, task: Task, open_progress: OpenProgress) -> Outcome:
        if EARLIER_PLAN in task.files:
            return self._take_over(task)
        recipients = self._recipients(task)
        fingerprints: dict[str, JsonObject] = {}
        for site in _senders(task):
            try:
                said = self._said(task, site, "fingerprint", 0)
            except UpdateRefused as refused:
                raise TaskRefusal(refused.code, str(refused)) from refused
            fingerprints[site] = {k: v for k, v in said.items() if k not in OPTIONAL_FIELDS}
        # Through its canonical form, so that everybody holds the same plain JSON: no tuples, no numpy numbers.
        plan: JsonObject = json.loads(canonical_json(self._model.plan(fingerprints, task.config)))
        initial = self._model.initial(plan, task.config)
        # What the labels are called, for `export`, from the sites themselves.
        labels: JsonObject = next(
            (f["labels"] for _, f in sorted(fingerprints.items()) if isinstance(f.get("labels"), dict)), {}
        )
        kept = {"plan": plan, "plan_hash": json_hash(plan), "labels": labels}
        return self._planned(recipients, kept, initial)

    def _take_over(self, task: Task) -> Outcome:
        """Plan and model of an earlier run, opened with its key and sealed again for this one."""
        earlier = parameter(task, "start_from", dict)
        run_id, round = str(earlier.get("run")), earlier.get("round")
        key = self._the_run.keys.get(f"{EVERYBODY}@{run_id}")
        if key is None or type(round) is not int:
            raise TaskRefusal("unknown_run", f"no key was handed over for what run {run_id} kept")
        plan_header = broadcast_header(run_id, "plan", 0, "plan")
        header = broadcast_header(run_id, "plan" if round == 0 else f"aggregate/{round}", round, "weights")
        try:
            with self._place.input(task, EARLIER_PLAN).open("rb", buffering=0) as file:
                kept = _document(broadcast_key(key, plan_header), plan_header, file)
            with self._place.input(task, EARLIER_WEIGHTS).open("rb", buffering=0) as file:
                weights = read_weights(SealedTensors(broadcast_key(key, header), header, file))
        except (SealBroken, BadParcel, BadTensors) as error:
            raise TaskRefusal("model_broken", f"round {round} of run {run_id}: {error}") from error
        return self._planned(self._recipients(task), kept, weights)

    def _planned(self, recipients: list[str], kept: JsonObject, initial: Weights) -> Outcome:
        """The plan and the model that round 1 starts from, sealed for everybody."""
        for_all = broadcast_header(self._the_run.run_id, "plan", 0, "plan")
        files = {f"plan/{EVERYBODY}": self._seal_document(for_all, kept)}
        written, hashed = self._seal_weights("plan", 0, initial)
        files[f"weights/{EVERYBODY}"] = written
        files |= self._plans("plan", 0, recipients, kept)
        files |= self._notes("plan", 0, "weights", recipients, Note("plan", 0, "weights", b"", hashed))
        document = {
            "plan_hash": kept["plan_hash"],
            "plan_summary": kept["plan"].get("summary", {}),
            "n_parameters": sum(values.size for values in initial.values()),
            "weights_blake3": hashed,
        }
        return Outcome(document, files)

    def _aggregate(self, task: Task, open_progress: OpenProgress) -> Outcome:
        recipients = sorted({*self._recipients(task), *parameter(task, "late", list, [])})
        # The orchestrator may ask for more than the job does, not for fewer: the sites' keys came with the number.
        least = max(parameter(task, "min_sites", int, 1), self._the_run.min_sites)
        _choice(task.config, "weighting", "cases", WEIGHTINGS)
        _choice(task.config, "strategy", "fedavg", STRATEGIES)
        _choice(task.config, "wire", FLOAT32, DTYPES)
        senders = _senders(task)
        if not senders:
            raise TaskRefusal("no_updates", f"round {task.round} has no update to sum")
        refused: dict[str, str] = {}
        progress = open_progress("aggregate")
        progress(0, 1)
        while len(good := [site for site in senders if site not in refused]) >= max(least, 1):
            try:
                mixed = self._mixed(task, good)
            except UpdateRefused as bad:
                refused[bad.site] = bad.code
                continue
            files = mixed.files | self._notes(mixed.note.task_id, task.round, "weights", recipients, mixed.note)
            progress(1, 1)
            said = {"sites": mixed.sites, "refused": refused, "weights_blake3": mixed.note.blake3}
            return Outcome(said, files)
        return Outcome({"sites": {}, "refused": refused})

    def _mixed(self, task: Task, senders: list[str]) -> _Mixed:
        """The round over these sites. Raises UpdateRefused."""
        wire = str(task.config.get("wire", FLOAT32))
        strategy = STRATEGIES[task.config.get("strategy", "fedavg")](task.config)
        weighting = WEIGHTINGS[task.config.get("weighting", "cases")]
        for surveyed in range(strategy.surveys + 1):
            with ExitStack() as files:
                model, updates, documents = self._round(task, senders, wire, files)
                if surveyed == 0:
                    strategy.begin([weighting(document["n_train"]) for document in documents.values()])
                if surveyed < strategy.surveys:
                    survey(strategy, model, updates, wire)
                    continue
                next_model = self._next_model(task, model, wire, files)
                norms = mix(strategy, model, updates, wire, next_model.write)
                sites = {site: {**document, "update_norm": norms[site]} for site, document in documents.items()}
                return next_model.close(sites)
        raise AssertionError("the last pass returns")

    def _next_model(self, task: Task, model: SealedTensors, wire: str, files: ExitStack) -> _NextModel:
        def writing(artifact: str, head: bytes) -> SealedWriter:
            header = broadcast_header(self._the_run.run_id, f"aggregate/{task.round}", task.round, artifact)
            return files.enter_context(self._writing(header, head))

        weights = writing("weights", model.head)
        if wire == FLOAT32:
            return _NextModel(task.round, weights)
        before = None
        if BEFORE in task.files:
            before = self._broadcast(task, BEFORE, f"aggregate/{task.round - 1}", task.round - 1, LEFT_OVER, files)
        difference = writing(DIFFERENCE, head_as(model.head, wire))
        return _NextModelByDifference(
            task.round, weights, difference, writing(LEFT_OVER, model.head), model, before, wire
        )

    def _round(
        self, task: Task, senders: list[str], wire: str, files: ExitStack
    ) -> tuple[SealedTensors, dict[str, SealedTensors], dict[str, JsonObject]]:
        """The model a round started from, and each site's update of it and document. Raises UpdateRefused."""
        model = self._model_of(task, task.round - 1, files)
        updates = {site: self._update(task, site, f"train/{task.round}", task.round, files) for site in senders}
        documents = {}
        for site, update in updates.items():
            must_be_like(site, update, model, wire)
            documents[site] = training_document(site, update.document)
        return model, updates, documents

    def _issue(self, task: Task, open_progress: OpenProgress) -> Outcome:
        recipients = self._recipients(task)
        round = parameter(task, "round", int)
        note = self._note_of(task, round)
        files = self._plans(task.task_id, task.round, recipients, self._plan_of(task))
        return Outcome({}, files | self._notes(task.task_id, task.round, "weights", recipients, note))

    def _candidates(self, task: Task, open_progress: OpenProgress) -> Outcome:
        best = parameter(task, "federated_round", int)
        recipients = self._recipients(task)
        files = self._notes("candidates", best, "federated", recipients, self._note_of(task, best))
        refused: dict[str, str] = {}
        progress = open_progress("seal")
        senders = _senders(task)
        for done, site in enumerate(senders):
            progress(done, len(senders))
            artifact = f"local:{site}"
            try:
                written, hashed = self._local_model(task, site, best, artifact)
            except UpdateRefused as bad:
                refused[site] = bad.code
                continue
            if written is not None:
                files[f"{artifact}/{EVERYBODY}"] = written
                others = [r for r in recipients if r != site]
                files |= self._notes(
                    "candidates", best, artifact, others, Note("candidates", best, artifact, b"", hashed)
                )
        if BEFORE in task.files:
            written, hashed = self._unrounded(task, best)
            files[f"{UNROUNDED}/{EVERYBODY}"] = written
            note = Note("candidates", best, UNROUNDED, b"", hashed)
            files |= self._notes("candidates", best, UNROUNDED, recipients, note)
        return Outcome({"refused": refused}, files)

    def _unrounded(self, task: Task, best: int) -> tuple[str, str]:
        """The model before it was rounded for the wire, to be tested beside what the sites hold: the difference in Dice
        is what the wire format cost. Bare name in the outbox and hash."""
        with ExitStack() as files:
            held = self._model_of(task, best, files)
            lost = self._broadcast(task, BEFORE, f"aggregate/{best}", best, LEFT_OVER, files)
            header = broadcast_header(self._the_run.run_id, "candidates", best, UNROUNDED)
            with self._writing(header, held.head) as writer:
                for block, rest in zip(held.blocks(), lost.blocks(), strict=True):
                    writer.write(as_bytes(block + rest))
                return writer.name, writer.close()

    def _local_model(self, task: Task, site: str, best: int, artifact: str) -> tuple[str | None, str]:
        """A site's own model, sealed again for all others; nothing where its policy keeps it. Raises UpdateRefused."""
        with ExitStack() as files:
            try:
                local = self._update(task, site, "baseline", 0, files)
            except UpdateRefused as refused:
                if refused.code == "update_without_tensors":
                    return None, ""
                raise
            must_be_like(site, local, self._model_of(task, best, files))
            header = broadcast_header(self._the_run.run_id, "candidates", best, artifact)
            with self._writing(header, local.head) as writer:
                for block in finite_blocks(site, local):
                    writer.write(bytes(as_bytes(block)))
                return writer.name, writer.close()

    def _collect(self, task: Task, open_progress: OpenProgress) -> Outcome:
        sites: dict[str, JsonObject] = {}
        refused: dict[str, str] = {}
        for site in _senders(task):
            try:
                said = self._said(task, site, parameter(task, "task_id", str), task.round)
                sites[site] = summaries_document(site, said)
            except UpdateRefused as bad:
                refused[site] = bad.code
        return Outcome({"sites": sites, "refused": refused})

    def _export(self, task: Task, open_progress: OpenProgress) -> Outcome:
        open_progress("export")(0, 1)
        kept = self._plan_of(task)
        labels = parameter(task, "labels", dict, kept["labels"])
        with ExitStack() as files:
            weights = read_weights(self._model_of(task, parameter(task, "federated_round", int, task.round), files))
        archive = self._place.output("zip")
        with tempfile.TemporaryDirectory(dir=self._place.scratch) as name:
            folder = Path(name) / "model"
            folder.mkdir()
            self._model.export(kept["plan"], weights, labels, folder)
            zip_folder(folder, archive)
        plain = self._place.output("safetensors")
        # SHA-256 for whoever is handed the file, BLAKE3 to find it among the rounds.
        said = {"weights_sha256": weight_files.save(plain, weights), "weights_blake3": blake3_of_file(plain)}
        return Outcome(said, {"model": archive.name, "weights": plain.name})

    # ------------------------------------------------------------- what is read

    @property
    def _the_run(self) -> _Run:
        if self._run is None:
            raise TaskRefusal("not_open", "the run's keys have not been handed over")
        return self._run

    def _recipients(self, task: Task) -> list[str]:
        recipients = sorted(set(parameter(task, "recipients", list)))
        if unknown := [site for site in recipients if site not in self._the_run.keys or site.startswith(EVERYBODY)]:
            raise TaskRefusal("unknown_site", f"no key was handed over for {', '.join(map(str, unknown))}")
        return recipients

    def _for_all(self, header: StreamHeader) -> bytes:
        return broadcast_key(self._the_run.keys[EVERYBODY], header)

    def _model_of(self, task: Task, round: int, files: ExitStack) -> SealedTensors:
        """The model of a round, as an earlier verb sealed it. Raises TaskRefusal."""
        return self._broadcast(task, WEIGHTS, "plan" if round == 0 else f"aggregate/{round}", round, "weights", files)

    def _broadcast(
        self, task: Task, name: str, task_id: str, round: int, artifact: str, files: ExitStack
    ) -> SealedTensors:
        header = broadcast_header(self._the_run.run_id, task_id, round, artifact)
        file = files.enter_context(self._place.input(task, name).open("rb", buffering=0))
        try:
            return SealedTensors(self._for_all(header), header, file)
        except (SealBroken, BadParcel, BadTensors) as error:
            raise TaskRefusal("model_broken", f"{artifact} of round {round}: {error}") from error

    def _plan_of(self, task: Task) -> JsonObject:
        """`plan`, `plan_hash`, `labels`. Raises TaskRefusal."""
        header = broadcast_header(self._the_run.run_id, "plan", 0, "plan")
        with self._place.input(task, PLAN).open("rb", buffering=0) as file:
            try:
                return _document(self._for_all(header), header, file)
            except (SealBroken, BadParcel) as error:
                raise TaskRefusal("plan_broken", f"the plan: {error}") from error

    def _note_of(self, task: Task, round: int) -> Note:
        """A note about a round's model. Its hash is taken here, from the model itself: who else says it may lie."""
        with ExitStack() as files:
            model = self._model_of(task, round, files)
            digest = blake3(model.head)
            for block in model.blocks():
                digest.update(as_bytes(block))
        task_id = "plan" if round == 0 else f"aggregate/{round}"
        return Note(task_id, round, "weights", b"", f"blake3:{digest.hexdigest()}")

    def _update(self, task: Task, site: str, task_id: str, round: int, files: ExitStack) -> SealedTensors:
        """A site's sealed tensors. Raises UpdateRefused."""
        key, header = self._key_of(site), self._result_header(task, site, task_id, round)
        file = files.enter_context(self._place.input(task, site).open("rb", buffering=0))
        with refusing(site):
            update = SealedTensors(key, header, file)
            canonical_json(update.document)  # Raises ValueError for NaN, which Python's JSON reader lets in.
        return update

    def _said(self, task: Task, site: str, task_id: str, round: int) -> JsonObject:
        """A site's sealed document. Raises UpdateRefused, also for tensors where a document was asked for."""
        key, header = self._key_of(site), self._result_header(task, site, task_id, round)
        with refusing(site), self._place.input(task, site).open("rb", buffering=0) as file:
            document = _document(key, header, file)
            canonical_json(document)
            return document

    def _key_of(self, site: str) -> bytes:
        key = self._the_run.keys.get(site)
        if key is None:
            raise TaskRefusal("unknown_site", f"no key was handed over for {site}")
        return key

    def _result_header(self, task: Task, site: str, task_id: str, round: int) -> StreamHeader:
        attempt = _attempt(task, site)
        return StreamHeader(self._the_run.run_id, task_id, round, site, attempt, direction="up", artifact="result")

    # ---------------------------------------------------------- what is written

    @contextmanager
    def _writing(self, header: StreamHeader, head: bytes) -> Iterator[SealedWriter]:
        """A sealed model for all. What was begun and not closed is thrown away."""
        writer = SealedWriter(
            self._for_all(header), header, head, self._place.output("sealed"), salt=self._entropy(SALT_BYTES)
        )
        try:
            yield writer
        finally:
            writer.discard()

    def _seal_weights(self, task_id: str, round: int, weights: Weights) -> tuple[str, str]:
        """Sealed for all; the bare name in the outbox and the BLAKE3 hash."""
        parts = weight_files.encoded(weights)
        header = broadcast_header(self._the_run.run_id, task_id, round, "weights")
        with self._writing(header, bytes(next(parts))) as writer:
            for part in parts:
                writer.write(part)
            return writer.name, writer.close()

    def _plans(self, task_id: str, round: int, recipients: list[str], kept: JsonObject) -> dict[str, str]:
        said = {"plan": kept["plan"], "plan_hash": kept["plan_hash"]}
        return self._for_each(task_id, round, "plan", recipients, said)

    def _notes(self, task_id: str, round: int, artifact: str, recipients: list[str], about: Note) -> dict[str, str]:
        run_id = self._the_run.run_id
        note = replace(about, secret=self._for_all(about.header(run_id)))
        if note.base:
            note = replace(note, difference_secret=self._for_all(note.difference_header(run_id)))
        return self._for_each(task_id, round, artifact, recipients, note.to_document())

    def _for_each(
        self, task_id: str, round: int, artifact: str, recipients: list[str], document: JsonObject
    ) -> dict[str, str]:
        files = {}
        for site in recipients:
            header = StreamHeader(
                self._the_run.run_id, task_id, round, site, attempt=1, direction="down", artifact=artifact
            )
            files[f"{artifact}/{site}"] = self._seal_document(header, document)
        return files

    def _seal_document(self, header: StreamHeader, document: JsonObject) -> str:
        """Sealed for the header's site, or for all; the bare name in the outbox."""
        everybody = header.site == EVERYBODY
        key = self._for_all(header) if everybody else self._the_run.keys[header.site]
        path = self._place.output("sealed")
        partial = path.with_name(f".{path.name}.part")
        with partial.open("wb") as out:
            seal(key, header, pack(document, None), out, salt=self._entropy(SALT_BYTES))
        partial.rename(path)
        return path.name


@dataclass(frozen=True)
class _Mixed:
    """A closed round: what the sites said, the sealed files by name, a note about the model, with its hash."""

    sites: JsonObject
    files: dict[str, str]
    note: Note


class _NextModel:
    """The next model in the making, as `mix` hands it over block by block."""

    def __init__(self, round: int, weights: SealedWriter) -> None:
        self._round = round
        self._weights = weights

    def write(self, current: Block, mixed: Block) -> None:
        self._weights.write(as_bytes(mixed))

    def close(self, sites: JsonObject) -> _Mixed:
        note = Note(f"aggregate/{self._round}", self._round, "weights", b"", self._weights.close())
        return _Mixed(sites, {f"weights/{EVERYBODY}": self._weights.name}, note)


class _NextModelByDifference(_NextModel):
    """The same where models travel as 16-bit differences: the model is what the sites will hold, to the bit."""

    def __init__(
        self,
        round: int,
        weights: SealedWriter,
        difference: SealedWriter,
        left_over: SealedWriter,
        model: SealedTensors,
        before: SealedTensors | None,
        wire: str,
    ) -> None:
        super().__init__(round, weights)
        self._difference = difference
        self._left_over = left_over
        self._base = blake3(model.head)
        self._before = None if before is None else before.blocks()
        self._wire = wire

    def write(self, current: Block, mixed: Block) -> None:
        lost = np.zeros_like(mixed) if self._before is None else next(self._before)
        words, held, left_over = encode_difference(mixed, current, lost, self._wire)
        self._base.update(as_bytes(current))
        self._weights.write(as_bytes(held))
        self._difference.write(words.view(np.uint8).data)
        self._left_over.write(as_bytes(left_over))

    def close(self, sites: JsonObject) -> _Mixed:
        mixed = super().close(sites)
        self._difference.close()
        self._left_over.close()
        files = {f"{DIFFERENCE}/{EVERYBODY}": self._difference.name, f"{LEFT_OVER}/{EVERYBODY}": self._left_over.name}
        note = replace(mixed.note, base=f"blake3:{self._base.hexdigest()}")
        return replace(mixed, files=mixed.files | files, note=note)


def _senders(task: Task) -> list[str]:
    """The sites whose results a task brings, in site order."""
    return sorted(name for name in task.files if not name.startswith(f"{EVERYBODY}/"))


def _document(key: bytes, header: StreamHeader, file: BinaryIO) -> JsonObject:
    """Raises SealBroken, BadParcel, BadTensors("unexpected")."""
    unpacking = Unpacking(_no_tensors)
    for chunk in opened_chunks(key, header, file):
        unpacking.feed(chunk)
    return unpacking.close()


def _no_tensors(piece: memoryview) -> None:
    raise BadTensors("unexpected_tensors", "tensors where a document was asked for")


def _attempt(task: Task, site: str) -> int:
    attempt = parameter(task, "attempts", dict, {}).get(site, 1)
    if type(attempt) is not int:
        raise TaskRefusal("bad_task", f"task {task.task_id}: the attempt of {site} is {attempt!r:.40}")
    return attempt


def _choice(config: JsonObject, key: str, default: str, table: Mapping[str, Any]) -> str:
    name = config.get(key, default)
    if name not in table:
        raise TaskRefusal(f"unknown_{key}", f"there is no {key} {name!r}; there is {', '.join(sorted(table))}")
    return str(name)


def zip_folder(folder: Path, archive: Path) -> None:
    """Zip everything below `folder`; the same files give the same bytes (sorted names, one fixed time, one mode)."""
    partial = archive.with_name(f".{archive.name}.part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as zipped:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), date_time=_EARLIEST)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            with path.open("rb") as source, zipped.open(entry, "w", force_zip64=True) as out:
                shutil.copyfileobj(source, out, 1 << 20)
    partial.rename(archive)
