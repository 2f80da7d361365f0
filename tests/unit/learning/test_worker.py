"""The life of a worker, told through its socket: what it answers, what it remembers, how it dies."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.hosts import Host
from fakes.models import PLAN, FakeModel, dataset_folder, zeros
from msfl.learning import weights as weight_files
from msfl.learning.contract import ModelRefusal
from msfl.learning.files import json_hash
from msfl.learning.tasks import ThrottledProgress
from msfl.learning.worker import _LocalState
from msfl.protos.tasklink import Failed, Progress, Result

N_TRAIN, N_VAL, N_TEST = 6, 2, 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return dataset_folder(tmp_path / "data", n_train=N_TRAIN + N_VAL, n_test=N_TEST)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def host(tmp_path: Path, data: Path, model: FakeModel) -> Iterator[Host]:
    with Host.of(model, tmp_path / "f", role="worker", data=data) as host:
        yield host


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    weight_files.save(tmp_path / "initial", zeros())
    return tmp_path / "initial"


PREPARE: dict[str, Any] = {"plan": PLAN, "plan_hash": json_hash(PLAN)}
FEDERATED = {"stream": "federated"}


def document(answer: Result | Failed) -> dict[str, Any]:
    assert isinstance(answer, Result), answer
    assert answer.document["peak_rss_mib"] > 1
    return {k: v for k, v in answer.document.items() if k not in ("peak_rss_mib", "seconds")}


def code(answer: Result | Failed) -> str:
    assert isinstance(answer, Failed), answer
    return answer.code


def test_it_greets_with_its_release(host: Host) -> None:
    assert (host.hello.release, host.hello.public_key) == ("fake:1.0.0", "")


def test_a_whole_life(host: Host, model: FakeModel, initial: Path) -> None:
    assert document(host.do("fingerprint")) == {"n_cases": N_TRAIN, "labels": {"background": 0, "lesion": 1}}
    assert document(host.do("prepare", PREPARE)) == {"n_train": N_TRAIN, "n_val": N_VAL, "n_test": N_TEST}

    first = host.do("train", FEDERATED, {"weights": initial}, round=1)
    not_measured = {"n_val": N_VAL, "val_loss": None, "val_dice": None}
    assert document(first) == {"n_train": N_TRAIN, "train_loss": 0.5, "incoming": not_measured}
    weights = host.output(first, "weights")
    assert np.array_equal(weight_files.load(weights)["drift"], np.ones(3))

    second = host.do("train", FEDERATED, {"weights": weights}, round=2)
    assert document(second)["incoming"] == {"n_val": N_VAL, "val_loss": 0.25, "val_dice": 0.75}

    local = host.do("train", {"stream": "local", "rounds": 2}, {"weights": initial})
    assert document(local) == {"n_train": N_TRAIN, "train_loss": 0.5}
    assert isinstance(local, Result)
    assert local.files == {}

    candidates = ["federated", "local:site-a", "local:site-b"]
    files = {"federated": weights, "local:site-b": initial}
    test = host.do("evaluate", {"split": "test", "candidates": candidates}, files)
    assert set(document(test)["summaries"]) == set(candidates)
    assert model.calls == [
        "fingerprint",
        "prepare None",
        "train federated 1 from 0",
        "evaluate validation federated=1.0",
        "train federated 2 from 1",
        "train local 1 from 0",
        "train local 2 from 1",
        "evaluate test federated=1.0 local:site-a=held local:site-b=0.0",
    ]


def test_local_weights_leave_only_when_asked_for(host: Host, initial: Path) -> None:
    host.do("prepare", PREPARE)
    local = host.do("train", {"stream": "local", "rounds": 3, "send_weights": True}, {"weights": initial})
    assert np.array_equal(weight_files.load(host.output(local, "weights"))["drift"], np.full(3, 6.0))


def test_progress_of_the_local_stream_counts_all_rounds(host: Host, initial: Path) -> None:
    host.do("prepare", PREPARE)
    host.do("train", {"stream": "local", "rounds": 4}, {"weights": initial})
    assert host.progress[-1] == Progress("train/0", "train_local", 12, 12, {"train_loss": 0.5})


def test_a_worker_started_again_prepares_itself_and_still_has_its_local_model(
    tmp_path: Path, data: Path, initial: Path
) -> None:
    with Host.of(FakeModel(), tmp_path / "f", role="worker", data=data) as host:
        host.do("prepare", PREPARE)
        host.do("train", {"stream": "local", "rounds": 2}, {"weights": initial})
    second = FakeModel()
    with Host.of(second, tmp_path / "f", role="worker", data=data) as host:
        host.do("train", FEDERATED, {"weights": initial}, round=1)
        host.do("train", {"stream": "local", "rounds": 2}, {"weights": initial})  # done before: not done again
        host.do("evaluate", {"split": "test", "candidates": ["local:site-a"]})
    assert second.calls == ["prepare None", "train federated 1 from 0", "evaluate test local:site-a=3.0"]


def test_a_worker_killed_inside_the_local_stream_goes_on_where_it_was(
    tmp_path: Path, data: Path, initial: Path
) -> None:
    class DiesInRoundThree(FakeModel):
        def train(self, site, weights, stream, round, config, progress):  # type: ignore[no-untyped-def]
            if round == 3:
                raise KeyError("power cut")
            return super().train(site, weights, stream, round, config, progress)

    local = {"stream": "local", "rounds": 4, "send_weights": True}
    with Host.of(DiesInRoundThree(), tmp_path / "f", role="worker", data=data) as host:
        host.do("prepare", PREPARE)
        assert code(host.do("train", local, {"weights": initial})) == "worker_error"
    second = FakeModel()
    with Host.of(second, tmp_path / "f", role="worker", data=data) as host:
        result = host.do("train", local, {"weights": initial})
        assert np.array_equal(weight_files.load(host.output(result, "weights"))["drift"], np.full(3, 10.0))
    assert second.calls == ["prepare None", "train local 3 from 3", "train local 4 from 6"]


def test_a_kill_between_a_rounds_weights_and_its_state_trains_that_round_once(
    tmp_path: Path, data: Path, initial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_as_ever = _LocalState.keep

    def keep_and_die(state: _LocalState, path: Path) -> None:
        if state.round == 3:
            raise KeyError("power cut")
        kept_as_ever(state, path)

    local = {"stream": "local", "rounds": 4, "send_weights": True}
    with monkeypatch.context() as patch, Host.of(FakeModel(), tmp_path / "f", role="worker", data=data) as host:
        patch.setattr(_LocalState, "keep", keep_and_die)
        host.do("prepare", PREPARE)
        assert code(host.do("train", local, {"weights": initial})) == "worker_error"
    second = FakeModel()
    with Host.of(second, tmp_path / "f", role="worker", data=data) as host:
        result = host.do("train", local, {"weights": initial})
        assert np.array_equal(weight_files.load(host.output(result, "weights"))["drift"], np.full(3, 10.0))
    assert second.calls == ["prepare None", "train local 3 from 3", "train local 4 from 6"]


def test_an_evaluate_only_site(tmp_path: Path, initial: Path) -> None:
    data = dataset_folder(tmp_path / "only-tests", n_train=0, n_test=2)
    with Host.of(FakeModel(), tmp_path / "f", role="worker", data=data) as host:
        assert document(host.do("prepare", PREPARE)) == {"n_train": 0, "n_val": 0, "n_test": 2}
        validation = host.do("evaluate", {"split": "validation", "candidates": ["federated"]}, {"federated": initial})
        assert document(validation) == {"summaries": {"federated": {"n": 0}}}
        test = host.do("evaluate", {"split": "test", "candidates": ["federated"]}, {"federated": initial})
        assert document(test)["summaries"]["federated"]["n"] == 2


# ----------------------------------------------------------------- refusals


def test_tasks_that_make_no_sense_are_refused_and_the_worker_lives_on(host: Host, initial: Path) -> None:
    assert code(host.do("train", FEDERATED, {"weights": initial}, round=1)) == "not_prepared"
    assert code(host.do("prepare", {**PREPARE, "plan_hash": "sha256:00"})) == "plan_hash_differs"
    assert code(host.do("prepare", {"plan": "x", "plan_hash": ""})) == "bad_task"
    host.do("prepare", PREPARE)
    refused: list[tuple[str, str, dict[str, Any]]] = [
        ("unknown_verb", "explode", {}),
        ("bad_task", "train", {}),
        ("bad_task", "train", {"stream": "sideways"}),
        ("bad_task", "train", {"stream": "local", "rounds": 0}),
        ("bad_task", "train", {"stream": "local", "rounds": True}),
        ("bad_task", "evaluate", {"split": "train", "candidates": []}),
        ("bad_task", "evaluate", {"split": "test", "candidates": ["federated", "federated"]}),
        ("no_local_model", "evaluate", {"split": "test", "candidates": ["local:site-a"]}),
        ("input_missing", "evaluate", {"split": "test", "candidates": ["local:site-b"]}),
    ]
    for expected, verb, parameters in refused:
        assert code(host.do(verb, parameters, {"weights": initial})) == expected, (verb, parameters)
    assert document(host.do("fingerprint"))["n_cases"] == N_TRAIN


def test_a_models_refusal_is_told_by_its_code(host: Host, model: FakeModel) -> None:
    model.fail["prepare"] = ModelRefusal("plan_refused", "it names os.system")
    answer = host.do("prepare", PREPARE)
    assert code(answer) == "plan_refused"
    assert not (host.folder / "scratch" / "plan.json").exists()
    del model.fail["prepare"]
    assert document(host.do("prepare", PREPARE))["n_train"] == N_TRAIN


def test_weights_that_are_no_weights_are_refused(host: Host, tmp_path: Path) -> None:
    host.do("prepare", PREPARE)
    (tmp_path / "junk").write_bytes(b"\x80\x04pickle")
    assert code(host.do("train", FEDERATED, {"weights": tmp_path / "junk"}, round=1)) == "weights_header_unreadable"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ({"drift": np.full(3, np.nan, dtype=np.float32), "shift": zeros()["shift"]}, "weights_not_finite"),
        ({"drift": zeros()["drift"]}, "weights_changed_shape"),
        ({"drift": np.zeros(4, dtype=np.float32), "shift": zeros()["shift"]}, "weights_changed_shape"),
    ],
)
def test_a_training_that_went_wrong_sends_no_weights(
    host: Host, model: FakeModel, initial: Path, spoil: dict[str, Any], expected: str
) -> None:
    host.do("prepare", PREPARE)
    model.spoil = spoil
    assert code(host.do("train", FEDERATED, {"weights": initial}, round=1)) == expected
    assert not list((host.folder / "outbox").iterdir())


def test_a_diverged_loss_is_a_refusal(host: Host, model: FakeModel, initial: Path) -> None:
    host.do("prepare", PREPARE)
    model.loss = float("nan")
    assert code(host.do("train", FEDERATED, {"weights": initial}, round=1)) == "loss_not_finite"


def test_a_dataset_that_cannot_be_read(host: Host, data: Path) -> None:
    (data / "dataset.json").write_text("[]")
    assert code(host.do("fingerprint")) == "dataset_unreadable"


# ---------------------------------------------------------------- its death


def test_a_bug_is_told_and_then_ends_the_process(tmp_path: Path, data: Path) -> None:
    bug = ZeroDivisionError("deep inside")
    with Host.of(FakeModel(fail={"fingerprint": bug}), tmp_path / "f", role="worker", data=data) as host:
        answer = host.do("fingerprint")
        assert code(answer) == "worker_error"
        assert isinstance(answer, Failed)
        assert "ZeroDivisionError: deep inside" in answer.detail
    assert host.died_of is bug


def test_a_document_that_is_no_finite_json_is_a_bug_of_the_model(tmp_path: Path, data: Path) -> None:
    class Careless(FakeModel):
        def fingerprint(self, site, config):  # type: ignore[no-untyped-def]
            return {"mean": float("nan")}

    with Host.of(Careless(), tmp_path / "f", role="worker", data=data) as host:
        assert code(host.do("fingerprint")) == "worker_error"
    assert isinstance(host.died_of, ValueError)


def test_stop_ends_it_well(tmp_path: Path, data: Path) -> None:
    with Host.of(FakeModel(), tmp_path / "f", role="worker", data=data) as host:
        pass
    assert (host.status, host.died_of) == (0, None)


# ----------------------------------------------------------------- progress


class _Wire:
    def __init__(self) -> None:
        self.sent: list[Progress] = []

    def send(self, frame: Progress) -> None:
        self.sent.append(frame)


def test_progress_is_throttled_but_the_last_step_is_always_told() -> None:
    wire, now = _Wire(), iter(i / 16 for i in range(100))
    report = ThrottledProgress(wire, "t", "train", lambda: next(now))  # type: ignore[arg-type]  # only `send` is used
    for step in range(1, 15):
        report(step, 14, {"train_loss": float("nan") if step == 14 else 1.0})
    assert [p.done for p in wire.sent] == [1, 5, 9, 13, 14]
    assert wire.sent[0].metrics == {"train_loss": 1.0}
    assert wire.sent[-1].metrics == {}
