"""Results as DICOM objects, one for each of `KINDS`."""

from __future__ import annotations

from typing import Literal

Kind = Literal["report", "segmentation", "capture", "heat_map", "presentation"]
KINDS: tuple[Kind, ...] = ("report", "segmentation", "capture", "heat_map", "presentation")
DEFAULT_KINDS: tuple[Kind, ...] = ("report", "segmentation", "capture")
