"""A plan as nnU-Net's planner makes it for two sites at 2 mm in the demo profile.

`test_nnunet_planning` checks that the planner still makes exactly this.
"""

from __future__ import annotations

from typing import Any

from msfl.learning.nnunet.fingerprint import Geometry

GEOMETRIES = (
    Geometry((2.0, 2.0, 2.0), (62, 82, 66), 0.62),
    Geometry((2.0, 2.0, 2.0), (64, 80, 66), 0.63),
    Geometry((2.0, 2.0, 2.0), (66, 86, 70), 0.66),
)

_RESAMPLE = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


def demo_plan() -> dict[str, Any]:
    """Patch 32³, base 8, batch 2; a new one at every call."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [32, 32, 32],
        "median_image_size_in_voxels": [64.0, 82.0, 66.0],
        "spacing": [2.0, 2.0, 2.0],
        "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [True, True],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**_RESAMPLE, "order": 3},
        "resampling_fn_seg_kwargs": {**_RESAMPLE, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**_RESAMPLE},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 4,
                "features_per_stage": [8, 16, 32, 64],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * 4,
                "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
                "n_conv_per_stage": [1, 1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1, 1],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "format": "msfl-nnunet-plan/1",
        "summary": {
            "patch_size": [32, 32, 32],
            "batch_size": 2,
            "spacing": [2.0, 2.0, 2.0],
            "features_per_stage": [8, 16, 32, 64],
            "convs_per_stage": [1, 1, 1, 1],
            "architecture": "PlainConvUNet",
        },
        "profile": "demo",
        "dataset": {
            "channel_names": {"0": "FLAIR", "1": "T1w"},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": 3,
            "file_ending": ".nii.gz",
        },
        "nnunet": {
            "dataset_name": "Dataset501_msfl",
            "plans_name": "nnUNetPlans",
            "original_median_spacing_after_transp": [2.0, 2.0, 2.0],
            "original_median_shape_after_transp": [64, 82, 66],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {"3d_fullres": configuration},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
        },
    }
