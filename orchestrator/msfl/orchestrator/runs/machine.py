"""The run state machine: `advance(state, event) -> state`. No I/O, no clock, no randomness.

    OFFERED ──all sites answered, enough accept──▶ RUNNING ──last step done──▶ FINISHED
       │ dry run, all answered ─▶ EXPLAINED           │ centre failed, quorum lost ─▶ FAILED
       │ too few accept ───────▶ REFUSED              │ abort ─────────────────────▶ ABORTED

A RUNNING run is always inside exactly one **step**. A step is either one task at every participating site, or one
task at the aggregator. When all participants are in, `_following` names the next step:

    start ▸ [open] ▸ fingerprint ▸ [plan] ▸ prepare
          ▸ ( train/r ▸ [aggregate/r] ) for r = 1 … rounds
          ▸ validate ▸ [collect/validate] ▸ baseline ▸ [candidates/b] ▸ evaluate/test ▸ [collect/test] ▸ [export]

`[x]` runs at the aggregator. The rules that keep a run alive:

* A site that fails, or is silent while a step waits for it, leaves the step. In `train/r` a silent or late site is
  only late: it gets the new model and is asked again in the next round. Elsewhere it is out for this run.
* When fewer than `min_sites` training sites are left, or a round would close with fewer updates, the run FAILS with
  `quorum_not_reached`.
* An event about a step that is not the current one changes nothing: late and repeated messages are harmless, and an
  update of an old round is never mixed in.

The orders for a site (`order_for`) and the work of the aggregator (`state.step`) are derived from the state, never
remembered on the side, so a restart needs nothing but the events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeAlias, assert_never

from msfl.orchestrator.runs.events import (
    AbortRequested,
    Answered,
    CentralDone,
    CentreFailed,
    DeadlinePassed,
    Event,
    SiteFailed,
    SiteSilent,
    Submitted,
    TaskDone,
)
from msfl.policies.documents import JobSpec
from msfl.protos.messages import Input, Offer, Order, StopOrder, TaskOrder, attempt_of, output_key
from msfl.protos.sealing import EVERYBODY

JsonObject: TypeAlias = dict[str, Any]


class Phase(StrEnum):
    OFFERED = "offered"
    RUNNING = "running"
    FINISHED = "finished"
    EXPLAINED = "explained"
    REFUSED = "refused"
    ABORTED = "aborted"
    FAILED = "failed"


ENDED = frozenset({Phase.FINISHED, Phase.EXPLAINED, Phase.REFUSED, Phase.ABORTED, Phase.FAILED})


class Standing(StrEnum):
    """Where a site stands in a run."""

    ASKED = "asked"
    PARKED = "needs confirmation"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    OUT = "out"


@dataclass(frozen=True)
class Member:
    """One site in a run. `code` says why it refused or is out; `decision` is as much as the site reveals."""

    site: str
    dataset: str
    trains: bool
    standing: Standing = Standing.ASKED
    code: str = ""
    decision: JsonObject = field(default_factory=dict)
    wrapped_secret: str = ""


@dataclass(frozen=True)
class Step:
    """What the run is waiting for. `waiting` are the sites that have not reported; empty for a central step."""

    task_id: str
    verb: str
    round: int
    central: bool
    opened_at: float
    waiting: frozenset[str] = frozenset()
    done: Mapping[str, str] = field(default_factory=dict)
    document: JsonObject = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class RoundRecord:
    """One closed round. `sites` holds only those that took part; `late` those that were waited for in vain."""

    round: int
    sites: Mapping[str, JsonObject]
    late: tuple[str, ...]
    seconds: float
    bytes_up: int
    bytes_down: int
    weights_sha256: str

    def validation_dice(self) -> float | None:
        """Mean validation Dice of the round's global model, weighted by validation cases; None when nobody has any."""
        pairs = [
            (site["n_val"], site["val_dice"])
            for site in self.sites.values()
            if site.get("n_val") and site.get("val_dice") is not None
        ]
        cases = sum(n for n, _ in pairs)
        return sum(n * dice for n, dice in pairs) / cases if cases else None


@dataclass(frozen=True)
class RunState:
    run_id: str
    spec: JobSpec
    spec_text: str
    proof: str
    token: str
    user: str
    dry_run: bool
    phase: Phase
    submitted_at: float
    members: Mapping[str, Member]
    step: Step | None = None
    reason: str = ""
    ended_at: float | None = None
    rounds: tuple[RoundRecord, ...] = ()
    documents: Mapping[str, JsonObject] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    round_bytes: tuple[int, int] = (0, 0)  # up and down, of the last closed step at the sites
    peak_rss_mib: Mapping[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    def best_round(self) -> int:
        """The round whose model is evaluated: best validation Dice under `keep="best"`, ties to the earlier."""
        last = len(self.rounds)
        if self.spec.keep == "last":
            return last
        scored = [(dice, -r.round) for r in self.rounds if (dice := r.validation_dice()) is not None]
        return -max(scored)[1] if scored else last


def submitted(event: Submitted, spec: JobSpec) -> RunState:
    """The first state. `spec` is the parsed form of `event.spec`; who submits has been verified."""
    members = {}
    for ref in spec.datasets:
        site, dataset = ref.split("/", 1)
        members[site] = Member(site=site, dataset=dataset, trains=spec.trains_on(ref))
    return RunState(
        run_id=event.run_id,
        spec=spec,
        spec_text=event.spec,
        proof=event.proof,
        token=event.token,
        user=event.user,
        dry_run=event.dry_run,
        phase=Phase.OFFERED,
        submitted_at=event.at,
        members=members,
    )


def advance(state: RunState, event: Event) -> RunState:
    """The one transition function. An event that does not fit the state leaves it as it is."""
    if state.ended:
        return state
    match event:
        case Submitted():
            return state
        case Answered():
            return _answered(state, event)
        case TaskDone():
            return _task_done(state, event)
        case SiteFailed():
            return _site_out(state, event.site, event.code, event.at)
        case SiteSilent():
            return _silent(state, event.site, event.task_id, "silent", event.at)
        case DeadlinePassed():
            return _deadline(state, event)
        case CentralDone():
            return _central_done(state, event)
        case AbortRequested():
            return _end(state, Phase.ABORTED, f"aborted by {event.by}", event.at)
        case CentreFailed():
            return _end(state, Phase.FAILED, event.code, event.at)
        case _:
            assert_never(event)


def is_news(state: RunState, event: Event) -> bool:
    """False for what the machine would ignore, so that the store does not keep repeats."""
    return advance(state, event) is not state


# ------------------------------------------------------------------ answers


def _answered(state: RunState, event: Answered) -> RunState:
    member = state.members.get(event.site)
    if member is None or state.phase is not Phase.OFFERED or member.standing not in (Standing.ASKED, Standing.PARKED):
        return state
    refusal = event.decision.get("refusal") or {}
    match event.verdict:
        case "allow":
            answered = replace(member, standing=Standing.ACCEPTED, wrapped_secret=event.wrapped_secret)
        case "confirm":
            if member.standing is Standing.PARKED:
                return state
            answered = replace(member, standing=Standing.PARKED)
        case _:
            answered = replace(member, standing=Standing.REFUSED, code=str(refusal.get("code", "refused")))
    state = _with_member(state, replace(answered, decision=event.decision))
    return _maybe_start(state, event.at)


def _maybe_start(state: RunState, at: float) -> RunState:
    asked = [m for m in state.members.values() if m.standing is Standing.ASKED]
    parked = [m for m in state.members.values() if m.standing is Standing.PARKED]
    if state.dry_run:
        return _end(state, Phase.EXPLAINED, "", at) if not asked else state
    accepted = [m for m in state.members.values() if m.trains and m.standing is Standing.ACCEPTED]
    undecided = [m for m in (*asked, *parked) if m.trains]
    if len(accepted) + len(undecided) < state.spec.min_sites:
        return _end(state, Phase.REFUSED, _refusal_reason(state), at)
    if state.spec.start == "quorum" and len(accepted) >= state.spec.min_sites:
        for member in (*asked, *parked):
            state = _with_member(state, replace(member, standing=Standing.OUT, code="answered_too_late"))
    elif asked or parked:
        return state
    started = replace(state, phase=Phase.RUNNING)
    return _open_sites(started, "start", "start", 0, _accepted(started), {}, at)


def _refusal_reason(state: RunState) -> str:
    without = [f"{m.site}: {m.code}" for m in state.members.values() if m.code]
    return f"fewer than {state.spec.min_sites} sites accept ({'; '.join(without)})"


# -------------------------------------------------------------------- tasks


def _task_done(state: RunState, event: TaskDone) -> RunState:
    step = state.step
    if step is None or step.central or event.task_id != step.task_id or event.site not in step.waiting:
        return state
    peaks = dict(state.peak_rss_mib)
    for process, mib in event.peak_rss_mib.items():
        name = f"{process}:{event.site}"
        peaks[name] = max(mib, peaks.get(name, 0.0))
    step = replace(
        step,
        waiting=step.waiting - {event.site},
        done={**step.done, event.site: event.key},
        bytes_up=step.bytes_up + event.bytes_up,
        bytes_down=step.bytes_down + event.bytes_down,
    )
    return _close_if_complete(replace(state, step=step, peak_rss_mib=peaks), event.at)


def _site_out(state: RunState, site: str, code: str, at: float) -> RunState:
    member = state.members.get(site)
    if member is None or member.standing is not Standing.ACCEPTED or state.step is None:
        return state
    state = _with_member(state, replace(member, standing=Standing.OUT, code=code))
    return _without(state, site, at)


def _without(state: RunState, site: str, at: float) -> RunState:
    """Stop waiting for a site in the current step, and see whether the run can go on."""
    step = state.step
    training = [m for m in state.members.values() if m.trains and m.standing is Standing.ACCEPTED]
    if len(training) < state.spec.min_sites:
        return _quorum_lost(state, at)
    if step is None or site not in step.waiting:
        return state
    return _close_if_complete(replace(state, step=replace(step, waiting=step.waiting - {site})), at)


def _quorum_lost(state: RunState, at: float) -> RunState:
    out = [f"{m.site}: {m.code}" for m in state.members.values() if m.code]
    return _end(state, Phase.FAILED, f"quorum_not_reached ({'; '.join(out)})", at)


def _silent(state: RunState, site: str, task_id: str, code: str, at: float) -> RunState:
    step = state.step
    if step is None or step.task_id != task_id or site not in step.waiting:
        return state
    if step.verb == "train" and len(step.done) + len(step.waiting) - 1 >= state.spec.min_sites:
        return _without(state, site, at)
    return _site_out(state, site, code, at)


def _deadline(state: RunState, event: DeadlinePassed) -> RunState:
    if state.phase is Phase.OFFERED and event.task_id == "offer":
        for member in state.members.values():
            if member.standing in (Standing.ASKED, Standing.PARKED):
                state = _with_member(state, replace(member, standing=Standing.OUT, code="answered_too_late"))
        return _maybe_start(state, event.at)
    if state.step is None or state.step.task_id != event.task_id or state.step.central:
        return state
    for site in sorted(state.step.waiting):
        if state.ended or state.step is None:
            break
        state = _silent(state, site, event.task_id, "too_late", event.at)
    return state


def _close_if_complete(state: RunState, at: float) -> RunState:
    step = state.step
    if step is None or step.central or step.waiting:
        return state
    if step.verb == "train" and len(step.done) < state.spec.min_sites:
        # Enough sites are left, but some of them were late: a sum over so few would show a single site's model.
        return _quorum_lost(state, at)
    state = replace(
        state,
        results={**state.results, step.task_id: dict(step.done)},
        step_seconds={**state.step_seconds, step.task_id: at_least_zero(at - step.opened_at)},
        round_bytes=(step.bytes_up, step.bytes_down),
    )
    return _following(state, step, at)


def _central_done(state: RunState, event: CentralDone) -> RunState:
    step = state.step
    if step is None or not step.central or step.task_id != event.task_id:
        return state
    peaks = dict(state.peak_rss_mib)
    if isinstance(mib := event.document.get("peak_rss_mib"), int | float):
        peaks["aggregator"] = max(float(mib), peaks.get("aggregator", 0.0))
    state = replace(
        state,
        documents={**state.documents, step.task_id: event.document},
        outputs={**state.outputs, step.task_id: event.files},
        step_seconds={**state.step_seconds, step.task_id: at_least_zero(event.at - step.opened_at)},
        peak_rss_mib=peaks,
    )
    if step.verb == "aggregate":
        state = _close_round(state, step, event)
    if step.task_id == "collect/validate":
        state = _final_validation(state, event.document)
    return _following(state, step, event.at)


def at_least_zero(seconds: float) -> float:
    """Clocks may step back; a duration in a report may not."""
    return max(seconds, 0.0)


# ------------------------------------------------------------------- rounds


def _close_round(state: RunState, step: Step, event: CentralDone) -> RunState:
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
    waited = {m.site for m in state.members.values() if m.trains and m.standing is Standing.ACCEPTED}
    rounds.append(
        RoundRecord(
            round=step.round,
            sites=sites,
            late=tuple(sorted(waited - set(sites))),
            seconds=at_least_zero(event.at - step.opened_at) + state.step_seconds[f"train/{step.round}"],
            bytes_up=state.round_bytes[0],
            bytes_down=state.round_bytes[1],
            weights_sha256=str(event.document["weights_sha256"]),
        )
    )
    return replace(state, rounds=tuple(rounds))


_NO_VALIDATION: JsonObject = {"n_val": None, "val_loss": None, "val_dice": None}


def _with_validation(record: RoundRecord, measured: Mapping[str, JsonObject]) -> RoundRecord:
    sites = {
        site: {**values, **{k: measured.get(site, {}).get(k) for k in _NO_VALIDATION}}
        for site, values in record.sites.items()
    }
    return replace(record, sites=sites)


def _final_validation(state: RunState, document: JsonObject) -> RunState:
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


# -------------------------------------------------------- the order of steps


def _following(state: RunState, step: Step, at: float) -> RunState:
    spec = state.spec
    match step.verb:
        case "start":
            return _open_centre(state, "open", "open", 0, {}, at)
        case "open":
            return _open_sites(state, "fingerprint", "fingerprint", 0, _training(state), {}, at)
        case "fingerprint":
            return _open_centre(state, "plan", "plan", 0, {"recipients": _accepted(state)}, at)
        case "plan":
            return _open_sites(state, "prepare", "prepare", 0, _accepted(state), {}, at)
        case "prepare":
            return _open_sites(state, "train/1", "train", 1, _training(state), {"stream": "federated"}, at)
        case "train":
            document: JsonObject = {"recipients": _training(state)}
            return _open_centre(state, f"aggregate/{step.round}", "aggregate", step.round, document, at)
        case "aggregate":
            if step.round < spec.rounds:
                r = step.round + 1
                return _open_sites(state, f"train/{r}", "train", r, _training(state), {"stream": "federated"}, at)
            document = {"split": "validation", "candidates": ["federated"]}
            return _open_sites(state, "validate", "evaluate", spec.rounds, _training(state), document, at)
        case "evaluate":
            collects = "collect/validate" if step.task_id == "validate" else "collect/test"
            return _open_centre(state, collects, "collect", step.round, {"task_id": step.task_id}, at)
        case "collect":
            if step.task_id == "collect/test":
                return _open_centre(state, "export", "export", state.best_round(), {}, at)
            if spec.baseline == "local":
                document = {"stream": "local", "rounds": spec.rounds}
                return _open_sites(state, "baseline", "baseline", 0, _training(state), document, at)
            return _open_candidates(state, at)
        case "baseline":
            return _open_candidates(state, at)
        case "candidates":
            return _open_sites(state, "evaluate/test", "evaluate", step.round, _accepted(state), {"split": "test"}, at)
        case "export":
            return _end(state, Phase.FINISHED, "", at)
        case _:
            raise AssertionError(f"no step follows {step.verb}")


def _open_candidates(state: RunState, at: float) -> RunState:
    best = state.best_round()
    document = {"recipients": _accepted(state), "federated_round": best}
    return _open_centre(state, "candidates", "candidates", best, document, at)


def _open_sites(
    state: RunState, task_id: str, verb: str, round: int, sites: list[str], document: JsonObject, at: float
) -> RunState:
    step = Step(
        task_id=task_id,
        verb=verb,
        round=round,
        central=False,
        opened_at=at,
        waiting=frozenset(sites),
        document=document,
    )
    return replace(state, step=step)


def _open_centre(state: RunState, task_id: str, verb: str, round: int, document: JsonObject, at: float) -> RunState:
    return replace(
        state,
        step=Step(task_id=task_id, verb=verb, round=round, central=True, opened_at=at, document=document),
    )


def _end(state: RunState, phase: Phase, reason: str, at: float) -> RunState:
    return replace(state, phase=phase, reason=reason, step=None, ended_at=at)


def _with_member(state: RunState, member: Member) -> RunState:
    return replace(state, members={**state.members, member.site: member})


def _accepted(state: RunState) -> list[str]:
    return sorted(m.site for m in state.members.values() if m.standing is Standing.ACCEPTED)


def _training(state: RunState) -> list[str]:
    return sorted(m.site for m in state.members.values() if m.trains and m.standing is Standing.ACCEPTED)


# ---------------------------------------------------- what follows from state


def order_for(state: RunState, site: str) -> Order | None:
    """The one thing a site should be doing for this run now; None: wait."""
    member = state.members.get(site)
    if member is None:
        return None
    if state.ended or member.standing is Standing.OUT:
        return StopOrder(state.run_id, reason=state.phase.value if state.ended else member.code)
    if state.phase is Phase.OFFERED:
        # A parked site hears it again on every new stream: its gateway may have been restarted since.
        if member.standing not in (Standing.ASKED, Standing.PARKED):
            return None
        return Offer(state.run_id, state.spec_text.encode(), state.proof, state.token, state.dry_run)
    step = state.step
    if step is None or site not in step.waiting:
        return None
    document = dict(step.document)
    inputs = _inputs(state, step, site)
    if step.task_id == "evaluate/test":
        names = [i.name for i in inputs]
        if member.trains and state.spec.baseline == "local":
            names.append(f"local:{site}")
        document["candidates"] = names
    verb = "train" if step.verb == "baseline" else step.verb
    return TaskOrder(state.run_id, step.task_id, verb, step.round, attempt=1, document=document, inputs=inputs)


def _inputs(state: RunState, step: Step, site: str) -> tuple[Input, ...]:
    match step.verb:
        case "prepare":
            return (_input("plan", "plan", 0, "plan", site),)
        case "train":
            return (_input("weights", *_model_after(step.round - 1), site),)
        case "baseline":
            return (_input("weights", *_model_after(0), site),)
        case "evaluate" if step.task_id == "validate":
            return (_input("federated", *_model_after(step.round), site),)
        case "evaluate":
            prefix = f"candidates/{site}/down/"
            artifacts = sorted(k.removeprefix(prefix) for k in state.outputs["candidates"] if k.startswith(prefix))
            return tuple(_input(a, "candidates", step.round, a, site) for a in artifacts)
        case _:
            return ()


def _model_after(round: int) -> tuple[str, int, str]:
    """Task, round and artifact of the global model after a round; round 0 is the initial one."""
    return ("plan", 0, "weights") if round == 0 else (f"aggregate/{round}", round, "weights")


def _input(name: str, task_id: str, round: int, artifact: str, site: str) -> Input:
    return Input(name=name, task_id=task_id, round=round, artifact=artifact, key=output_key(task_id, site, artifact))


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
            left_over = output_key(f"aggregate/{step.round - 1}", EVERYBODY, "left-over")
            known = left_over in state.outputs.get(f"aggregate/{step.round - 1}", ())
            return {**_broadcast_model(step.round - 1), **({f"{EVERYBODY}/left-over": left_over} if known else {})}
        case "candidates":
            return _broadcast_model(step.round)
        case "export":
            return {**plan, **_broadcast_model(step.round)}
        case _:
            return {}


def _broadcast_model(round: int) -> dict[str, str]:
    task_id, _, artifact = _model_after(round)
    return {f"{EVERYBODY}/weights": output_key(task_id, EVERYBODY, artifact)}


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
