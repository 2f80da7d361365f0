"""A release tried out alone on one machine: its own processes, the product's walls and gate, data that are made up.

    image       built, put into a registry, pulled and verified as a site does
    worker      one per made-up site, started by the site's runtime; sees its data and nothing else
    aggregator  one, started the same way; gets what passed the gate, sealed, as from a site
    gate        `egress`: what does not pass here would not leave a site

    fingerprint ─▶ plan ─▶ prepare ─▶ train, `ROUNDS` times ─▶ validate ─▶ train alone ─▶ evaluate ─▶ export

A policy allows less than a release declares; here it allows all of it, so that what is shown is the most that could
leave. What the gate stops is a finding, and so is what was declared and never sent: reviewers will ask.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import jsonschema

from msfl.gateway.egress import CheckedTensors, check_document, head_of, progress_of
from msfl.gateway.forms import Known
from msfl.policies.decide import OutputRules
from msfl.policies.documents import ReleaseStatement
from msfl.policies.refusals import Refusal, Refused
from msfl.protos.notes import broadcast_header, note_in
from msfl.protos.parcel import pack, unpack
from msfl.protos.sealing import EVERYBODY, StreamHeader, open_sealed, seal, seal_to
from msfl.protos.tasklink import Progress, Result, Task
from msfl.protos.tensors import BadTensors, read_table
from msfl.runtime.collect import open_output
from msfl.runtime.hosted import HostedProcess
from msfl.runtime.interface import Image, Limits, Runtime, StartOrder

JsonObject: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[str], None]
SITES = ("site-a", "site-b")
ROUNDS = 2
MOST_BYTES = 16 << 30
_RUN = "rehearsal"
_OF_THE_LOSS = frozenset({"loss", "dice"})


@dataclass(frozen=True)
class Tensors:
    shapes: Mapping[str, tuple[int, ...]]
    bytes: int


@dataclass(frozen=True)
class Sent:
    """What one task of one site would send: the document as it passed the gate, and weights where there are any."""

    task: str
    site: str
    document: JsonObject
    tensors: Tensors | None


@dataclass(frozen=True)
class Blocked:
    """`why` is the gate's word, `more` what it keeps to itself at a site, because there it would quote data."""

    task: str
    site: str
    why: str
    more: str = ""


@dataclass
class Rehearsed:
    """`progress`: phases and numbers that a site says while it works; `kept`: numbers in it that never leave."""

    release: str
    digest: str
    protections: tuple[str, ...]
    sent: list[Sent] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)
    figures: set[str] = field(default_factory=set)
    progress: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    exported: int = 0
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Passed:
    """A result behind the gate, before it is sealed."""

    header: StreamHeader
    document: JsonObject
    tensors: Path | None


class Stopped(Exception):
    """The gate let nothing through of a task, so there is nothing to go on with."""


def rehearse(
    image: Image,
    statement: ReleaseStatement,
    config: JsonObject,
    data: Mapping[str, Path],
    runtime: Runtime,
    folder: Path,
    say: Say,
) -> Rehearsed:
    """`data` are folders in nnU-Net raw layout, one per made-up site; `folder` is new and ours.

    Raises TaskFailed and ProcessGone for a release that fails, Refused for an environment that is not the image's.
    """
    found = Rehearsed(statement.ref, image.digest, runtime.protections().detail)
    with ExitStack() as stack:
        desk = _Desk(image, statement, config, runtime, folder, found, stack)
        try:
            _walk(desk, tuple(data), data, say)
        except Stopped:
            say("Stopped: what comes next needs what was blocked.")
    for site in data:
        found.figures |= {f.name for f in (folder / site / "figures").glob("*") if f.is_file()}
    if not found.blocked:
        found.unused = unused(statement, found.sent)
    return found


def _walk(desk: _Desk, sites: tuple[str, ...], data: Mapping[str, Path], say: Say) -> None:
    tasks = desk.statement.tasks
    say("starting the workers")
    for site in sites:
        desk.start(site, data[site])
    if "fingerprint" not in tasks:
        return
    prints = {site: desk.at_site(site, "fingerprint", "fingerprint") for site in sites}
    say("planning")
    desk.start("centre", None)
    desk.open(sites)
    plan = desk.at_centre("plan", {"recipients": list(sites)}, prints)
    for site in sites if "prepare" in tasks else ():
        say(f"prepare at {site}")
        desk.at_site(site, "prepare", "prepare", desk.read(plan, f"plan/{site}", site, "plan", 0, "plan"))
    if not {"prepare", "train"} <= set(tasks):
        return
    initial = model = {site: desk.tensors(plan, site, "plan", 0, "weights") for site in sites}
    for round in range(1, ROUNDS + 1):
        say(f"train, round {round} of {ROUNDS}")
        federated = {"stream": "federated"}
        updates = {s: desk.at_site(s, f"train/{round}", "train", federated, model[s], round) for s in sites}
        summed = desk.at_centre("aggregate", {"recipients": list(sites)}, updates, round)
        model = {site: desk.tensors(summed, site, f"aggregate/{round}", round, "weights") for site in sites}
    for site in sites if "evaluate" in tasks else ():
        say(f"validate at {site}")
        asked = {"split": "validation", "candidates": ["federated"]}
        desk.at_site(site, "validate", "evaluate", asked, {"federated": model[site]}, ROUNDS)
    say("train alone, for comparison")
    local = {"stream": "local", "rounds": 1, "send_weights": True}
    own = {site: desk.at_site(site, "baseline", "train", local, initial[site]) for site in sites}
    chosen = {"recipients": list(sites), "federated_round": ROUNDS}
    candidates = desk.at_centre("candidates", chosen, own, ROUNDS)
    if "evaluate" in tasks:
        for site in sites:
            say(f"evaluate at {site}")
            desk.evaluate(candidates, site, [s for s in sites if s != site])
    say("export")
    exported = desk.at_centre("export", {"federated_round": ROUNDS}, {}, ROUNDS)
    desk.found.exported = desk.output("centre", exported, "model").stat().st_size


class _Desk:
    """The processes, and what goes between them."""

    def __init__(
        self,
        image: Image,
        statement: ReleaseStatement,
        config: JsonObject,
        runtime: Runtime,
        folder: Path,
        found: Rehearsed,
        stack: ExitStack,
    ) -> None:
        self.statement = statement
        self.found = found
        self._image = image
        self._config = config
        self._runtime = runtime
        self._folder = folder
        self._stack = stack
        self._processes: dict[str, HostedProcess] = {}
        self._keys: dict[str, bytes] = {}
        self._kept: dict[str, Path] = {}
        self._known: dict[str, Known] = {}
        self._rules = everything_declared(statement)
        self._number = 0

    def start(self, name: str, data: Path | None) -> None:
        order = StartOrder(
            run_id=_RUN,
            image=self._image,
            release=self.statement.ref,
            role="aggregator" if data is None else "worker",
            folder=self._folder / name,
            data=data,
            site=None if data is None else name,
            log=self._folder / f"{name}.log",
            limits=Limits(threads=int(self._config.get("threads", 1))),
        )
        if data is not None:
            said = json.loads((data / "dataset.json").read_bytes())
            channels, first = said["channel_names"], f"*_0000{said['file_ending']}"
            n_train, n_test = (len(list((data / part).glob(first))) for part in ("imagesTr", "imagesTs"))
            names = frozenset((*channels.values(), *said["labels"]))
            self._known[name] = Known(names, len(channels), n_train, n_test)
        self._processes[name] = process = HostedProcess.start(self._runtime, order)
        self._stack.callback(process.stop)

    def open(self, sites: tuple[str, ...]) -> None:
        self._keys = {name: secrets.token_bytes(32) for name in (*sites, EVERYBODY)}
        plain = json.dumps({name: base64.b64encode(key).decode() for name, key in self._keys.items()}).encode()
        public = base64.b64decode(self._processes["centre"].hello.public_key)
        box = seal_to(public, plain, b"msfl/aggregator-keys/v1|" + _RUN.encode())
        self._ask("centre", "open", {"run_id": _RUN, "sealed_keys": base64.b64encode(box).decode()}, {}, 0)

    # ------------------------------------------------------------------ at a site

    def at_site(
        self,
        site: str,
        task: str,
        verb: str,
        document: JsonObject | None = None,
        weights: Path | Mapping[str, Path] | None = None,
        round: int = 0,
    ) -> _Passed:
        """The worker does the verb, and its result goes through the gate. Raises Stopped."""
        files = {"weights": weights} if isinstance(weights, Path) else dict(weights or {})
        asked = document or {}
        result = self._ask(site, verb, asked, files, round)
        made = {k: v for k, v in result.document.items() if k != "peak_rss_mib"}
        known = self._known[site]
        if verb == "evaluate":
            known = replace(known, names=frozenset(asked["candidates"]), split=asked["split"])
        passed = check_document(verb, made, self.statement.outputs, self._rules, known)
        if isinstance(passed, Refusal):
            self._block(task, site, passed.message, _schema_error(made, self.statement.outputs.get(verb)))
        template = files.get("weights") if verb == "train" else None
        if set(result.files) - ({"weights"} if template else set()):
            self._block(task, site, f"the worker left files that {verb} may not send: {', '.join(result.files)}")
        tensors = self._gate(task, site, result.files["weights"], template) if template else None
        self.found.sent.append(Sent(task, site, passed, _shapes(tensors) if tensors else None))
        return _Passed(StreamHeader(_RUN, task, round, site, 1, "up", "result"), passed, tensors)

    def evaluate(self, candidates: Result, site: str, others: list[str]) -> None:
        models = {"federated": self.tensors(candidates, site, "candidates", ROUNDS, "federated")}
        for other in others:
            if f"local:{other}/{EVERYBODY}" in candidates.files:
                models[f"local:{other}"] = self.tensors(candidates, site, "candidates", ROUNDS, f"local:{other}")
        asked = {"split": "test", "candidates": [*models, f"local:{site}"]}
        self.at_site(site, "evaluate/test", "evaluate", asked, models, ROUNDS)

    def _gate(self, task: str, site: str, name: str, template: Path) -> Path:
        copy = self._fresh(".safetensors")
        try:
            source, size = open_output(self._folder / site / "outbox", name, MOST_BYTES)
            with open(source, "rb", buffering=0) as file, copy.open("wb") as out:
                for piece in CheckedTensors(file, size, head_of(template), MOST_BYTES).pieces():
                    out.write(piece)
        except Refused as refused:
            self._block(task, site, refused.refusal.message)
        except BadTensors as error:
            self._block(task, site, str(error))
        return copy

    def _block(self, task: str, site: str, why: str, more: str = "") -> NoReturn:
        self.found.blocked.append(Blocked(task, site, why, more))
        raise Stopped

    # ---------------------------------------------------------------- at the centre

    def at_centre(self, verb: str, document: JsonObject, results: Mapping[str, _Passed], round: int = 0) -> Result:
        """`results` are what `at_site` returned; sealed here, as gateways do."""
        files = {site: self._sealed(passed) for site, passed in results.items()}
        answer = self._ask("centre", verb, document, {**files, **self._kept}, round)
        for artifact in ("plan", "weights"):
            if f"{artifact}/{EVERYBODY}" in answer.files:
                self._kept[f"{EVERYBODY}/{artifact}"] = self.output("centre", answer, f"{artifact}/{EVERYBODY}")
        return answer

    def read(self, answer: Result, name: str, site: str, task: str, round: int, artifact: str) -> JsonObject:
        """What the centre sealed for one site."""
        header = StreamHeader(_RUN, task, round, site, 1, "down", artifact)
        return self._opened(self._keys[site], header, self.output("centre", answer, name))[0]

    def tensors(self, answer: Result, site: str, task: str, round: int, artifact: str) -> Path:
        """A model, through the site's note about it."""
        note = note_in(self.read(answer, f"{artifact}/{site}", site, task, round, artifact))
        assert note is not None, "the aggregator notes where a model lies"
        for_all = f"{artifact}/{EVERYBODY}"
        kept = self._kept[f"{EVERYBODY}/weights"]
        sealed = self.output("centre", answer, for_all) if for_all in answer.files else kept
        return self._opened(note.secret, broadcast_header(_RUN, note.task_id, note.round, note.artifact), sealed)[1]

    def output(self, name: str, answer: Result, which: str) -> Path:
        """A copy, because the process may write over its own."""
        source, _ = open_output(self._folder / name / "outbox", answer.files[which], MOST_BYTES)
        copy = self._fresh(".out")
        with open(source, "rb") as file, copy.open("wb") as out:
            shutil.copyfileobj(file, out)
        return copy

    def _ask(self, name: str, verb: str, document: JsonObject, files: Mapping[str, Path], round: int) -> Result:
        inbox = self._folder / name / "inbox"
        bare = {}
        for number, (wanted, path) in enumerate(files.items()):
            bare[wanted] = f"{number:03d}.in"
            shutil.copyfile(path, inbox / bare[wanted])
        task = Task(f"{verb}/{round}", verb, round, self._config, document, bare)
        result = self._processes[name].call(task, self._hear if name != "centre" else _nobody_watches)
        for leftover in inbox.iterdir():
            leftover.unlink()
        return result

    def _hear(self, said: Progress) -> None:
        """A site says how far a task is: a phase of ours, a count, and the training loss at most (`progress_of`)."""
        left = progress_of(_RUN, said.task_id, said, self._rules)
        self.found.progress |= {left.phase, *left.metrics}
        self.found.kept |= said.metrics.keys() - left.metrics.keys()

    def _sealed(self, passed: _Passed) -> Path:
        sealed = self._fresh(".sealed")
        with ExitStack() as stack:
            tensors = stack.enter_context(passed.tensors.open("rb")) if passed.tensors else None
            out = stack.enter_context(sealed.open("wb"))
            parcel = pack(passed.document, tensors)
            seal(self._keys[passed.header.site], passed.header, parcel, out, salt=secrets.token_bytes(32))
        return sealed

    def _opened(self, key: bytes, header: StreamHeader, sealed: Path) -> tuple[JsonObject, Path]:
        plain, tensors = self._fresh(".plain"), self._fresh(".safetensors")
        with sealed.open("rb") as source, plain.open("wb") as out:
            open_sealed(key, header, source, out)
        with plain.open("rb") as source, tensors.open("wb") as out:
            document, _ = unpack(source, out)
        return document, tensors

    def _fresh(self, ending: str) -> Path:
        self._number += 1
        return self._folder / f"{self._number:04d}{ending}"


def everything_declared(statement: ReleaseStatement) -> OutputRules:
    """The policy that allows all that the release declares."""
    names = {name.rpartition(".")[2] for name in declared_names(statement)}
    return OutputRules(
        weights_max_bytes=MOST_BYTES,
        local_model=True,
        metrics=frozenset(names | _OF_THE_LOSS),
        per_case_metrics=True,
        min_cases_metrics=1,
        min_cases_train=1,
    )


def declared_names(statement: ReleaseStatement) -> tuple[str, ...]:
    """`train.incoming.val_dice`: every field that the release's schemas name."""
    return tuple(
        name for verb, output in statement.outputs.items() for name, _ in _fields(verb, output["document"], output)
    )


def unused(statement: ReleaseStatement, sent: list[Sent]) -> tuple[str, ...]:
    """Fields that the release declares and no task has sent."""
    made: dict[str, list[JsonObject]] = {}
    for one in sent:
        made.setdefault(_verb(one.task), []).append(one.document)
    found = []
    for verb, output in statement.outputs.items():
        for name, path in _fields(verb, output["document"], output):
            if not any(_holds(document, path) for document in made.get(verb, ())):
                found.append(name)
    return tuple(found)


def _verb(task: str) -> str:
    return {"baseline": "train", "validate": "evaluate"}.get(task, task.split("/")[0])


def _fields(
    name: str, schema: Mapping[str, Any], root: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Dotted names and paths; `*` is any name, where the schema leaves names open."""
    schema = _resolved(schema, root)
    for key, inner in schema.get("properties", {}).items():
        yield f"{name}.{key}", (*path, key)
        yield from _fields(f"{name}.{key}", inner, root, (*path, key))
    if isinstance(inner := schema.get("additionalProperties"), Mapping):
        yield from _fields(f"{name}.*", inner, root, (*path, "*"))


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/$defs/"):
        return schema
    found = root["document"].get("$defs", {}).get(reference.removeprefix("#/$defs/"), {})
    return found if isinstance(found, Mapping) else {}


def _holds(document: Any, path: tuple[str, ...]) -> bool:
    if not path:
        return document is not None
    if not isinstance(document, Mapping):
        return False
    if path[0] == "*":
        return any(_holds(value, path[1:]) for value in document.values())
    return path[0] in document and _holds(document[path[0]], path[1:])


def _shapes(file: Path) -> Tensors:
    with file.open("rb") as source:
        table = read_table(source)
    return Tensors(table.shapes, file.stat().st_size)


def _schema_error(document: JsonObject, output: Mapping[str, Any] | None) -> str:
    """In full: the data are made up, so quoting them tells nothing."""
    if output is None:
        return ""
    schema = json.loads(json.dumps(output["document"]))  # Lists, as the library wants them; documents have tuples.
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    return "" if error is None else str(error.message)[:500]


def made_up_data(folder: Path) -> dict[str, Path]:
    """FLAIR and T1w with lesions that nobody has, in another style at each site."""
    from msfl.imaging.synth import DEMO_SITES, generate_site

    for number, (site, style) in enumerate(zip(SITES, DEMO_SITES, strict=False)):
        generate_site(folder / site, style, seed=number, n_train=6, n_test=2, spacing_mm=4.0)
    return {site: folder / site for site in SITES}


def _nobody_watches(said: Progress) -> None:
    """What the centre says of its own work leaves no site."""
