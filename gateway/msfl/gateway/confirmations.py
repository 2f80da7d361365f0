"""A custodian's signed yes to one run: what is asked, what was confirmed last time, and both in plain words.

    run parked ─▶ `asked` ─▶ pending/<run>.json ─▶ `in_words`, read ─▶ `signed` ─▶ confirmed/<run>.dsse
      ─▶ the gateway: signed by custodians of the site root? exactly what is asked? ─▶ runs/<run>/confirmation.dsse
      ─▶ the same two questions again, each time before a worker starts

The gateway signs nothing and believes nobody: what it compares with is what it verified itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

from msfl.gateway.forms import vocabulary
from msfl.gateway.home import Home
from msfl.gateway.judge import Accepted
from msfl.policies.documents import ReleaseStatement, RunConfirmation
from msfl.policies.encoding import Malformed, canonical_json, encode, load_json
from msfl.policies.envelope import RUN_CONFIRMATION, Signed, add_signature, sign
from msfl.policies.keys import KeyPair
from msfl.policies.refusals import Refusal
from msfl.policies.words import what_may_leave

JsonObject: TypeAlias = dict[str, Any]
FILE = "confirmation.dsse"
_OF_THE_JOB = ("datasets", "evaluate_only", "min_sites", "start", "baseline", "start_from")
_LONGEST = 500  # of a line of `RunConfirmation`


def asked(accepted: Accepted, site: str, run_id: str, generation: int, now: datetime) -> RunConfirmation:
    release, policy, job = accepted.release, accepted.policy, accepted.job
    return confirmation(
        {
            "site": site,
            "run": run_id,
            "generation": generation,
            "user": accepted.user.name,
            "dataset": f"{site}/{accepted.dataset_id}",
            "release": release.statement.ref,
            "digest": release.statement.digest,
            "statement_sha256": release.sha256,
            "publisher": release.publisher,
            "reviewers": list(release.reviewers),
            "policy": policy.document.id,
            "policy_sha256": policy.sha256,
            "job_sha256": accepted.job_sha256,
            **{key: value for key, value in job.model_dump(mode="json").items() if key in _OF_THE_JOB},
            "config": accepted.resolved,
            "leaves": [f"at most: {what_may_leave(policy.document)}", *declared_of(release.statement)],
            "issued": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        }
    )


def declared_of(release: ReleaseStatement) -> Iterable[str]:
    """By verb, all names and texts that the release's schema knows, wherever in it. The gate lets no others through but
    those of the dataset's own record. What has no room in a line begins another one; nothing is left out."""
    for verb, output in release.outputs.items():
        names, texts = vocabulary(output.get("document") if isinstance(output, Mapping) else None)
        yield from _lines(verb, sorted(names) or ["as the release declares"])
        if texts:
            yield from _lines(f"{verb}, as texts", sorted(texts))


def _lines(head: str, words: list[str]) -> Iterable[str]:
    line = f"{head}: {words[0]}"
    for word in words[1:]:
        if len(line) + len(word) + 2 > _LONGEST:
            yield line
            line = f"{head}, too: {word}"
        else:
            line += f", {word}"
    yield line


def confirmation(fields: JsonObject) -> RunConfirmation:
    """Raises Malformed, also where something has no room: it is refused then, never cut."""
    return load_json(canonical_json(fields), RunConfirmation, "confirmation")


def signed(document: RunConfirmation, key: KeyPair, before: bytes | None) -> bytes:
    """The envelope with this custodian's signature; where another custodian has signed the same, with both."""
    if before is not None:
        try:
            kept = load_json(Signed.parse(before, RUN_CONFIRMATION).payload_of_kind(), RunConfirmation)
        except Malformed:
            kept = None
        if kept is not None and encode(kept) == encode(document.model_copy(update={"issued": kept.issued})):
            return add_signature(before, RUN_CONFIRMATION, key)
    return sign(encode(document), RUN_CONFIRMATION, [key])


def last(home: Home, asked: RunConfirmation, now: datetime) -> JsonObject | None:
    """The latest confirmation of the same release on the same dataset that custodians of today's root signed."""
    root = home.site_root(now)
    if isinstance(root, Refusal):
        return None
    found: list[RunConfirmation] = []
    for file in home.runs.glob(f"*/{FILE}"):
        try:
            kept = Signed.parse(file.read_bytes(), RUN_CONFIRMATION, file.name)
            document = load_json(kept.payload_of_kind(), RunConfirmation, file.name)
        except Malformed:
            continue
        same = (document.dataset, document.release.split(":")[0]) == (asked.dataset, asked.release.split(":")[0])
        if same and document.run != asked.run and kept.signed_by(root.document.custodians):
            found.append(document)
    return max(found, key=lambda c: c.issued).model_dump(mode="json") if found else None


def in_words(asked: RunConfirmation, before: JsonObject | None) -> tuple[str, ...]:
    """What the custodian reads before signing. `before`: the confirmation of last time."""
    return (
        f"Run {asked.run}, asked for by {asked.user}, on {asked.dataset}",
        f"Release {asked.release}, image {asked.digest}",
        f"  published by {asked.publisher}; reviewed by {', '.join(asked.reviewers)}",
        "Together with, and how:",
        *(f"  {key}: {_said(value)}" for key, value in asked.model_dump(mode="json").items() if key in _OF_THE_JOB),
        f"Allowed by the policy {asked.policy} ({asked.policy_sha256[:19]}…), if you confirm",
        "May leave this site:",
        *(f"  {line}" for line in asked.leaves),
        *_differences(asked, before),
    )


def _differences(asked: RunConfirmation, before: JsonObject | None) -> Iterable[str]:
    now = asked.model_dump(mode="json")
    if before is None:
        yield "Settings (nothing of this release was confirmed for this dataset before):"
        yield from (f"  {key}: {value}" for key, value in now["config"].items())
        return
    old, new = before["config"], now["config"]
    changed = [
        f"  {key}: {old.get(key, 'not set')} → {new.get(key, 'not set')}"
        for key in sorted({*old, *new})
        if repr(old.get(key)) != repr(new.get(key))
    ]
    changed += [
        f"  {key}: {_said(before[key])} → {_said(now[key])}"
        for key in ("release", "digest", "publisher", "reviewers", "policy_sha256", "user", *_OF_THE_JOB)
        if before[key] != now[key]
    ]
    changed += [f"  may leave now: {line}" for line in now["leaves"] if line not in before["leaves"]]
    changed += [f"  may not leave any more: {line}" for line in before["leaves"] if line not in now["leaves"]]
    yield f"Compared with {before['run']}, which you confirmed at {before['issued']}:"
    yield from changed or ["  nothing differs"]


def _said(value: object) -> str:
    """One value of the job; `start_from` is a run and a round of it, or its best."""
    match value:
        case None | []:
            return "none"
        case list():
            return ", ".join(map(str, value))
        case {"run": run, "round": round}:
            return f"the model of {run}, {'its best round' if round is None else f'round {round}'}"
        case _:
            return str(value)
