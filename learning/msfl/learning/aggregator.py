"""The aggregator: the model at the centre, the only process there that may see what single sites sent.

    verb        in                                            out
    open        run_id, sealed_keys                           –
    plan        {site: sealed fingerprint}, recipients        plan_hash, plan_summary, n_parameters, weights_sha256;
                                                              plan/<site>, weights/<site> (round 0)
    aggregate   round r, {site: sealed update}, recipients,   sites, weights_sha256; weights/<site> (round r)
                late
    candidates  {site: sealed local model}, recipients,       federated/<site>, local:<other>/<site>
                federated_round b
    collect     task_id, {site: sealed summaries}             sites
    export      federated_round b, labels                     weights_sha256; model (zip), weights

Every stream that comes in is `up`, artifact `result`, of the attempt that `attempts` names (1 where it names none);
every stream that goes out is `down`. The keys come
sealed to a key pair that is made at the start and never written down.

An update is opened whole to a private file and examined (header, document, names, shapes, finite) before a single
value of it is used; when one update of a round is refused, nothing of the round is summed. The sum goes in sorted site
order, in float64, block by block: the result does not depend on who was fast, and memory not on the number of sites.

`scratch` keeps what a restarted process needs: `plan.json` and every round's model, `models/round-<rrr>.safetensors`,
both durable before their verb returns. The same verb asked again does the same again.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from msfl.learning import weights as weight_files
from msfl.learning.contract import FederatedModel, JsonObject
from msfl.learning.files import canonical_json, json_hash, read_json_object, sha256_of_file, write_whole
from msfl.learning.strategies import STRATEGIES, WEIGHTINGS, Strategy
from msfl.learning.tasks import OpenProgress, Outcome, TaskRefusal, Verb, Workplace, parameter
from msfl.learning.weights import TensorFile
from msfl.protos.parcel import pack, unpack
from msfl.protos.sealing import SealBroken, StreamHeader, open_sealed, open_with, seal
from msfl.protos.tasklink import Task
from msfl.protos.tensors import BadTensors

MAX_CASES = 1 << 24  # Of one site. Together with float32 values, every product in the sum is exact in float64.
SALT_BYTES = 32
_TRAIN_FIELDS = {"n_train", "train_loss", "seconds"}
_INCOMING_FIELDS = {"n_val", "val_loss", "val_dice"}
_OPTIONAL_FIELDS = {"peak_rss_mib"}
_SUMMARY_FIELDS = {"mean", "sd", "median", "histogram"}
_MODEL_NAME = re.compile(r"federated|local:[a-z0-9][a-z0-9._-]{0,63}")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_SUMMARIES = 256  # models of one site, and entries of one summary
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first moment a zip can hold


@dataclass(frozen=True)
class _Run:
    """What `open` brought: the run and a key for every site's streams."""

    run_id: str
    keys: Mapping[str, bytes]


@dataclass(frozen=True)
class _Opened:
    """One opened and authenticated parcel; `tensors` is a private file, None when the parcel carried none."""

    site: str
    document: JsonObject
    tensors: Path | None


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
        self._strategy: tuple[str, Strategy] | None = None
        self._models = place.scratch / "models"
        self._models.mkdir(mode=0o700, exist_ok=True)
        self.verbs: Mapping[str, Verb] = {
            "open": self._open,
            "plan": self._make_plan,
            "aggregate": self._aggregate,
            "candidates": self._candidates,
            "collect": self._collect,
            "export": self._export,
        }

    # ------------------------------------------------------------------ verbs

    def _open(self, task: Task, open_progress: OpenProgress) -> Outcome:
        run_id = parameter(task, "run_id", str)
        sealed = parameter(task, "sealed_keys", str)
        try:
            info = b"msfl/aggregator-keys/v1|" + run_id.encode()
            plain = open_with(self._private, base64.b64decode(sealed, validate=True), info)
            keys = {site: base64.b64decode(key, validate=True) for site, key in json.loads(plain).items()}
        except (SealBroken, binascii.Error) as error:
            raise TaskRefusal("keys_unreadable", f"the run keys were not sealed to this process: {error}") from error
        if self._plan_file.exists() and read_json_object(self._plan_file)["run_id"] != run_id:
            raise TaskRefusal("other_run", f"this folder holds the state of another run than {run_id}")
        self._run = _Run(run_id, keys)
        return Outcome()

    def _make_plan(self, task: Task, open_progress: OpenProgress) -> Outcome:
        recipients = self._recipients(task)
        with self._opened(task, "fingerprint", 0) as parcels:
            for parcel in parcels:
                _without_tensors(parcel)
            fingerprints = {
                p.site: {k: p.document[k] for k in p.document if k not in _OPTIONAL_FIELDS} for p in parcels
            }
        # Through its canonical form, so that everybody holds the same plain JSON: no tuples, no numpy numbers.
        plan: JsonObject = json.loads(canonical_json(self._model.plan(fingerprints, task.config)))
        initial = self._model.initial(plan, task.config)
        weights_sha256 = weight_files.save(self._model_file(0), initial, durable=True)
        plan_hash = json_hash(plan)
        # What the labels are called, for `export`, from the sites themselves if the task will not say it.
        labels: JsonObject = next(
            (f["labels"] for _, f in sorted(fingerprints.items()) if isinstance(f.get("labels"), dict)), {}
        )
        state = {"run_id": self._the_run.run_id, "plan": plan, "plan_hash": plan_hash, "labels": labels}
        write_whole(self._plan_file, [canonical_json(state)], durable=True)
        progress = open_progress("seal")
        files: dict[str, str] = {}
        for done, site in enumerate(recipients):
            progress(done, len(recipients))
            files[f"plan/{site}"] = self._seal("plan", 0, site, "plan", {"plan": plan, "plan_hash": plan_hash}, None)
            files[f"weights/{site}"] = self._seal("plan", 0, site, "weights", {}, self._model_file(0))
        document = {
            "plan_hash": plan_hash,
            "plan_summary": plan.get("summary", {}),
            "n_parameters": TensorFile(self._model_file(0)).n_parameters,
            "weights_sha256": weights_sha256,
        }
        return Outcome(document, files)

    def _aggregate(self, task: Task, open_progress: OpenProgress) -> Outcome:
        current = TensorFile(self._model_after(task.round - 1))
        late = parameter(task, "late", list, [])
        recipients = sorted({*self._recipients(task), *late})
        weighting = WEIGHTINGS[_choice(task.config, "weighting", "cases", WEIGHTINGS)]
        strategy = self._the_strategy(task.config)
        progress = open_progress("aggregate")
        with self._opened(task, f"train/{task.round}", task.round) as parcels:
            if not parcels:
                raise TaskRefusal("no_updates", f"round {task.round} has no update to sum")
            # All are examined before the first is summed.
            updates = [(p, _examined_update(p, current), _training_document(p)) for p in parcels]
            strategy.begin(current)
            for done, (parcel, tensors, document) in enumerate(updates):
                progress(done, len(updates))
                strategy.add(parcel.site, weighting(document["n_train"]), tensors)
            following = strategy.finish()
            sites = {parcel.site: document for parcel, _, document in updates}
        weights_sha256 = weight_files.save(self._model_file(task.round), following, durable=True)
        del following
        files = {
            f"weights/{site}": self._seal(
                f"aggregate/{task.round}", task.round, site, "weights", {}, self._model_file(task.round)
            )
            for site in recipients
        }
        return Outcome({"sites": sites, "weights_sha256": weights_sha256}, files)

    def _candidates(self, task: Task, open_progress: OpenProgress) -> Outcome:
        best = parameter(task, "federated_round", int)
        recipients = self._recipients(task)
        federated = self._model_after(best)
        template = TensorFile(federated)
        files: dict[str, str] = {}
        with self._opened(task, "baseline", 0) as parcels:
            for parcel in parcels:
                if parcel.tensors is not None:
                    _examined_update(parcel, template)
            progress = open_progress("seal")
            for done, site in enumerate(recipients):
                progress(done, len(recipients))
                files[f"federated/{site}"] = self._seal("candidates", best, site, "federated", {}, federated)
                for parcel in parcels:
                    if parcel.tensors is not None and parcel.site != site:
                        artifact = f"local:{parcel.site}"
                        sealed = self._seal("candidates", best, site, artifact, {}, parcel.tensors)
                        files[f"{artifact}/{site}"] = sealed
        return Outcome({}, files)

    def _collect(self, task: Task, open_progress: OpenProgress) -> Outcome:
        with self._opened(task, parameter(task, "task_id", str), task.round) as parcels:
            return Outcome({"sites": {parcel.site: _summaries_document(parcel) for parcel in parcels}})

    def _export(self, task: Task, open_progress: OpenProgress) -> Outcome:
        open_progress("export")(0, 1)
        path = self._model_after(parameter(task, "federated_round", int, task.round))
        if not self._plan_file.exists():
            raise TaskRefusal("no_plan", "no plan has been made in this run")
        kept = read_json_object(self._plan_file)
        labels = parameter(task, "labels", dict, kept["labels"])
        archive = self._place.output("zip")
        with tempfile.TemporaryDirectory(dir=self._place.scratch) as name:
            folder = Path(name) / "model"
            folder.mkdir()
            self._model.export(kept["plan"], weight_files.load(path), labels, folder)
            zip_folder(folder, archive)
        copy = self._place.output("safetensors")
        shutil.copyfile(path, copy)
        return Outcome({"weights_sha256": sha256_of_file(path)}, {"model": archive.name, "weights": copy.name})

    # ------------------------------------------------------------------ state

    @property
    def _the_run(self) -> _Run:
        if self._run is None:
            raise TaskRefusal("not_open", "the run's keys have not been handed over")
        return self._run

    @property
    def _plan_file(self) -> Path:
        return self._place.scratch / "plan.json"

    def _model_file(self, round: int) -> Path:
        return self._models / f"round-{round:03d}.safetensors"

    def _model_after(self, round: int) -> Path:
        path = self._model_file(round)
        if not path.exists():
            raise TaskRefusal("no_such_round", f"there is no model of round {round}")
        return path

    def _the_strategy(self, config: JsonObject) -> Strategy:
        name = _choice(config, "strategy", "fedavg", STRATEGIES)
        if self._strategy is None or self._strategy[0] != name:
            self._strategy = (name, STRATEGIES[name](config))
        return self._strategy[1]

    def _recipients(self, task: Task) -> list[str]:
        recipients = sorted(set(parameter(task, "recipients", list)))
        if unknown := [site for site in recipients if site not in self._the_run.keys]:
            raise TaskRefusal("unknown_site", f"no key was handed over for {', '.join(map(str, unknown))}")
        return recipients

    # ---------------------------------------------------------------- streams

    @contextmanager
    def _opened(self, task: Task, task_id: str, round: int) -> Iterator[list[_Opened]]:
        """Every sealed result the task brings, opened, in sorted site order; the private files live as long as this."""
        with tempfile.TemporaryDirectory(dir=self._place.scratch) as name:
            yield [self._open_one(task, site, task_id, round, Path(name)) for site in sorted(task.files)]

    def _open_one(self, task: Task, site: str, task_id: str, round: int, folder: Path) -> _Opened:
        key = self._the_run.keys.get(site)
        if key is None:
            raise TaskRefusal("unknown_site", f"no key was handed over for {site}")
        expected = StreamHeader(
            run_id=self._the_run.run_id,
            task_id=task_id,
            round=round,
            site=site,
            attempt=_attempt(task, site),
            direction="up",
            artifact="result",
        )
        number = sorted(task.files).index(site)
        plain, tensors = folder / f"{number}.parcel", folder / f"{number}.safetensors"
        try:
            with self._place.input(task, site).open("rb") as source, plain.open("wb") as out:
                open_sealed(key, expected, source, out)
            with plain.open("rb") as source, tensors.open("wb") as out:
                document, n_bytes = unpack(source, out)
            canonical_json(document)  # Raises ValueError for NaN, which Python's JSON reader lets in.
        except SealBroken as error:
            raise TaskRefusal(f"seal_{error.code}", f"{task_id} of {site}: {error}") from error
        except (ValueError, RecursionError) as error:  # BadParcel; or JSON nested thousands of levels deep
            raise TaskRefusal("update_malformed", f"{task_id} of {site}: {error}") from error
        plain.unlink()
        return _Opened(site, document, tensors if n_bytes else None)

    def _seal(
        self, task_id: str, round: int, site: str, artifact: str, document: JsonObject, tensors: Path | None
    ) -> str:
        """Pack and seal for one site; returns the bare name in the outbox."""
        header = StreamHeader(
            run_id=self._the_run.run_id,
            task_id=task_id,
            round=round,
            site=site,
            attempt=1,
            direction="down",
            artifact=artifact,
        )
        path = self._place.output("sealed")
        partial = path.with_name(f".{path.name}.part")
        key, salt = self._the_run.keys[site], self._entropy(SALT_BYTES)
        with partial.open("wb") as out:
            if tensors is None:
                seal(key, header, pack(document, None), out, salt=salt)
            else:
                with tensors.open("rb") as source:
                    seal(key, header, pack(document, source), out, salt=salt)
        partial.rename(path)
        return path.name


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


# ------------------------------------------------------- what a site may say


def _examined_update(parcel: _Opened, template: TensorFile) -> TensorFile:
    """The parcel's tensors, all of them looked at. Raises TaskRefusal."""
    if parcel.tensors is None:
        raise TaskRefusal("update_without_tensors", f"the update of {parcel.site} carries no weights")
    try:
        tensors = TensorFile(parcel.tensors)
        tensors.expect(template.table)
        tensors.check_finite()
    except BadTensors as error:
        raise TaskRefusal(f"update_{error.code}", f"the update of {parcel.site}: {error}") from error
    return tensors


def _without_tensors(parcel: _Opened) -> None:
    if parcel.tensors is not None:
        raise TaskRefusal("unexpected_tensors", f"{parcel.site} sent tensors where a document was asked for")


def _training_document(parcel: _Opened) -> JsonObject:
    """`n_train`, `train_loss`, `seconds`, `incoming`; a site's policy may have withheld a number (None)."""
    document = {k: v for k, v in parcel.document.items() if k not in _OPTIONAL_FIELDS}
    incoming = document.pop("incoming", None) or {}
    known = set(document) == _TRAIN_FIELDS and isinstance(incoming, dict) and set(incoming) <= _INCOMING_FIELDS
    numbers = (document.get("train_loss"), document.get("seconds"), *(incoming.values() if known else ()))
    n_train = document.get("n_train")
    if not known or not all(v is None or _is_number(v) for v in numbers):
        raise TaskRefusal("update_fields", f"the document of {parcel.site} has other fields than an update's")
    if type(n_train) is not int or not 1 <= n_train <= MAX_CASES:
        raise TaskRefusal("update_cases", f"{parcel.site} claims {n_train!r:.40} training cases")
    return {**document, "incoming": incoming}


def _summaries_document(parcel: _Opened) -> JsonObject:
    """`{"summaries": {model: summary}}`, and nothing in it that is neither a number nor one of a few words."""
    _without_tensors(parcel)
    document = {k: v for k, v in parcel.document.items() if k not in _OPTIONAL_FIELDS}
    summaries = document.get("summaries")
    if set(document) != {"summaries"} or not isinstance(summaries, dict) or len(summaries) > MAX_SUMMARIES:
        raise TaskRefusal("update_fields", f"the document of {parcel.site} holds no summaries")
    for model, summary in summaries.items():
        if not _MODEL_NAME.fullmatch(model) or not _is_summary(summary):
            raise TaskRefusal("update_fields", f"a summary of {parcel.site} holds more than numbers")
    return document


def _is_summary(summary: object) -> bool:
    if not isinstance(summary, dict) or "n" not in summary or len(summary) > MAX_SUMMARIES:
        return False
    for name, value in summary.items():
        match value:
            case str():  # why the site withholds the numbers, a code
                good = name == "withheld" and _WORD.fullmatch(value) is not None
            case dict():
                good = _WORD.fullmatch(name) is not None and set(value) == _SUMMARY_FIELDS
                good = good and all(_is_number(value[key]) for key in _SUMMARY_FIELDS - {"histogram"})
                good = good and _is_histogram(value["histogram"])
            case _:
                good = _WORD.fullmatch(name) is not None and (value is None or _is_number(value))
        if not good:
            return False
    return True


def _is_histogram(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 1000 and all(type(n) is int and 0 <= n <= MAX_CASES for n in value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e12  # type: ignore[arg-type]  # mypy cannot read type(…) in


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
