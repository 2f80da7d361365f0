"""From a run's state to the document that `report.json` holds (schema: `msfl.evaluation.report_schema.json`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from msfl.sdk.live import Picture
from msfl.sdk.words import said

JsonObject: TypeAlias = dict[str, Any]

# Steps in which the sites' workers compute; everything else of the wall time is overhead.
WORK_STEPS = ("fingerprint", "prepare", "train", "validate", "baseline", "evaluate")
# Of the job: what is done when something goes wrong.
SURVIVAL = (
    "rounds", "min_sites", "start", "round_deadline_s", "on_dropout", "keep", "retain", "early_stopping",
    "on_divergence",
)  # fmt: skip
INTERRUPTIONS = (
    "SiteFailed", "SiteSilent", "DeadlinePassed", "SiteReturned", "PauseRequested", "Resumed", "AbortRequested",
    "CentreFailed",
)  # fmt: skip
_PLAN_KEYS = {"patch_size", "batch_size", "spacing", "features_per_stage"}
_STATUS = {"finished": "finished", "refused": "refused", "failed": "failed", "aborted": "aborted"}
NNUNET = "Isensee et al., nnU-Net, Nature Methods 2021;18:203-211, doi:10.1038/s41592-020-01008-z"
FEDAVG = "McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017"


def report_document(
    state: JsonObject,
    *,
    events: Iterable[tuple[str, JsonObject]] = (),
    data: Mapping[str, str] | None = None,
    datasets: Mapping[str, JsonObject] | None = None,
    timings: Mapping[str, float] | None = None,
    peak_rss_mib: Mapping[str, float] | None = None,
    environment: Mapping[str, Any] | None = None,
    citations: tuple[str, ...] = (),
) -> JsonObject:
    """One report.

    Args:
        state: `Run.state()`.
        events: `Run.events()` of an ended run: what interrupted it.
        data: `kind` (generated or user), `description`, `licence`.
        datasets: site → facts that the reader has of its dataset (spacing, version, n_test, …); only where the reader
            owns the sites.
        timings: seconds of phases outside the run itself.
        peak_rss_mib: what an observer of all processes measured; wins over what they said themselves.
    """
    spec, documents = state["spec"], state["documents"]
    opened = documents.get("open", {})
    plan = documents.get("plan", {})
    name, _, version = spec["release"].partition(":")
    release = {"name": name, "version": version, "digest": spec["digest"]}
    release |= {k: opened[k] for k in ("publisher", "reviewers") if k in opened}
    interruptions, held = course(state, events)
    seconds = _timings(state) | ({"held": held} if held else {}) | dict(timings or {})
    exported, tested = documents.get("export", {}), _evaluation(documents.get("collect/test", {}))
    document: JsonObject = {
        "schema_version": 1,
        "run_id": state["run_id"],
        "name": spec["name"],
        "status": _STATUS.get(state["phase"], "failed"),
        "requested_by": {"user": state["user"]},
        "started": _instant(state["submitted_at"]),
        "release": release,
        "policy_hashes": {
            site: m["decision"]["policy_sha256"]
            for site, m in state["sites"].items()
            if m["decision"].get("policy_sha256")
        },
        "data": dict(data or {"kind": "user", "description": "The sites' own data; each site knows what they are."}),
        "plan_hash": plan.get("plan_hash"),
        "plan": _plan(plan),
        "profile": spec["profile"],
        "deviations": _deviations(opened.get("config", {}), opened.get("stock", {})),
        "config": opened.get("config", {}),
        "seed": spec["seed"],
        "isolation": {
            site: m["decision"]["isolation"] for site, m in state["sites"].items() if m["decision"].get("isolation")
        },
        "sites": {site: _site(site, m, state, (datasets or {}).get(site, {})) for site, m in state["sites"].items()},
        "rounds": [_round(r, state["kept_rounds"]) for r in state["rounds"]],
        "survival": {key: spec[key] for key in SURVIVAL},
        "generation": state["generation"],
        "course": interruptions,
        "best_round": state["best_round"],
        "evaluated_round": state["best_round"] if "collect/test" in documents else None,
        "final_weights_sha256": exported.get("weights_sha256"),
        "final_weights_blake3": exported.get("weights_blake3"),
        "wire": {"format": opened.get("config", {}).get("wire", "float32"), "unrounded": tested.pop("unrounded", {})},
        "evaluation": tested,
        "refusals": [
            {
                "site": site,
                "code": m["code"],
                "message": (m["decision"].get("refusal") or {}).get("message", "") or "The site does not say why.",
            }
            for site, m in state["sites"].items()
            if m["standing"] == "refused"
        ],
        "timings": seconds,
        "overhead_share": overhead_share(state, seconds),
        "peak_rss_mib": dict(peak_rss_mib or state["peak_rss_mib"]),
        "environment": dict(environment or {}),
        "citations": list(citations or (NNUNET, FEDAVG)),
    }
    if state["ended_at"] is not None:
        document["finished"] = _instant(state["ended_at"])
    return document


def overhead_share(state: JsonObject, timings: Mapping[str, float]) -> float | None:
    """Which part of the wall time was not spent computing at the sites.

    The wall time is `total` where an observer measured one (a demo, with its start-up), else the run's own, without the
    time for which the run was paused, or had ended, until it was resumed. Of a round,
    the work is what its slowest worker measured inside itself; sealing, transport and waiting are overhead.
    """
    total = (timings.get("total") or timings.get("run", 0.0)) - timings.get("held", 0.0)
    if total <= 0 or not state["rounds"]:
        return None
    work = sum(timings.get(step, 0.0) for step in WORK_STEPS if step != "train")
    work += timings.get("data", 0.0)
    for r in state["rounds"]:
        work += max((s.get("seconds") or 0.0 for s in r["sites"].values()), default=0.0)
    return round(min(max(1.0 - work / total, 0.0), 1.0), 4)


def _timings(state: JsonObject) -> dict[str, float]:
    sums: dict[str, float] = {}
    for task_id, seconds in state["step_seconds"].items():
        phase = task_id.partition("/")[0]
        sums[phase] = sums.get(phase, 0.0) + seconds
    if state["ended_at"] is not None:
        sums["run"] = max(state["ended_at"] - state["submitted_at"], 0.0)
    return {phase: round(seconds, 3) for phase, seconds in sums.items()}


def _plan(plan: JsonObject) -> JsonObject | None:
    summary = plan.get("plan_summary") or {}
    if not summary.keys() >= _PLAN_KEYS:
        return None
    return {**summary, "n_parameters": plan["n_parameters"]}


def _deviations(used: JsonObject, stock: JsonObject) -> list[JsonObject]:
    return [
        {"setting": key, "stock": stock[key], "used": used[key]}
        for key in sorted(used)
        if key in stock and key not in ("profile", "seed") and used[key] != stock[key]
    ]


def _site(site: str, member: JsonObject, state: JsonObject, known: JsonObject) -> JsonObject:
    last: JsonObject = next((r["sites"][site] for r in reversed(state["rounds"]) if site in r["sites"]), {})
    tested = _evaluation(state["documents"].get("collect/test", {})).get("federated", {}).get(site, {})
    return {
        "dataset": f"{site}/{member['dataset']}",
        "n_train": last.get("n_train", 0 if not member["trains"] else None),
        "n_val": last.get("n_val", 0 if not member["trains"] else None),
        "n_test": tested.get("n"),
        "spacing": None,
        "role": "train" if member["trains"] else "evaluate-only",
        **known,
    }


def course(state: JsonObject, events: Iterable[tuple[str, JsonObject]]) -> tuple[list[JsonObject], float]:
    """What interrupted a run and what brought it back, in the words of the live view; and for how long it was held."""
    picture = Picture.of(state)
    told = []
    for kind, event in events:
        lines = picture.hear(kind, event)
        if kind in INTERRUPTIONS:
            told += [{"at": _instant(event["at"]), "event": kind, "message": line} for line in lines]
    return told, round(picture.held, 3)


def _remarks(codes: Iterable[tuple[str, str]]) -> list[JsonObject]:
    return [{"site": site, "code": code, "message": said(code)} for site, code in codes]


def _round(record: JsonObject, kept_rounds: list[int]) -> JsonObject:
    kept = ("train_loss", "val_loss", "val_dice", "n_train", "n_val", "seconds")
    return {
        "round": record["round"],
        "sites": {
            s: {k: v[k] for k in kept if v.get(k) is not None or k != "seconds"} for s, v in record["sites"].items()
        },
        "seconds": record["seconds"],
        "bytes_up": record["bytes_up"],
        "bytes_down": record["bytes_down"],
        "late": record["late"],
        "refused": _remarks(sorted(record["refused"].items())),
        "flags": _remarks((site, flag) for site, flags in sorted(record["flags"].items()) for flag in flags),
        "kept": record["round"] in kept_rounds,
        "weights_blake3": record["weights_blake3"],
    }


def _evaluation(collected: JsonObject) -> dict[str, JsonObject]:
    """From site → model to model → site. A site that withheld metrics is shown as withholding."""
    models: dict[str, JsonObject] = {}
    for site, result in collected.get("sites", {}).items():
        for model, summary in result["summaries"].items():
            if summary.get("n") is None or not {"dice", "sensitivity", "precision"} <= summary.keys():
                summary = {"n": None, "withheld": summary.get("withheld", "metric_not_allowed")}
            models.setdefault(model, {})[site] = summary
    return models


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
