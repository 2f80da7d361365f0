"""The worker: a model beside the data of one site, for the length of one run.

    verb          in                                  out
    fingerprint   –                                   the fingerprint
    prepare       plan, plan_hash                     n_train, n_val, n_test
    train         stream=federated, file weights      n_train, train_loss, seconds, incoming; file weights
    train         stream=local, rounds, send_weights  n_train, train_loss, seconds; file weights only if send_weights
                  file weights (the initial ones)
    evaluate      split, candidates; a file each      summaries

`incoming` is what the model that came in (the result of the round before) reaches on this site's validation cases,
measured before training. What comes into round 1 is the initial model, which no round made: it is not measured.

The process is one for the whole run, so loaders and momentum live on. It may be killed all the same: the plan and the
state of the local stream lie in `scratch`, and a new process prepares the model again before the first verb that
needs it. The own local model is the one candidate that may come without a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from msfl.learning import weights as weight_files
from msfl.learning.contract import (
    Candidate,
    FederatedModel,
    JsonObject,
    Prepared,
    ReportProgress,
    Site,
    Split,
    Trained,
    Weights,
)
from msfl.learning.files import canonical_json, json_hash, read_json_object, sha256_of_file, write_whole
from msfl.learning.splits import split_cases
from msfl.learning.tasks import OpenProgress, Outcome, TaskRefusal, Verb, Workplace, parameter
from msfl.protos.tasklink import WEIGHTS_NAME, Task
from msfl.protos.tensors import BadTensors

VALIDATION_FRACTION = 0.2
NOT_MEASURED: JsonObject = {"val_loss": None, "val_dice": None}
Clock: TypeAlias = Callable[[], float]


class Worker:
    """The verbs of one site. `clock` gives seconds that only grow."""

    def __init__(self, model: FederatedModel, place: Workplace, site_id: str, data: Path, *, clock: Clock) -> None:
        self._model = model
        self._place = place
        self._site_id = site_id
        self._data = data
        self._clock = clock
        self._site: tuple[Any, Site] | None = None
        self._prepared = False
        self._holds_local = False
        self._model_memory = weight_files.Memory()
        self.verbs: Mapping[str, Verb] = {
            "fingerprint": self._fingerprint,
            "prepare": self._prepare,
            "train": self._train,
            "evaluate": self._evaluate,
        }

    # ------------------------------------------------------------------ verbs

    def _fingerprint(self, task: Task, open_progress: OpenProgress) -> Outcome:
        open_progress("fingerprint")(0, 1)
        return Outcome(self._model.fingerprint(self._the_site(task.config), task.config))

    def _prepare(self, task: Task, open_progress: OpenProgress) -> Outcome:
        plan = parameter(task, "plan", dict)
        plan_hash = parameter(task, "plan_hash", str)
        if json_hash(plan) != plan_hash:
            raise TaskRefusal("plan_hash_differs", f"the plan's hash is {json_hash(plan)}, announced is {plan_hash}")
        prepared = self._prepare_model(plan, task.config, open_progress("prepare"))
        write_whole(self._plan_file, [canonical_json(plan)])
        return Outcome({"n_train": prepared.n_train, "n_val": prepared.n_val, "n_test": prepared.n_test})

    def _train(self, task: Task, open_progress: OpenProgress) -> Outcome:
        match parameter(task, "stream", str):
            case "federated":
                return self._train_federated(task, open_progress)
            case "local":
                return self._train_local(task, open_progress)
            case other:
                raise TaskRefusal("bad_task", f"task {task.task_id}: there is no stream {other!r}")

    def _train_federated(self, task: Task, open_progress: OpenProgress) -> Outcome:
        began = self._clock()
        site = self._ready_site(task, open_progress)
        weights = self._load_model(task)
        incoming = self._measure_incoming(task, site, weights, open_progress("validate"))
        trained = self._model.train(site, weights, "federated", task.round, task.config, open_progress("train"))
        document = {**_facts(trained), "seconds": self._clock() - began, "incoming": incoming}
        return Outcome(document, {"weights": self._save(trained.weights, weights)})

    def _measure_incoming(self, task: Task, site: Site, weights: Weights, progress: ReportProgress) -> JsonObject:
        n_val = len(site.val_cases)
        if not n_val or task.round <= 1:
            return {"n_val": n_val, **NOT_MEASURED}
        candidates = (Candidate("federated", weights),)
        summary = self._model.evaluate(site, candidates, "validation", task.config, progress).summaries["federated"]
        dice = summary.get("dice", {})
        return {"n_val": summary["n"], "val_loss": summary.get("loss"), "val_dice": dice.get("mean")}

    def _train_local(self, task: Task, open_progress: OpenProgress) -> Outcome:
        began = self._clock()
        site = self._ready_site(task, open_progress)
        rounds = parameter(task, "rounds", int)
        if rounds < 1:
            raise TaskRefusal("bad_task", f"task {task.task_id}: local training of {rounds} rounds")
        initial = self._load(task, "weights")
        state = _LocalState.resume(self._local_file, sha256_of_file(self._place.input(task, "weights")), rounds)
        latest = weight_files.load(self._local_weights(state.round)) if state.round else initial
        progress = open_progress("train_local")
        for round in range(state.round + 1, rounds + 1):

            def report(
                done: int, total: int, metrics: Mapping[str, float] | None = None, *, before: int = round - 1
            ) -> None:
                progress(before * total + done, rounds * total, metrics)

            trained = self._model.train(site, latest, "local", round, task.config, report)
            _check_same_tensors(trained.weights, initial)
            latest = trained.weights
            state = _LocalState(state.initial, rounds, round, _facts(trained))
            # The state names the weights that it goes with: a kill between the two loses a round and repeats it.
            weight_files.write(self._local_weights(round), latest)
            state.keep(self._local_file)
            self._local_weights(round - 1).unlink(missing_ok=True)
            self._holds_local = True
        files = {"weights": self._save(latest, initial)} if parameter(task, "send_weights", bool, False) else {}
        return Outcome({**state.facts, "seconds": self._clock() - began}, files)

    def _evaluate(self, task: Task, open_progress: OpenProgress) -> Outcome:
        split: Split
        match parameter(task, "split", str):
            case "validation":
                split = "validation"
            case "test":
                split = "test"
            case other:
                raise TaskRefusal("bad_task", f"task {task.task_id}: there is no split {other!r}")
        names = parameter(task, "candidates", list)
        if len(set(names)) < len(names):
            raise TaskRefusal("bad_task", f"task {task.task_id} names a candidate twice")
        site = self._ready_site(task, open_progress)
        if not (site.test_cases if split == "test" else site.val_cases):
            return Outcome({"summaries": {name: {"n": 0} for name in names}})
        candidates = tuple(self._candidate(task, name) for name in names)
        evaluated = self._model.evaluate(site, candidates, split, task.config, open_progress(f"evaluate_{split}"))
        return Outcome({"summaries": evaluated.summaries})

    def _candidate(self, task: Task, name: str) -> Candidate:
        if name in task.files or name != f"local:{self._site_id}":
            return Candidate(name, self._load(task, name))
        if self._holds_local:
            return Candidate(name, None)
        if not self._local_file.exists():
            raise TaskRefusal("no_local_model", "this site has not trained a local model in this run")
        round = int(read_json_object(self._local_file)["round"])
        return Candidate(name, weight_files.load(self._local_weights(round)))

    # ----------------------------------------------------------------- pieces

    @property
    def _plan_file(self) -> Path:
        return self._place.scratch / "plan.json"

    @property
    def _local_file(self) -> Path:
        return self._place.scratch / "local.json"

    def _local_weights(self, round: int) -> Path:
        return self._place.scratch / f"local-{round:04d}.safetensors"

    def _the_site(self, config: JsonObject) -> Site:
        seed, fraction = config.get("seed", 0), config.get("validation_fraction", VALIDATION_FRACTION)
        if self._site is None or self._site[0] != (seed, fraction):
            site = find_site(self._site_id, self._data, self._place, seed=seed, validation_fraction=fraction)
            self._site = ((seed, fraction), site)
        return self._site[1]

    def _ready_site(self, task: Task, open_progress: OpenProgress) -> Site:
        """The site, with a prepared model. A process that was started anew prepares from the plan it kept."""
        if not self._prepared:
            if not self._plan_file.exists():
                raise TaskRefusal("not_prepared", f"{task.verb} before prepare")
            self._prepare_model(read_json_object(self._plan_file), task.config, open_progress("prepare"))
        return self._the_site(task.config)

    def _prepare_model(self, plan: JsonObject, config: JsonObject, progress: ReportProgress) -> Prepared:
        prepared = self._model.prepare(self._the_site(config), plan, config, progress)
        self._prepared = True
        return prepared

    def _load_model(self, task: Task) -> Weights:
        """The round's model, in the same memory each time: what the last round did with it is over."""
        return self._load(task, "weights", self._model_memory)

    def _load(self, task: Task, name: str, memory: weight_files.Memory | None = None) -> Weights:
        try:
            return (memory or weight_files.Memory()).load(self._place.input(task, name))
        except BadTensors as error:
            raise TaskRefusal(f"weights_{error.code}", f"{name}: {error}") from error

    def _save(self, weights: Weights, received: Weights) -> str:
        _check_same_tensors(weights, received)
        path = self._place.outbox / WEIGHTS_NAME
        try:
            # In the received order: the gate and the centre compare the first bytes of the file with the model's.
            weight_files.write_over(path, {name: weights[name] for name in received})
        except BadTensors as error:
            raise TaskRefusal(f"weights_{error.code}", f"after training: {error}") from error
        return path.name


@dataclass(frozen=True)
class _LocalState:
    """How far the local stream is: so many `rounds` from the initial weights of that hash, and the last one's facts."""

    initial: str
    rounds: int
    round: int
    facts: JsonObject

    @classmethod
    def resume(cls, path: Path, initial: str, rounds: int) -> _LocalState:
        fresh = cls(initial, rounds, 0, {})
        if not path.exists():
            return fresh
        kept = cls(**read_json_object(path))
        return kept if (kept.initial, kept.rounds) == (initial, rounds) else fresh

    def keep(self, path: Path) -> None:
        document = {"initial": self.initial, "rounds": self.rounds, "round": self.round, "facts": self.facts}
        write_whole(path, [canonical_json(document)])


def find_site(site_id: str, data: Path, place: Workplace, *, seed: int, validation_fraction: float) -> Site:
    """What `dataset.json` and the folder say, and the split of the training cases. Raises TaskRefusal.

    The gateway has examined the dataset long before (`msfl.imaging.datasets`); here only what is needed is read.
    """
    try:
        description = read_json_object(data / "dataset.json")
        channels, labels = description["channel_names"], description["labels"]
        channel_names = tuple(str(channels[str(i)]) for i in range(len(channels)))
        ending = str(description["file_ending"])
        values = {str(name): int(value) for name, value in labels.items()}
        named = description.get("validation")
        held_back = None if named is None else frozenset(map(str, named))
        cases = _cases(data / "imagesTr", ending)
        if held_back and not held_back < {*cases}:
            raise ValueError("it validates with other cases than those of imagesTr, or with all of them")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TaskRefusal("dataset_unreadable", f"dataset.json cannot be used: {error!r}") from error
    model_scratch = place.scratch / "model"  # The worker's own files lie beside it.
    model_scratch.mkdir(mode=0o700, exist_ok=True)
    train, validation = split_cases(cases, seed, validation_fraction, held_back)
    return Site(
        site_id=site_id,
        data=data,
        scratch=model_scratch,
        figures=place.figures,
        channel_names=channel_names,
        labels=values,
        file_ending=ending,
        train_cases=train,
        val_cases=validation,
        test_cases=_cases(data / "imagesTs", ending),
    )


def _cases(folder: Path, ending: str) -> tuple[str, ...]:
    """Cases are named after their first channel's file; a folder that is not there holds none."""
    first = f"_0000{ending}"
    return tuple(sorted(p.name.removesuffix(first) for p in folder.glob(f"*{first}") if not p.name.startswith(".")))


def _facts(trained: Trained) -> JsonObject:
    """Raises TaskRefusal for a loss that is not a finite number."""
    loss = float(trained.metrics.get("train_loss", math.nan))
    if not math.isfinite(loss):
        raise TaskRefusal("loss_not_finite", f"training ended with a loss of {loss}")
    return {"n_train": int(trained.n_train), "train_loss": loss}


def _check_same_tensors(trained: Weights, received: Weights) -> None:
    if weight_files.shapes_of(trained) != weight_files.shapes_of(received):
        raise TaskRefusal("weights_changed_shape", "training changed the names or shapes of the weights")
