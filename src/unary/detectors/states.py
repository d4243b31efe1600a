"""Between a fitted detector and plain values: settings checked field by field, networks as arrays."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unary.errors import DetectorError

C = TypeVar("C")
T = TypeVar("T")


def read_config(kind: type[C], values: object) -> C:
    """Return a dataclass from what `dataclasses.asdict` and JSON made of it.

    Raises
    ------
    ValueError
        If a field is missing, foreign, of another type, or refused by the class; the message names it.
    """
    _require_fields(kind, values, kind.__name__)
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def _require_fields(kind: Any, values: object, name: str) -> None:
    """Refuse missing and foreign fields, which a converter would fill in and pass over."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} must be an object with named fields, not {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    for said, names in (("lacks", set(fields) - set(values)), ("has the unknown", set(values) - set(fields))):
        if names:
            raise ValueError(f"{name} {said} field {', '.join(sorted(map(repr, names)))}; it has {', '.join(fields)}")
    for field in fields:
        if dataclasses.is_dataclass(hints[field]):
            _require_fields(hints[field], values[field], f"{name}.{field}")


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
