"""pipeline: one case from `raw/` to `standard/`, and the record of what was done.

`read_raw` and `standardise` work on images in memory; `write_standard` fills the folder that takes the place of
`standard/` (`Case.filling`): all of it is there afterwards, or what was there before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from msfl.imaging.brain import BrainExtractor, no_brain
from msfl.imaging.checks import LARGEST_HEAD_MM, Volume, fault_of, same_grid
from msfl.imaging.datasets import file_sha256
from msfl.imaging.deidentify.nifti import read_volume, write_volume
from msfl.imaging.faults import Fault, unusable
from msfl.imaging.standard.bias import correct_bias
from msfl.imaging.standard.recipe import Recipe
from msfl.imaging.standard.register import Rigid, centre_mm, register
from msfl.imaging.standard.reorient import orientation, reorient
from msfl.imaging.standard.resample import resample, resample_mask
from msfl.imaging.volume import Mask
from msfl.imaging.workspace import BRAIN, CHANNELS, LESION, Case, write_json

TRANSFORM = "T1w_to_FLAIR.txt"
T1W_BRAIN = "brain_T1w"
SMALLEST_BRAIN_ML = 200.0


@dataclass(frozen=True)
class Raw:
    """A case as it was imported, but turned to canonical orientation. `lesion` lies on one of the two grids."""

    flair: Volume
    t1w: Volume
    lesion: Volume | None


@dataclass(frozen=True)
class Standard:
    """A case on one grid, that of FLAIR. `t1w_brain` was found on the T1w image itself and moved along."""

    flair: Volume
    t1w: Volume
    lesion: Volume | None
    brain: Mask
    t1w_brain: Mask
    motion: Rigid
    """From FLAIR to T1w."""
    flair_brain_raw: Mask
    t1w_brain_raw: Mask
    """On the grids of `Raw`."""


def read_raw(case: Case) -> Raw:
    """What import let through, once more held against what can be worked on. Raises Unusable."""
    images = {}
    for name in (*CHANNELS, *([LESION] if case.has_lesion else [])):
        if not case.raw(name).exists():
            raise unusable(Fault.MISSING_FLAIR if name == "FLAIR" else Fault.MISSING_T1W, f"There is no {name} image.")
        images[name] = read_volume(case.raw(name))
        if name != LESION and (fault := fault_of(images[name], LARGEST_HEAD_MM)):
            raise fault
    lesion = images.get(LESION)
    return Raw(reorient(images["FLAIR"]), reorient(images["T1w"]), None if lesion is None else reorient(lesion))


def standardise(raw: Raw, recipe: Recipe, extractor: BrainExtractor) -> Standard:
    """Raises Unusable."""
    flair_brain = _brain(raw.flair, "FLAIR", extractor)
    t1w_brain = _brain(raw.t1w, "T1w", extractor)
    motion = register(raw.t1w, raw.flair, t1w_brain, flair_brain, recipe.registration)
    flair, t1w = raw.flair, resample(raw.t1w, raw.flair, motion, recipe.interpolation)
    if recipe.bias is not None:
        flair, t1w = (correct_bias(image, flair_brain, recipe.bias) for image in (flair, t1w))
    return Standard(
        flair=flair,
        t1w=t1w,
        lesion=None if raw.lesion is None else _lesion(raw.lesion, raw, motion),
        brain=flair_brain,
        t1w_brain=resample_mask(t1w_brain, raw.t1w, raw.flair, motion),
        motion=motion,
        flair_brain_raw=flair_brain,
        t1w_brain_raw=t1w_brain,
    )


def _brain(image: Volume, what: str, extractor: BrainExtractor) -> Mask:
    """Raises Unusable, also for what is too small to be one: nothing could be measured in it."""
    brain = extractor.extract(image, what)
    if np.count_nonzero(brain) * image.voxel_ml < SMALLEST_BRAIN_ML:
        raise no_brain(what)
    return brain


def _lesion(lesion: Volume, raw: Raw, motion: Rigid) -> Volume:
    """Labels keep their values on FLAIR's grid, of which they need no resampling."""
    if same_grid(lesion, raw.flair):
        return raw.flair.like(lesion.voxels)
    if not same_grid(lesion, raw.t1w):
        raise unusable(Fault.MASK_ELSEWHERE, "The lesion mask lies neither on the grid of FLAIR nor on that of T1w.")
    return raw.flair.like(resample_mask(lesion.voxels > 0, raw.t1w, raw.flair, motion).astype(np.uint8))


def write_standard(folder: Path, case: Case, raw: Raw, made: Standard, recipe: Recipe, extractor: str) -> None:
    """Images, transform and `steps.json` into an empty folder. `extractor` is its name."""
    written = {
        "FLAIR": made.flair,
        "T1w": made.t1w,
        BRAIN: made.flair.like(made.brain),
        T1W_BRAIN: made.flair.like(made.t1w_brain),
        **({LESION: made.lesion} if made.lesion is not None else {}),
    }
    for name, volume in written.items():
        write_volume(volume, folder / f"{name}.nii.gz")
    made.motion.write(folder / TRANSFORM)
    write_json(folder / "steps.json", _steps(case, raw, made, recipe, extractor, folder))


def inputs_sha256(case: Case, recipe: Recipe) -> str:
    """What the outcome depends on: the imported files and the recipe."""
    together = hashlib.sha256(recipe.sha256.encode())
    for name in (*CHANNELS, LESION):
        file = case.raw(name)
        together.update(f"\n{name} {_sha256(file) if file.exists() else 'none'}".encode())
    return f"sha256:{together.hexdigest()}"


def _steps(case: Case, raw: Raw, made: Standard, recipe: Recipe, extractor: str, folder: Path) -> dict[str, Any]:
    def step(name: str, of: str, **facts: Any) -> dict[str, Any]:
        return {"step": name, "of": of, **facts}

    steps = [step("reorient", name, to=orientation(image)) for name, image in (("FLAIR", raw.flair), ("T1w", raw.t1w))]
    steps += [step("brain", name, by=extractor) for name in CHANNELS]
    shift, turn = round(made.motion.shift_mm(centre_mm(raw.flair, made.brain)), 3), round(made.motion.turned_deg, 3)
    how = recipe.registration.model_dump(mode="json")
    steps.append(
        step("register", "T1w", to="FLAIR", parameters=how, transform=TRANSFORM, shift_mm=shift, turn_deg=turn)
    )
    steps.append(step("resample", "T1w", parameters={"interpolation": recipe.interpolation}))
    if recipe.bias is not None:
        steps += [step("bias", name, parameters=recipe.bias.model_dump(mode="json")) for name in CHANNELS]
    return {
        "recipe_sha256": recipe.sha256,
        "inputs_sha256": inputs_sha256(case, recipe),
        "steps": steps,
        "files": {file.name: _sha256(file) for file in sorted(folder.iterdir()) if file.name != "steps.json"},
        "libraries": {name: version(name) for name in ("nibabel", "numpy", "scipy", "simpleitk")},
    }


def _sha256(file: Path) -> str:
    return f"sha256:{file_sha256(file)}"
