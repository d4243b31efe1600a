"""The state of a training under way in one file, of safetensors, so that reading one runs no code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unary.errors import TrainingError
from unary.files import write_durably


def save_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    curves: tuple[list[float], list[float]],
) -> None:
    """Write weights, optimiser state and curves to one file, through a temporary name.

    ``fingerprint`` is text that describes the run: what a checkpoint must share with the run that goes on from it. A
    `TrainingError` says that the file cannot be written, and that the one before is there.
    """
    tensors = {f"network.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": tensor.contiguous() for name, tensor in state.items()}
    content = save(tensors, {"fingerprint": fingerprint, "curves": json.dumps(curves)})
    try:
        write_durably(path, content)
    except OSError as error:
        kept = "the state written before is there" if path.exists() else "nothing was kept before"
        raise TrainingError(
            f"{path}: the state of training cannot be written ({error.strerror or error}); {kept}: make room and run "
            "the same command again to go on from it"
        ) from error


def load_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> tuple[list[float], list[float]]:
    """Put a checkpoint's state into network and optimiser, in place; return the curves so far.

    Raises a `TrainingError` if the file cannot be read, or its fingerprint is another.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path}: not a readable checkpoint ({error}); delete it to start afresh") from error
    if metadata.get("fingerprint") != fingerprint:
        raise TrainingError(
            f"{path}: this checkpoint belongs to a run with other settings or other patches; delete it to start afresh"
        )
    weights: dict[str, Tensor] = {}
    parameters = list(network.parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "network":
            weights[rest] = tensor
        else:
            index, _, key = rest.partition(".")
            like = parameters[int(index)]
            # The fused optimiser walks parameter and moments side by side, so their memory layouts must agree.
            restored = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(index), {})[key] = restored.detach()
    network.load_state_dict(weights)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    losses, dead = json.loads(metadata["curves"])
    return losses, dead
