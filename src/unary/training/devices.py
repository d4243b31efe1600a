"""Devices that torch computes on."""

from __future__ import annotations

from unary.errors import TrainingError


def check_device(device: str) -> None:
    """Refuse by a `ValueError` what is no device in torch's notation, whether or not there is one here."""
    import torch

    try:
        torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be in torch's notation, such as cpu or cuda:1, got {device!r}") from error


def require_device(device: str, option: str = "device") -> None:
    """Refuse by a `TrainingError` a device that torch cannot use here, before images are read for nothing.

    ``device`` is in torch's notation; the message calls it ``option``.
    """
    import torch

    try:
        torch.zeros(1, device=device).cpu()  # there, and back: the device "meta" holds nothing
    except (RuntimeError, AssertionError) as error:  # the second is torch's, when it was built without CUDA
        cause = str(error).strip().partition("\n")[0]
        raise TrainingError(f"{option}: torch cannot use {device!r} here ({cause}); cpu works everywhere") from error
