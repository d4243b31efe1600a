"""The parts of a fusion as plain values and tensors, and back: what a model folder holds of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from unary.detectors.blind_spot import BlindSpot, BlindSpotConfig, build_blind_spot
from unary.detectors.dense_laplacian import DenseLaplacian
from unary.detectors.fusion import FusedPart, Fusion, Part, Surprisal
from unary.detectors.prominence import Prominence
from unary.detectors.segmentation import Segmentation
from unary.detectors.unet import UNetConfig, build_unet


def describe_fusion(fusion: Fusion) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return settings that JSON can hold, and the tensors by ``part.parameter``."""
    entries, tensors = [], {}
    for fused in fusion.parts:
        part = fused.part
        if isinstance(part, (BlindSpot, Segmentation)):
            settings = dataclasses.asdict(part.network.config)
            for name, tensor in part.network.state_dict().items():
                tensors[f"{fused.name}.{name}"] = tensor.cpu().contiguous()
        elif isinstance(part, (DenseLaplacian, Prominence)):
            settings = dataclasses.asdict(part)
        else:
            raise TypeError(f"a part of the type {type(part).__name__} cannot be stored")
        entries.append(
            {
                "name": fused.name,
                "settings": settings,
                "strongest": fused.strongest,
                "weight": fused.weight,
                "surprisal": dataclasses.asdict(fused.surprisal),
            }
        )
    return {"parts": entries}, tensors


def restore_fusion(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Fusion:
    """Undo `describe_fusion`.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the settings are not those of a fusion.
    RuntimeError
        If the tensors do not fit.
    """
    parts = []
    for entry in settings["parts"]:
        name = entry["name"]
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        surprisal = _with_tuples(entry["surprisal"])
        parts.append(
            FusedPart(
                name,
                _restore_part(name, entry["settings"], own),
                entry["strongest"],
                entry["weight"],
                Surprisal(**surprisal),
            )
        )
    return Fusion(tuple(parts))


def count_weights(part: Part) -> int:
    """Return the number of learned weights of a part; 0 for those without a network."""
    if isinstance(part, (BlindSpot, Segmentation)):
        return sum(parameter.numel() for parameter in part.network.parameters())
    return 0


def _restore_part(name: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Part:
    values = _with_tuples(settings)
    if name == "laplacian":
        return DenseLaplacian(**values)
    if name == "prominence":
        return Prominence(**values)
    network: nn.Module
    if name == "blind_spot":
        network = build_blind_spot(BlindSpotConfig(**values), seed=0)
        network.load_state_dict(tensors)
        return BlindSpot(network.eval())
    if name == "segmentation":
        network = build_unet(UNetConfig(**values), seed=0)
        network.load_state_dict(tensors)
        return Segmentation(network.eval())
    raise ValueError(f"unknown part {name!r}")


def _with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples; the configurations do."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
