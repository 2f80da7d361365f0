"""The process that works on cases (`msfl.imaging.hands`): ``python -m msfl.imaging.hand``, orders on standard input.

==============  =====================================  ==============================
order ``step``  with                                   does
==============  =====================================  ==============================
import          ``visit``, ``options``, ``private``    `msfl.imaging.importing.bring_in`
standardise     –                                      `msfl.imaging.standard.standardise`
==============  =====================================  ==============================

Every order names its ``home``, ``dataset`` and ``case``, and the time ``at`` which it is done.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from msfl.imaging.deidentify.headers import Options
from msfl.imaging.deidentify.keys import Pseudonyms, site_key
from msfl.imaging.hands import serve
from msfl.imaging.importing import ImportOptions, bring_in
from msfl.imaging.sources.found import DicomSeries, ImageSource, NiftiFile, Visit
from msfl.imaging.workspace import JsonObject, Step, Unusable, Workspace
from msfl.policies.documents import parse_utc


def do(order: JsonObject) -> JsonObject:
    home, dataset = Path(order["home"]), str(order["dataset"])
    case = Workspace.of(home, dataset).case(order["case"])
    match Step(order["step"]):
        case Step.IMPORT:
            given = order["options"]
            options = ImportOptions(Options(**given["deidentify"]), given["max_slice_mm"])
            pseudonyms = Pseudonyms.of(site_key(home), dataset)
            private = Path(order["private"])
            outcome = bring_in(visit_of(order["visit"]), case, pseudonyms, options, parse_utc(order["at"]), private)
            return asdict(outcome)
        case step:
            raise ValueError(f"no hand does {step}")


def import_order(
    home: Path, dataset: str, case: str, visit: Visit, options: ImportOptions, private: Path, at: str
) -> JsonObject:
    return {
        "step": Step.IMPORT.value,
        "home": str(home),
        "dataset": dataset,
        "case": case,
        "visit": visit_json(visit),
        "options": asdict(options),
        "private": str(private),
        "at": at,
    }


def visit_json(visit: Visit) -> JsonObject:
    why = visit.unusable
    return {
        "kind": visit.kind,
        "patient": visit.patient,
        "day": visit.day,
        "split": visit.split,
        "images": {name: _image_json(image) for name, image in visit.images.items()},
        "lesion": _image_json(visit.lesion) if visit.lesion else None,
        "unusable": {"code": why.code, "reason": why.reason} if why else None,
    }


def visit_of(value: JsonObject) -> Visit:
    why = value["unusable"]
    return Visit(
        kind=value["kind"],
        patient=value["patient"],
        day=value["day"],
        images={name: _image_of(image) for name, image in value["images"].items()},
        lesion=_image_of(value["lesion"]) if value["lesion"] else None,
        split=value["split"],
        unusable=Unusable(why["code"], why["reason"]) if why else None,
    )


def _image_json(image: ImageSource) -> JsonObject:
    match image:
        case DicomSeries(files):
            return {"files": [str(file) for file in files]}
        case NiftiFile(file, sidecar):
            return {"file": str(file), "sidecar": str(sidecar) if sidecar else None}


def _image_of(value: JsonObject) -> ImageSource:
    if "files" in value:
        return DicomSeries(tuple(Path(file) for file in value["files"]))
    return NiftiFile(Path(value["file"]), Path(value["sidecar"]) if value["sidecar"] else None)


if __name__ == "__main__":
    serve(do)
