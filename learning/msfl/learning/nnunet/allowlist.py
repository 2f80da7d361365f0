"""What a plan may say. Checked at every site, and at the centre, before anything in a plan is used.

A plan is data, but nnU-Net turns strings in it into Python objects (`pydoc.locate` for the network and its layers,
searches by name for preprocessor, reader, normalisation, resampling), and its numbers decide how much memory is taken.
So a plan is checked like code: every key is known, every name is on the list below, every number is within bounds.

    rule             meaning
    one of (…)       exactly one of these values
    number a..b      an int (or a finite float) within bounds; true and false are no numbers
    three of rule    a list of exactly three
    record           exactly these keys, each with its own rule; one key more or less is refused

A refusal names the place in the plan (`nnunet.configurations.3d_fullres.patch_size[1]`) and what is allowed there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from msfl.learning.contract import JsonObject, ModelRefusal, Site
from msfl.learning.nnunet.files import CONFIGURATION, DATASET_NAME, PLANS_NAME

FORMAT = "msfl-nnunet-plan/1"
MAX_FEATURES = 320
"""nnU-Net's own widest 3D stage, in channels."""
MAX_PATCH_VOXELS = 16_777_216
"""Voxels of one patch (256³): above it no host trains, below it the operating system decides."""

Rule: TypeAlias = Callable[[str, object], None]


def _refuse(where: str, allowed: str) -> ModelRefusal:
    # What the plan said is left out: it may be anything, of any length.
    return ModelRefusal("plan_not_allowed", f"{where} must be {allowed}; the plan is refused, nothing of it was used")


def _one_of(*values: object) -> Rule:
    def check(where: str, value: object) -> None:
        if not any(type(value) is type(allowed) and value == allowed for allowed in values):
            raise _refuse(where, " or ".join(repr(allowed) for allowed in values))

    return check


def _integer(low: int, high: int) -> Rule:
    def check(where: str, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _refuse(where, f"a whole number {low}..{high}")

    return check


def _number(low: float, high: float) -> Rule:
    def check(where: str, value: object) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise _refuse(where, f"a number {low}..{high}")
        if not low <= value <= high:
            raise _refuse(where, f"a number {low}..{high}")

    return check


def _text(longest: int) -> Rule:
    def check(where: str, value: object) -> None:
        if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
            raise _refuse(where, f"printable text of at most {longest} characters")

    return check


def _list(rule: Rule, shortest: int, longest: int | None = None) -> Rule:
    def check(where: str, value: object) -> None:
        most = shortest if longest is None else longest
        if not isinstance(value, list) or not shortest <= len(value) <= most:
            raise _refuse(where, f"a list of {shortest}..{most}")
        for number, item in enumerate(value):
            rule(f"{where}[{number}]", item)

    return check


def _record(rules: Mapping[str, Rule]) -> Rule:
    def check(where: str, value: object) -> None:
        if not isinstance(value, dict) or set(value) != set(rules):
            raise _refuse(where, f"a record of exactly {', '.join(sorted(rules))}")
        for key, rule in rules.items():
            rule(f"{where}.{key}" if where else key, value[key])

    return check


def _mapping(key_rule: Rule, rule: Rule, most: int) -> Rule:
    def check(where: str, value: object) -> None:
        if not isinstance(value, dict) or not 0 < len(value) <= most:
            raise _refuse(where, f"a mapping of 1..{most} entries")
        for key, item in value.items():
            key_rule(f"{where} (a key)", key)
            rule(f"{where}.{key}", item)

    return check


def _anything(where: str, value: object) -> None:
    """For what is checked as a whole, further down."""


_STAGES = (2, 8)
_RESAMPLING = _one_of("resample_data_or_seg_to_shape")


def _resampling_kwargs(is_seg: bool, order: int) -> Rule:
    return _record(
        {"is_seg": _one_of(is_seg), "order": _one_of(order), "order_z": _one_of(0), "force_separate_z": _one_of(None)}
    )


_ARCHITECTURE = _record(
    {
        "network_class_name": _one_of("dynamic_network_architectures.architectures.unet.PlainConvUNet"),
        "arch_kwargs": _record(
            {
                "n_stages": _integer(*_STAGES),
                "features_per_stage": _list(_integer(4, MAX_FEATURES), *_STAGES),
                "conv_op": _one_of("torch.nn.modules.conv.Conv3d"),
                "kernel_sizes": _list(_list(_one_of(1, 3), 3), *_STAGES),
                "strides": _list(_list(_one_of(1, 2), 3), *_STAGES),
                "n_conv_per_stage": _list(_integer(1, 4), *_STAGES),
                "n_conv_per_stage_decoder": _list(_integer(1, 4), _STAGES[0] - 1, _STAGES[1] - 1),
                "conv_bias": _one_of(True),
                "norm_op": _one_of("torch.nn.modules.instancenorm.InstanceNorm3d"),
                "norm_op_kwargs": _record({"eps": _one_of(1e-5), "affine": _one_of(True)}),
                "dropout_op": _one_of(None),
                "dropout_op_kwargs": _one_of(None),
                "nonlin": _one_of("torch.nn.LeakyReLU"),
                "nonlin_kwargs": _record({"inplace": _one_of(True)}),
            }
        ),
        "_kw_requires_import": _one_of(["conv_op", "norm_op", "dropout_op", "nonlin"]),
    }
)

_CONFIGURATION = _record(
    {
        "data_identifier": _one_of(f"{PLANS_NAME}_{CONFIGURATION}"),
        "preprocessor_name": _one_of("DefaultPreprocessor"),
        "batch_size": _integer(1, 64),
        "patch_size": _list(_integer(8, 512), 3),
        "median_image_size_in_voxels": _list(_number(1, 10_000), 3),
        "spacing": _list(_number(0.05, 50), 3),
        "normalization_schemes": _list(_one_of("ZScoreNormalization"), 1, 16),
        "use_mask_for_norm": _list(_one_of(True, False), 1, 16),
        "resampling_fn_data": _RESAMPLING,
        "resampling_fn_seg": _RESAMPLING,
        "resampling_fn_data_kwargs": _resampling_kwargs(is_seg=False, order=3),
        "resampling_fn_seg_kwargs": _resampling_kwargs(is_seg=True, order=1),
        "resampling_fn_probabilities": _RESAMPLING,
        "resampling_fn_probabilities_kwargs": _resampling_kwargs(is_seg=False, order=1),
        "architecture": _ARCHITECTURE,
        "batch_dice": _one_of(True, False),
    }
)

_PLAN = _record(
    {
        "format": _one_of(FORMAT),
        "summary": _anything,  # `check` compares it with what the rest of the plan says
        "profile": _one_of("full", "demo"),
        "dataset": _record(
            {
                "channel_names": _mapping(_text(2), _text(64), 16),
                "labels": _mapping(_text(64), _integer(0, 255), 64),
                "numTraining": _integer(1, 1_000_000),
                "file_ending": _one_of(".nii.gz", ".nrrd", ".mha", ".gipl"),
            }
        ),
        "nnunet": _record(
            {
                "dataset_name": _one_of(DATASET_NAME),
                "plans_name": _one_of(PLANS_NAME),
                "original_median_spacing_after_transp": _list(_number(0.01, 100), 3),
                "original_median_shape_after_transp": _list(_integer(1, 10_000), 3),
                "image_reader_writer": _one_of("SimpleITKIO"),
                "transpose_forward": _list(_integer(0, 2), 3),
                "transpose_backward": _list(_integer(0, 2), 3),
                "configurations": _record({CONFIGURATION: _CONFIGURATION}),
                "experiment_planner_used": _one_of("ExperimentPlanner"),
                "label_manager": _one_of("LabelManager"),
                "foreground_intensity_properties_per_channel": _mapping(_text(2), _record({}), 16),
            }
        ),
    }
)


def summary(nnunet: JsonObject) -> JsonObject:
    """What a person reads of a plan: patch and spacing in array axis order (z, y, x), voxels and mm."""
    configuration = nnunet["configurations"][CONFIGURATION]
    kwargs = configuration["architecture"]["arch_kwargs"]
    return {
        "patch_size": configuration["patch_size"],
        "batch_size": configuration["batch_size"],
        "spacing": configuration["spacing"],
        "features_per_stage": kwargs["features_per_stage"],
        "convs_per_stage": kwargs["n_conv_per_stage"],
        "architecture": configuration["architecture"]["network_class_name"].rpartition(".")[2],
    }


def check(plan: object) -> None:
    """Raises ModelRefusal `plan_not_allowed`; returns only when every key, name and number in the plan is allowed."""
    _PLAN("", plan)
    assert isinstance(plan, dict)
    nnunet = plan["nnunet"]
    where = f"nnunet.configurations.{CONFIGURATION}"
    configuration = nnunet["configurations"][CONFIGURATION]
    kwargs = configuration["architecture"]["arch_kwargs"]

    if plan["summary"] != summary(nnunet):
        raise _refuse("summary", "what the rest of the plan says")
    forward, backward = nnunet["transpose_forward"], nnunet["transpose_backward"]
    if sorted(forward) != [0, 1, 2] or [forward[axis] for axis in backward] != [0, 1, 2]:
        raise _refuse("nnunet.transpose_forward", "a permutation of the three axes, and transpose_backward its inverse")
    stages = kwargs["n_stages"]
    for name, length in (
        ("features_per_stage", stages),
        ("kernel_sizes", stages),
        ("strides", stages),
        ("n_conv_per_stage", stages),
        ("n_conv_per_stage_decoder", stages - 1),
    ):
        if len(kwargs[name]) != length:
            raise _refuse(f"{where}.architecture.arch_kwargs.{name}", f"a list of {length}, as n_stages says")
    patch = configuration["patch_size"]
    for axis in range(3):
        stride = math.prod(step[axis] for step in kwargs["strides"])
        if patch[axis] % stride:
            raise _refuse(f"{where}.patch_size[{axis}]", f"a multiple of {stride}, the network's total stride")
    if math.prod(patch) > MAX_PATCH_VOXELS:
        raise _refuse(f"{where}.patch_size", f"at most {MAX_PATCH_VOXELS} voxels in all")

    # Sets: canonical JSON sorts the keys as text.
    channels = {str(number) for number in range(len(plan["dataset"]["channel_names"]))}
    if set(plan["dataset"]["channel_names"]) != channels:
        raise _refuse("dataset.channel_names", "numbered from 0 without a gap")
    if set(nnunet["foreground_intensity_properties_per_channel"]) != channels:
        raise _refuse("nnunet.foreground_intensity_properties_per_channel", "one entry for each channel")
    for name in ("normalization_schemes", "use_mask_for_norm"):
        if len(configuration[name]) != len(channels):
            raise _refuse(f"{where}.{name}", "one entry for each channel")
    labels = plan["dataset"]["labels"]
    if sorted(labels.values()) != list(range(len(labels))) or len(labels) < 2 or labels.get("background") != 0:
        raise _refuse("dataset.labels", "background 0 and at least one label, numbered without a gap")


def check_for_site(plan: JsonObject, site: Site) -> None:
    """`check`, and the plan is about this site's channels and labels. Raises also ModelRefusal `plan_differs`."""
    check(plan)
    dataset = plan["dataset"]
    names = tuple(dataset["channel_names"][str(number)] for number in range(len(dataset["channel_names"])))
    for what, planned, here in (
        ("channels", names, tuple(site.channel_names)),
        ("labels", dict(dataset["labels"]), dict(site.labels)),
        ("file ending", dataset["file_ending"], site.file_ending),
    ):
        if planned != here:
            raise ModelRefusal("plan_differs", f"the plan is for {what} {planned}, this dataset has {here}")


# ---------------------------------------------------------------------------------- what was trained locally

_TRAINER = re.compile(r"nnUNetTrainer(?:_(1|5|10|20|50|100|250|500|750|2000|4000|8000)epochs?)?")
_STOCK_EPOCHS = 1000
_BATCHES_PER_EPOCH = 250


@dataclass(frozen=True)
class LocalTraining:
    """A local nnU-Net training in the words of the release's config: `schedule` of its trainer, `sizes` of its plan."""

    schedule: Mapping[str, int]
    sizes: Mapping[str, int]


def local_training(trainer: str, configuration: str, plans: object) -> LocalTraining:
    """What of it a release can do. One epoch is one round. Raises ModelRefusal `plan_not_allowed` for what it cannot:
    another trainer than nnU-Net's own with another number of epochs, another configuration, another architecture."""
    named = _TRAINER.fullmatch(trainer)
    if named is None:
        raise _refuse(f"the trainer {trainer!r:.80}", "nnUNetTrainer, or one of its variants that only change epochs")
    if configuration != CONFIGURATION:
        raise _refuse(f"the configuration {configuration!r:.80}", CONFIGURATION)
    found = plans.get("configurations") if isinstance(plans, dict) else None
    planned = found.get(CONFIGURATION) if isinstance(found, dict) else None
    if not isinstance(planned, dict):
        raise _refuse("plans.json", f"nnU-Net's, with a configuration {CONFIGURATION}")
    # The name says nothing of what is trained.
    _CONFIGURATION("plans.json", {**planned, "data_identifier": f"{PLANS_NAME}_{CONFIGURATION}"})
    kwargs = planned["architecture"]["arch_kwargs"]
    return LocalTraining(
        {"rounds": min(int(named[1] or _STOCK_EPOCHS), 1000), "batches_per_epoch": _BATCHES_PER_EPOCH},
        {
            "patch_size": min(max(planned["patch_size"]), 256),
            "base_features": min(kwargs["features_per_stage"][0], 64),
            "convs_per_stage": max(kwargs["n_conv_per_stage"]),
            "batch_size": min(planned["batch_size"], 16),
        },
    )
