"""Whole-case prediction: nnU-Net's sliding window, for validation in plan space and for test in image space.

    split        space                    per case                        why
    validation   plan (resampled, cropped) loss and Dice                  cheap, every round, same space as training
    test         original image            predicted label map            what a radiologist would see; for the record

The network is fully convolutional, so that the tile need not be the training patch: a larger tile needs fewer
overlapping windows and predicts a case several times faster. `inference_tile` caps its edge; 0 means the patch, as in
stock nnU-Net. Arrays are (channel, z, y, x) as nnU-Net reads them.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from msfl.learning.contract import JsonObject, Weights
from msfl.learning.nnunet.files import CONFIGURATION
from msfl.learning.nnunet.settings import Settings
from msfl.learning.nnunet.trainer import write_weights


def build_network(plan: JsonObject, deep_supervision: bool) -> torch.nn.Module:
    """The planned network. The plan must have passed the allow-list."""
    plans = PlansManager(plan["nnunet"])
    network = nnUNetTrainer.build_network_architecture(
        plans,
        plans.get_configuration(CONFIGURATION),
        len(plan["dataset"]["channel_names"]),
        len(plan["dataset"]["labels"]),
        enable_deep_supervision=deep_supervision,
    )
    assert isinstance(network, torch.nn.Module)
    return network


def tile_size(plan: JsonObject, settings: Settings) -> list[int]:
    """Edges of the inference tile in plan space: at least the patch's stride grid, at most the cap and the median image."""
    configuration = plan["nnunet"]["configurations"][CONFIGURATION]
    patch: list[int] = configuration["patch_size"]
    if settings.inference_tile == 0:
        return list(patch)
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    edges = []
    for axis in range(3):
        step = math.prod(stride[axis] for stride in strides)
        whole_image = math.ceil(configuration["median_image_size_in_voxels"][axis] / step) * step
        cap = max(step, settings.inference_tile // step * step)
        edges.append(max(min(cap, whole_image), min(patch[axis], cap)))
    return edges


class WholeCasePredictor:
    """One network for every candidate: weights are written into it before each prediction."""

    def __init__(self, plan: JsonObject, dataset_json: JsonObject, settings: Settings) -> None:
        self._plans = PlansManager(plan["nnunet"])
        self._stock_configuration = self._plans.get_configuration(CONFIGURATION)
        tiled: JsonObject = deepcopy(self._stock_configuration.configuration)
        tiled["patch_size"] = tile_size(plan, settings)
        self._dataset_json = dataset_json
        self._threads = settings.threads
        self._device = settings.torch_device()
        self._network = build_network(plan, deep_supervision=False).to(self._device)
        self._labels = self._plans.get_label_manager(dataset_json)
        self._predictor = nnUNetPredictor(
            tile_step_size=settings.inference_step,
            use_gaussian=True,
            use_mirroring=settings.inference_mirroring,
            perform_everything_on_device=self._device.type == "cuda",
            device=self._device,
            allow_tqdm=False,
        )
        self._predictor.manual_initialization(
            self._network, self._plans, ConfigurationManager(tiled), None, dataset_json, "nnUNetTrainer", (0, 1, 2)
        )
        self._loss = DC_and_CE_loss(
            {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            weight_ce=1,
            weight_dice=1,
            ignore_label=self._labels.ignore_label,
            dice_class=MemoryEfficientSoftDiceLoss,
        )

    def use(self, weights: Weights) -> None:
        write_weights(self._network, weights)

    @torch.inference_mode()
    def logits(self, image: NDArray[np.float32]) -> torch.Tensor:
        """Image (c, z, y, x) in plan space → logits (label, z, y, x), float32 on the CPU."""
        logits = self._predictor.predict_sliding_window_return_logits(torch.from_numpy(image))
        assert isinstance(logits, torch.Tensor)
        return logits.to("cpu", torch.float32)

    @torch.inference_mode()
    def loss_of(self, logits: torch.Tensor, truth: NDArray[np.int16]) -> float:
        """nnU-Net's training loss (Dice + cross-entropy) over one whole case; truth is (z, y, x), -1 outside the mask."""
        target = torch.from_numpy(np.maximum(truth, 0))[None, None]
        return float(self._loss(logits[None], target))

    def preprocess(self, images: NDArray[np.float32], properties: JsonObject) -> tuple[NDArray[np.float32], JsonObject]:
        """Images as read (c, z, y, x) → plan space, and what is needed to come back."""
        data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            images, None, dict(properties), self._plans, self._stock_configuration, self._dataset_json
        )
        return np.ascontiguousarray(data, dtype=np.float32), properties

    def to_image_space(self, logits: torch.Tensor, properties: JsonObject) -> NDArray[Any]:
        """Logits in plan space → label map (z, y, x) on the original image's grid."""
        labels: NDArray[Any] = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self._plans,
            self._stock_configuration,
            self._labels,
            properties,
            num_threads_torch=self._threads,
        )
        return labels
