"""The plan: nnU-Net's own ExperimentPlanner, run at the centre on the merged fingerprint, without any image.

    profile  what happens
    full     the stock planner's 3d_fullres configuration, untouched
    demo     the same, then cut down for a CPU: patch edge capped, fewer features, batch size fixed

The result is one plain JSON document, the same for every site, and its hash is the sha256 of its canonical JSON (keys
sorted, no blanks), which the platform states and each site checks. Nothing in it is used before `allowlist.check` has
passed it, because nnU-Net resolves class names found in a plan.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from msfl.learning.contract import JsonObject, ModelRefusal
from msfl.learning.nnunet.allowlist import FORMAT, MAX_FEATURES, summary
from msfl.learning.nnunet.files import CONFIGURATION, DATASET_NAME, PLANS_NAME, environment, roots
from msfl.learning.nnunet.fingerprint import Fingerprint, to_nnunet
from msfl.learning.nnunet.settings import Settings

MIN_FEATURE_MAP_EDGE = 4
"""nnU-Net's own smallest edge of a feature map, in voxels."""


class _ImageFreePlanner(ExperimentPlanner):  # type: ignore[misc]  # nnU-Net carries no types
    def determine_reader_writer(self) -> Any:
        # The stock method opens an image to choose; the centre has none.
        return SimpleITKIO


def make_plan(fingerprint: Fingerprint, settings: Settings) -> JsonObject:
    """Raises ModelRefusal `channel_not_supported`, `file_ending_not_supported`, `no_training_cases`."""
    for name in fingerprint.channel_names:
        scheme = get_normalization_scheme(name).__name__
        if scheme != "ZScoreNormalization":
            raise ModelRefusal(
                "channel_not_supported",
                f"channel {name!r} would be normalised by {scheme}; this release plans MR channels only",
            )
    if fingerprint.file_ending not in SimpleITKIO.supported_file_endings:
        raise ModelRefusal(
            "file_ending_not_supported",
            f"files end in {fingerprint.file_ending!r}; this release reads "
            + ", ".join(SimpleITKIO.supported_file_endings),
        )
    dataset = {
        "channel_names": {str(number): name for number, name in enumerate(fingerprint.channel_names)},
        # nnU-Net wants labels in ascending order.
        "labels": dict(sorted(fingerprint.labels, key=lambda item: item[1])),
        "numTraining": fingerprint.n_cases,
        "file_ending": fingerprint.file_ending,
    }
    stock = _run_planner(fingerprint, dataset)
    configuration = stock["configurations"].get(CONFIGURATION)
    if configuration is None:
        raise ModelRefusal("images_not_3d", "the planner made no 3D configuration; the images have a single slice")
    # A lowres sibling changes batch_dice, which stays as planned; its cascade is not federated.
    configuration.pop("next_stage", None)
    stock["configurations"] = {CONFIGURATION: configuration}
    if settings.profile == "demo":
        _cut_down(configuration, settings)
    return {
        "format": FORMAT,
        "summary": summary(stock),
        "profile": settings.profile,
        "dataset": dataset,
        "nnunet": stock,
    }


def _run_planner(fingerprint: Fingerprint, dataset: JsonObject) -> JsonObject:
    with tempfile.TemporaryDirectory(prefix="msfl-plan-") as folder:
        variables = roots(Path(folder))
        raw = Path(variables["nnUNet_raw"]) / DATASET_NAME
        preprocessed = Path(variables["nnUNet_preprocessed"]) / DATASET_NAME
        raw.mkdir()
        preprocessed.mkdir()
        # `dataset: {}` tells nnU-Net not to look for images; it goes no further than this folder.
        document = {**dataset, "dataset": {}, "overwrite_image_reader_writer": "SimpleITKIO"}
        (raw / "dataset.json").write_text(json.dumps(document))
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(to_nnunet(fingerprint)))
        # The planner sets torch's threads to nnUNet_n_proc_DA, which must not be 0 here. It also prints a lot.
        with environment(**variables, nnUNet_n_proc_DA="1"), contextlib.redirect_stdout(io.StringIO()):
            _ImageFreePlanner(DATASET_NAME, plans_name=PLANS_NAME).plan_experiment()
        plans: JsonObject = json.loads((preprocessed / f"{PLANS_NAME}.json").read_text())
    plans["experiment_planner_used"] = "ExperimentPlanner"
    return plans


def _cut_down(configuration: JsonObject, settings: Settings) -> None:
    """Apply the demo's caps, and derive the network from the smaller patch by nnU-Net's own rule."""
    architecture = configuration["architecture"]["arch_kwargs"]
    patch = list(configuration["patch_size"])
    if settings.patch_size:
        patch = [min(edge, settings.patch_size) for edge in patch]
        _, strides, kernels, padded, _ = get_pool_and_conv_props(
            configuration["spacing"], patch, MIN_FEATURE_MAP_EDGE, 999_999
        )
        stages = len(strides)
        configuration["patch_size"] = [int(edge) for edge in padded]
        architecture["n_stages"] = stages
        architecture["strides"] = [list(stride) for stride in strides]
        architecture["kernel_sizes"] = [list(kernel) for kernel in kernels]
        architecture["features_per_stage"] = architecture["features_per_stage"][:stages]
        architecture["n_conv_per_stage"] = architecture["n_conv_per_stage"][:stages]
        architecture["n_conv_per_stage_decoder"] = architecture["n_conv_per_stage_decoder"][: stages - 1]
    stages = architecture["n_stages"]
    if settings.base_features:
        architecture["features_per_stage"] = [
            min(MAX_FEATURES, settings.base_features * 2**stage) for stage in range(stages)
        ]
    if settings.convs_per_stage:
        architecture["n_conv_per_stage"] = [settings.convs_per_stage] * stages
        architecture["n_conv_per_stage_decoder"] = [settings.convs_per_stage] * (stages - 1)
    if settings.batch_size:
        configuration["batch_size"] = settings.batch_size
