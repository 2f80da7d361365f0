"""The page of a run: what its report says, in sentences for a clinician and a reviewer who have ten minutes.

The order is the reader's: the answer with its margin of error; what happened in five lines; the sites; the figures;
then, for who wants to check, settings, governance, times, licences and limits. Words that depend on the numbers are
made here; words that do not stand in the template `report.html.j2`.

Claims are worded by `findings`: a model is said to be ahead only beyond the margin; otherwise the page says that these
cases do not decide it. Whether a site accepted is not inferred from its silence: only refusals are counted.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from typing import Any

import jinja2

from msfl.evaluation import figures, findings
from msfl.evaluation.findings import FEDERATED, Ahead, Report, local_model


def html(report: Report, drawn: Mapping[str, bytes], overlays: Mapping[str, bytes]) -> str:
    """The page as text. `drawn` holds the PNGs `rounds`, `distributions`, `matrix`; `overlays` one PNG per site."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=False, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "value": value_text, "words": words}
    template = resources.files("msfl.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    styles = figures.site_styles(report)
    return environment.from_string(template).render(
        report=report,
        status=status(report),
        when=when(report.get("started"), report.get("finished")),
        answer=answer(report),
        tiles=_tiles(report),
        story=story(report),
        fewest_cases=findings.FEWEST_CASES,
        sites=[_site_row(report, site, styles[site].colour) for site in report["sites"]],
        figures={name: _base64(data) for name, data in drawn.items()},
        overlays=[{"site": site, "image": _base64(data)} for site, data in overlays.items()],
        governance=[_governance_row(report, site) for site in report["sites"]],
        described=[
            {"site": site} | {key: about.get(key, "") for key in ("description", "licence", "reference")}
            for site, about in report["sites"].items()
            if any(about.get(key) for key in ("description", "licence", "reference"))
        ],
        limits=_limits(report),
        amiss=any(findings.amiss(record, remark) for record in report["rounds"] for remark in _AMISS),
        rounds=_round_rows(report),
        survival=_survival(report),
        wire=_wire(report),
    )


def status(report: Report) -> str:
    """finished, refused, failed or aborted; worked out where the record does not say."""
    if "status" in report:
        return str(report["status"])
    if report["evaluation"]:
        return "finished"
    return "refused" if report["refusals"] else "failed"


def answer(report: Report) -> list[str]:
    """The first thing a reader should know, in a few plain sentences."""
    if not report["rounds"]:
        return _nothing_trained(report)
    trained = findings.trained_sites(report)
    n_train = sum(report["sites"][site]["n_train"] or 0 for site in trained)
    release = report["release"]
    sentences = []
    whole = findings.compare(report, trained)
    everywhere = findings.pooled(report, [(FEDERATED, site) for site in report["sites"]])
    who = f"{_count(len(trained), 'site')} trained one {release['name']} together on {_count(n_train, 'case')}"
    if whole is not None:
        sentences.append(
            f"{who}: mean Dice {whole.federated:.2f} for the federated model, {whole.local:.2f} for each site's own "
            f"model at home, on the same {_count(whole.n, 'held-out test case')}."
        )
        sentences.append(_verdict(whole, report, trained))
    elif everywhere is not None:
        sentences.append(f"{who}: mean Dice {everywhere.mean:.2f} on {_count(everywhere.n, 'held-out test case')}.")
        sentences.append("No local models were measured beside it, so whether training together helped is not known.")
    else:
        sentences.append(f"{who}. No test figures are in this report.")
    abroad = [
        (local_model(owner), site) for owner in report["sites"] for site in report["sites"] if owner != site
    ]  # a local model at a site it has never seen
    carried = findings.pooled(report, abroad)
    if carried is not None:
        there = findings.pooled(report, [(FEDERATED, site) for site in carried.sites])
        if there is not None:
            sentences.append(
                f"Taken to a site it was not trained at, a local model reached {carried.mean:.2f} on average; the "
                f"federated model reached {there.mean:.2f} at the same sites."
            )
    outside = [site for site in report["sites"] if site not in trained]
    strangers = findings.pooled(report, [(FEDERATED, site) for site in outside])
    if strangers is not None:
        sentences.append(
            f"At {_listed(strangers.sites)}, which took no part in training, the federated model reached "
            f"{strangers.mean:.2f} on {_count(strangers.n, 'case')}."
        )
    if report["refusals"]:
        sentences.append(f"{_listed(_refusing(report))} refused to take part; the reasons stand under Governance.")
    return sentences


def _nothing_trained(report: Report) -> list[str]:
    said = [f"{refusal['site']} refused ({refusal['code']}): {refusal['message']}" for refusal in report["refusals"]]
    if said:
        head = f"Nothing was trained: {_listed(_refusing(report))} refused, and no round began."
        return [head, *said, "No site's data were used for training."]
    return [f"Nothing was trained: the run is {status(report)} and no round was completed. Its logs say why."]


def _verdict(whole: findings.Comparison, report: Report, trained: tuple[str, ...]) -> str:
    caution = f"the margin of error is about ± {whole.margin:.2f}"
    if whole.ahead is Ahead.OPEN:
        who = "the federated model" if whole.difference > 0 else "the local models"
        if round(abs(whole.difference), 2) == 0:
            text = f"Neither is ahead (difference below 0.01; {caution})."
        else:
            text = (
                f"In these figures {who} came out ahead by {abs(whole.difference):.2f}, but {caution}: "
                "these cases do not decide which is better."
            )
    else:
        who = "The federated model" if whole.ahead is Ahead.FEDERATED else "The sites' own models"
        text = f"{who} did better, by {abs(whole.difference):.2f} in mean Dice; {caution}."
    each = {site: found for site in trained if (found := findings.compare(report, [site])) is not None}
    fewest = min(found.n for found in each.values())
    won = [site for site, found in each.items() if found.ahead is Ahead.FEDERATED]
    lost = [site for site, found in each.items() if found.ahead is Ahead.LOCAL]
    parts = []
    if won:
        parts.append(f"the federated model was clearly ahead at {_listed(won)}")
    if lost:
        parts.append(f"the site's own model was clearly ahead at {_listed(lost)}")
    if not parts:
        parts.append("at no single site was the difference clear")
    return (
        f"{text} Site by site, {' and '.join(parts)}. With as few as {_count(fewest, 'test case')} at a site, "
        "one patient more or less can turn a result."
    )


def story(report: Report) -> list[str]:
    """What happened, in five lines: ask, start, plan, train, test."""
    asked = list(dict.fromkeys([*report["sites"], *_refusing(report)]))
    refusing = _refusing(report)
    lines = [
        f"{_count(len(asked), 'site')} {'was' if len(asked) == 1 else 'were'} asked for this run. A site decides for "
        f"itself, by the policy its own custodian signed: {_listed(refusing) if refusing else 'none'} refused."
    ]
    release = report["release"]
    levels = sorted({entry["level"] for entry in report["isolation"].values()})
    if levels:
        lines.append(
            f"The gateways pulled release {release['name']} {release['version']} by its digest, verified it and "
            f"started it beside the data (isolation: {', '.join(levels)})."
        )
    plan = report["plan"]
    if plan is not None:
        patch = " × ".join(str(size) for size in plan["patch_size"])
        lines.append(
            "Each site sent a fingerprint made of counts and histograms; from their sum one plan was made for all: "
            f"patches of {patch} voxels, {plan['n_parameters']:,} parameters."
        )
    rounds = report["rounds"]
    if rounds:
        up = sum(record["bytes_up"] for record in rounds) / 2**20
        down = sum(record["bytes_down"] for record in rounds) / 2**20
        seconds = sum(record["seconds"] for record in rounds)
        weighting = {"cases": "weighted by training cases", "equal": "every site counting alike"}.get(
            str(report["config"].get("weighting", "cases")), "combined"
        )
        best = f"; round {report['best_round']} validated best" if report["best_round"] is not None else ""
        lines.append(
            f"In {_count(len(rounds), 'round')} the sites trained on their own images and sent weights, which the "
            f"centre averaged ({report['config'].get('strategy', 'fedavg')}, {weighting}): {up:.0f} MiB up, "
            f"{down:.0f} MiB down, {duration(seconds)}{best}. No image left a site."
        )
    lines += _troubles(report)
    if report["evaluation"]:
        lines.append(
            f"The model of round {report['evaluated_round']} was tested once, at every site, on cases set aside for "
            "it. Only means, standard deviations, medians and histograms left the sites."
        )
    if len(lines) == 1 and not rounds:
        lines.append("No worker trained, so no weights exist and no site sent any.")
    return lines


def _troubles(report: Report) -> list[str]:
    """What went wrong on the way and how the run went on; nothing in a run without troubles."""
    lines = []
    rounds, asked = report["rounds"], report.get("survival", {})
    if asked.get("early_stopping") and 0 < len(rounds) < asked["rounds"]:
        patience = asked["early_stopping"]["patience"]
        lines.append(
            f"Training was to take up to {_count(asked['rounds'], 'round')} and ended after {len(rounds)}, because the "
            f"validation Dice had not grown for {_count(patience, 'round')}."
            if status(report) == "finished"
            else f"Training was to take up to {_count(asked['rounds'], 'round')} and ended after {len(rounds)}."
        )
    refused = [remark["site"] for record in rounds for remark in record.get("refused", ())]
    if refused:
        were = "was" if len(refused) == 1 else "were"
        lines.append(
            f"{_count(len(refused), 'update')} of {_listed(sorted(set(refused)))} {were} refused by the centre as no "
            "result of training; the round went on without."
        )
    without = [record["round"] for record in rounds if record.get("late")]
    if without:
        lines.append(f"{_count(len(without), 'round')} went on without a site that was away or late.")
    if report.get("course"):
        lines.append(f"The run was held up or taken up again; see Interruptions ({len(report['course'])} entries).")
    return lines


_AMISS = {"late": "away or late", "refused": "update refused", "flags": "conspicuous"}


def _round_rows(report: Report) -> list[dict[str, Any]]:
    """The rounds with something to say: a site missing, an update refused, a model that is still kept."""
    rows = []
    for record in report["rounds"]:
        remarks = [{"what": f"{site}: {_AMISS['late']}", "code": ""} for site in findings.amiss(record, "late")]
        for kind in ("refused", "flags"):
            remarks += [
                {"what": f"{remark['site']}: {_AMISS[kind]}, {remark['message']}", "code": remark["code"]}
                for remark in record.get(kind, ())
            ]
        if not remarks and not record.get("kept"):
            continue
        dice = findings.validation_dice(record)
        marks = ["kept"] if record.get("kept") else []
        marks += ["best"] if record["round"] == report["best_round"] else []
        marks += ["tested"] if record["round"] == report["evaluated_round"] else []
        rows.append(
            {
                "round": record["round"],
                "best": record["round"] == report["best_round"],
                "sites": ", ".join(record["sites"]),
                "dice": "–" if dice is None else f"{dice:.3f}",
                "seconds": record["seconds"],
                "remarks": remarks,
                "model": ", ".join(marks) or "–",
            }
        )
    return rows


def _survival(report: Report) -> list[tuple[str, str]]:
    """The job's own rules for troubles, in words; empty for a report that does not hold them."""
    rules = report.get("survival")
    if rules is None:
        return []
    drops = {
        "continue": "goes on with the others; with too few, it waits for one more deadline and then fails",
        "wait": "waits for it until the deadline; with too few sites, without end",
        "abort": "ends",
    }
    retain, stopping, diverging = rules["retain"], rules["early_stopping"], rules["on_divergence"]
    kept = [f"of the last {_count(retain['last'], 'round')}"] if retain["last"] else []
    kept += ["of the best round"] if retain["best"] else []
    kept += [f"of one round in {retain['every']}"] if retain["every"] else []
    kept = ["of every round"] if rules["keep"] == "all" else kept
    grows = f" by more than {stopping['min_delta']:g}" if stopping and stopping["min_delta"] else ""
    return [
        ("training sites needed", f"{rules['min_sites']}, in every round"),
        ("begins", "when all sites have answered" if rules["start"] == "all" else "as soon as enough sites allow it"),
        ("a step waits for a site", f"at most {duration(rules['round_deadline_s'])}"),
        ("when a site drops out", f"the run {drops[rules['on_dropout']]}"),
        ("models that are kept", " and ".join(kept) or "none"),
        (
            "training ends early",
            f"when the validation Dice has not grown{grows} for {_count(stopping['patience'], 'round')}"
            if stopping
            else "never",
        ),
        (
            "when a site's loss rises",
            f"for {_count(diverging['rounds'], 'round')} on end: "
            + ("the run pauses" if diverging["action"] == "pause" else "it is flagged"),
        ),
    ]


def _wire(report: Report) -> str:
    """In which form weights travelled, and what that cost in Dice."""
    form = report["wire"]["format"]
    if form == "float32":
        return "as they are, in 32 bits; nothing is lost"
    said = f"as {form} differences to the last model, in 16 bits"
    cost = findings.wire_cost(report)
    if cost is None:
        return f"{said}; what that cost in Dice is not known, because no site shows both figures"
    each = ", ".join(f"{site} {difference:+.4f}" for site, difference in cost.differences.items())
    return (
        f"{said}; that cost {cost.unrounded - cost.held:.4f} of mean Dice: {cost.held:.4f} as the sites hold the "
        f"model, {cost.unrounded:.4f} before it was rounded, on the same {_count(cost.n, 'test case')} ({each})"
    )


def _tiles(report: Report) -> list[dict[str, str]]:
    if not report["rounds"]:
        return []
    trained = findings.trained_sites(report)
    tiles = []
    whole = findings.compare(report, trained)
    everywhere = findings.pooled(report, [(FEDERATED, site) for site in report["sites"]])
    if whole is not None:
        tiles.append({"value": f"{whole.federated:.2f}", "label": "federated, mean Dice"})
        tiles.append({"value": f"{whole.local:.2f}", "label": "own models at home, mean Dice"})
        tiles.append({"value": signed(whole.difference), "label": f"difference; margin ± {whole.margin:.2f}"})
    elif everywhere is not None:
        tiles.append({"value": f"{everywhere.mean:.2f}", "label": "federated, mean Dice"})
    if everywhere is not None:
        tiles.append({"value": str(everywhere.n), "label": "held-out test cases in all"})
    tiles.append({"value": str(len(report["rounds"])), "label": "rounds"})
    return tiles


def _site_row(report: Report, site: str, colour: str) -> dict[str, Any]:
    about = report["sites"][site]
    found = findings.compare(report, [site])
    spacing = about["spacing"]
    ahead = {Ahead.FEDERATED: "federated", Ahead.LOCAL: "own model", Ahead.OPEN: "not decided"}
    return {
        "site": site,
        "colour": colour,
        "dataset": about["dataset"],
        "evaluate_only": about["role"] == "evaluate-only",
        "cases": " / ".join(str(about[key]) if about[key] else "–" for key in ("n_train", "n_val", "n_test")),
        "spacing": "?" if spacing is None else " × ".join(f"{size:g}" for size in spacing),
        "federated": _cell(report, FEDERATED, site),
        "own": _cell(report, local_model(site), site),
        "difference": "–" if found is None else f"{signed(found.difference)} ± {found.margin:.2f}",
        "ahead": "–" if found is None else ahead[found.ahead],
    }


def _cell(report: Report, model: str, site: str) -> str:
    dice = findings.measured(report, model, site)
    if dice is not None:
        return f"{dice.mean:.2f} ± {dice.sd:.2f} ({dice.median:.2f})"
    code = findings.withheld(report, model, site)
    return "–" if code is None else f"withheld: {code}"


def _governance_row(report: Report, site: str) -> dict[str, str | None]:
    isolation = report["isolation"].get(site)
    detail = "" if isolation is None else isolation["detail"]
    return {
        "site": site,
        "level": None if isolation is None else isolation["level"],
        "detail": detail if isinstance(detail, str) else "; ".join(detail),
        "policy": report["policy_hashes"].get(site),
    }


def _limits(report: Report) -> list[str]:
    limits = [
        "Test sets are small, and one run with one seed was made: another seed moves every figure.",
        "Differences are judged from summaries as if the cases were unpaired, several at a time and uncorrected: an "
        "orientation, not a statistical test.",
        "Metrics count voxels. A small lesion that is missed hardly moves Dice, though it may matter most.",
        "Where truth and prediction are both empty a case counts 1, where only one is empty it counts 0.",
    ]
    if report["data"]["kind"] == "generated":
        limits.insert(0, "The lesions are synthetic, and no figure here carries over to patients.")
    if report["deviations"]:
        limits.append(
            f"Profile {report['profile']} deviates from stock nnU-Net; a full training may come out otherwise."
        )
    if any(entry["level"] == "none" for entry in report["isolation"].values()):
        limits.append("At least one site ran the release without isolation, as its policy allows.")
    return limits


# ------------------------------------------------------------------- words


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 4 min 5 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def value_text(value: Any) -> str:
    """A setting as text: numbers short, three numbers with ×, nothing as a dash, what is nested as JSON."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case int():
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        case str():
            return value
        case [*items] if items and all(type(item) in (int, float) for item in items):
            return (" × " if len(items) == 3 else ", ").join(f"{item:g}" for item in items)
        case _:
            return json.dumps(value, ensure_ascii=False)


def signed(difference: float) -> str:
    """A difference of two Dice values with its sign, as typeset."""
    return f"{difference:+.2f}".replace("-", "−")


def when(started: str | None, finished: str | None) -> str:
    """Start and length of a run in words; empty when the start is not recorded."""
    if started is None:
        return ""
    begin = datetime.fromisoformat(started)
    said = f"{begin:%Y-%m-%d %H:%M} {begin.tzname()}"
    if finished is None:
        return said
    return f"{said}, {duration((datetime.fromisoformat(finished) - begin).total_seconds())}"


def words(key: str) -> str:
    """A key as words: `batch_size` is batch size."""
    return key.replace("_", " ")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def _refusing(report: Report) -> list[str]:
    return list(dict.fromkeys(refusal["site"] for refusal in report["refusals"]))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
