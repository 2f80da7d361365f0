"""The egress gate: what a worker made passes here, or it does not leave.

    result document ─▶ the release's schema for this verb ─▶ its form ─▶ the policy's metrics, minimum cases ─┐
    tensors file ────▶ private memory ─▶ names and shapes of the model that was sent here ─▶ finite ──────────┴▶ sealed

Three parties have a say, and all must agree: the **release** declares, as a closed JSON Schema that reviewers read,
what each verb may return; the **policy** allows less than that; and the **template**, the model which this site was
sent, fixes every tensor's name and shape. What no release may declare is in `forms`. A metric the policy does not allow
is taken out (the run can go on without it); anything that was not declared at all stops the task, because a worker that
tries has not been reviewed.

Tensors are read once, into memory that the worker cannot reach: the same pass checks and hands on to the seal.
What a fingerprint counts of fewer cases than the policy's minimum leaves in company (`cells`).
Numbers leave with as many decimals as the release declares, four when it does not say. A failure leaves as one of a
closed list of codes, progress as one of a few phases with two counts. `allowance` bounds what a whole run may send,
and `Onward` what progress can tell: it is not sealed, and a worker that says it again and again would be a telegraph.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import jsonschema
import numpy as np
import referencing
import referencing.exceptions

from msfl.gateway.cells import Uncounted, without_small_cells
from msfl.gateway.forms import Known, misshapen
from msfl.policies.decide import OutputRules
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.protos.messages import SiteProgress
from msfl.protos.sealing import CHUNK
from msfl.protos.tasklink import Progress
from msfl.protos.tensors import MAX_HEADER_BYTES, BadTensors, TensorTable, all_finite, must_match, read_table

JsonObject: TypeAlias = dict[str, Any]
DECIMALS, MOST_DECIMALS = 4, 6
_LONGEST_HEAD = MAX_HEADER_BYTES + 8

# What is said of training beside metrics, and how the policy's words for metrics name the numbers that it returns.
_FACTS = frozenset({"n_train", "n_val", "n_test", "seconds", "incoming"})
_POLICY_WORD = {"train_loss": "loss", "val_loss": "loss", "loss": "loss", "val_dice": "dice"}

# What a worker may say of itself. Its words are its own, and words can hold a name: what is not listed does not leave.
PHASES = frozenset(
    {"fingerprint", "prepare", "train", "train_local", "validate", "evaluate_validation", "evaluate_test"}
)
_FAILURES = frozenset(
    (
        "bad_task", "channel_not_supported", "config_invalid", "dataset_unreadable", "empty_channel",
        "file_ending_not_supported", "fingerprint_invalid", "fingerprint_malformed", "fingerprints_differ",
        "grids_differ", "image_missing", "images_not_3d", "input_missing", "label_missing", "label_shape_differs",
        "loss_not_finite", "model_broken", "no_cuda", "no_fingerprints", "no_local_model", "no_training_cases",
        "not_prepared", "plan_broken", "plan_differs", "plan_hash_differs", "plan_not_allowed", "plan_refused",
        "sites_differ", "weights_changed_shape", "weights_not_of_this_plan", "weights_refused", "weights_dtype",
        "weights_duplicate_name", "weights_header_unreadable", "weights_layout", "weights_metadata",
        "weights_not_finite", "weights_template", "weights_too_many", "resources_exceeded",
    )
)  # fmt: skip

# Beside its rounds a run has a few steps: fingerprint, prepare, validation, local model, tests. Each may have to be
# done again, after a crash or when the run is resumed.
_OTHER_STEPS = 10
_MOST_STEPS = 1000
_MOST_LOSS = 1e6
_TIMES = 3
_DOCUMENT_BYTES = 1 << 20

# What a schema can be that its release's author did not try, or did on purpose.
_NO_SCHEMA = (
    jsonschema.exceptions.SchemaError,
    referencing.exceptions.Unresolvable,
    re.error,
    RecursionError,
)


@dataclass(frozen=True)
class Allowance:
    """The most that one run may send: sealed results, and their bytes in all."""

    uploads: int
    bytes: int


def allowance(rounds: int, rules: OutputRules) -> Allowance:
    """For a run of so many rounds: weights once per round and once of a local model, a document with each step."""
    uploads = _TIMES * (rounds + _OTHER_STEPS)
    return Allowance(uploads, _TIMES * (rounds + 1) * rules.weights_max_bytes + uploads * _DOCUMENT_BYTES)


def failure_code(said: str) -> str:
    """What leaves of a worker's word for why it failed."""
    return said if said in _FAILURES else Code.WORKER_FAILED.value


def progress_of(run_id: str, task_id: str, said: Progress, rules: OutputRules) -> SiteProgress:
    """What leaves of a worker's progress; of its metrics only the training loss, where the policy allows it."""
    loss = said.metrics.get("train_loss")
    allowed = loss is not None and abs(loss) <= _MOST_LOSS and _allowed("train_loss", rules)
    done, total = max(said.done, 0), max(said.total, 0)
    if total > _MOST_STEPS:
        done, total = done * _MOST_STEPS // total, _MOST_STEPS
    return SiteProgress(
        run_id=run_id,
        task_id=task_id,
        phase=said.phase if said.phase in PHASES else "working",
        done=min(done, total),
        total=total,
        metrics={"train_loss": float(f"{loss:.{DECIMALS}g}")} if allowed and loss is not None else {},
    )


class Onward:
    """The progress of one attempt at a task: each phase comes once, with one total, and goes only forward."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._phase, self._done = "", -1

    def lets_by(self, progress: SiteProgress) -> bool:
        if progress.phase != self._phase:
            if progress.phase in self._totals:
                return False
            self._totals[progress.phase] = progress.total
            self._phase, self._done = progress.phase, -1
        if progress.total != self._totals[progress.phase] or progress.done <= self._done:
            return False
        self._done = progress.done
        return True


def check_document(
    verb: str, document: JsonObject, declared: Mapping[str, Any], rules: OutputRules, known: Known
) -> JsonObject | Refusal:
    """What may leave of a result's document.

    Args:
        declared: the release's `outputs`; `declared[verb]["document"]` is the closed JSON Schema of the verb's result.
        known: what the site knew before the worker began: the names that may stand in it, how many cases there are.
    """
    output = declared.get(verb)
    if not isinstance(output, Mapping) or not isinstance(output.get("document"), dict):
        return refuse(Code.OUTPUT_BLOCKED, f"The release declares no output for {verb}.", verb=verb)
    schema = json.loads(json.dumps(output["document"]))  # Lists, as the library wants them; documents have tuples.
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        # An empty registry: what a schema refers to is looked for in itself alone, not on the network.
        validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())
        error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    except _NO_SCHEMA as odd:
        what = f"The schema that the release declares for {verb} cannot be used ({type(odd).__name__})."
        return refuse(Code.OUTPUT_BLOCKED, what, verb=verb)
    if error is not None:
        # Not error.message: it quotes the value, and the value is what must not leave.
        where = "/".join(str(part) for part in error.absolute_path) or "the document"
        why = f"{where} breaks the rule {error.validator!r} of the release's schema"
        return refuse(Code.OUTPUT_BLOCKED, f"A result of {verb} was not declared: {why}.", verb=verb)
    if (form := misshapen(verb, document, schema, known)) is not None:
        return refuse(Code.OUTPUT_BLOCKED, f"A result of {verb} may not have this form: {form}.", verb=verb)
    declared_decimals = output.get("decimals")
    decimals = declared_decimals if type(declared_decimals) is int else DECIMALS
    rounded: JsonObject = _rounded(document, min(max(decimals, 0), MOST_DECIMALS))
    match verb:
        case "fingerprint":
            try:
                return without_small_cells(rounded, rules.min_cases_metrics)
            except Uncounted as odd:
                return refuse(Code.OUTPUT_BLOCKED, f"A fingerprint may not have this form: {odd}.", verb=verb)
        case "train":
            return _training(rounded, rules)
        case "evaluate":
            summaries = {name: _summary(s, rules) for name, s in rounded["summaries"].items()}
            return {**rounded, "summaries": summaries}
        case _:
            return rounded


def field_names(document: JsonObject, depth: int = 3) -> tuple[str, ...]:
    """The names of what a document holds, `incoming.n_val`; values, where there are any, are not looked into."""
    names: list[str] = []
    for key, value in document.items():
        if isinstance(value, dict) and value and depth > 1:
            names += (f"{key}.{name}" for name in field_names(value, depth - 1))
        elif value is not None:
            names.append(key)
    return tuple(names)


def _rounded(value: Any, decimals: int) -> Any:
    match value:
        case float():
            return round(value, decimals)
        case dict():
            return {k: _rounded(v, decimals) for k, v in value.items()}
        case list() | tuple():
            return [_rounded(v, decimals) for v in value]
        case _:
            return value


def _training(document: JsonObject, rules: OutputRules) -> JsonObject:
    allowed = {k: v if _allowed(k, rules) else None for k, v in document.items()}
    incoming = document.get("incoming")
    if incoming is not None:
        enough = (incoming.get("n_val") or 0) >= rules.min_cases_metrics
        allowed["incoming"] = {
            k: v if k == "n_val" or (enough and _allowed(k, rules)) else None for k, v in incoming.items()
        }
    return allowed


def _summary(summary: JsonObject, rules: OutputRules) -> JsonObject:
    if summary["n"] < rules.min_cases_metrics:
        return {"n": None, "withheld": Code.TOO_FEW_TEST_CASES.value}
    return {k: v for k, v in summary.items() if k == "n" or _POLICY_WORD.get(k, k) in rules.metrics}


def _allowed(name: str, rules: OutputRules) -> bool:
    return name in _FACTS or _POLICY_WORD.get(name, name) in rules.metrics


def head_of(weights: Path) -> bytes:
    """The first bytes, up to the data, of the model that this site was sent: names, types, shapes, places.

    Raises BadTensors.
    """
    with open(weights, "rb") as file:
        start = read_table(file).data_start
        file.seek(0)
        return file.read(start)


class CheckedTensors:
    """A safetensors file of a worker that is checked while it is read, once, into memory that the worker cannot reach.

    `head` is that of the model which the site was sent; `source` is an unbuffered file of `size` bytes, to which the
    worker may still write. Raises Refused.
    """

    def __init__(self, source: BinaryIO, size: int, head: bytes, max_bytes: int) -> None:
        if size > max_bytes:
            raise Refused(refuse(Code.OUTPUT_BLOCKED, f"The weights are {size} bytes; the policy allows {max_bytes}."))
        self._source = source
        template = read_table(io.BytesIO(head))
        if self._exactly(len(head)) != head:
            raise Refused(refuse(Code.OUTPUT_BLOCKED, f"The weights are not the model's: {self._why(template)}."))
        if size != template.total_bytes:
            raise Refused(refuse(Code.OUTPUT_BLOCKED, "The weights file holds more or less than its tensors."))
        self._head = head
        self._left = size - len(head)

    def pieces(self, at: int = 0) -> Iterator[bytes | memoryview]:
        """The whole file, each piece checked before it is handed out and valid until the next but one. The caller
        throws away what it made of them when this raises Refused.

        `at` is where in a sealed stream the file begins: pieces end where its chunks do.
        """
        yield self._head
        at += len(self._head)
        blocks = itertools.cycle([memoryview(bytearray(CHUNK + 4)), memoryview(bytearray(CHUNK + 4))])
        while self._left:
            block = next(blocks)
            n = self._source.readinto(block[: min(CHUNK - at % CHUNK, self._left)])  # type: ignore[attr-defined]
            n = self._whole_values(block, n)
            if not all_finite(np.frombuffer(block[:n], dtype="<f4")):
                raise Refused(refuse(Code.OUTPUT_BLOCKED, "The weights hold a number that is not finite."))
            self._left -= n
            at += n
            yield block[:n]
        if self._source.read(1):
            raise Refused(refuse(Code.OUTPUT_BLOCKED, "The weights file grew while it was read."))

    def _whole_values(self, block: memoryview, n: int) -> int:
        """A file may give less than was asked; read on to the end of the value."""
        while n == 0 or n % 4:
            more = self._source.read(4 - n % 4)
            if not more:
                raise Refused(refuse(Code.OUTPUT_BLOCKED, "The weights file shrank while it was read."))
            block[n : n + len(more)] = more
            n += len(more)
        return n

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n and (more := self._source.read(n - len(data))):
            data += more
        return data

    def _why(self, template: TensorTable) -> str:
        self._source.seek(0)
        try:
            must_match(read_table(io.BytesIO(self._exactly(_LONGEST_HEAD))), template)
        except BadTensors as error:
            return str(error)
        return "the tensors lie in another order, or the header is spelled differently"
