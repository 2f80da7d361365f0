"""A worker hands its gateway something else than the weights of the model. None of it is sealed, and nothing of it is
ever loaded by what could execute it: the gateway reads a table of bounded size, and then numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.models import zeros
from fakes.weights_files import EXECUTED, HEAD, TENSOR_TRICKS
from msfl.gateway.task_files import TaskFiles
from msfl.learning import weights as weight_files
from msfl.policies.refusals import Code, Refused
from msfl.protos.tensors import BadTensors

MANY = 64 << 20


@pytest.fixture
def files(tmp_path: Path) -> TaskFiles:
    """Of a run whose model is that of the fakes, as this site was sent it."""
    for part in ("inbox", "outbox"):
        (tmp_path / "box" / part).mkdir(parents=True)
    weight_files.write(tmp_path / "box" / "inbox" / "000.safetensors", zeros())
    made = TaskFiles.__new__(TaskFiles)
    made._box, made.inbox = tmp_path / "box", tmp_path / "box" / "inbox"
    return made


def leaves(files: TaskFiles, data: bytes, max_bytes: int = MANY) -> bytes:
    """What would be sealed of it. Raises what stops the task (`output_blocked`)."""
    (files._box / "outbox" / "weights").write_bytes(data)
    pieces = files._checked("weights", files.inbox / "000.safetensors", max_bytes, 0)
    return b"".join(bytes(piece) for piece in pieces)


@pytest.mark.parametrize("trick", TENSOR_TRICKS)
def test_it_does_not_leave(files: TaskFiles, trick: str) -> None:
    _, data = TENSOR_TRICKS[trick]
    with pytest.raises((Refused, BadTensors)) as stopped:
        leaves(files, data)
    if isinstance(stopped.value, Refused):
        assert stopped.value.refusal.code is Code.OUTPUT_BLOCKED
    assert not EXECUTED.exists(), "a file of weights was executed"


def test_nothing_at_all_does_not_leave_either(files: TaskFiles) -> None:
    with pytest.raises(Refused, match="output_blocked"):
        leaves(files, b"")


def test_the_models_own_weights_leave_to_the_byte(files: TaskFiles) -> None:
    """So that what is refused above is refused for what is wrong with it."""
    data = HEAD + bytes(28)
    assert leaves(files, data) == data
