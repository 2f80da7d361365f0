"""`msfl registry new FOLDER`: a release of one's own, to be changed, from one that comes with msfl.

    new FOLDER                     the code of `msfl.learning.logistic` as msfl.<name>: a whole small model that works
    new FOLDER --nnunet RESULTS    nnU-Net, with the schedule and sizes of a model that was trained locally

What is written lies in FOLDER alone and is the engineer's: release.yaml, a README, a model card with its questions, the
package below msfl/, and a test. Nothing is written when anything is wrong, or when FOLDER is not empty.

RESULTS is the folder that nnU-Net trained into, `nnUNetTrainer__nnUNetPlans__3d_fullres`, with its plans.json. Trainer
and plan are held against `nnunet.allowlist`: what the release would not train at a site is said here.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_TEMPLATE = "voxel-logistic"
_PACKAGE = "logistic"
_VOXEL_MODEL = "VoxelLogistic"


def new(
    folder: Annotated[Path, typer.Argument(help="The folder to make.", file_okay=False)],
    name: Annotated[str, typer.Option(help="The release's name; the folder's, if not given.")] = "",
    nnunet: Annotated[
        Path | None,
        typer.Option(help="A folder that nnU-Net trained into, with its plans.json.", exists=True, file_okay=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Make a folder with a release of your own in it: a small model that works, or your nnU-Net."""
    name = name or folder.absolute().name
    if not _NAME.fullmatch(name) or len(name) > 64:
        _fail(f"{name!r} cannot be a release's name: small letters, digits and single dashes; give one with --name", 2)
    if folder.exists() and any(folder.iterdir()):
        _fail(f"{folder} is not empty; name a folder that does not exist yet", 1)
    written = dict(_own_nnunet(name, nnunet) if nnunet else _own_model(name))
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for path, text in written.items():
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            (fresh / path).write_text(text, encoding="utf-8")
        fresh.chmod(0o755)
        fresh.replace(folder)
    except BaseException:
        shutil.rmtree(fresh)
        raise
    said = f"{folder} holds the release {name}. Try it: msfl registry try {folder}; then read its README."
    text = json.dumps({"folder": str(folder), "release": name, "files": sorted(written)}) if as_json else said
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _own_model(name: str) -> Iterator[tuple[str, str]]:
    """Path and text of each file: the template's own code under another name."""
    package = name.replace("-", "_")
    template = files("msfl.learning") / _PACKAGE
    for file in sorted(template.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".py"):
            text = file.read_text(encoding="utf-8").replace(f"msfl.learning.{_PACKAGE}", f"msfl.{package}")
            yield f"msfl/{package}/{file.name}", text
    recipe = (template / "release.yaml").read_text(encoding="utf-8")
    recipe = recipe.replace(f"msfl.learning.{_PACKAGE}", f"msfl.{package}")
    recipe = recipe.replace(f"msfl/learning/{_PACKAGE}", f"msfl/{package}").replace(
        f"name: {_TEMPLATE}", f"name: {name}"
    )
    yield "release.yaml", _described(recipe, _OWN_DESCRIPTION).replace("version: 1.0.0", "version: 0.1.0")
    yield "README.md", _README.format(name=name, package=package, what=_WHAT_OWN.format(package=package))
    yield "model-card.md", _CARD.format(name=name)
    yield "tests/test_model.py", _TEST.format(package=package, model=_VOXEL_MODEL)


def _own_nnunet(name: str, results: Path) -> Iterator[tuple[str, str]]:
    from msfl.learning.contract import ModelRefusal
    from msfl.learning.nnunet.allowlist import local_training

    trainer, _, rest = results.resolve().name.partition("__")
    try:
        plans = json.loads((results / "plans.json").read_text(encoding="utf-8"))
        trained = local_training(trainer, rest.rpartition("__")[2], plans)
    except (OSError, ValueError) as error:
        _fail(f"{results}: its plans.json cannot be read ({error}); name the folder that nnU-Net trained into", 1)
    except ModelRefusal as refusal:
        _fail(
            f"{results}: {refusal.detail}. A release of your own code can do it: msfl registry new, without --nnunet", 1
        )
    recipe = (files("msfl.learning") / "nnunet" / "release.yaml").read_text(encoding="utf-8")
    recipe = recipe.replace("name: ms-lesion-nnunet", f"name: {name}").replace("version: 1.0.0", "version: 0.1.0")
    for profile, values in (("full", trained.schedule), ("demo", trained.sizes)):
        recipe = _set(recipe, profile, values)
    yield "release.yaml", _described(recipe, f"{_NNUNET_DESCRIPTION} Trained locally with {trainer}.")
    yield "README.md", _README.format(name=name, package="", what=_WHAT_NNUNET.format(trainer=trainer))
    yield "model-card.md", _CARD.format(name=name)


def _set(recipe: str, profile: str, values: Mapping[str, int | float]) -> str:
    """Change values of one profile in the text, so that the comments in it stay."""
    head, mark, rest = recipe.partition(f"\n  {profile}:\n")
    body, end, tail = rest.partition("\n\n") if profile == "demo" else rest.partition("\n  #")
    for key, value in values.items():
        body, changed = re.subn(rf"(?m)^    {key}: .*$", f"    {key}: {value}", body)
        assert changed == 1, f"the template's profile {profile} has one {key}"
    return head + mark + body + end + tail


def _described(recipe: str, text: str) -> str:
    return recipe[: recipe.rindex("\ndescription: |")] + f"\ndescription: |\n  {text}\n"


def _fail(why: str, code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(why, style="red", markup=False, highlight=False)
    raise typer.Exit(code)


_OWN_DESCRIPTION = "TODO: say here in two or three sentences what the model does, on which images, and for whom."
_NNUNET_DESCRIPTION = "MS lesion segmentation with nnU-Net v2. TODO: say here what it was made for."
_WHAT_OWN = """\
* `msfl/{package}/` is the model: a class that fulfils `msfl.learning.contract.FederatedModel`, which is worth
  reading first. It works as it is; change it, file by file. Import it as `msfl.{package}`: own code lives below
  `msfl`, so that in the image nothing of it can stand in the place of Python, of a package or of the system.
* `release.yaml`: under `code` everything that is imported of msfl and of yours, under `requires` the packages, under
  `config` every setting with its bounds, under `outputs` everything that may leave a site, and nothing else will.
* `tests/`: `PYTHONPATH=. pytest tests`."""
_WHAT_NNUNET = """\
* `release.yaml` names msfl's nnU-Net. The profile `full` has the schedule of your trainer, {trainer}, one round an
  epoch; patch, width and batch are nnU-Net's own for the federation's data, planned anew from all sites'
  fingerprints. The profile `demo` keeps the sizes of your plan, as upper limits.
* Weights of the local training are not part of a release: a federation begins from new ones."""
_README = """# {name}

A release for msfl: what runs at hospitals, and in an aggregator at the centre.

{what}
* `model-card.md`: answer its questions; without it no release is submitted. Reviewers and hospitals read it.

```
msfl registry try .                                   every task on made-up data; says what would leave a site
msfl registry build . --base IMAGE --out image        the image, the same bytes every time
msfl registry submit . --registry WHERE --key KEY --publisher YOU
msfl registry status {name}:0.1.0 --registry WHERE --root federation-root.dsse
```

A version is never used twice: after a change, raise `version` in release.yaml.
"""
_CARD = """# Model card: {name}

## Intended use

TODO: for whom, for which decision, and what it must not be used for.

## Input

TODO: which images, prepared how; what happens with others.

## Training and evaluation

TODO: data it was developed on, with numbers; how it was evaluated, with results and their uncertainty.

## Limits and risks

TODO: where it fails or may harm; groups of patients or scanners it was not tested on.

## Contact

TODO: who answers questions and takes reports of failures.
"""
_TEST = '''"""The model's own arithmetic; what surrounds it is tried with: msfl registry try ."""

import numpy as np

from msfl.{package}.fingerprint import N_BINS, merge, plan_of
from msfl.{package}.model import {model}


def fingerprint(n: int) -> dict[str, object]:
    return {{
        "n_cases": n,
        "n_inside": 1000 * n,
        "n_foreground": 10 * n,
        "channel_names": ["FLAIR"],
        "labels": {{"background": 0, "lesion": 1}},
        "intensity": [[n] * N_BINS],
        "spacing": [[[100, n]]] * 3,
        "shape": [[[64, n]]] * 3,
    }}


def test_the_order_of_sites_does_not_matter() -> None:
    a, b = fingerprint(2), fingerprint(3)
    assert plan_of(merge({{"a": a, "b": b}})) == plan_of(merge({{"b": b, "a": a}}))


def test_the_first_weights_are_the_same_for_everybody() -> None:
    plan = {model}().plan({{"a": fingerprint(2)}}, {{}})
    first, second = ({model}().initial(plan, {{}}) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
'''
