"""What follows from the state of a run: the order for each site, and what the aggregator reads.

Nothing of it is remembered on the side, so a restart needs nothing but the events. A site that missed `start` or
`prepare` is asked to catch up with them while the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msfl.orchestrator.runs.state import Member, Note, Phase, RunState, Standing, Step, runnable
from msfl.orchestrator.runs.steps import expected, in_generation
from msfl.protos.messages import Input, Offer, Order, StopOrder, TaskOrder, attempt_of, output_key
from msfl.protos.notes import LEFT_OVER
from msfl.protos.sealing import EVERYBODY

_RESULT = re.compile(r".+/(?P<site>[^/]+)/up/[0-9]+")


def order_for(state: RunState, site: str) -> Order | None:
    """The one thing a site should be doing for this run now; None: wait."""
    member = state.members.get(site)
    if member is None:
        return None
    if state.ended or member.standing is Standing.OUT:
        return StopOrder(state.run_id, state.phase.value if state.ended else member.code, state.generation)
    if not runnable(state):
        return None
    if member.standing in (Standing.ASKED, Standing.PARKED):
        # A parked site hears it again on every new stream: its gateway may have been restarted since.
        spec = state.spec_text.encode()
        return Offer(state.run_id, spec, state.proof, state.token, state.dry_run, state.generation)
    step = task_of(state, site)
    if step is None:
        return None
    document = dict(step.document)
    inputs = _inputs(state, step, member)
    if step.task_id == "evaluate/test":
        names = [i.name for i in inputs]
        if site in state.results.get("baseline", {}):
            names.append(f"local:{site}")
        document["candidates"] = names
    verb = "train" if step.verb == "baseline" else step.verb
    return TaskOrder(state.run_id, step.task_id, verb, step.round, attempt=1, document=document, inputs=inputs)


def task_of(state: RunState, site: str) -> Step | None:
    """What a site's next result is expected of: the current step, or one that it catches up with."""
    member, step = state.members.get(site), state.step
    if member is None or step is None or not member.accepted or state.phase is not Phase.RUNNING:
        return None
    if site in step.waiting or site in step.away:
        return step
    if not member.started:
        return Step(in_generation(state, "start"), "start", 0, central=False, opened_at=step.opened_at)
    if not member.prepared and member.plan is not None:
        return Step(in_generation(state, "prepare"), "prepare", 0, central=False, opened_at=step.opened_at)
    return None


def may_upload(state: RunState, site: str, key: str) -> bool:
    """Whether `key` is a result that is still expected of the site, or the one that it has reported."""
    if state.step is not None and site in state.step.done:
        return key == state.step.done[site]
    task = task_of(state, site)
    return task is not None and attempt_of(key, task.task_id, site) is not None


def is_reported(state: RunState, key: str) -> bool:
    """Whether a report has named a result, so that it is read, or has been."""
    return key in _reported(state)


def abandoned_uploads(state: RunState, kept: Iterable[str]) -> frozenset[str]:
    """Of the results that are `kept`, those that no report has named, and none can any more."""
    reported = _reported(state)
    sites = {key: match["site"] for key in kept if (match := _RESULT.fullmatch(key)) and key not in reported}
    return frozenset(key for key, site in sites.items() if not may_upload(state, site, key))


def _reported(state: RunState) -> set[str]:
    under_way = () if state.step is None else (state.step.done,)
    return {key for done in (*state.results.values(), *under_way) for key in done.values()}


def waiting_for(state: RunState) -> tuple[str, ...]:
    """The absent sites without which the run cannot go on."""
    step = state.step
    if step is None or step.central or not runnable(state):
        return ()
    if step.waiting and expected(state, step) >= state.spec.min_sites:
        return ()
    absent = (m for m in state.members.values() if m.accepted and m.absent)
    return tuple(sorted(m.site for m in absent if m.trains or m.site in step.away))


def _inputs(state: RunState, step: Step, member: Member) -> tuple[Input, ...]:
    match step.verb:
        case "prepare":
            return (_note("plan", member.plan, "plan", member.site),)
        case "train":
            return (_note("weights", member.models.get(step.round - 1), "weights", member.site),)
        case "baseline":
            return (_note("weights", member.models.get(0), "weights", member.site),)
        case "evaluate" if step.task_id == "validate":
            return (_note("federated", member.models.get(step.round), "weights", member.site),)
        case "evaluate":
            prefix = f"candidates/{member.site}/down/"
            artifacts = sorted(k.removeprefix(prefix) for k in state.outputs["candidates"] if k.startswith(prefix))
            return tuple(Input(a, "candidates", step.round, a, prefix + a) for a in artifacts)
        case _:
            return ()


def _note(name: str, note: Note | None, artifact: str, site: str) -> Input:
    assert note is not None, "without it the site does not take part"
    task_id, round = note
    return Input(name=name, task_id=task_id, round=round, artifact=artifact, key=output_key(task_id, site, artifact))


# ----------------------------------------------------------- for the aggregator


def central_inputs(state: RunState) -> dict[str, str]:
    """Which sealed results the aggregator reads in the current central step: `{site: key}`."""
    return {site: key for site, key in state.results.get(_source(state), {}).items() if key}


def central_attempts(state: RunState) -> dict[str, int]:
    """Which attempt of each site made the result that `central_inputs` names: it is part of the stream's header."""
    source = _source(state)
    attempts = {site: attempt_of(key, source, site) for site, key in central_inputs(state).items()}
    return {site: attempt for site, attempt in attempts.items() if attempt is not None}


def central_broadcasts(state: RunState) -> dict[str, str]:
    """What the aggregator made earlier, for all, and needs again in the current central step: `{name: key}`."""
    step = state.step
    if step is None or not step.central:
        return {}
    plan = {f"{EVERYBODY}/plan": output_key("plan", EVERYBODY, "plan")}
    match step.verb:
        case "aggregate":
            return _broadcast_model(step.round - 1) | _left_over(state, step.round - 1)
        case "candidates":
            return _broadcast_model(step.round) | _left_over(state, step.round)
        case "export" | "issue":
            return {**plan, **_broadcast_model(step.round)}
        case _:
            return {}


def model_to_start_from(earlier: RunState, round: int | None) -> tuple[int, dict[str, str]]:
    """Plan and model of a round of an earlier run, of its best when none is named: the round, and `{name: key}`."""
    found = earlier.best_round() if round is None else round
    task_id = "plan" if found == 0 else f"aggregate/{found}"
    return found, {
        f"{EVERYBODY}/earlier-plan": output_key("plan", EVERYBODY, "plan"),
        f"{EVERYBODY}/earlier-weights": output_key(task_id, EVERYBODY, "weights"),
    }


def _broadcast_model(round: int) -> dict[str, str]:
    """The global model after a round; round 0 is the initial one."""
    task_id = "plan" if round == 0 else f"aggregate/{round}"
    return {f"{EVERYBODY}/weights": output_key(task_id, EVERYBODY, "weights")}


def _left_over(state: RunState, round: int) -> dict[str, str]:
    """Where models travel as differences: what rounding took from the model of a round."""
    key = output_key(f"aggregate/{round}", EVERYBODY, LEFT_OVER)
    return {f"{EVERYBODY}/{LEFT_OVER}": key} if key in state.outputs.get(f"aggregate/{round}", ()) else {}


def _source(state: RunState) -> str:
    """The task at the sites whose results the current central step reads."""
    step = state.step
    if step is None or not step.central:
        return ""
    return {
        "plan": "fingerprint",
        "aggregate": f"train/{step.round}",
        "candidates": "baseline",
        "collect": str(step.document.get("task_id", "")),
    }.get(step.verb, "")
