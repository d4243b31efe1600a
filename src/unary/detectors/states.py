"""Between a fitted detector and plain values: settings checked field by field, networks as arrays."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from unary.detectors.protocol import DetectorState
from unary.errors import DetectorError

if TYPE_CHECKING:
    from torch import nn

C = TypeVar("C")
N = TypeVar("N", bound="nn.Module")
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
    if isinstance(values, Mapping):
        for key, value in values.items():
            _require_fields(value, getattr(converted, key, None), f"{name}.{key}")
    elif isinstance(values, Sequence) and not isinstance(values, str):
        parts = converted if isinstance(converted, tuple) else [None] * len(values)
        for number, (value, part) in enumerate(zip(values, parts, strict=True)):
            _require_fields(value, part, f"{name}[{number}]")


def describe_network(config: Any, network: nn.Module | None, name: str) -> DetectorState:
    """Return the state of the detector of that name, which is a configuration and a network that follows from it."""
    weights = export_network(require_fitted(network, name))
    return DetectorState({"config": describe_config(config)}, weights)


def restore_network(state: DetectorState, kind: type[C], build: Callable[[C], N]) -> tuple[C, N]:
    """Undo `describe_network`: the configuration, and what ``build`` makes of it, with its weights."""
    config = read_config(kind, state.settings["config"])
    return config, rebuild_network(lambda: build(config), state.tensors)


def join_states(config: Any, parts: Mapping[str, DetectorState]) -> DetectorState:
    """Return the state of a detector that is a configuration and the states of its parts."""
    settings = {name: part.settings for name, part in parts.items()}
    tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.tensors.items()}
    return DetectorState({"config": describe_config(config), "parts": settings}, tensors)


def pick_state(state: DetectorState, name: str) -> DetectorState:
    """Return the state of one of the parts of `join_states`."""
    prefix = f"{name}."
    tensors = {key.removeprefix(prefix): value for key, value in state.tensors.items() if key.startswith(prefix)}
    return DetectorState(state.settings["parts"][name], tensors)


def export_network(network: nn.Module) -> dict[str, NDArray[Any]]:
    """Return a network's weights by name, as arrays of their own."""
    return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in network.state_dict().items()}


def rebuild_network(build: Callable[[], N], tensors: Mapping[str, NDArray[Any]]) -> N:
    """Return what ``build`` makes, with these weights, ready to examine; raises as `import_network`.

    Sizes are compared before memory is taken: a number that was damaged may ask for any amount of it.
    """
    import torch

    with torch.device("meta"):
        _check_weights(build(), tensors)
    return import_network(build(), tensors)


def import_network(network: N, tensors: Mapping[str, NDArray[Any]]) -> N:
    """Put weights into a network of the same shape, in place, bit for bit; return it, ready to examine.

    Raises
    ------
    ValueError
        If a tensor is missing, foreign, of another shape or type, or not finite; the message names it.
    """
    import torch

    _check_weights(network, tensors)
    for name, tensor in network.state_dict().items():
        tensor.copy_(torch.from_numpy(np.array(tensors[name], order="C")))  # keeps the memory layout as it was built
    return network.eval()


def _check_weights(network: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    import torch

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
        if not bool(given.isfinite().all()):
            raise ValueError(f"the weights {name!r} are not finite")


def require_fitted(part: T | None, name: str) -> T:
    """Return what fitting leaves in a detector; a `DetectorError` says that there is nothing yet."""
    if part is None:
        raise DetectorError(f"{name} has not been fitted; fit it first")
    return part


def require_size(size_px: int, fitted_px: int, name: str) -> None:
    """Refuse by a `DetectorError` patches of another size than a detector was fitted for."""
    if size_px != fitted_px:
        raise DetectorError(f"{name} was fitted for patches of {fitted_px} px and cannot examine those of {size_px} px")
