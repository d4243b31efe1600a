"""Where networks are applied: on the processor, or on a device that torch knows.

A fitted detector of networks has ``on_device(device)``, which returns it with its networks there; inputs go where a
network is, and answers come back. What is stored of a detector never says where it was, and on the processor its
answers are the same bit for bit; on another device sums are made in another order.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

from unary.detectors import name_of
from unary.detectors.protocol import Detector
from unary.errors import DetectorError

if TYPE_CHECKING:
    import torch
    from torch import nn

    N = TypeVar("N", bound=nn.Module)


def place_detector(detector: Detector, device: str) -> Detector:
    """Return a fitted detector whose networks are applied on a device, in torch's notation.

    Raises
    ------
    DetectorError
        If it has no network.
    """
    placed: Detector | None = detector.on_device(device) if has_networks(detector) else None  # type: ignore[attr-defined]
    if placed is None:
        raise DetectorError(f"{name_of(detector)} has no network that {device} could apply; it runs on the processor")
    return placed


def has_networks(detector: Detector) -> bool:
    """Whether a detector, or one of its parts, can be placed on a device."""
    return hasattr(detector, "on_device")


def place_network(network: N | None, device: str) -> N | None:
    """Return a network on a device, to be applied there; the one given stays where it is."""
    if network is None or find_device(network).type == device:
        return network
    return copy.deepcopy(network).to(device).eval()


def find_device(network: nn.Module) -> torch.device:
    """Return where a network is."""
    return next(network.parameters()).device
