"""Between a fitted detector and plain values: settings checked field by field, networks as arrays."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unary.detectors.protocol import DetectorState
from unary.errors import DetectorError

C = TypeVar("C")
T = TypeVar("T")


def describe_config(config: Any) -> dict[str, Any]:
    """Return a dataclass as JSON would read it back, for `read_config`: objects, lists, numbers, text."""
    described: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return described


def read_config(kind: type[C], values: object) -> C:
    """Return a dataclass from what `describe_config` and JSON made of it.

    Raises
    ------
    ValueError
        If a field is missing, foreign, of another type, not finite, or refused by the class; the message names it.
    """
    try:
        converted = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error
    _require_fields(values, converted, kind.__name__)
    return converted


def _require_fields(values: object, converted: object, name: str) -> None:
    """Refuse missing and foreign fields, which a converter fills in or passes over, and what is not finite."""
    if isinstance(values, float) and not math.isfinite(values):
        raise ValueError(f"{name} must be a finite number, not {values}")
    if isinstance(values, Mapping) and dataclasses.is_dataclass(converted):
        fields = [field.name for field in dataclasses.fields(converted)]
        for said, names in (("lacks", set(fields) - set(values)), ("has the unknown", set(values) - set(fields))):
            if names:
                raise ValueError(
                    f"{name} {said} field {', '.join(sorted(map(repr, names)))}; it has {', '.join(fields)}"
                )
        for field in fields:
            _require_fields(values[field], getattr(converted, field), f"{name}.{field}")
    elif isinstance(values, Mapping):
        for key, value in values.items():
            _require_fields(value, None, f"{name}.{key}")
    elif isinstance(values, Sequence) and not isinstance(values, str):
        parts = converted if isinstance(converted, tuple) else [None] * len(values)
        for number, (value, part) in enumerate(zip(values, parts, strict=True)):
            _require_fields(value, part, f"{name}[{number}]")


def read_size(state: DetectorState) -> int:
    """Return a state's side of patches in pixels.

    Raises
    ------
    KeyError, ValueError
        If it is missing or no positive whole number.
    """
    size_px = state.settings["size_px"]
    if type(size_px) is not int or size_px < 1:
        raise ValueError(f"size_px must be a positive whole number, got {size_px!r}")
    return size_px


def export_network(network: nn.Module) -> dict[str, NDArray[Any]]:
    """Return a network's weights by name, as arrays of their own."""
    return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in network.state_dict().items()}


def import_network(network: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Put weights into a network of the same shape, in place, bit for bit; it is ready to examine then.

    Raises
    ------
    ValueError
        If a tensor is missing, foreign, of another shape or type, or not finite; the message names it.
    """
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(tensors))
    if wrong:
        raise ValueError(f"the weights do not belong to this network: {wrong[0]!r} is missing or unknown")
    for name, tensor in own.items():
        given = torch.from_numpy(np.array(tensors[name], order="C"))
        if given.shape != tensor.shape or given.dtype != tensor.dtype:
            raise ValueError(
                f"the weights {name!r} must be {tuple(tensor.shape)} {tensor.dtype}, are {tuple(given.shape)} "
                f"{given.dtype}"
            )
        if given.is_floating_point() and not bool(given.isfinite().all()):
            raise ValueError(f"the weights {name!r} are not finite")
        tensor.copy_(given)  # keeps the memory layout that the network was built with
    network.eval()


def require_fitted(part: T | None, name: str) -> T:
    """Return what fitting leaves in a detector.

    Raises
    ------
    DetectorError
        If there is nothing yet.
    """
    if part is None:
        raise DetectorError(f"{name} has not been fitted; fit it first")
    return part


def require_size(size_px: int, fitted_px: int, name: str) -> None:
    """Refuse patches of another size than a detector was fitted for.

    Raises
    ------
    DetectorError
        If the sizes differ.
    """
    if size_px != fitted_px:
        raise DetectorError(f"{name} was fitted for patches of {fitted_px} px and cannot examine those of {size_px} px")
