"""Somebody at the centre sends a plan that names other classes, or sizes no host can bear.

nnU-Net resolves names in a plan to Python objects and allocates what its numbers say. The site's allow-list stands
before that; here a plan is changed in one place at a time, and every change must be refused with that place's name.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.nnunet_plan import demo_plan
from msfl.learning.contract import ModelRefusal, Site
from msfl.learning.nnunet import allowlist

CONFIGURATION = "nnunet.configurations.3d_fullres"
NETWORK = f"{CONFIGURATION}.architecture"
KWARGS = f"{NETWORK}.arch_kwargs"
NOWHERE = Path("/nowhere")
SITE = Site(
    "site-a", NOWHERE, NOWHERE, NOWHERE, ("FLAIR", "T1w"), {"background": 0, "lesion": 1}, ".nii.gz", (), (), ()
)


def changed(where: str, value: Any) -> dict[str, Any]:
    plan = demo_plan()
    *way, last = where.split(".")
    place = plan
    for step in way:
        place = place[step]
    place[last] = value
    return plan


def test_the_planners_own_plan_passes_also_after_canonical_json() -> None:
    allowlist.check_for_site(demo_plan(), SITE)
    allowlist.check_for_site(json.loads(json.dumps(demo_plan(), sort_keys=True)), SITE)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (f"{NETWORK}.network_class_name", "os.system"),
        (f"{NETWORK}.network_class_name", "subprocess.Popen"),
        (f"{NETWORK}.network_class_name", ["dynamic_network_architectures.architectures.unet.PlainConvUNet"]),
        (f"{NETWORK}.network_class_name", "dynamic_network_architectures.architectures.unet.PlainConvUNet\n"),
        (f"{NETWORK}._kw_requires_import", ["conv_op", "norm_op", "dropout_op", "nonlin", "kernel_sizes"]),
        (f"{NETWORK}._kw_requires_import", []),
        (f"{KWARGS}.conv_op", "builtins.exec"),
        (f"{KWARGS}.norm_op", "torch.load"),
        (f"{KWARGS}.nonlin", "torch.hub.load"),
        (f"{KWARGS}.nonlin_kwargs", {"inplace": True, "f": "/etc/passwd"}),
        (f"{KWARGS}.dropout_op", "torch.nn.Dropout3d"),
        (f"{KWARGS}.norm_op_kwargs", {"eps": 1e-5, "affine": True, "device": "cuda:7"}),
        (f"{KWARGS}.deep_supervision", False),
        (f"{CONFIGURATION}.preprocessor_name", "os"),
        (f"{CONFIGURATION}.resampling_fn_data", "no_resampling_hack"),
        (f"{CONFIGURATION}.resampling_fn_seg_kwargs", {"is_seg": True, "order": 1, "order_z": 0}),
        (f"{CONFIGURATION}.normalization_schemes", ["ZScoreNormalization", "CTNormalization"]),
        (f"{CONFIGURATION}.data_identifier", "../../etc"),
        (f"{CONFIGURATION}.inherits_from", "3d_fullres"),
        (f"{CONFIGURATION}.previous_stage", "3d_lowres"),
        ("nnunet.image_reader_writer", "NumpyPickleIO"),
        ("nnunet.label_manager", "EvilLabelManager"),
        ("nnunet.dataset_name", "../../../tmp/x"),
        ("nnunet.plans_name", "/etc/passwd"),
        ("nnunet.experiment_planner_used", "os.system"),
        ("nnunet.continue_training", True),
        ("dataset.dataset", {"case": {"images": ["/etc/passwd"], "label": "/etc/shadow"}}),
        ("dataset.overwrite_image_reader_writer", "SimpleITKIO"),
        ("dataset.file_ending", ".npy"),
        ("format", "msfl-nnunet-plan/2"),
        ("extra", 1),
    ],
)
def test_a_name_that_is_not_on_the_list_is_refused(where: str, value: Any) -> None:
    with pytest.raises(ModelRefusal) as refusal:
        allowlist.check(changed(where, value))
    assert refusal.value.code == "plan_not_allowed"
    # The place is named (the record, for a key too many), what the plan said is not repeated.
    assert where in refusal.value.detail or where.rpartition(".")[0] in refusal.value.detail
    assert "passwd" not in refusal.value.detail


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (f"{CONFIGURATION}.batch_size", 1_000_000),
        (f"{CONFIGURATION}.batch_size", 0),
        (f"{CONFIGURATION}.batch_size", 2.0),
        (f"{CONFIGURATION}.batch_size", True),
        (f"{CONFIGURATION}.patch_size", [32, 32]),
        (f"{CONFIGURATION}.patch_size", [32, 32, 36]),
        (f"{CONFIGURATION}.patch_size", [32, 32, 100_000]),
        (f"{CONFIGURATION}.patch_size", [512, 512, 512]),
        (f"{CONFIGURATION}.spacing", [2.0, 2.0, float("nan")]),
        (f"{CONFIGURATION}.spacing", [2.0, 2.0, 1e-9]),
        (f"{CONFIGURATION}.spacing", "2 2 2"),
        (f"{CONFIGURATION}.median_image_size_in_voxels", [64.0, 82.0, float("inf")]),
        (f"{CONFIGURATION}.use_mask_for_norm", [True]),
        (f"{CONFIGURATION}.batch_dice", 1),
        (f"{KWARGS}.n_stages", 3),
        (f"{KWARGS}.n_stages", 4000),
        (f"{KWARGS}.features_per_stage", [8, 16, 32, 100_000]),
        (f"{KWARGS}.features_per_stage", [8, 16, 32]),
        (f"{KWARGS}.kernel_sizes", [[3, 3, 3]] * 3 + [[99, 99, 99]]),
        (f"{KWARGS}.strides", [[1, 1, 1]] * 3 + [[4, 4, 4]]),
        (f"{KWARGS}.n_conv_per_stage", [2, 2, 2, 1000]),
        ("nnunet.transpose_forward", [0, 1, 1]),
        ("nnunet.transpose_backward", [2, 1, 0]),
        ("nnunet.foreground_intensity_properties_per_channel", {"0": {}}),
        ("dataset.channel_names", {"0": "FLAIR", "7": "T1w"}),
        ("dataset.channel_names", {}),
        ("dataset.channel_names", {"0": "F" * 1000, "1": "T1w"}),
        ("dataset.labels", {"background": 0, "lesion": 2}),
        ("dataset.labels", {"lesion": 0}),
        ("dataset.numTraining", 0),
    ],
)
def test_a_size_or_shape_out_of_bounds_is_refused(where: str, value: Any) -> None:
    with pytest.raises(ModelRefusal, match="plan_not_allowed"):
        allowlist.check(changed(where, value))


@given(st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers()))
def test_anything_else_than_a_plan_is_refused_and_not_tripped_over(document: Any) -> None:
    with pytest.raises(ModelRefusal, match="plan_not_allowed"):
        allowlist.check(document)


@pytest.mark.parametrize("missing", ["format", "profile", "dataset", "nnunet"])
def test_a_plan_with_a_part_missing_is_refused(missing: str) -> None:
    plan = demo_plan()
    del plan[missing]
    with pytest.raises(ModelRefusal, match="plan_not_allowed"):
        allowlist.check(plan)


@pytest.mark.parametrize(
    "site",
    [
        replace(SITE, channel_names=("T1w", "FLAIR")),
        replace(SITE, labels={"background": 0, "tumour": 1}),
        replace(SITE, file_ending=".mha"),
    ],
)
def test_a_plan_for_another_dataset_is_refused(site: Site) -> None:
    with pytest.raises(ModelRefusal, match="plan_differs"):
        allowlist.check_for_site(demo_plan(), site)
