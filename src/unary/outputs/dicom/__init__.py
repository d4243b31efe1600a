"""Results as DICOM objects: of one image, one for each of `KINDS`; of a whole study, one for each of `STUDY_KINDS`."""

from __future__ import annotations

from typing import Literal

Kind = Literal["report", "segmentation", "capture", "heat_map", "presentation"]
KINDS: tuple[Kind, ...] = ("report", "segmentation", "capture", "heat_map", "presentation")
DEFAULT_KINDS: tuple[Kind, ...] = ("report", "segmentation", "capture")

StudyKind = Literal["cad_report", "study_summary"]
STUDY_KINDS: tuple[StudyKind, ...] = ("cad_report", "study_summary")
