"""What people may see of a run: its state and its events without tokens, proofs and wrapped keys."""

from __future__ import annotations

from typing import Any, TypeAlias

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
from msfl.orchestrator.runs.machine import RoundRecord, RunState, waiting_for

JsonObject: TypeAlias = dict[str, Any]


def public_event(event: Event) -> JsonObject:
    """One event as watchers see it: `{"event": name, "at": s, …}`."""
    shown: JsonObject = {"event": type(event).__name__, "at": event.at}
    match event:
        case Submitted():
            return shown | {"run_id": event.run_id, "user": event.user, "dry_run": event.dry_run}
        case Answered():
            return shown | {"site": event.site, "verdict": event.verdict, "decision": event.decision}
        case TaskDone():
            return shown | {"site": event.site, "task_id": event.task_id, "seconds": event.seconds}
        case SiteFailed() | SiteSilent():
            code = event.code if isinstance(event, SiteFailed) else "silent"
            return shown | {"site": event.site, "task_id": event.task_id, "code": code}
        case CentralDone():
            said = {"task_id": event.task_id, "document": event.document, "seconds": event.seconds}
            if event.task_id.startswith("aggregate/"):
                said["refused"] = event.document.get("refused", {})
            return shown | said
        case SiteReturned() | SiteRevoked():
            return shown | {"site": event.site}
        case DeadlinePassed():
            return shown | {"task_id": event.task_id}
        case AbortRequested() | PauseRequested() | Resumed():
            return shown | {"by": event.by}
        case CentreFailed():
            return shown | {"code": event.code}


def public_round(record: RoundRecord) -> JsonObject:
    return {
        "round": record.round,
        "sites": {site: dict(values) for site, values in record.sites.items()},
        "late": list(record.late),
        "refused": dict(record.refused),
        "flags": {site: list(flags) for site, flags in record.flags.items()},
        "seconds": record.seconds,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "weights_blake3": record.weights_blake3,
        "validation_dice": record.validation_dice(),
    }


def public_state(state: RunState) -> JsonObject:
    """The whole run as its owner sees it."""
    return {
        "run_id": state.run_id,
        "user": state.user,
        "phase": state.phase.value,
        "reason": state.reason,
        "paused": state.paused,
        "pause_reason": state.pause_reason,
        "generation": state.generation,
        "dry_run": state.dry_run,
        "spec": state.spec.model_dump(mode="json"),
        "submitted_at": state.submitted_at,
        "ended_at": state.ended_at,
        "step": None if state.step is None else {"task_id": state.step.task_id, "waiting": sorted(state.step.waiting)},
        "waiting_for_sites": list(waiting_for(state)),
        "sites": {
            m.site: {
                "dataset": m.dataset,
                "trains": m.trains,
                "standing": m.standing.value,
                "code": m.code,
                "absent": m.absent,
                "decision": m.decision,
            }
            for m in state.members.values()
        },
        "rounds": [public_round(r) for r in state.rounds],
        "best_round": state.best_round() if state.rounds else None,
        "documents": _documents(state),
        "step_seconds": dict(state.step_seconds),
        "peak_rss_mib": dict(state.peak_rss_mib),
    }


def _documents(state: RunState) -> JsonObject:
    """What the centre said, without rounds; of its openings the latest, as `open`."""
    shown = {task: doc for task, doc in state.documents.items() if not task.startswith(("aggregate/", "open/"))}
    opened = state.documents.get(f"open/{state.generation}")
    return shown if opened is None else shown | {"open": opened}
