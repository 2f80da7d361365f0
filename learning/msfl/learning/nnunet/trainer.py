"""nnU-Net's trainer, driven round by round from outside instead of epoch by epoch to the end.

    start       network, optimiser, loss and loader are built once                     object lives for the whole run
    run_round   write the received weights into the network → local epochs → read them out
    momentum    lives on between rounds in the optimiser, and on disk for a worker that is killed and started again

What stays stock: augmentation, patch sampling, loss, deep supervision, gradient clipping, polynomial learning rate,
mixed precision and multi-process loading on CUDA. What is left out: validation patches, plots, checkpoints, debug files
and logs of every epoch; the platform validates whole cases and keeps the weights itself.

One stock transform (Gaussian blur) times two implementations and takes the faster, so that two runs may differ in the
last bits; here it always takes the direct one, and a run on CPU is reproducible bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from msfl.learning.contract import JsonObject, ModelRefusal, Weights
from msfl.learning.files import write_whole
from msfl.learning.nnunet.files import CONFIGURATION
from msfl.learning.nnunet.network import plain, read_weights, seed_everything, torch_device, write_weights
from msfl.learning.nnunet.settings import Settings


class RoundTrainer(nnUNetTrainer):  # type: ignore[misc]  # nnU-Net carries no types
    """Use `create`: nnU-Net's trainer insists on its own constructor arguments."""

    settings: Settings
    cases: list[str]
    state_folder: Path
    completed_round: int

    @classmethod
    def create(
        cls,
        plan: JsonObject,
        dataset_json: JsonObject,
        cases: tuple[str, ...],
        settings: Settings,
        state_folder: Path,
    ) -> RoundTrainer:
        """Build what lives for the whole run. `cases` are preprocessed; `state_folder` keeps the momentum."""
        device = torch_device(settings)
        # nnU-Net takes `continue_training` out of the very dictionary it is given.
        plans = {**plan["nnunet"], "continue_training": False}
        trainer = cls(plans, CONFIGURATION, "all", dataset_json, device)
        trainer.settings = settings
        trainer.cases = sorted(cases)
        trainer.state_folder = state_folder
        trainer.completed_round = 0
        trainer.num_epochs = settings.total_epochs
        trainer.num_iterations_per_epoch = settings.batches_per_epoch
        trainer.initial_lr = settings.initial_lr
        trainer.weight_decay = settings.weight_decay
        trainer.oversample_foreground_percent = settings.oversample_foreground
        trainer.disable_checkpointing = True
        trainer.initialize()
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        trainer.dataloader_train = trainer.training_loader()
        return trainer

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Nothing: the stock log repeats settings and paths that the platform already records."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Stock SGD, with the momentum of the settings instead of a fixed 0.99."""
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            self.initial_lr,
            weight_decay=self.weight_decay,
            momentum=self.settings.momentum,
            nesterov=self.settings.momentum > 0,
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def training_loader(self) -> Any:
        """The stock training loader; `get_dataloaders` would build a second one for validation patches.

        On CPU the batches are made in this process, which makes them reproducible and costs a few hundredths of a
        second each. On CUDA worker processes make them, or the card would wait.
        """
        augmentation = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        rotation, dummy_2d, initial_patch, mirror_axes = augmentation
        transforms = self.get_training_transforms(
            self.configuration_manager.patch_size,
            rotation,
            self._get_deep_supervision_scales(),
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm,
            is_cascaded=False,
            foreground_labels=self.label_manager.foreground_labels,
            regions=None,
            ignore_label=self.label_manager.ignore_label,
        )
        _stop_benchmarking(transforms)
        loader = nnUNetDataLoader(
            nnUNetDatasetBlosc2(self.preprocessed_dataset_folder, self.cases),
            self.batch_size,
            initial_patch,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            transforms=transforms,
        )
        if self.device.type == "cpu":
            return SingleThreadedAugmenter(loader, None)
        processes = max(1, min(12, (os.cpu_count() or 2) - 1))
        return NonDetMultiThreadedAugmenter(
            loader, None, processes, num_cached=max(6, processes // 2), seeds=None, pin_memory=True, wait_time=0.002
        )

    def run_round(
        self, weights: Weights, round_number: int, seed: int, on_batch: Callable[[int, float], None]
    ) -> tuple[Weights, float]:
        """One round of local epochs from `weights`; `round_number` counts from 1. Returns weights and mean loss.

        Called again for the same round (a retry) or in a new process (a restart) it starts from the momentum that
        stood before that round. Raises ModelRefusal `loss_not_finite`.
        """
        if self.completed_round != round_number - 1:
            self._load_momentum(round_number - 1)
        write_weights(self.network, weights)
        seed_everything(seed)
        losses: list[float] = []
        for epoch in range(self.settings.local_epochs):
            self.current_epoch = (round_number - 1) * self.settings.local_epochs + epoch
            self.network.train()
            self.lr_scheduler.step(self.current_epoch)
            for _ in range(self.num_iterations_per_epoch):
                loss = float(self.train_step(next(self.dataloader_train))["loss"])
                if not np.isfinite(loss):
                    raise ModelRefusal(
                        "loss_not_finite",
                        f"the training loss became {loss} in round {round_number}; lower initial_lr or check the data",
                    )
                losses.append(loss)
                on_batch(len(losses), loss)
        self.completed_round = round_number
        self._save_momentum()
        return read_weights(self.network), float(np.mean(losses))

    def stop(self) -> None:
        if isinstance(self.dataloader_train, NonDetMultiThreadedAugmenter):
            self.dataloader_train._finish()

    def _momentum_file(self, round_number: int) -> Path:
        return self.state_folder / f"momentum-{round_number:04d}.safetensors"

    def _save_momentum(self) -> None:
        buffers = {
            name: self.optimizer.state[parameter]["momentum_buffer"].detach().to("cpu", torch.float32).numpy()
            for name, parameter in sorted(plain(self.network).named_parameters())
            # A parameter without gradient (an unused deep supervision head) has none.
            if self.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        }
        self.state_folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._momentum_file(self.completed_round), [safetensors.numpy.save(buffers)])
        # The round before stays, for a retry of this one.
        self._momentum_file(self.completed_round - 2).unlink(missing_ok=True)

    def _load_momentum(self, round_number: int) -> None:
        """The momentum as it stood after `round_number`; none when that is not on disk (a site that joins late)."""
        file = self._momentum_file(round_number)
        buffers = safetensors.numpy.load(file.read_bytes()) if file.is_file() else {}
        for name, parameter in plain(self.network).named_parameters():
            if name in buffers:
                buffer = torch.from_numpy(buffers[name].copy()).to(parameter.device, parameter.dtype)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
            else:
                self.optimizer.state.pop(parameter, None)


def _stop_benchmarking(transform: Any) -> None:
    if isinstance(transform, GaussianBlurTransform):
        transform.benchmark = False
    for inner in [*getattr(transform, "transforms", []), getattr(transform, "transform", None)]:
        if inner is not None:
            _stop_benchmarking(inner)
