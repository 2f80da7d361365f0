"""Wire ↔ values: the one place that fills and reads generated messages of the Link service.

Reading checks shapes (JSON is an object, numbers are in range) and raises BadMessage; meaning is checked by whoever
acts on the value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import assert_never

from msfl.protos.messages import (
    Arrival,
    Input,
    JsonObject,
    Offer,
    OfferAnswer,
    Order,
    SiteProgress,
    StopOrder,
    TaskOrder,
    TaskReport,
    TrustPapers,
)
from msfl.protos.nesting import too_deep
from msfl.protos.v1 import federation_pb2 as wire

MOST_FIGURES, MOST_LETTERS = 32, 100
MAX_CATALOGUE_BYTES = 256 << 10  # Every user is shown the catalogues of all gateways in one message.
# A run's name becomes the name of folders and files.
_RUN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")


_DATASET_REF = re.compile(r"(?=.{1,129}$)[a-z0-9]+(?:[._-][a-z0-9]+)*/[a-z0-9]+(?:[._-][a-z0-9]+)*")


class BadMessage(ValueError):
    """A peer sent a message that does not mean anything."""


def json_bytes(document: JsonObject) -> bytes:
    return json.dumps(document, allow_nan=False, sort_keys=True).encode()


def json_object(data: bytes) -> JsonObject:
    try:
        value = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadMessage("a document is not JSON") from error
    if not isinstance(value, dict) or too_deep(value):
        raise BadMessage("a document is not a JSON object, or one nested too deep")
    return value


def _no_number(word: str) -> float:
    raise BadMessage(f"a document holds {word}, which is not JSON")


def order_to_wire(order: Order) -> wire.Order:
    match order:
        case Offer():
            return wire.Order(
                offer=wire.Offer(
                    run_id=order.run_id,
                    spec=order.spec,
                    proof=order.proof,
                    token=order.token,
                    dry_run=order.dry_run,
                    generation=order.generation,
                    issuer_keys=order.issuer_keys,
                )
            )
        case TaskOrder():
            inputs = [
                wire.Input(name=i.name, task_id=i.task_id, round=i.round, artifact=i.artifact, key=i.key)
                for i in order.inputs
            ]
            return wire.Order(
                task=wire.TaskOrder(
                    run_id=order.run_id,
                    task_id=order.task_id,
                    verb=order.verb,
                    round=order.round,
                    attempt=order.attempt,
                    document=json_bytes(order.document),
                    inputs=inputs,
                )
            )
        case StopOrder():
            stop = wire.StopOrder(run_id=order.run_id, reason=order.reason, generation=order.generation)
            return wire.Order(stop=stop)
        case _:
            assert_never(order)


def order_from_wire(message: wire.Order) -> Order:
    match message.WhichOneof("order"):
        case "offer":
            o = message.offer
            return Offer(
                run_id=_run_id(o.run_id),
                spec=o.spec,
                proof=o.proof,
                token=o.token,
                dry_run=o.dry_run,
                generation=o.generation,
                issuer_keys=tuple(o.issuer_keys),
            )
        case "task":
            t = message.task
            return TaskOrder(
                run_id=_run_id(t.run_id),
                task_id=t.task_id,
                verb=t.verb,
                round=t.round,
                attempt=t.attempt,
                document=json_object(t.document),
                inputs=tuple(Input(i.name, i.task_id, i.round, i.artifact, i.key) for i in t.inputs),
            )
        case "stop":
            s = message.stop
            return StopOrder(run_id=_run_id(s.run_id), reason=s.reason, generation=s.generation)
        case _:
            raise BadMessage("an order of unknown kind")


def _run_id(text: str) -> str:
    if _RUN_ID.fullmatch(text) is None:
        raise BadMessage("a run's name is a letter or digit, and at most 127 more, - and _ among them")
    return text


def _figures(given: Mapping[str, float]) -> dict[str, float]:
    """A few numbers by name. What is none could not be written down, nor shown to a user: JSON has no word for it."""
    if len(given) > MOST_FIGURES or any(len(name) > MOST_LETTERS for name in given):
        raise BadMessage(f"at most {MOST_FIGURES} figures, with names of at most {MOST_LETTERS} letters")
    return {name: _finite(value) for name, value in given.items()}


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise BadMessage("a number that is not finite")
    return value


def answer_to_wire(answer: OfferAnswer) -> wire.OfferAnswer:
    return wire.OfferAnswer(
        run_id=answer.run_id,
        verdict=answer.verdict,
        decision=json_bytes(answer.decision),
        wrapped_secret=answer.wrapped_secret,
        generation=answer.generation,
    )


def answer_from_wire(message: wire.OfferAnswer) -> OfferAnswer:
    if message.verdict not in ("allow", "refuse", "confirm"):
        raise BadMessage("a verdict is allow, refuse or confirm")
    return OfferAnswer(
        run_id=message.run_id,
        verdict=message.verdict,
        decision=json_object(message.decision),
        wrapped_secret=message.wrapped_secret,
        generation=message.generation,
    )


def report_to_wire(report: TaskReport) -> wire.TaskReport:
    return wire.TaskReport(
        run_id=report.run_id,
        task_id=report.task_id,
        attempt=report.attempt,
        failure=report.failure,
        key=report.key,
        bytes_up=report.bytes_up,
        bytes_down=report.bytes_down,
        seconds=report.seconds,
        peak_rss_mib=dict(report.peak_rss_mib),
    )


def report_from_wire(message: wire.TaskReport) -> TaskReport:
    return TaskReport(
        run_id=message.run_id,
        task_id=message.task_id,
        attempt=message.attempt,
        failure=message.failure[:100],
        key=message.key,
        bytes_up=message.bytes_up,
        bytes_down=message.bytes_down,
        seconds=_finite(message.seconds),
        peak_rss_mib=_figures(message.peak_rss_mib),
    )


def progress_to_wire(progress: SiteProgress) -> wire.Progress:
    return wire.Progress(
        run_id=progress.run_id,
        task_id=progress.task_id,
        phase=progress.phase,
        done=progress.done,
        total=progress.total,
        metrics=dict(progress.metrics),
        trust=progress.trust,
    )


def progress_from_wire(message: wire.Progress) -> SiteProgress:
    return SiteProgress(
        run_id=message.run_id,
        task_id=message.task_id[:100],
        phase=message.phase[:100],
        done=message.done,
        total=message.total,
        metrics=_figures(message.metrics),
        trust=message.trust[:100],
    )


def papers_to_wire(papers: TrustPapers) -> wire.TrustPapers:
    return wire.TrustPapers(
        roots=papers.roots,
        revocations=papers.revocations,
        timestamp=papers.timestamp,
        issuer_keys=papers.issuer_keys,
    )


def papers_from_wire(message: wire.TrustPapers) -> TrustPapers:
    return TrustPapers(tuple(message.roots), message.revocations, message.timestamp, tuple(message.issuer_keys))


def arrival_to_wire(arrival: Arrival) -> wire.Hello:
    return wire.Hello(
        protocol=arrival.protocol,
        software=arrival.software,
        datasets=json_bytes({"datasets": list(arrival.datasets)}),
    )


def arrival_from_wire(message: wire.Hello) -> Arrival:
    if len(message.datasets) > MAX_CATALOGUE_BYTES:
        raise BadMessage(f"the datasets of a gateway take more than {MAX_CATALOGUE_BYTES >> 10} KiB to describe")
    listed = json_object(message.datasets).get("datasets")
    if not isinstance(listed, list):
        raise BadMessage("the datasets of a gateway are a list of objects")
    datasets = tuple(_dataset(entry) for entry in listed)
    return Arrival(protocol=message.protocol, software=message.software[:100], datasets=datasets)


def _dataset(entry: object) -> JsonObject:
    """The facts of a dataset that are known here. `ref`, `site/dataset`, must be among them; others are left out."""
    if not isinstance(entry, dict) or not _is_ref(entry.get("ref")):
        raise BadMessage("a dataset is an object with a ref, site/dataset")
    known = {name: entry[name] for name in _FACTS if name in entry}
    if wrong := [name for name, value in known.items() if not _FACTS[name](value)]:
        raise BadMessage(f"{entry['ref']}: {', '.join(wrong)} is nothing of its kind")
    return known


def _is_ref(value: object) -> bool:
    return isinstance(value, str) and _DATASET_REF.fullmatch(value) is not None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


_FACTS: Mapping[str, Callable[[object], bool]] = {
    "ref": _is_ref,
    "version": _is_text,
    "channel_names": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "labels": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "n_train": _is_count,
    "n_test": _is_count,
    "kind": _is_text,
}
