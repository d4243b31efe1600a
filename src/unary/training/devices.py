"""Devices that torch computes on."""

from __future__ import annotations

import torch

from unary.errors import TrainingError


def require_device(device: str, option: str = "device") -> None:
    """Refuse a device that torch cannot use here, before images are read for nothing.

    Parameters
    ----------
    device
        In torch's notation: cpu, cuda, cuda:1.
    option
        What the message calls it.

    Raises
    ------
    TrainingError
        If it cannot be used.
    """
    try:
        torch.empty(1, device=device)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # the second: built without CUDA
        cause = str(error).strip().partition("\n")[0]
        raise TrainingError(f"{option}: torch cannot use {device!r} here ({cause}); cpu works everywhere") from error
