"""report: what quality control found, for the custodian's eyes: `report/report.html`, `qc.csv`, `qc.json`.

The page is one file without a link to anything: pictures and scripts are in it, so it can be opened on any machine of
the site and loads nothing from anywhere. It shows brains: it stays at the site.
"""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any, Final

from msfl.imaging.quality.limits import QualityLimits, said
from msfl.imaging.quality.overrule import Overrules
from msfl.imaging.quality.pictures import NAMES
from msfl.imaging.quality.report.charts import strip
from msfl.imaging.quality.verdict import Checked, Finding
from msfl.imaging.quality.words import FIGURES, NO_LESION_MASK
from msfl.imaging.workspace import Workspace, write_json, write_whole
from msfl.policies.documents import format_utc

SHOWN = (
    "T1w.snr", "FLAIR.snr", "T1w.cjv", "T1w.efc", "FLAIR.efc", "FLAIR.brain", "pair.volume_similarity", "pair.overlap",
    "pair.shared", "pair.shift", "lesion.volume", "lesion.brightness",
    *(f"{image}.{artefact}" for image in ("FLAIR", "T1w") for artefact in ("motion", "ghosting", "spike", "noise")),
)  # fmt: skip
"""Whose distributions are drawn."""


def write_report(workspace: Workspace, cases: Sequence[Checked], limits: QualityLimits, at: datetime) -> None:
    """Each file is written whole."""
    head = Overrules(workspace).head
    document = {
        "dataset": workspace.dataset,
        "at": format_utc(at),
        "verdicts": dict(Counter(case.final.value for case in cases)),
        "overrules_head": head,
        "cases": [case.to_json() for case in cases],
    }
    write_json(workspace.report / "qc.json", document)
    write_whole(workspace.report / "qc.csv", _csv(cases).encode())
    write_whole(workspace.report / "report.html", _page(workspace, cases, limits, at, head).encode())


def _csv(cases: Sequence[Checked]) -> str:
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(["case", "final", "verdict", "findings", "sentences", "overruled_by", "reason", *FIGURES])
    for case in cases:
        by, reason = (case.overruled.by, case.overruled.reason) if case.overruled else ("", "")
        found = "; ".join(finding.figure for finding in case.findings)
        sentences = " ".join(same[0].sentence for same in case.said)
        values = ["" if (value := case.figures.get(name)) is None else f"{value:.6g}" for name in FIGURES]
        words = (case.case, case.final, case.verdict, found, sentences, by, reason)
        table.writerow([_plain(cell) for cell in words] + values)
    return out.getvalue()


def _plain(cell: str) -> str:
    """Spreadsheets run what begins like a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _page(workspace: Workspace, cases: Sequence[Checked], limits: QualityLimits, at: datetime, head: str | None) -> str:
    import jinja2

    source = files("msfl.imaging.quality.report").joinpath("page.html.j2").read_text()
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return page.render(
        dataset=workspace.dataset,
        at=_read_by_people(format_utc(at)),
        counts=Counter(case.final.value for case in cases),
        rows=[_row(workspace, case, limits) for case in cases],
        charts=[chart for name in SHOWN if (chart := strip(name, cases, limits)) is not None],
        overrules_head=head,
    )


def _row(workspace: Workspace, case: Checked, limits: QualityLimits) -> dict[str, Any]:
    return {
        "case": case,
        "overruled_at": _read_by_people(case.overruled.at) if case.overruled else "",
        "table": [_said(case, name, limits) for name in ("T1w.snr", "FLAIR.snr", "pair.overlap", "pair.shift")],
        "lesions": _said(case, "lesion.volume", limits) or ("no mask" if case.figures else ""),
        "figures": [(FIGURES[name].title, _said(case, name, limits)) for name in FIGURES if name in case.figures],
        "brief": [same[0].sentence.partition(". ")[0].removesuffix(".") + "." for same in case.said],
        "said": [[_finding(case, finding, limits) for finding in same] for same in case.said],
        "pictures": _pictures(workspace, case.case) if case.figures else {},
    }


def _read_by_people(utc: str) -> str:
    return f"{utc[:10]} {utc[11:16]} UTC"


def _finding(case: Checked, finding: Finding, limits: QualityLimits) -> dict[str, str]:
    return {
        "verdict": finding.verdict.value,
        "title": _title(finding.figure),
        "value": _said(case, finding.figure, limits) if finding.figure in case.figures else "",
        "limit": finding.limit,
        "sentence": finding.sentence,
    }


_TITLES: Final = {
    "twin.same_image": "The same image twice",
    "twin.same_head": "One head, two patients",
    NO_LESION_MASK: "No lesion mask",
}


def _title(figure: str) -> str:
    if figure in FIGURES:
        return FIGURES[figure].title
    return _TITLES.get(figure, f"Could not be measured ({figure})")


def _said(case: Checked, name: str, limits: QualityLimits) -> str:
    value = case.figures.get(name)
    if value is None:
        return "not computable" if name in case.figures else ""
    return said(name, value, limits)


def _pictures(workspace: Workspace, case: str) -> dict[str, str]:
    folder = workspace.case(case).folder / "pictures"
    files_ = {name: folder / f"{name}.webp" for name in NAMES}
    return {
        name: "data:image/webp;base64," + base64.b64encode(file.read_bytes()).decode()
        for name, file in files_.items()
        if file.exists()
    }
