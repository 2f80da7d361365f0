"""The egress gate: what passes, what is taken out, and what stops the task. The schemas are a real release's own."""

from __future__ import annotations

import io
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msfl.gateway.egress import (
    CheckedTensors,
    Onward,
    allowance,
    check_document,
    failure_code,
    field_names,
    head_of,
    progress_of,
)
from msfl.gateway.forms import Known
from msfl.policies.decide import OutputRules
from msfl.policies.encoding import load_yaml
from msfl.policies.refusals import Code, Refusal, Refused
from msfl.protos.messages import SiteProgress
from msfl.protos.parcel import beginning, unpack
from msfl.protos.sealing import StreamHeader, open_sealed, seal
from msfl.protos.tasklink import Progress
from msfl.protos.tensors import BadTensors
from msfl.registry.build import Recipe, find_recipe

RULES = OutputRules(
    weights_max_bytes=1 << 20,
    local_model=True,
    metrics=frozenset({"dice", "sensitivity", "precision", "loss"}),
    per_case_metrics=False,
    min_cases_metrics=3,
    min_cases_train=5,
)
KNOWN = Known(frozenset({"federated", "local:site-a", "local:site-b"}), channels=2, n_train=12, n_test=4)
TRAINED = {
    "n_train": 8,
    "train_loss": 0.7,
    "seconds": 1.5,
    "incoming": {"n_val": 4, "val_loss": 0.6, "val_dice": 0.5},
}
SUMMARY = {"mean": 0.5, "sd": 0.1, "median": 0.5, "histogram": [*[0] * 19, 4]}
FIGURES = {"n": 4, "loss": 0.4, "dice": SUMMARY, "sensitivity": SUMMARY, "precision": SUMMARY}


@pytest.fixture(scope="module")
def declared() -> Mapping[str, Any]:
    recipe = find_recipe("logistic")
    return load_yaml(recipe.read_bytes(), Recipe, recipe.name).outputs


def passes(answer: dict[str, Any] | Refusal) -> dict[str, Any]:
    assert not isinstance(answer, Refusal), answer
    return answer


def blocked(answer: dict[str, Any] | Refusal) -> str:
    assert isinstance(answer, Refusal), answer
    assert answer.code is Code.OUTPUT_BLOCKED
    return f"{answer.message} {dict(answer.fields)}"


# ------------------------------------------------------------------------------------------------------ documents


def test_what_the_release_declared_and_the_policy_allows_leaves_as_it_is(declared: Mapping[str, Any]) -> None:
    assert check_document("train", TRAINED, declared, RULES, KNOWN) == TRAINED
    tested = {"summaries": {"federated": FIGURES, "local:site-b": FIGURES}}
    assert check_document("evaluate", tested, declared, RULES, KNOWN) == tested
    assert check_document("prepare", {"n_train": 4, "n_val": 1, "n_test": 2}, declared, RULES, KNOWN)


@pytest.mark.parametrize(
    "smuggled",
    [
        {**TRAINED, "note": "Doe^John 1970-01-01"},
        {**TRAINED, "n_train": "Doe^John 1970-01-01"},
        {**TRAINED, "incoming": {**TRAINED["incoming"], "Doe^John 1970-01-01": 1}},  # type: ignore[dict-item]  # a dict
        {**TRAINED, "incoming": ["Doe^John 1970-01-01"]},
    ],
)
def test_what_was_not_declared_is_blocked_and_never_quoted(
    declared: Mapping[str, Any], smuggled: dict[str, Any]
) -> None:
    assert "Doe" not in blocked(check_document("train", smuggled, declared, RULES, KNOWN))


def test_a_summary_cannot_carry_a_value_for_each_case(declared: Mapping[str, Any]) -> None:
    figures = {**FIGURES, "dice": {**SUMMARY, "cases": [0.1, 0.9, 0.4, 0.6]}}
    assert "0.9" not in blocked(
        check_document("evaluate", {"summaries": {"federated": figures}}, declared, RULES, KNOWN)
    )


def test_a_summary_cannot_carry_a_text_in_its_name(declared: Mapping[str, Any]) -> None:
    blocked(check_document("evaluate", {"summaries": {"patient Doe": FIGURES}}, declared, RULES, KNOWN))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_blocked_at_any_depth(declared: Mapping[str, Any], value: float) -> None:
    blocked(check_document("train", {**TRAINED, "train_loss": value}, declared, RULES, KNOWN))
    deep = {**FIGURES, "dice": {**SUMMARY, "sd": value}}
    blocked(check_document("evaluate", {"summaries": {"federated": deep}}, declared, RULES, KNOWN))


@pytest.mark.parametrize("verb", ["export", "plan", ""])
def test_a_verb_without_declared_output_returns_nothing(declared: Mapping[str, Any], verb: str) -> None:
    blocked(check_document(verb, {}, declared, RULES, KNOWN))


def test_a_missing_field_is_blocked(declared: Mapping[str, Any]) -> None:
    blocked(check_document("train", {"train_loss": 0.1}, declared, RULES, KNOWN))
    blocked(check_document("evaluate", {}, declared, RULES, KNOWN))


def test_a_metric_the_policy_does_not_name_is_taken_out_and_the_run_goes_on(declared: Mapping[str, Any]) -> None:
    only_dice = replace(RULES, metrics=frozenset({"dice"}))
    left = passes(check_document("evaluate", {"summaries": {"federated": FIGURES}}, declared, only_dice, KNOWN))
    assert left == {"summaries": {"federated": {"n": 4, "dice": SUMMARY}}}
    assert passes(check_document("train", TRAINED, declared, only_dice, KNOWN)) == {
        "n_train": 8,
        "train_loss": None,
        "seconds": 1.5,
        "incoming": {"n_val": 4, "val_loss": None, "val_dice": 0.5},
    }


def test_of_too_few_validation_cases_only_their_number_leaves(declared: Mapping[str, Any]) -> None:
    few = {**TRAINED, "incoming": {"n_val": 2, "val_loss": 0.6, "val_dice": 0.5}}
    left = passes(check_document("train", few, declared, RULES, KNOWN))
    assert left["incoming"] == {"n_val": 2, "val_loss": None, "val_dice": None}


def test_of_too_few_test_cases_not_even_their_number_leaves(declared: Mapping[str, Any]) -> None:
    of_two = {"n": 2, "dice": {**SUMMARY, "histogram": [*[0] * 19, 2]}}
    few = {"summaries": {"federated": of_two, "local:site-a": FIGURES}}
    left = passes(check_document("evaluate", few, declared, RULES, KNOWN))["summaries"]
    assert left["federated"] == {"n": None, "withheld": "too_few_test_cases"}
    assert left["local:site-a"] == FIGURES


def test_the_gate_does_not_change_what_it_was_given(declared: Mapping[str, Any]) -> None:
    before = json.dumps(TRAINED)
    check_document("train", TRAINED, declared, replace(RULES, metrics=frozenset()), KNOWN)
    assert json.dumps(TRAINED) == before


def test_numbers_leave_with_the_decimals_that_the_release_declares(declared: Mapping[str, Any]) -> None:
    fine = {**TRAINED, "train_loss": 0.123456789, "incoming": {"n_val": 4, "val_loss": 0.6, "val_dice": 0.55557}}
    left = passes(check_document("train", fine, declared, RULES, KNOWN))
    assert left["train_loss"] == 0.1235
    assert left["incoming"]["val_dice"] == 0.5556
    coarse = {**declared, "train": {**declared["train"], "decimals": 1}}
    assert passes(check_document("train", fine, coarse, RULES, KNOWN))["train_loss"] == 0.1
    greedy = {**declared, "train": {**declared["train"], "decimals": 12}}
    assert passes(check_document("train", fine, greedy, RULES, KNOWN))["train_loss"] == 0.123457


def test_what_is_in_a_document_is_told_by_name_and_never_by_value() -> None:
    assert field_names(TRAINED) == (
        "n_train", "train_loss", "seconds", "incoming.n_val", "incoming.val_loss", "incoming.val_dice",
    )  # fmt: skip
    assert field_names({"a": None, "b": {}, "c": [1]}) == ("b", "c")


# ------------------------------------------------------------------------------------------ what a worker says


@pytest.mark.parametrize("said", ["DOE_JOHN", "doe_john", "worker_failed_doe", "", "x" * 10000])
def test_a_failure_that_is_not_known_leaves_as_such(said: str) -> None:
    assert failure_code(said) == "worker_failed"


def test_every_failure_of_a_worker_that_comes_with_msfl_keeps_its_name() -> None:
    """Codes of the aggregator never pass a gate."""
    root = Path(find_recipe("logistic")).parents[1]
    said = re.compile(r'(?:TaskRefusal|ModelRefusal)\(\s*"([a-z0-9_]+)"')
    files = [f for f in root.rglob("*.py") if f.name not in ("aggregator.py", "mixing.py")]
    codes = {code for f in files for code in said.findall(f.read_text())}
    assert len(codes) > 20
    assert {code for code in codes if failure_code(code) != code} == set()


def test_progress_leaves_as_a_known_phase_two_counts_and_the_loss() -> None:
    said = Progress("DOE", "Doe^John", 3, 10**12, {"train_loss": 0.123456, "Doe^John": 1.0})
    left = progress_of("run-1", "train/1", said, RULES)
    assert left == SiteProgress("run-1", "train/1", "working", 0, 1000, {"train_loss": 0.1235})
    assert progress_of("run-1", "train/1", said, replace(RULES, metrics=frozenset())).metrics == {}
    odd = Progress("t", "train", -5, -1, {"train_loss": math.inf})
    assert progress_of("r", "t", odd, RULES) == SiteProgress("r", "t", "train", 0, 0, {})


def test_progress_goes_on_and_is_no_telegraph() -> None:
    """Phases that come back, totals that change and steps that go back would say whatever a worker likes, unsealed."""
    onward = Onward()

    def passes_on(phase: str, done: int, total: int = 40) -> bool:
        return onward.lets_by(progress_of("run-1", "train/1", Progress("t", phase, done, total, {}), RULES))

    assert passes_on("validate", 0)
    assert passes_on("validate", 40)
    assert not passes_on("validate", 40)
    assert passes_on("train", 1)
    assert not passes_on("train", 2, total=41)
    assert not passes_on("train", 1)
    assert not passes_on("train", 0)
    assert passes_on("train", 7)
    for step in range(100):  # Each of them would be the end of a phase, which is said at once.
        assert not passes_on("validate", 40, total=40 + step)
    assert passes_on("DOE", 1), "as `working`"
    assert not passes_on("JOHN", 1), "the same phase"


def test_a_loss_has_few_digits_and_is_one() -> None:
    def said(loss: float) -> dict[str, float]:
        return dict(progress_of("r", "t", Progress("t", "train", 1, 2, {"train_loss": loss}), RULES).metrics)

    assert said(123456.789) == {"train_loss": 123500.0}
    assert said(-0.98765432) == {"train_loss": -0.9877}
    for odd in (1e7, -1e300, math.nan, math.inf):
        assert said(odd) == {}


def test_a_run_may_send_what_its_rounds_need_and_not_much_more() -> None:
    most = allowance(50, RULES)
    assert 50 + 10 <= most.uploads <= 4 * (50 + 10)
    assert 51 * RULES.weights_max_bytes <= most.bytes <= 400 * RULES.weights_max_bytes
    assert allowance(50, replace(RULES, weights_max_bytes=0)).bytes == most.uploads << 20


# -------------------------------------------------------------------------------------------------------- tensors


def tensors_file(*shapes: tuple[int, ...], dtype: str = "F32", pad: int = 0) -> bytes:
    """A safetensors file of tensors t0, t1, …; the header is `pad` spaces longer than it must be."""
    header, at = {}, 0
    for i, shape in enumerate(shapes):
        size = 4 * math.prod(shape)
        header[f"t{i}"] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode() + b" " * pad
    values = np.random.default_rng(0).normal(size=at // 4).astype("<f4")
    return struct.pack("<Q", len(text)) + text + values.tobytes()


TWO = ((3, 5), (7,))
GOOD = tensors_file(*TWO)


def head(data: bytes) -> bytes:
    return data[: 8 + struct.unpack("<Q", data[:8])[0]]


class Trickle(io.BytesIO):
    """A raw file that gives at most `step` bytes at a time, as a raw file may."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self._step = step

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[: self._step])

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(self._step, size if size is not None and size >= 0 else self._step))


def gate(data: bytes, template: bytes = GOOD, max_bytes: int = 1 << 20, step: int = 1 << 20) -> CheckedTensors:
    return CheckedTensors(Trickle(data, step), len(data), head(template), max_bytes)


def read_all(data: bytes, max_bytes: int, step: int, template: bytes = GOOD) -> bytes:
    return b"".join(bytes(piece) for piece in gate(data, template, max_bytes, step).pieces())


def refused(data: bytes, max_bytes: int = 1 << 20, step: int = 64) -> str:
    with pytest.raises(Refused) as error:
        read_all(data, max_bytes, step)
    assert error.value.refusal.code is Code.OUTPUT_BLOCKED
    return error.value.refusal.message


@pytest.mark.parametrize("pad", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 1 << 20])
def test_weights_pass_to_the_byte_whatever_the_sizes_of_the_reads(step: int, pad: int) -> None:
    data = tensors_file(*TWO, pad=pad)
    assert read_all(data, len(data), step, template=data) == data


def test_the_same_tensors_under_a_header_of_another_spelling_are_blocked() -> None:
    """The spelling of a header could carry a message, and the values would lie elsewhere."""
    assert "spelled" in refused(tensors_file(*TWO, pad=8))


@pytest.mark.parametrize(("change", "why"), [(b"more", "grew"), (-4, "shrank"), (-40, "shrank")])
def test_a_file_that_changes_its_length_while_it_is_read_is_blocked(change: bytes | int, why: str) -> None:
    file = Trickle(GOOD, 16)
    checked = CheckedTensors(file, len(GOOD), head(GOOD), 1 << 20)
    pieces = checked.pieces()
    next(pieces)
    if isinstance(change, bytes):
        file.getbuffer()  # as long as no view of it is held, it may grow
        at = file.tell()
        file.seek(0, io.SEEK_END)
        file.write(change)
        file.seek(at)
    else:
        file.truncate(len(GOOD) + change)
    with pytest.raises(Refused, match=why):
        list(pieces)


@pytest.mark.parametrize("step", [1, 3, 64, 1 << 20])
@pytest.mark.parametrize("bits", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\x01\x00\x80\x7f"])
@pytest.mark.parametrize("at", [-4, -48, -88])
def test_one_number_that_is_not_finite_anywhere_blocks_the_weights(step: int, bits: bytes, at: int) -> None:
    """NaN, both infinities and a signalling NaN; in the last float, across the tensors' border, in the first."""
    data = bytearray(GOOD)
    data[len(data) + at : len(data) + at + 4] = bits
    assert "not finite" in refused(bytes(data), step=step)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tensors_file((3, 5), (8,)), "shape"),
        (tensors_file((5, 3), (7,)), "shape"),
        (tensors_file((3, 5)), "differ"),
        (tensors_file((3, 5), (7,), (1,)), "differ"),
        (tensors_file(), "differ"),
        (tensors_file(*TWO, dtype="I32"), "F32"),
        (GOOD + b"\0", "more or less than its tensors"),
        (GOOD + b"patient data" * 100, "more or less than its tensors"),
        (GOOD[:-1], "more or less than its tensors"),
        (GOOD[:20], "header"),
        (b"", "header"),
        (struct.pack("<Q", 1 << 62), "header"),
        (b"\x80\x04\x95 a pickle of some sort", "header"),
    ],
)
def test_what_is_not_exactly_the_model_is_blocked(data: bytes, why: str) -> None:
    assert why in refused(data)


def test_free_text_in_the_header_is_blocked() -> None:
    (length,) = struct.unpack("<Q", GOOD[:8])
    header = json.loads(GOOD[8 : 8 + length]) | {"__metadata__": {"note": "Doe^John"}}
    text = json.dumps(header).encode()
    assert "Doe" not in refused(struct.pack("<Q", len(text)) + text + GOOD[8 + length :])


def test_weights_beyond_the_policys_size_are_blocked() -> None:
    gate(GOOD, max_bytes=len(GOOD))
    assert "policy allows" in refused(GOOD, max_bytes=len(GOOD) - 1)


def test_where_no_weights_may_leave_none_do() -> None:
    refused(GOOD, max_bytes=0)


def test_checked_weights_travel_in_a_parcel_and_come_out_the_same() -> None:
    header = StreamHeader("run-7", "train/1", 1, "site-a", 1, "up", "result")
    sealed, parcel, out = io.BytesIO(), io.BytesIO(), io.BytesIO()
    seal(
        bytes(32),
        header,
        [beginning({"n_train": 4}, tensors=True), *map(bytes, gate(GOOD).pieces())],
        sealed,
        salt=bytes(32),
    )
    sealed.seek(0)
    open_sealed(bytes(32), header, sealed, parcel)
    parcel.seek(0)
    assert unpack(parcel, out) == ({"n_train": 4}, len(GOOD))
    assert out.getvalue() == GOOD


def test_the_template_is_read_from_what_this_site_was_sent(tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(GOOD)
    assert head_of(tmp_path / "sent") == head(GOOD)
    (tmp_path / "sent").write_bytes(b"broken")
    with pytest.raises(BadTensors):
        head_of(tmp_path / "sent")
