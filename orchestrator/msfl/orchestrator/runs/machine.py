"""The run state machine: `advance(state, event) -> state`. No I/O, no clock, no randomness.

    OFFERED ──all sites answered, enough accept──▶ RUNNING ──last step done──▶ FINISHED
       │ dry run, all answered ─▶ EXPLAINED           │ centre failed, quorum lost ─▶ FAILED ──┐
       │ too few accept ───────▶ REFUSED              │ abort ─────────────────────▶ ABORTED ──┤
       ▲                                                                                       │
       └───────────── Resumed: the next generation, decided on by every site afresh ───────────┘

A RUNNING run is always inside exactly one **step**: one task at every participating site, or one task at the
aggregator. `steps.py` has their order, `orders.py` what follows from the state, `rounds.py` what a closed round says.
The rules that keep a run alive:

* A site that is silent, or late at the deadline, is **absent**: the step closes without it. Whatever is heard of it
  makes it present again; it may still finish the open step, is asked again in the next round, and catches up with
  `start` and `prepare` if it missed them. A site that fails is OUT for this generation; so is one that is revoked,
  also before it has answered.
* A step closes with a quorum: `min_sites` results in `fingerprint` and `train/r`, as many present training sites
  elsewhere. Without one it stays open for one more deadline, then the run FAILS with `quorum_not_reached`; at once when
  too few are left that could come back. `on_dropout="wait"`: a step waits for the absent until its deadline, and for
  a quorum without end. `on_dropout="abort"`: the first site that is absent or fails ends the run.
* A site whose update is refused is asked again; the third time in a row it is OUT.
* While a run is paused nothing is asked of anybody, and no patience ends; what comes is taken in.
* An event about a step that is not the current one brings no result: late and repeated messages are harmless, and an
  update of an old round is never mixed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from msfl.orchestrator.runs.events import (
    AbortRequested,
    Answered,
    CentralDone,
    CentreFailed,
    DeadlinePassed,
    Event,
    PauseRequested,
    Resumed,
    SiteFailed,
    SiteReturned,
    SiteRevoked,
    SiteSilent,
    Submitted,
    TaskDone,
)
from msfl.orchestrator.runs.orders import (
    abandoned_uploads,
    central_attempts,
    central_broadcasts,
    central_inputs,
    is_reported,
    may_upload,
    model_to_start_from,
    order_for,
    task_of,
    waiting_for,
)
from msfl.orchestrator.runs.rounds import close_round, disposable_keys, final_validation
from msfl.orchestrator.runs.state import (
    Member,
    Phase,
    RoundRecord,
    RunState,
    Standing,
    Step,
    at_least_zero,
    codes,
    end,
    may_take_part,
    owns,
    quorum_lost,
    runnable,
    submitted,
    training,
    with_members,
)
from msfl.orchestrator.runs.steps import begin, expected, following, needs_results, takes_part, with_notes_of
from msfl.policies.refusals import Code
from msfl.protos.sealing import EVERYBODY

__all__ = [
    "Member",
    "Phase",
    "RoundRecord",
    "RunState",
    "Standing",
    "Step",
    "abandoned_uploads",
    "advance",
    "central_attempts",
    "central_broadcasts",
    "central_inputs",
    "disposable_keys",
    "is_news",
    "is_reported",
    "may_take_part",
    "may_upload",
    "model_to_start_from",
    "order_for",
    "owns",
    "runnable",
    "submitted",
    "task_of",
    "waiting_for",
]
MOST_REFUSALS = 3


def advance(state: RunState, event: Event) -> RunState:
    """The one transition function. An event that does not fit the state leaves it as it is."""
    if isinstance(event, Resumed):
        return _resumed(state, event)
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
            return _site_failed(state, event)
        case SiteSilent():
            return _silent(state, event)
        case SiteReturned():
            return _settle(_present(state, event.site), event.at)
        case SiteRevoked():
            return _revoked(state, event)
        case DeadlinePassed():
            return _deadline(state, event)
        case CentralDone():
            return _central_done(state, event)
        case PauseRequested():
            return state if state.paused else replace(state, paused=True, pause_reason=f"paused by {event.by}")
        case AbortRequested():
            return end(state, Phase.ABORTED, f"aborted by {event.by}", event.at)
        case CentreFailed():
            return end(state, Phase.FAILED, event.code, event.at)
        case _:
            assert_never(event)


def is_news(state: RunState, event: Event) -> bool:
    """False for what the machine would ignore, so that the store does not keep repeats."""
    return advance(state, event) is not state


# ------------------------------------------------------------------ answers


def _answered(state: RunState, event: Answered) -> RunState:
    member = state.members.get(event.site)
    if member is None or event.generation != state.generation:
        return state
    if member.standing not in (Standing.ASKED, Standing.PARKED):
        return _settle(_present(state, event.site), event.at)
    refusal = event.decision.get("refusal") or {}
    match event.verdict:
        case "allow" if event.wrapped_secret or state.dry_run:
            answered = replace(member, standing=Standing.ACCEPTED, wrapped_secret=event.wrapped_secret)
        case "confirm":
            if member.standing is Standing.PARKED:
                return state
            answered = replace(member, standing=Standing.PARKED)
        case _:
            # Without its secret nothing could be opened from this site, nor sealed for it.
            code = "no_run_secret" if event.verdict == "allow" else str(refusal.get("code", "refused"))
            answered = replace(member, standing=Standing.REFUSED, code=code)
    state = with_members(state, [replace(answered, decision=event.decision)])
    return _maybe_start(state, event.at) if state.phase is Phase.OFFERED else state


def _maybe_start(state: RunState, at: float) -> RunState:
    """With `start="quorum"` those who have not answered may still do so while the run goes on."""
    asked = [m for m in state.members.values() if m.standing is Standing.ASKED]
    parked = [m for m in state.members.values() if m.standing is Standing.PARKED]
    if state.dry_run:
        return end(state, Phase.EXPLAINED, "", at) if not asked else state
    ready = len(training(state))
    undecided = [m for m in (*asked, *parked) if m.trains]
    if ready + len(undecided) < state.spec.min_sites:
        if state.generation > 1:
            return quorum_lost(state, at)  # It has begun once and has something to lose: it can be resumed again.
        reason = f"fewer than {state.spec.min_sites} sites accept ({codes(state)})"
        return end(state, Phase.REFUSED, reason, at)
    if state.spec.start == "quorum" and ready >= state.spec.min_sites:
        return begin(state, at)
    return state if asked or parked else begin(state, at)


# ------------------------------------------------------ who comes, goes and reports


def _task_done(state: RunState, event: TaskDone) -> RunState:
    task = task_of(state, event.site)
    state = _present(state, event.site)
    if task is None or task.task_id != event.task_id:
        return _settle(state, event.at)
    peaks = dict(state.peak_rss_mib)
    for process, mib in event.peak_rss_mib.items():
        name = f"{process}:{event.site}"
        peaks[name] = max(mib, peaks.get(name, 0.0))
    state = replace(state, peak_rss_mib=peaks)
    member = state.members[event.site]
    if task.verb == "start":
        state = with_members(state, [replace(member, started=True)])
    if task.verb == "prepare":
        state = with_members(state, [replace(member, prepared=True)])
    step = state.step
    if step is not None and event.site in step.waiting:
        step = replace(
            step,
            waiting=step.waiting - {event.site},
            done={**step.done, event.site: event.key},
            bytes_up=step.bytes_up + event.bytes_up,
            bytes_down=step.bytes_down + event.bytes_down,
        )
        state = replace(state, step=step)
    return _settle(state, event.at)


def _site_failed(state: RunState, event: SiteFailed) -> RunState:
    member = state.members.get(event.site)
    if member is None or not member.accepted or state.step is None:
        return state
    return _settle(_out(state, event.site, event.code, event.at), event.at)


def _revoked(state: RunState, event: SiteRevoked) -> RunState:
    """Out at any time: also while it is asked, or the custodian has not answered yet."""
    if not may_take_part(state, event.site):
        return state
    state = _out(state, event.site, Code.SITE_REVOKED.value, event.at)
    if state.phase is Phase.OFFERED:
        return _maybe_start(state, event.at)
    return _settle(state, event.at)


def _out(state: RunState, site: str, code: str, at: float) -> RunState:
    out = replace(state.members[site], standing=Standing.OUT, code=code, absent=False)
    state = with_members(state, [out])
    if state.spec.on_dropout == "abort":
        return _dropped_out(state, site, code, at)
    step = state.step
    if step is None:
        return state
    document = step.document
    if site in document.get("recipients", ()):
        # It may be out because its secret does not open: then nobody can seal anything for it.
        document = {**document, "recipients": [r for r in document["recipients"] if r != site]}
    step = replace(step, waiting=step.waiting - {site}, away=step.away - {site}, document=document)
    return replace(state, step=step)


def _silent(state: RunState, event: SiteSilent) -> RunState:
    step = state.step
    if step is None or state.paused or step.task_id != event.task_id or event.site not in step.waiting:
        return state
    return _settle(_absent(state, event.site, "silent", event.at), event.at)


def _absent(state: RunState, site: str, code: str, at: float) -> RunState:
    """Do not wait for a site any more; its result is welcome as long as the step is open."""
    state = with_members(state, [replace(state.members[site], absent=True, code=code)])
    if state.spec.on_dropout == "abort":
        return _dropped_out(state, site, code, at)
    step = state.step
    assert step is not None
    return replace(state, step=replace(step, waiting=step.waiting - {site}, away=step.away | {site}))


def _present(state: RunState, site: str) -> RunState:
    """Something was heard of a site. It is waited for again where it was given up."""
    member, step = state.members.get(site), state.step
    if member is None or not member.absent:
        return state
    state = with_members(state, [replace(member, absent=False, code="")])
    if step is None or site not in step.away:
        return state
    return replace(state, step=replace(step, waiting=step.waiting | {site}, away=step.away - {site}))


def _dropped_out(state: RunState, site: str, code: str, at: float) -> RunState:
    return end(state, Phase.ABORTED, f"{site} dropped out ({code})", at)


def _deadline(state: RunState, event: DeadlinePassed) -> RunState:
    if state.paused:
        return state
    if state.phase is Phase.OFFERED and event.task_id == "offer":
        late = [m for m in state.members.values() if m.standing in (Standing.ASKED, Standing.PARKED)]
        out = [replace(m, standing=Standing.OUT, code="answered_too_late") for m in late]
        return _maybe_start(with_members(state, out), event.at)
    step = state.step
    if step is None or step.task_id != event.task_id or step.central:
        return state
    waits = state.spec.on_dropout == "wait"
    if waits and needs_results(step) and len(step.done.keys() | step.waiting | step.away) < state.spec.min_sites:
        return quorum_lost(state, event.at)  # Whoever else may come is not ready for this very step.
    if waits and step.last_call:
        return state  # It closes with the quorum, whenever that is.
    for site in sorted(step.waiting):
        state = _absent(state, site, "too_late", event.at)
        if state.ended:
            return state
    assert state.step is not None
    state = _settle(replace(state, step=replace(state.step, last_call=True)), event.at)
    still_open = state.step is not None and state.step.task_id == step.task_id
    return quorum_lost(state, event.at) if still_open and step.last_call and not waits else state


# ------------------------------------------------------------- closing a step


def _settle(state: RunState, at: float) -> RunState:
    """After somebody came, went or reported: see whether the step is complete, and the run can go on."""
    if state.phase is not Phase.RUNNING or state.step is None:
        return state
    if len(training(state)) < state.spec.min_sites:
        return quorum_lost(state, at)
    step = state.step
    if step.central:
        return state
    step = _joined(state, step)
    waits = state.spec.on_dropout == "wait"
    if not waits and not step.last_call and expected(state, step) < state.spec.min_sites:
        step = replace(step, last_call=True)
    if step is not state.step:
        state = replace(state, step=step)
    held = not step.last_call and (step.waiting or step.away) if waits else step.waiting
    in_already = len(step.done) if needs_results(step) else expected(state, step)
    if held or in_already < state.spec.min_sites:
        return state
    return _closed(state, step, at)


def _joined(state: RunState, step: Step) -> Step:
    """A step that is short of its quorum takes in who has become ready for it meanwhile."""
    if not needs_results(step) or expected(state, step) >= state.spec.min_sites:
        return step
    known = step.waiting | step.away | step.done.keys()
    ready = [m for m in state.members.values() if m.site not in known and takes_part(state, step, m)]
    if not ready:
        return step
    away = {m.site for m in ready if m.absent}
    return replace(step, waiting=step.waiting | {m.site for m in ready} - away, away=step.away | away)


def _closed(state: RunState, step: Step, at: float) -> RunState:
    state = replace(
        state,
        results={**state.results, step.task_id: dict(step.done)},
        step_seconds={**state.step_seconds, step.task_id: at_least_zero(at - step.opened_at)},
        round_bytes=(step.bytes_up, step.bytes_down),
        left_behind=tuple(sorted(step.waiting | step.away)),
    )
    return _settle(following(state, step, at), at)


def _central_done(state: RunState, event: CentralDone) -> RunState:
    step = state.step
    if step is None or not step.central or step.task_id != event.task_id:
        return state
    peaks = dict(state.peak_rss_mib)
    if isinstance(mib := event.document.get("peak_rss_mib"), int | float):
        peaks["aggregator"] = max(float(mib), peaks.get("aggregator", 0.0))
    state = replace(state, peak_rss_mib=peaks)
    refused: Mapping[str, str] = event.document.get("refused", {}) if step.verb == "aggregate" else {}
    if step.verb == "aggregate" and "weights_blake3" not in event.document:
        bad = [replace(state.members[site], code=code) for site, code in refused.items()]
        return quorum_lost(with_members(state, bad), event.at)
    state = replace(
        state,
        documents={**state.documents, step.task_id: event.document},
        outputs={**state.outputs, step.task_id: event.files},
        step_seconds={**state.step_seconds, step.task_id: at_least_zero(event.at - step.opened_at)},
    )
    state = with_notes_of(state, step)
    if step.verb == "aggregate":
        state = _refusals_counted(close_round(state, step, event), refused, event.at)
    if step.task_id == "collect/validate":
        state = final_validation(state, event.document)
    if state.ended or len(training(state)) < state.spec.min_sites:
        return state if state.ended else quorum_lost(state, event.at)
    state = _settle(following(state, step, event.at), event.at)
    return _paused_by_divergence(state) if step.verb == "aggregate" else state


def _refusals_counted(state: RunState, refused: Mapping[str, str], at: float) -> RunState:
    taken = [replace(state.members[s], refusals=0) for s in state.rounds[-1].sites if state.members[s].refusals]
    state = with_members(state, taken)
    for site, code in refused.items():
        member = replace(state.members[site], refusals=state.members[site].refusals + 1)
        state = with_members(state, [member])
        if member.accepted and member.refusals >= MOST_REFUSALS and not state.ended:
            state = _out(state, site, code, at)
    return state


def _paused_by_divergence(state: RunState) -> RunState:
    rule = state.spec.on_divergence
    rising = [site for site, flags in state.rounds[-1].flags.items() if "loss_rising" in flags]
    if rule.action != "pause" or not rising or not runnable(state):
        return state
    reason = f"the training loss of {', '.join(rising)} has risen in each of {rule.rounds} rounds"
    return replace(state, paused=True, pause_reason=reason)


# ------------------------------------------------------------------- resuming


def _resumed(state: RunState, event: Resumed) -> RunState:
    if state.paused:
        step = state.step and replace(state.step, opened_at=event.at)
        token, proof = event.token or state.token, event.proof or state.proof  # for sites that are yet to answer
        return replace(state, paused=False, pause_reason="", step=step, token=token, proof=proof)
    if state.phase not in (Phase.FAILED, Phase.ABORTED):
        return state
    # Who refused is asked again too: what a custodian signed may have changed since.
    members = [Member(site=m.site, dataset=m.dataset, trains=m.trains) for m in state.members.values()]
    # Every site makes a new secret: what is sealed with the old ones is lost. What goes to all can still be opened.
    lost = {key for done in state.results.values() for key in done.values()}
    for files in state.outputs.values():
        lost |= {key for key in files if f"/{EVERYBODY}/" not in key}
    again = replace(
        with_members(state, members),
        phase=Phase.OFFERED,
        generation=state.generation + 1,
        token=event.token or state.token,
        proof=event.proof or state.proof,
        reason="",
        ended_at=None,
        results={},
        void=state.void | lost,
    )
    if "collect/test" not in again.documents:
        again = replace(
            again,
            documents={task: d for task, d in again.documents.items() if task != "candidates"},
            outputs={task: files for task, files in again.outputs.items() if task != "candidates"},
            void=again.void | {*state.outputs.get("candidates", ())},
        )
    return _maybe_start(again, event.at)
