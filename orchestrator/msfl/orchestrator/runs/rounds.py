"""Rounds: what a closed one says of its sites, when training stops early, and which sealed streams may go.

    flag             it is raised for a site when
    loss_rising      its training loss rose in each of its last `on_divergence.rounds` rounds
    update_outlier   its update is more than ten times as long as the round's median, of three or more

Of the models at the centre stay: the newest, the best, the `retain.last` last, each `retain.every`-th; all of them with
`keep="all"`. A round's validation comes with the next round: until then it is the newest, so no best one is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from statistics import median

from msfl.orchestrator.runs.events import CentralDone
from msfl.orchestrator.runs.state import JsonObject, Phase, RoundRecord, RunState, Step, at_least_zero
from msfl.protos.messages import output_key
from msfl.protos.notes import DIFFERENCE, LEFT_OVER
from msfl.protos.sealing import EVERYBODY

OUTLIER = 10.0
_NO_VALIDATION: JsonObject = {"n_val": None, "val_loss": None, "val_dice": None}


# ------------------------------------------------------------------- closing


def close_round(state: RunState, step: Step, event: CentralDone) -> RunState:
    """The round's record, from what `aggregate` says of it."""
    sites: dict[str, JsonObject] = {}
    incoming: dict[str, JsonObject] = {}
    for site, reported in event.document["sites"].items():
        trained = {k: reported.get(k) for k in ("n_train", "train_loss", "seconds")}
        sites[site] = {**trained, **_NO_VALIDATION}
        incoming[site] = reported.get("incoming") or {}
    # What a site measured on the model it received belongs to the round that made that model.
    rounds = list(state.rounds)
    if rounds:
        rounds[-1] = _with_validation(rounds[-1], incoming)
    refused = dict(event.document.get("refused", {}))
    record = RoundRecord(
        round=step.round,
        sites=sites,
        late=tuple(site for site in state.left_behind if site not in sites and site not in refused),
        seconds=at_least_zero(event.at - step.opened_at) + state.step_seconds[f"train/{step.round}"],
        bytes_up=state.round_bytes[0],
        bytes_down=state.round_bytes[1],
        weights_blake3=str(event.document["weights_blake3"]),
        refused=refused,
    )
    flags = _flags([*rounds, record], event.document["sites"], state.spec.on_divergence.rounds)
    return replace(state, rounds=(*rounds, replace(record, flags=flags)))


def _with_validation(record: RoundRecord, measured: Mapping[str, JsonObject]) -> RoundRecord:
    sites = {
        site: {**values, **{k: measured.get(site, {}).get(k) for k in _NO_VALIDATION}}
        for site, values in record.sites.items()
    }
    return replace(record, sites=sites)


def final_validation(state: RunState, document: JsonObject) -> RunState:
    """The last round's validation, which no later round brings."""
    measured: dict[str, JsonObject] = {}
    for site, result in document["sites"].items():
        summary = result["summaries"].get("federated", {})
        measured[site] = {
            "n_val": summary.get("n"),
            "val_loss": summary.get("loss"),
            "val_dice": (summary.get("dice") or {}).get("mean"),
        }
    if not state.rounds:
        return state
    return replace(state, rounds=(*state.rounds[:-1], _with_validation(state.rounds[-1], measured)))


def _flags(rounds: list[RoundRecord], reported: Mapping[str, JsonObject], risen: int) -> dict[str, tuple[str, ...]]:
    norms = {site: norm for site in reported if (norm := reported[site].get("update_norm")) is not None}
    longest = OUTLIER * median(norms.values()) if len(norms) >= 3 else None
    flags = {}
    for site in sorted(reported):
        losses = [record.sites[site]["train_loss"] for record in rounds if site in record.sites][-risen - 1 :]
        raised = []
        if len(losses) > risen and None not in losses and all(a < b for a, b in pairwise(losses)):
            raised.append("loss_rising")
        if longest is not None and norms.get(site, 0.0) > longest:
            raised.append("update_outlier")
        if raised:
            flags[site] = tuple(raised)
    return flags


def stops_early(state: RunState) -> bool:
    """Whether the best validation Dice is `early_stopping.patience` rounds old, as far as it is known."""
    rule = state.spec.early_stopping
    if rule is None:
        return False
    best, best_round, last = None, 0, 0
    for record in state.rounds:
        if (dice := record.validation_dice()) is not None:
            last = record.round
            if best is None or dice > best + rule.min_delta:
                best, best_round = dice, record.round
    return last - best_round >= rule.patience


# ----------------------------------------------------------------- retention


def disposable_keys(state: RunState) -> frozenset[str]:
    """The sealed streams at the centre that neither this run, nor its resumption, nor its owner will ask for."""
    listed = set(state.void)
    for files in state.outputs.values():
        listed.update(files)
    for task, done in state.results.items():
        if _has_been_read(state, task):
            listed.update(done.values())
    return frozenset(listed - set(_needed(state)) - {""})


def _has_been_read(state: RunState, task: str) -> bool:
    verb, _, round = task.partition("/")
    if verb == "train":
        return int(round) <= len(state.rounds)
    reader = {
        "fingerprint": "plan",
        "validate": "collect/validate",
        "baseline": "candidates",
        "evaluate/test": "collect/test",
    }.get(task)
    return reader is not None and reader in state.documents


def _needed(state: RunState) -> Iterator[str]:
    yield output_key("plan", EVERYBODY, "plan")
    yield from state.outputs.get("export", ())
    for round in retained_rounds(state):
        yield output_key(f"aggregate/{round}" if round else "plan", EVERYBODY, "weights")
    last = len(state.rounds)
    yield output_key(f"aggregate/{last}", EVERYBODY, DIFFERENCE)
    # The next round is made from the newest. What rounding cost the best model is measured at the end; a round is found
    # to be the best when the round after it is closed.
    for round in {last, last - 1, state.best_round()}:
        yield output_key(f"aggregate/{round}", EVERYBODY, LEFT_OVER)
    if "collect/test" not in state.documents:
        yield from state.outputs.get("candidates", ())
    if state.phase is Phase.RUNNING:
        for member in state.members.values():
            if member.accepted:
                if member.plan is not None:
                    yield output_key(member.plan[0], member.site, "plan")
                for task_id, _ in member.models.values():
                    yield output_key(task_id, member.site, "weights")


def retained_rounds(state: RunState) -> frozenset[int]:
    """The rounds whose models stay; 0 is the initial one."""
    last, retain = len(state.rounds), state.spec.retain
    every = range(last + 1)
    if state.spec.keep == "all":
        return frozenset(every)
    kept = {last, state.best_round(), *every[-retain.last :]} - {0}
    if retain.best:
        kept.add(state.best_scored())
    if retain.every:
        kept.update(every[retain.every :: retain.every])
    if not last or (state.spec.baseline == "local" and "collect/test" not in state.documents):
        kept.add(0)
    return frozenset(kept)
