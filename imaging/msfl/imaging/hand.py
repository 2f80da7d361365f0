"""The process that works on cases (`msfl.imaging.hands`): ``python -m msfl.imaging.hand``, orders on standard input.

============  =======================================  ============================================
``do``        with                                     is
============  =======================================  ============================================
import        ``visit``, ``options``, ``private``      `msfl.imaging.importing.bring_in`
measure       ``settings``                             `msfl.imaging.quality.control.measure_case`
finish        ``extent``                               `msfl.imaging.publishing.finish`
============  =======================================  ============================================

Every order names its ``home``, ``dataset`` and ``case``, and the time ``at`` which it is done. An answer is an object;
where a case turned out to be unusable, or nothing can go on, it is ``{"code", "reason"}``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from msfl.imaging.deidentify.headers import Options
from msfl.imaging.deidentify.keys import Pseudonyms, site_key
from msfl.imaging.faults import room_on
from msfl.imaging.hands import serve
from msfl.imaging.importing import ImportOptions, bring_in
from msfl.imaging.publishing import finish
from msfl.imaging.quality.control import CANNOT_PROCEED, Settings, measure_case
from msfl.imaging.sources.found import DicomSeries, ImageSource, NiftiFile, Visit
from msfl.imaging.workspace import JsonObject, Unusable, Workspace
from msfl.policies.documents import parse_utc
from msfl.policies.refusals import CannotProceed


def do(order: JsonObject) -> JsonObject:
    home, dataset = Path(order["home"]), str(order["dataset"])
    try:
        with room_on(home):
            return _done(order, home, dataset)
    except Unusable as why:
        return {"code": why.code, "reason": why.reason}
    except CannotProceed as error:  # a tool that every case needs does not work, or the disk is full
        return {"code": CANNOT_PROCEED, "reason": str(error)}


def _done(order: JsonObject, home: Path, dataset: str) -> JsonObject:
    case = Workspace.of(home, dataset).case(order["case"])
    match order["do"]:
        case "import":
            given = order["options"]
            options = ImportOptions(Options(**given["deidentify"]), given["max_slice_mm"])
            pseudonyms, private = Pseudonyms.of(site_key(home), dataset), Path(order["private"])
            visit = visit_of(order["visit"])
            return asdict(bring_in(visit, case, pseudonyms, options, parse_utc(order["at"]), private))
        case "measure":
            settings = Settings.model_validate_json(json.dumps(order["settings"]))
            return measure_case(case, settings, parse_utc(order["at"]))
        case "finish":
            return finish(case, order["extent"])
        case other:
            raise ValueError(f"no hand does {other}")


def visit_json(visit: Visit) -> JsonObject:
    why = visit.unusable
    return {
        "kind": visit.kind,
        "patient": visit.patient,
        "day": visit.day,
        "split": visit.split,
        "images": {name: _image_json(image) for name, image in visit.images.items()},
        "lesion": _image_json(visit.lesion) if visit.lesion else None,
        "silent": [_image_json(image) for image in visit.silent],
        "unusable": {"code": why.code, "reason": why.reason} if why else None,
        "warnings": list(visit.warnings),
    }


def visit_of(value: JsonObject) -> Visit:
    why = value["unusable"]
    return Visit(
        kind=value["kind"],
        patient=value["patient"],
        day=value["day"],
        images={name: _image_of(image) for name, image in value["images"].items()},
        lesion=_image_of(value["lesion"]) if value["lesion"] else None,
        silent=tuple(_image_of(image) for image in value["silent"]),
        split=value["split"],
        unusable=Unusable(why["code"], why["reason"]) if why else None,
        warnings=tuple(value["warnings"]),
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
