"""Where PyTorch's generators are, as tensors that a checkpoint can keep."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["random_state", "restore_random"]


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of this process's generators: that of the CPU, and that of its GPU where it has one."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators where `random_state` found them."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
