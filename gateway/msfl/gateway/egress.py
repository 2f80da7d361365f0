"""The egress gate: what a worker made passes here, or it does not leave.

    result document ─▶ the release's schema for this verb ─▶ finite ─▶ the policy's metrics, minimum cases ─┐
    tensors file ────▶ private copy ─▶ names and shapes of the model that was sent here ─▶ finite ──────────┴▶ sealed

Three parties have a say, and all must agree: the **release** declares, as a closed JSON Schema that reviewers read,
what each verb may return; the **policy** allows less than that; and the **template**, the model which this site was
sent, fixes every tensor's name and shape. A metric the policy does not allow is taken out (the run can go on without
it); anything that was not declared at all stops the task, because a worker that tries has not been reviewed.

Tensors are read once: the same pass checks and hands on to the seal, from a copy the worker cannot reach.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import jsonschema
import numpy as np

from msfl.policies.decide import OutputRules
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.protos.tensors import BadTensors, TensorTable, must_match, read_table

JsonObject: TypeAlias = dict[str, Any]

# How the policy's words for metrics name the numbers that training returns.
_POLICY_WORD = {"train_loss": "loss", "val_loss": "loss", "loss": "loss", "val_dice": "dice"}


def check_document(
    verb: str, document: JsonObject, declared: Mapping[str, Any], rules: OutputRules
) -> JsonObject | Refusal:
    """What may leave of a result's document.

    Args:
        declared: the release's `outputs`; `declared[verb]["document"]` is the closed JSON Schema of the verb's result.
    """
    output = declared.get(verb)
    if output is None:
        return refuse(Code.OUTPUT_BLOCKED, f"The release declares no output for {verb}.", verb=verb)
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(output["document"]).iter_errors(document))
    if error is not None:
        # Not error.message: it quotes the value, and the value is what must not leave.
        where = "/".join(str(part) for part in error.absolute_path) or "the document"
        why = f"{where} breaks the rule {error.validator!r} of the release's schema"
        return refuse(Code.OUTPUT_BLOCKED, f"A result of {verb} was not declared: {why}.", verb=verb)
    if not _finite(document):
        return refuse(Code.OUTPUT_BLOCKED, f"A result of {verb} holds a number that is not finite.", verb=verb)
    match verb:
        case "train":
            return _training(document, rules)
        case "evaluate":
            summaries = {name: _summary(s, rules) for name, s in document["summaries"].items()}
            return {**document, "summaries": summaries}
        case _:
            return document


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
    word = _POLICY_WORD.get(name)
    return word is None or word in rules.metrics


def _finite(value: object) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case dict():
            return all(_finite(v) for v in value.values())
        case list():
            return all(_finite(v) for v in value)
        case _:
            return True


def template_of(weights: Path) -> TensorTable:
    """The names and shapes of the model that this site was sent. Raises BadTensors."""
    with open(weights, "rb") as file:
        return read_table(file)


class CheckedTensors(io.RawIOBase):
    """A safetensors file that checks itself while it is being read: for the seal, which reads it once.

    Raises Refused from `read`, before the offending block is handed out; the caller throws away what it has sealed.
    """

    def __init__(self, copy: BinaryIO, template: TensorTable, max_bytes: int) -> None:
        super().__init__()
        self._copy = copy
        size = copy.seek(0, io.SEEK_END)
        copy.seek(0)
        if size > max_bytes:
            raise Refused(refuse(Code.OUTPUT_BLOCKED, f"The weights are {size} bytes; the policy allows {max_bytes}."))
        try:
            table = read_table(copy)
            must_match(table, template)
        except BadTensors as error:
            raise Refused(refuse(Code.OUTPUT_BLOCKED, f"The weights are not the model's: {error}.")) from error
        if table.total_bytes != size:
            raise Refused(refuse(Code.OUTPUT_BLOCKED, "The weights file holds more than its tensors."))
        copy.seek(0)
        self._header_left = table.data_start
        self._odd = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        n = self._copy.readinto(view)  # type: ignore[attr-defined]  # an unbuffered file has it
        data = view[:n]
        skip = min(self._header_left, n)
        self._header_left -= skip
        floats = self._odd + bytes(data[skip:]) if self._odd or (n - skip) % 4 else data[skip:]
        whole = len(floats) - len(floats) % 4
        self._odd = bytes(floats[whole:])
        if not np.isfinite(np.frombuffer(floats[:whole], dtype="<f4")).all():
            raise Refused(refuse(Code.OUTPUT_BLOCKED, "The weights hold a number that is not finite."))
        return int(n)
