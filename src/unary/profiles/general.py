"""Any grey picture: chest films, slices of MR and CT, photographs of film. One channel, two dimensions, no anatomy."""

from __future__ import annotations

from unary.profiles.profile import Codes, HeaderFlag, Headers, Lengths, Profile, Reading

QC_IMAGE = HeaderFlag(
    "QC_IMAGE",
    "an image of a test object or for calibration, not of a patient",
    keywords=("QualityControlImage", "CalibrationImage"),
)

LOCALIZER = HeaderFlag(
    "LOCALIZER",
    "a localizer (scout view) of a series, a projection beside its slices",
    image_types=("LOCALIZER",),
)

GENERAL = Profile(
    name="general",
    noun="image",
    detector="nearest_neighbour",
    mask="none",
    lengths=Lengths(
        working_spacing_mm=None,
        patch_mm=8.96,
        patch_px=64,
        rim_mm=0.0,
        rim_px=0,
        merge_mm=5.0,
        merge_px=36.0,
    ),
    reading=Reading(),
    headers=Headers(
        capture_modalities=("MG", "DX", "CR", "CT", "MR", "PT", "OT"),
        flags=(QC_IMAGE, LOCALIZER),
    ),
    codes=Codes(procedure=("363679005", "SCT", "Imaging"), site=None),
)
