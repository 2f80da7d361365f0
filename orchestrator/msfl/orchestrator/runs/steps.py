"""The order of steps: which one follows, and who takes part in it.

    start ▸ [open] ▸ fingerprint ▸ [plan] ▸ prepare
          ▸ ( train/r ▸ [aggregate/r] ) for r = 1 … rounds, or until early stopping
          ▸ validate ▸ [collect/validate] ▸ baseline ▸ [candidates] ▸ evaluate/test ▸ [collect/test] ▸ [export]

`[x]` runs at the aggregator. Behind the plan the next step is the first whose result is not there (`_go_on`), so that a
run which is resumed, and one which never stopped, take the same way. Before a step for which some sites hold no
readable note of the plan or the model (they joined late, or have a new secret), `[issue/n]` makes these notes.

A run that starts from an earlier run's model takes its plan as well, and asks nobody for a fingerprint.

`start`, `open` and `prepare` of a later generation carry its number: `prepare/2`.
"""

from __future__ import annotations

from dataclasses import replace

from msfl.orchestrator.runs.rounds import stops_early
from msfl.orchestrator.runs.state import (
    JsonObject,
    Member,
    Phase,
    RunState,
    Step,
    accepted,
    end,
    training,
    with_members,
)


def in_generation(state: RunState, task: str) -> str:
    """The id of a task that every generation does for itself."""
    return task if state.generation == 1 else f"{task}/{state.generation}"


def begin(state: RunState, at: float) -> RunState:
    """The first step of a generation."""
    return _open_sites(replace(state, phase=Phase.RUNNING), in_generation(state, "start"), "start", 0, {}, at)


def following(state: RunState, step: Step, at: float) -> RunState:
    """Open what comes after `step`, whose results are in the state."""
    match step.verb:
        case "start":
            return _open_centre(state, in_generation(state, "open"), "open", 0, {}, at)
        case "open" if "plan" not in state.documents and state.spec.start_from is None:
            return _open_sites(state, "fingerprint", "fingerprint", 0, {}, at)
        case "open" if "plan" not in state.documents:
            # The plan is that of the earlier run: another one would not fit its model.
            return _open_centre(state, "plan", "plan", 0, {"recipients": accepted(state)}, at)
        case "fingerprint":
            return _open_centre(state, "plan", "plan", 0, {"recipients": accepted(state)}, at)
        case "train":
            document: JsonObject = {"recipients": training(state)}
            return _open_centre(state, f"aggregate/{step.round}", "aggregate", step.round, document, at)
        case "evaluate":
            collects = "collect/validate" if step.task_id == "validate" else "collect/test"
            return _open_centre(state, collects, "collect", step.round, {"task_id": step.task_id}, at)
        case "export":
            return end(state, Phase.FINISHED, "", at)
        case _:
            return _go_on(state, at)


def _go_on(state: RunState, at: float) -> RunState:
    """The first step behind the plan that is not done."""
    documents, last = state.documents, len(state.rounds)
    if "collect/test" in documents:
        return _open_centre(state, "export", "export", state.best_round(), {}, at)
    if in_generation(state, "prepare") not in state.results:
        return _with_notes(state, accepted(state), None, at) or _open_sites(
            state, in_generation(state, "prepare"), "prepare", 0, {}, at
        )
    if "collect/validate" not in documents:
        if last < state.spec.rounds and not stops_early(state):
            document: JsonObject = {"stream": "federated"}
            return _with_notes(state, accepted(state), last, at) or _open_sites(
                state, f"train/{last + 1}", "train", last + 1, document, at
            )
        document = {"split": "validation", "candidates": ["federated"]}
        return _with_notes(state, training(state), last, at) or _open_sites(
            state, "validate", "evaluate", last, document, at
        )
    if state.spec.baseline == "local" and "baseline" not in state.results:
        document = {"stream": "local", "rounds": last}
        return _with_notes(state, training(state), 0, at) or _open_sites(state, "baseline", "baseline", 0, document, at)
    best = state.best_round()
    if "candidates" not in documents:
        document = {"recipients": accepted(state), "federated_round": best}
        return _open_centre(state, "candidates", "candidates", best, document, at)
    return _open_sites(state, "evaluate/test", "evaluate", best, {"split": "test"}, at)


def _with_notes(state: RunState, sites: list[str], model: int | None, at: float) -> RunState | None:
    """Make the notes that some of `sites` need and do not have; None when all have theirs."""
    members = [state.members[site] for site in sites]
    lacking = [m.site for m in members if m.plan is None or (m.trains and model is not None and model not in m.models)]
    if not lacking:
        return None
    n = 1 + sum(task.startswith("issue/") for task in state.documents)
    round = len(state.rounds) if model is None else model
    return _open_centre(state, f"issue/{n}", "issue", round, {"recipients": lacking, "round": round}, at)


def with_notes_of(state: RunState, step: Step) -> RunState:
    """After a central step: which notes its recipients have now. Of models they keep the newest, and the first for
    as long as a baseline may start from it."""
    if step.verb not in ("plan", "aggregate", "issue"):
        return state
    note = (step.task_id, step.round)
    members = []
    for site in step.document["recipients"]:
        member = state.members[site]
        older = {r: n for r, n in member.models.items() if r == 0 and state.spec.baseline == "local"}
        newest = {r: n for r, n in member.models.items() if r > step.round}
        plan = member.plan if step.verb == "aggregate" else note
        members.append(replace(member, plan=plan, models={**older, **newest, step.round: note}))
    return with_members(state, members)


def takes_part(state: RunState, step: Step, member: Member) -> bool:
    """Whether a site can do a step at the sites: it is asked for it if nothing else is against it."""
    if not member.accepted:
        return False
    match step.verb:
        case "start":
            return True
        case "fingerprint":
            return member.trains and member.started
        case "prepare":
            return member.started and member.plan is not None
        case "train":
            return member.trains and member.prepared and step.round - 1 in member.models
        case "baseline":
            return member.trains and member.prepared and 0 in member.models
        case "evaluate" if step.task_id == "validate":
            return member.trains and member.prepared and step.round in member.models
        case "evaluate":
            return member.prepared
        case _:
            raise AssertionError(f"{step.verb} is no step at the sites")


def needs_results(step: Step) -> bool:
    """A plan or a sum over fewer sites than the quorum would show what a single one holds."""
    return step.verb in ("fingerprint", "train")


def expected(state: RunState, step: Step) -> int:
    """How many count for the quorum of a step at the sites, when all who are waited for report."""
    if needs_results(step):
        return len(step.done) + len(step.waiting)
    return sum(not state.members[site].absent for site in training(state))


def _open_sites(state: RunState, task_id: str, verb: str, round: int, document: JsonObject, at: float) -> RunState:
    step = Step(task_id=task_id, verb=verb, round=round, central=False, opened_at=at, document=document)
    able = {m for m in state.members if takes_part(state, step, state.members[m])}
    if task_id == "evaluate/test":
        able &= {key.split("/")[1] for key in state.outputs["candidates"]}
    away = frozenset(site for site in able if state.members[site].absent)
    return replace(state, step=replace(step, waiting=frozenset(able) - away, away=away))


def _open_centre(state: RunState, task_id: str, verb: str, round: int, document: JsonObject, at: float) -> RunState:
    step = Step(task_id=task_id, verb=verb, round=round, central=True, opened_at=at, document=document)
    return replace(state, step=step)
