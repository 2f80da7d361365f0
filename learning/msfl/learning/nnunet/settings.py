"""The run's settings as one frozen record, read from the flat config that the platform resolved and signed off.

Every key is named in `release.yaml` with its bounds; the gateway has checked those bounds before a worker starts. This
is the second look: a key that is missing or of another type stops the run with a reason instead of training something
else. Keys that only the platform uses (`strategy`, `weighting`, `validation_fraction`) are not read here.

    0 in `patch_size`, `base_features`, `convs_per_stage`, `batch_size` means: as nnU-Net's planner decides.
    0 in `inference_tile` means: predict with the training patch, as stock nnU-Net does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import get_type_hints

from msfl.learning.contract import JsonObject, ModelRefusal


@dataclass(frozen=True)
class Settings:
    profile: str
    seed: int
    rounds: int
    local_epochs: int
    batches_per_epoch: int
    initial_lr: float
    momentum: float
    weight_decay: float
    oversample_foreground: float
    patch_size: int
    base_features: int
    convs_per_stage: int
    batch_size: int
    inference_tile: int
    inference_step: float
    inference_mirroring: bool
    threads: int
    device: str

    @classmethod
    def from_config(cls, config: JsonObject) -> Settings:
        """Raises ModelRefusal `config_invalid` when a key is missing or has another type."""
        types = get_type_hints(cls)
        values: dict[str, object] = {}
        for field in fields(cls):
            value = config.get(field.name)
            wanted: type = types[field.name]
            if wanted is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
                raise ModelRefusal(
                    "config_invalid",
                    f"config key {field.name!r} must be {wanted.__name__}, got {value!r}; see release.yaml",
                )
            values[field.name] = value
        if values["profile"] not in ("full", "demo"):
            raise ModelRefusal("config_invalid", f"config key 'profile' must be full or demo: {values['profile']!r}")
        return cls(**values)  # type: ignore[arg-type]  # each value was checked against its own annotation above

    @property
    def total_epochs(self) -> int:
        return self.rounds * self.local_epochs

    def round_seed(self, site_id: str, round_number: int) -> int:
        """The seed of all randomness in one round at one site: order of cases, patches, augmentation.

        It does not depend on the stream, so that in round 1 the local baseline and the federated model do identical
        work, nor on what ran before in this process, so that a worker restarted in round 7 draws what it would have.
        """
        digest = hashlib.sha256(f"{self.seed}|{site_id}|{round_number}".encode()).digest()
        return int.from_bytes(digest[:4], "big")
