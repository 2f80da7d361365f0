"""The planned network and its weights: what both the centre and a site need, without nnU-Net's trainer.

Weights are `named_parameters()`, sorted by name, never the state dict, in which nnU-Net's encoder appears up to four
times under different names. They are written back in place, because an optimiser holds references to the parameters.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from msfl.learning.contract import JsonObject, ModelRefusal, Weights
from msfl.learning.nnunet.files import CONFIGURATION
from msfl.learning.nnunet.settings import Settings
from msfl.protos.tensors import all_finite


def torch_device(settings: Settings) -> torch.device:
    """Raises ModelRefusal `no_cuda` when CUDA is asked for and this host shows none."""
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise ModelRefusal(
            "no_cuda", "config key 'device' is cuda, but this host shows no CUDA device; use auto or cpu"
        )
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


def build_network(plan: JsonObject, deep_supervision: bool) -> torch.nn.Module:
    """The planned network, as stock `nnUNetTrainer` builds it. The plan must have passed the allow-list."""
    configuration = PlansManager(plan["nnunet"]).get_configuration(CONFIGURATION)
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        len(plan["dataset"]["channel_names"]),
        len(plan["dataset"]["labels"]),
        allow_init=True,
        deep_supervision=deep_supervision,
    )
    assert isinstance(network, torch.nn.Module)
    return network


def read_weights(network: torch.nn.Module) -> Weights:
    """Each parameter once, by name, as a float32 array of its own, in sorted order."""
    named = dict(plain(network).named_parameters())
    # A copy, not a view: the network goes on training while these are on their way.
    return {name: named[name].detach().to("cpu", torch.float32, copy=True).numpy() for name in sorted(named)}


def write_weights(network: torch.nn.Module, weights: Weights) -> None:
    """In place. Raises ModelRefusal `weights_not_of_this_plan` for other names, shapes, or values not finite."""
    named = dict(plain(network).named_parameters())
    if set(named) != set(weights):
        raise ModelRefusal(
            "weights_not_of_this_plan",
            f"expected {len(named)} tensors of the planned network, got {len(weights)} with other names",
        )
    for name, parameter in named.items():
        value = weights[name]
        if value.dtype != np.float32 or tuple(value.shape) != tuple(parameter.shape) or not all_finite(value):
            raise ModelRefusal(
                "weights_not_of_this_plan", f"{name} must be finite float32 of shape {tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))


def plain(network: torch.nn.Module) -> torch.nn.Module:
    """The network itself: torch.compile wraps it and prefixes every name."""
    inner = getattr(network, "_orig_mod", network)
    assert isinstance(inner, torch.nn.Module)
    return inner


def seed_everything(seed: int) -> None:
    # nnU-Net and its augmentation draw from all three global generators.
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
