"""What left a site for a run, read from its audit log, in words a custodian understands. Pure.

    entry                       what it announced, before it left
    run decided / explained     the answer to the offer: verdict, and as much of the reason as the site reveals
    task begins                 progress: steps done of steps to do, and the training loss where the policy allows it
    result leaves               a sealed result, and the report that it is done: sizes, seconds, memory
    report leaves               a report without a result: done, or the code of what failed

Heartbeats, and the list of datasets that the custodian shows to the federation, belong to no run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from msfl.policies.audit import Entry


@dataclass(frozen=True)
class Departure:
    """`bytes` and `blake3` are of the sealed result, `fields` the names of what is in it, `withheld` of what the policy
    held back, `report` what stands in the report that goes with it; zero and empty for what is no sealed result.
    `entry` is the number in the log."""

    entry: int
    at: str
    what: str
    bytes: int = 0
    blake3: str = ""
    fields: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    report: tuple[str, ...] = ()


def departures(entries: Iterable[Entry], run_id: str) -> list[Departure]:
    """In the order in which they left."""
    found = (_departure(entry) for entry in entries if entry.object == run_id)
    return [one for one in found if one is not None]


def in_words(left: list[Departure], run_id: str) -> list[str]:
    """Lines for a terminal."""
    results = [one for one in left if one.bytes]
    lines = [f"{run_id}: {len(results)} sealed results, {size_in_words(sum(one.bytes for one in results))} in all"]
    for one in left:
        lines.append(f"{one.at}  {one.what}{f', {size_in_words(one.bytes)} sealed' if one.bytes else ''}")
        if one.fields:
            lines.append(f"    numbers in it: {', '.join(one.fields)}")
        if one.withheld:
            lines.append(f"    held back:     {', '.join(one.withheld)}")
        if one.report:
            lines.append(f"    in its report: {', '.join(one.report)}")
        if one.blake3:
            lines.append(f"    {one.blake3}")
    return lines


def _departure(entry: Entry) -> Departure | None:
    fields = {k: str(v) for k, v in entry.fields.items()}
    match entry.action:
        case "run decided" | "run explained":
            code = f" ({fields['code']})" if fields.get("code") else ""
            return Departure(entry.seq, entry.at, f"the answer to the offer: {fields.get('verdict', '?')}{code}")
        case "custodian answered":
            return Departure(entry.seq, entry.at, f"the custodian's answer: {fields.get('verdict', '?')}")
        case "task begins":
            loss = " and the training loss" if "train_loss" in fields.get("progress", "") else ""
            return Departure(entry.seq, entry.at, f"from here on, progress of {fields['task']}: steps done{loss}")
        case "report leaves":
            how = f"it failed: {fields['code']}" if fields.get("code") else "it is done"
            return Departure(entry.seq, entry.at, f"report on {fields['task']}: {how}")
        case "result leaves":
            return Departure(
                entry=entry.seq,
                at=entry.at,
                what=_result(fields),
                bytes=int(fields["bytes"]),
                blake3=fields.get("blake3", ""),
                fields=_names(fields.get("fields", "")),
                withheld=_names(fields.get("withheld", "")),
                report=_names(fields.get("report", "")),
            )
        case _:
            return None


def _result(fields: dict[str, str]) -> str:
    weights = fields.get("weights", "")
    match fields.get("verb"), fields.get("stream"):
        case "train", "local":
            model = "this site's own model" if weights else "figures of this site's own training, without the model"
            return f"{fields['task']}: {model}"
        case "train", _:
            how = "" if weights == "float32" else f", as {weights} differences to the model that came in"
            return f"{fields['task']}: the weights of the model after this site's training{how}"
        case "fingerprint", _:
            return f"{fields['task']}: counts and histograms over the whole dataset"
        case "prepare", _:
            return f"{fields['task']}: the numbers of cases"
        case "evaluate", _:
            return f"{fields['task']}: summaries over all cases of the split"
        case _:
            return f"{fields['task']}: a result"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(", ") if name)


def size_in_words(n: int) -> str:
    return f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n / 1024:.1f} KiB"
