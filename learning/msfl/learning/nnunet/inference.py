"""Whole-case prediction: nnU-Net's sliding window, for validation in plan space and for test in image space.

    split        space                    per case                        why
    validation   plan (resampled, cropped) loss and Dice                  cheap, every round, same space as training
    test         original image            predicted label map            what a radiologist would see; for the record

The window positions, the Gaussian weights and the mirroring are stock; the loop is not, for one reason: stock predicts
one window at a time, and for a batch of one PyTorch on CPU takes a convolution five times slower than for a batch of
two. Sums are float32 instead of float16.

The network is fully convolutional, so that the tile need not be the training patch. `inference_tile` caps its edge; 0
means the patch, as in stock nnU-Net. Arrays are (channel, z, y, x) as nnU-Net reads them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from msfl.learning.contract import JsonObject, Weights
from msfl.learning.nnunet.files import CONFIGURATION
from msfl.learning.nnunet.network import build_network, torch_device, write_weights
from msfl.learning.nnunet.settings import Settings


def tile_size(plan: JsonObject, settings: Settings) -> list[int]:
    """Edges of the inference tile in plan space: multiples of the network's stride, up to cap and median image."""
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
        self._configuration = self._plans.get_configuration(CONFIGURATION)
        self._dataset_json = dataset_json
        self._labels = self._plans.get_label_manager(dataset_json)
        self._threads = settings.threads
        self._tile = tile_size(plan, settings)
        self._step = settings.inference_step
        self._device = torch_device(settings)
        self._network = build_network(plan, deep_supervision=False).to(self._device).eval()
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
    def logits(self, image: NDArray[np.float32], *, mirror: bool) -> torch.Tensor:
        """Image (c, z, y, x) in plan space → logits (label, z, y, x), float32 on the CPU; `mirror`: mean of 8 flips."""
        whole, inner = pad_nd_image(torch.from_numpy(image), self._tile, "constant", {"value": 0}, True, None)
        total = torch.zeros((self._labels.num_segmentation_heads, *whole.shape[1:]), device=self._device)
        weight = torch.zeros(whole.shape[1:], device=self._device)
        gaussian = compute_gaussian(
            tuple(self._tile), sigma_scale=1 / 8, value_scaling_factor=10, dtype=torch.float32, device=self._device
        )
        for windows in _pairs(self._windows(tuple(whole.shape[1:]))):
            batch = torch.stack([whole[(slice(None), *window)] for window in windows]).to(self._device)
            if len(windows) == 1 and self._device.type == "cpu":
                batch = batch.repeat(2, 1, 1, 1, 1)
            # Mixed precision on CUDA as in stock; on CPU it would be slower.
            with torch.autocast(self._device.type, enabled=self._device.type == "cuda"):
                predicted = (self._mirrored(batch) if mirror else self._network(batch)).float()
            for window, logits in zip(windows, predicted, strict=False):
                total[(slice(None), *window)] += logits * gaussian
                weight[window] += gaussian
        total /= weight
        result: torch.Tensor = total[(slice(None), *inner[1:])].cpu()
        return result

    def _mirrored(self, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._network(batch)
        flips = [axes for count in (1, 2, 3) for axes in itertools.combinations((2, 3, 4), count)]
        for axes in flips:
            logits = logits + torch.flip(self._network(torch.flip(batch, axes)), axes)
        return logits / (len(flips) + 1)

    def _windows(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        starts = compute_steps_for_sliding_window(shape, self._tile, self._step)
        for corner in itertools.product(*starts):
            yield tuple(slice(start, start + edge) for start, edge in zip(corner, self._tile, strict=True))

    @torch.inference_mode()
    def loss_of(self, logits: torch.Tensor, truth: NDArray[np.int16]) -> float:
        """nnU-Net's loss (Dice + cross-entropy) over one whole case; truth is (z, y, x), -1 outside the mask."""
        target = torch.from_numpy(np.maximum(truth, 0))[None, None]
        return float(self._loss(logits[None], target))

    def preprocess(self, images: NDArray[np.float32], properties: JsonObject) -> tuple[NDArray[np.float32], JsonObject]:
        """Images as read (c, z, y, x) → plan space, and what is needed to come back."""
        data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            images, None, dict(properties), self._plans, self._configuration, self._dataset_json
        )
        return np.ascontiguousarray(data, dtype=np.float32), properties

    def to_image_space(self, logits: torch.Tensor, properties: JsonObject) -> NDArray[Any]:
        """Logits in plan space → label map (z, y, x) on the original image's grid."""
        labels: NDArray[Any] = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self._plans,
            self._configuration,
            self._labels,
            properties,
            num_threads_torch=self._threads,
        )
        return labels


def _pairs(windows: Iterator[tuple[slice, ...]]) -> Iterator[list[tuple[slice, ...]]]:
    while pair := list(itertools.islice(windows, 2)):
        yield pair
