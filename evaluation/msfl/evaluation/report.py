"""From one dictionary to a folder that answers what a run was, what it reached and under which rules.

    RUN/report.json             the record; its schema is `report_schema.json` here, in words docs/report.md
    RUN/figures/*.png, *.svg    rounds, distributions, matrix; overlay-<site>.png where the reader owns all sites
    RUN/report.html             one page: pictures inside, no script, no network, opens offline, prints

The dictionary is checked before anything is written, against the schema and against what a schema cannot say (n is the
histogram's sum, every site named anywhere is one of `sites`, no NaN). Every file appears whole or not at all: it is
written beside its place, synced and renamed. The record is written first, so that a failure in drawing costs a picture
and not the run.

Site names, refusal messages and dataset descriptions come from other people's machines: the template escapes all of
them, and the page's content security policy forbids scripts and every network address besides.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import matplotlib
from matplotlib.figure import Figure

from msfl.evaluation import figures, page
from msfl.evaluation.findings import Report
from msfl.evaluation.metrics import METRICS

SCHEMA_VERSION = 1  # goes up when a reader of the older one would misread the newer
_MAX_PICTURE = 16 << 20
_PNG = b"\x89PNG\r\n\x1a\n"


class BadReport(ValueError):
    """The report does not follow its schema: a bug in what made it, or a file changed by hand. Says where and why."""


# ------------------------------------------------------------------- check


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of report.json."""
    text = resources.files("msfl.evaluation").joinpath("report_schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def check_report(report: Report) -> None:
    """Raise BadReport, naming the place, unless `report` follows the schema and agrees with itself."""
    try:
        json.dumps(report, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadReport(f"the report is not plain JSON with finite numbers: {error}") from error
    wrong = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(report))
    if wrong is not None:
        raise BadReport(f"{wrong.json_path}: {wrong.message:.300}")
    known = set(report["sites"])
    named = {
        "policy_hashes": set(report["policy_hashes"]),
        "isolation": set(report["isolation"]),
        "overlays": set(report.get("overlays", {})),
        "rounds": {site for record in report["rounds"] for site in _named(record)},
        "evaluation": {site for sites in report["evaluation"].values() for site in sites},
    }
    for where, sites in named.items():
        if strangers := sites - known:
            raise BadReport(f"$.{where} names {sorted(strangers)}, which $.sites does not")
    for model, sites_of_model in report["evaluation"].items():
        for site, entry in sites_of_model.items():
            for metric in METRICS:
                if entry["n"] is not None and sum(entry[metric]["histogram"]) != entry["n"]:
                    raise BadReport(f"$.evaluation.{model}.{site}.{metric}: the histogram's counts do not add up to n")


def _named(record: Mapping[str, Any]) -> list[str]:
    """Every site that a round names: as there, late, refused or conspicuous."""
    remarks = [*record.get("refused", ()), *record.get("flags", ())]
    return [*record["sites"], *record.get("late", ()), *(remark["site"] for remark in remarks)]


def read_report(folder: Path) -> dict[str, Any]:
    """Read and check `folder/report.json`. Raises FileNotFoundError, or BadReport when it is no valid report."""
    try:
        report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadReport(f"{folder / 'report.json'} is not JSON: {error}") from error
    check_report(report)
    return report


# ------------------------------------------------------------------- write


def write_report(report: Mapping[str, Any], folder: Path, overlays: Mapping[str, Path]) -> Path:
    """Write the record, the figures and the page of a run into `folder`; returns the page's path.

    `overlays` names a PNG per site; pass it only where the reader owns every site. The pictures are copied into
    `figures/`, and the record's `overlays` then names the copies. Without any, the record's own `overlays` is kept.
    Raises BadReport before anything is written when the report or an overlay is not what it should be.
    """
    record = dict(report)
    pictures = {site: _picture(path) for site, path in overlays.items()}
    if pictures:
        record["overlays"] = {site: f"figures/overlay-{name}.png" for site, name in _file_names(pictures).items()}
    check_report(record)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for site, picture in pictures.items():
        _write(folder / record["overlays"][site], picture)
    _write(folder / "report.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return render(record, folder)


def render(report: Report, folder: Path) -> Path:
    """Draw figures and page again from a checked report; overlays are read from where the record says."""
    drawn: dict[str, bytes] = {}
    for name, figure in (
        ("rounds", figures.round_curves(report)),
        ("distributions", figures.metric_distributions(report)),
        ("matrix", figures.model_site_matrix(report)),
    ):
        drawn[name] = _drawn(figure, "png")
        _write(folder / "figures" / f"{name}.png", drawn[name])
        _write(folder / "figures" / f"{name}.svg", _drawn(figure, "svg"))
    shown = {site: _picture(folder / name) for site, name in report.get("overlays", {}).items()}
    place = folder / "report.html"
    _write(place, page.html(report, drawn, shown).encode())
    return place


def _drawn(figure: Figure, kind: str) -> bytes:
    out = io.BytesIO()
    # A fixed salt and no date: the same report gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "msfl"}):
        figure.savefig(out, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()


def _picture(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith(_PNG) or len(data) > _MAX_PICTURE:
        raise BadReport(f"{path} is not a PNG of at most {_MAX_PICTURE >> 20} MiB; it is not put into the report")
    return data


def _file_names(sites: Mapping[str, object]) -> dict[str, str]:
    """A safe, distinct part of a file name for each site, whatever the site is called."""
    names: dict[str, str] = {}
    for i, site in enumerate(sites):
        name = re.sub(r"[^a-z0-9-]+", "-", site.lower()).strip("-")[:60]
        names[site] = name if name and name not in names.values() else f"{name or 'site'}-{i + 1}"
    return names


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
