"""The egress gate: what a worker made passes here, or it does not leave.

    result document ─▶ the release's schema for this verb ─▶ finite ─▶ the policy's metrics, minimum cases ─┐
    tensors file ────▶ private memory ─▶ names and shapes of the model that was sent here ─▶ finite ────────┴▶ sealed

Three parties have a say, and all must agree: the **release** declares, as a closed JSON Schema that reviewers read,
what each verb may return; the **policy** allows less than that; and the **template**, the model which this site was
sent, fixes every tensor's name and shape. A metric the policy does not allow is taken out (the run can go on without
it); anything that was not declared at all stops the task, because a worker that tries has not been reviewed.

Tensors are read once, into memory that the worker cannot reach: the same pass checks and hands on to the seal.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import jsonschema
import numpy as np

from msfl.policies.decide import OutputRules
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.protos.sealing import CHUNK
from msfl.protos.tensors import MAX_HEADER_BYTES, BadTensors, TensorTable, all_finite, must_match, read_table

JsonObject: TypeAlias = dict[str, Any]
_LONGEST_HEAD = MAX_HEADER_BYTES + 8

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
