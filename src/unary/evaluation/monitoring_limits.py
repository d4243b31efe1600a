"""What a physicist sets for watching a scanner, in a TOML file; without one, nothing but statistics is applied."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from unary.errors import UnaryError

FOLLOWED: dict[str, str] = {
    "image_score": "image score",
    "level": "median of the tissue's values",
    "contrast": "spread of the tissue's values, by their median",
    "noise": "noise of single pixels, by the median of the tissue's values",
    "exposure_mas": "exposure, mAs",
    "kvp": "peak voltage, kV",
    "thickness_mm": "compressed thickness, mm",
}
"""What is followed of every image, and what it is called."""

ALARM_RATE = "alarm_rate"
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


@dataclass(frozen=True)
class MonitorLimits:
    """How a scanner is watched.

    Attributes
    ----------
    false_alarm
        The chance, in (0, 0.5], that the test against the guarantee is ever wrong, however long and often it is looked
        at.
    average_run_length
        In studies: the mean time until the charts of a scanner, all together, give a false signal. In constancy mode,
        in images.
    prevalence
        Share, in [0, 1), of images that are not normal and may alarm rightly; None where it is not stated.
    baseline
        First and last month of the period that control limits of the constancy mode are made from.
    limits
        Lowest and highest value, by a name of `FOLLOWED` or ``alarm_rate``; of the median of a month, in constancy mode
        of every image.
    """

    false_alarm: float = 0.05
    average_run_length: float = 5000.0
    prevalence: float | None = None
    baseline: tuple[str, str] | None = None
    limits: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm <= 0.5:
            raise ValueError(f"false_alarm must lie in (0, 0.5], got {self.false_alarm}")
        if not 10 <= self.average_run_length <= 1e6:
            raise ValueError(f"average_run_length must lie between 10 and 1e6, got {self.average_run_length}")
        if self.prevalence is not None and not 0 <= self.prevalence < 1:
            raise ValueError(f"prevalence must lie in [0, 1), got {self.prevalence}")
        if self.baseline is not None and not (
            all(_MONTH.fullmatch(month) for month in self.baseline) and self.baseline[0] <= self.baseline[1]
        ):
            raise ValueError(f'baseline must be two months such as "2026-01", the first first, got {self.baseline}')
        for name, (low, high) in self.limits.items():
            if name not in (*FOLLOWED, ALARM_RATE):
                raise ValueError(f"limits: {name!r} is not followed; these are: {', '.join((*FOLLOWED, ALARM_RATE))}")
            if low is None and high is None:
                raise ValueError(f"limits.{name} needs low, high, or both")
            if low is not None and high is not None and not low < high:
                raise ValueError(f"limits.{name}: low must be below high, got {low} and {high}")


def read_limits(path: Path) -> MonitorLimits:
    """Read limits from a TOML file.

    Raises
    ------
    UnaryError
        If it cannot be read, or a key or value is not what is needed; the message names it.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnaryError(f"{path}: cannot be opened ({error.strerror})") from error
    except ValueError as error:  # of decoding too
        raise UnaryError(f"{path}: not a TOML file ({error})") from error
    plain = ("false_alarm", "average_run_length", "prevalence")
    unknown = sorted(set(found) - {*plain, "baseline", "limits"})
    if unknown:
        raise UnaryError(
            f"{path}: {unknown[0]!r} is not known; there are {', '.join(plain)}, [baseline], [limits.NAME]"
        )
    values: dict[str, Any] = {name: _read_number(found[name], name, path) for name in plain if name in found}
    if "baseline" in found:
        values["baseline"] = _read_baseline(found["baseline"], path)
    if "limits" in found:
        tables = found["limits"]
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            raise UnaryError(f"{path}: limits are tables such as [limits.exposure_mas] with low and high")
        values["limits"] = {name: _read_pair(table, name, path) for name, table in tables.items()}
    try:
        return MonitorLimits(**values)
    except ValueError as error:
        raise UnaryError(f"{path}: {error}") from error


def _read_number(value: object, name: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
        raise UnaryError(f"{path}: {name} must be a finite number, not {value!r}")
    return float(value)


def _read_baseline(table: object, path: Path) -> tuple[str, str]:
    if not isinstance(table, dict) or set(table) != {"first", "last"}:
        raise UnaryError(f'{path}: [baseline] needs first and last, months such as "2026-01", and nothing else')
    return str(table["first"]), str(table["last"])


def _read_pair(table: Mapping[str, object], name: str, path: Path) -> tuple[float | None, float | None]:
    unknown = sorted(set(table) - {"low", "high"})
    if unknown:
        raise UnaryError(f"{path}: limits.{name} has {unknown[0]!r}; it takes low and high")
    low, high = (
        None if table.get(side) is None else _read_number(table[side], f"limits.{name}.{side}", path)
        for side in ("low", "high")
    )
    return low, high
