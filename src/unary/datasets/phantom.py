"""Seeded synthetic mammograms with known lesions, written as real DICOM.

A drawing with the statistics that matter to a detector, not a simulation of physics: tissue with a power-law spectrum,
thin bright strands that fool edge detectors, a skin line, noise that grows with the signal, and lesions whose place is
known exactly. What is and is not modelled is listed in ``docs/phantom.md``. Everything is drawn as a left breast with
the chest wall at column 0 and mirrored at the end for a right one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from unary.datasets.phantom_tissue import (
    FULL_SCALE,
    LINE_STEP_PX,
    Anatomy,
    Field,
    PhantomConfig,
    Traits,
    View,
    draw_anatomy,
    draw_headings,
    draw_lines,
    draw_tissue,
    draw_traits,
    sample_positions,
)
from unary.progress import show_progress
from unary.records import Lesion, Manifest, ManifestRow

__all__ = ["Phantom", "PhantomConfig", "build_phantom", "write_phantom", "write_phantom_dataset"]

LesionChoice = Literal["none", "calcifications", "mass"]
Laterality = Literal["L", "R"]

_REFERENCE_SIGNAL = 2000.0  # the value at which `PhantomConfig.noise_std` holds
_FONT = {  # 5 x 7 dots, one row per string
    "L": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
    "C": (".###.", "#...#", "#....", "#....", "#....", "#...#", ".###."),
    "M": ("#...#", "##.##", "#.#.#", "#.#.#", "#...#", "#...#", "#...#"),
    "O": (".###.", "#...#", "#...#", "#...#", "#...#", "#...#", ".###."),
}
_VIEW_CODES = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}
_ORIENTATION = {  # towards the right and the lower border of the image, DICOM PS3.3 C.7.6.1.1.1
    ("L", "CC"): ["A", "R"],
    ("R", "CC"): ["P", "L"],
    ("L", "MLO"): ["A", "FR"],
    ("R", "MLO"): ["P", "FL"],
}


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic mammogram.

    Attributes
    ----------
    pixels
        Shape (rows, cols), uint16, 0 to 4095, larger values brighter.
    mask
        Shape (rows, cols), bool: True inside the breast, skin and nipple included.
    lesions
        What was planted: each calcification (a point below 0.3 mm, else a circle) and the box around their cluster, or
        the contour of a mass. Named as INbreast does: ``"Calcification"``, ``"Cluster"``, ``"Mass"``.
    view, laterality
        As in `unary.records.Image`.
    spacing_mm
        Of the pixels.
    density
        ACR breast density, ``"1"`` to ``"4"``.
    """

    pixels: NDArray[np.uint16]
    mask: NDArray[np.bool_]
    lesions: tuple[Lesion, ...]
    view: View
    laterality: Laterality
    spacing_mm: float
    density: str


def build_phantom(
    config: PhantomConfig,
    *,
    rng: np.random.Generator,
    lesions: LesionChoice = "none",
    view: View = "CC",
    laterality: Laterality = "L",
    image_id: str = "phantom",
    traits: Traits | None = None,
) -> Phantom:
    """Draw one breast; without the traits of a patient, of a patient of its own.

    Calcifications are one cluster of 5 to 20. The same state of the generator, which is advanced, gives the same
    breast, noise included, whatever ``lesions`` says, so that an image with and without its lesions can be compared.

    Raises
    ------
    ValueError
        If lesions, view or laterality are none of the choices.
    """
    traits = traits or draw_traits(rng)
    choices = (lesions, get_args(LesionChoice)), (view, get_args(View)), (laterality, get_args(Laterality))
    for value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
    anatomy = draw_anatomy(config, traits, rng=rng, view=view)
    signal = draw_tissue(config, traits, anatomy, rng=rng)
    noise = ndimage.gaussian_filter(rng.standard_normal(signal.shape, np.float32), 0.5, truncate=4)
    noise *= config.noise_std / float(noise.std())
    with_marker = bool(rng.random() < 0.6)
    found: tuple[Lesion, ...] = ()
    if lesions != "none":
        draw = _draw_calcifications if lesions == "calcifications" else _draw_mass
        layer, found = draw(signal, anatomy, config, rng=rng, image_id=image_id)
        signal += layer
    signal = ndimage.gaussian_filter(signal, 0.5, truncate=4)  # the detector's own blur
    signal += noise * np.sqrt(np.maximum(signal, 60) / _REFERENCE_SIGNAL)
    mask = anatomy.depth_mm > 0
    if laterality == "R":
        signal, mask, found = signal[:, ::-1], mask[:, ::-1], tuple(_mirror(item, config.cols) for item in found)
    if with_marker:
        signal = _stamp_marker(signal, mask, text=laterality + view, dot_px=max(1, round(0.9 / config.spacing_mm)))
    pixels = np.clip(np.rint(signal), 0, FULL_SCALE).astype(np.uint16)
    density = str(1 + min(int(4 * traits.density), 3))
    return Phantom(pixels, np.ascontiguousarray(mask), found, view, laterality, config.spacing_mm, density)


def _mirror(lesion: Lesion, cols: int) -> Lesion:
    points = tuple((row, cols - 1 - col) for row, col in lesion.points)
    if lesion.kind == "box":  # keep the corners in order; a box is half-open
        (r0, c0), (r1, c1) = lesion.points
        points = ((r0, cols - c1), (r1, cols - c0))
    return replace(lesion, points=points)


def _draw_place(
    anatomy: Anatomy, config: PhantomConfig, lowest_mm: float, reach: float, *, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Draw a lesion's centre and its radius in mm, of which it reaches ``reach``.

    It lies more often in glandular tissue, deeper than it reaches, and off the border.
    """
    radius_mm = min(float(rng.uniform(lowest_mm, 7.5)), 0.15 * min(config.rows, config.cols) * config.spacing_mm)
    depth = anatomy.depth_mm
    room = min(reach * radius_mm + 4.0, 0.6 * float(depth.max()))
    border = max(1, round(0.06 * min(depth.shape)))
    allowed = np.zeros(depth.shape, bool)
    allowed[border:-border, border:-border] = depth[border:-border, border:-border] > room
    weight = (0.7 + 0.3 * anatomy.gland) * (1.01 - anatomy.pectoral)
    return sample_positions(allowed, weight, 1, rng=rng).reshape(2), radius_mm


def _draw_calcifications(
    signal: Field, anatomy: Anatomy, config: PhantomConfig, *, rng: np.random.Generator, image_id: str
) -> tuple[Field, tuple[Lesion, ...]]:
    """Return what one cluster adds to the signal, and its lesions; at least one speck always fits."""
    layer = np.zeros_like(signal)
    centre, radius_mm = _draw_place(anatomy, config, 2.5, 1.0, rng=rng)
    specks: list[Lesion] = []
    for number in range(int(rng.integers(5, 21))):
        turn, out = rng.uniform(0, 2 * np.pi), radius_mm / config.spacing_mm * math.sqrt(rng.random())
        place = centre + out * np.array([math.sin(turn), 0.8 * math.cos(turn)]) * (number > 0)
        row, col = (int(v) for v in np.rint(place))
        if not (6 < row < config.rows - 7 and 6 < col < config.cols - 7 and anatomy.depth_mm[row, col] > 2):
            continue
        diameter_mm = float(np.clip(rng.lognormal(math.log(0.32), 0.45), 0.15, 0.8))
        local_noise = config.noise_std * math.sqrt(max(float(signal[row, col]), 1.0) / _REFERENCE_SIGNAL)
        peak = config.calcification_contrast * local_noise * (diameter_mm / 0.4) * float(rng.lognormal(0, 0.3))
        radius_px = diameter_mm / config.spacing_mm / 2
        share, (top, left) = _draw_speck(place, radius_px, rng=rng)
        layer[top : top + len(share), left : left + len(share)] += np.float32(peak) * share
        points = ((float(place[0]), float(place[1])),)
        if diameter_mm < 0.3:
            specks.append(Lesion(image_id, "Calcification", "point", points))
        else:
            specks.append(Lesion(image_id, "Calcification", "circle", points, radius_px=radius_px))
    places = np.array([lesion.points[0] for lesion in specks])
    (r0, c0), (r1, c1) = (np.floor(places.min(axis=0)) - 1).tolist(), (np.ceil(places.max(axis=0)) + 2).tolist()
    return layer, (*specks, Lesion(image_id, "Cluster", "box", ((r0, c0), (r1, c1))))


def _draw_speck(
    place: NDArray[np.float64], radius_px: float, *, rng: np.random.Generator
) -> tuple[Field, tuple[int, int]]:
    """Return each pixel's share of the union of three random ellipses, and the corner of that square.

    Drawn eight times finer and averaged, so that a speck smaller than a pixel keeps its total.
    """
    reach = math.ceil(radius_px) + 1
    corner = np.rint(place).astype(int) - reach
    side = 2 * reach + 1
    fine = (np.arange(8 * side) + 0.5) / 8 - 0.5
    row, col = (fine[:, None] + corner[0] - place[0]), (fine[None, :] + corner[1] - place[1])
    shape = np.zeros((fine.size, fine.size), bool)
    for _ in range(3):
        shift, turn = rng.uniform(-0.4, 0.4, 2) * radius_px, rng.uniform(0, np.pi)
        along = (row - shift[0]) * math.cos(turn) + (col - shift[1]) * math.sin(turn)
        across = (col - shift[1]) * math.cos(turn) - (row - shift[0]) * math.sin(turn)
        axes = radius_px * rng.uniform(0.5, 1.0, 2)
        shape |= (along / axes[0]) ** 2 + (across / axes[1]) ** 2 < 1
    share = shape.reshape(side, 8, side, 8).mean(axis=(1, 3), dtype=np.float32)
    return share, (int(corner[0]), int(corner[1]))


def _draw_mass(
    signal: Field, anatomy: Anatomy, config: PhantomConfig, *, rng: np.random.Generator, image_id: str
) -> tuple[Field, tuple[Lesion, ...]]:
    """Return what one lobulated or spiculated mass adds to the signal, and its contour."""
    centre, radius_mm = _draw_place(anatomy, config, 3.0, 1.3, rng=rng)
    radius_px = radius_mm / config.spacing_mm
    orders, phases = np.arange(2, 6), rng.uniform(0, 2 * np.pi, 4)
    sizes = rng.normal(0, 0.16, 4) / (orders - 1)

    def outline(angle: NDArray[Any]) -> NDArray[np.float64]:
        waves = np.cos(np.multiply.outer(angle, orders) + phases) @ sizes
        return np.asarray(radius_px * np.clip(1 + waves, 0.6, 1.4))

    layer = np.zeros_like(signal)
    down, right = np.arange(config.rows)[:, None] - centre[0], np.arange(config.cols)[None, :] - centre[1]
    rows, cols = np.nonzero(np.hypot(down, right) < 2 * radius_px)
    down, right = rows - centre[0], cols - centre[1]
    ratio = np.hypot(down, right) / outline(np.arctan2(down, right))
    layer[rows, cols] = config.mass_contrast / (1 + np.exp((ratio - 0.95) / 0.1))
    if rng.random() < 0.5:
        count, steps = int(rng.integers(12, 24)), round(radius_px / LINE_STEP_PX)
        outwards = rng.uniform(0, 2 * np.pi, count)
        heading = outwards[:, None] + 0.5 * draw_headings(count, steps, rng=rng)
        path = LINE_STEP_PX * np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=2)
        path += (0.7 * outline(outwards) * np.stack([np.sin(outwards), np.cos(outwards)])).T[:, :, None]
        fade = np.linspace(1, 0, steps) * rng.uniform(0.3, 1, (count, 1)) * 0.5 * config.mass_contrast
        layer += draw_lines(layer.shape, path + centre[:, None], fade, sigma_px=0.25 / config.spacing_mm)
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    reach = outline(angles)
    vertices = zip(centre[0] + reach * np.sin(angles), centre[1] + reach * np.cos(angles), strict=True)
    return layer, (Lesion(image_id, "Mass", "contour", tuple((float(r), float(c)) for r, c in vertices)),)


def _stamp_marker(signal: Field, mask: NDArray[np.bool_], *, text: str, dot_px: int) -> Field:
    """Return the image with lead letters in the upper corner away from the chest wall, unless the breast is there."""
    rows = [".".join(_FONT[letter][k] for letter in text) for k in range(7)]
    letters = np.array([[dot == "#" for dot in row] for row in rows]).repeat(dot_px, axis=0).repeat(dot_px, axis=1)
    top, gap = 4 * dot_px, 4 * dot_px
    left = signal.shape[1] - gap - letters.shape[1] if text[0] == "L" else gap
    box = (slice(top, top + letters.shape[0]), slice(left, left + letters.shape[1]))
    if left < 0 or mask[box].shape != letters.shape or mask[box].any():
        return signal
    stamped = signal.copy()
    stamped[box] += 3600 * ndimage.gaussian_filter(letters.astype(np.float32), 0.5)
    return stamped


def write_phantom(phantom: Phantom, path: Path, *, image_id: str, patient_id: str, seed: int = 0) -> None:
    """Write a Digital Mammography X-Ray Image - For Presentation (DICOM PS3.3 A.27), uncompressed.

    The same arguments give the same bytes: the identifiers come from ``seed``, ``patient_id`` and ``image_id``, that of
    the object from its pixels too; the dates are fixed. All images of a patient are one study. The folder must exist; a
    file there is replaced.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    parts = ["unary image", str(seed), patient_id, image_id, hashlib.sha256(phantom.pixels.tobytes()).hexdigest()]
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=parts)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["unary study", str(seed), patient_id])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["unary series", str(seed), patient_id, image_id])
    dataset.PatientName, dataset.PatientID = f"Phantom^{patient_id}", patient_id
    dataset.PatientBirthDate, dataset.PatientSex = "", "F"
    _describe_acquisition(dataset, phantom)
    _attach_pixels(dataset, phantom)
    dataset.save_as(path, enforce_file_format=True)


def _describe_acquisition(dataset: Dataset, phantom: Phantom) -> None:
    """Fill in study, series, equipment, view and breast."""
    for name in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{name}Date", "20200101")
        setattr(dataset, f"{name}Time", "120000")
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "", "1", ""
    dataset.SeriesNumber = dataset.InstanceNumber = dataset.AcquisitionNumber = 1
    dataset.Modality, dataset.PresentationIntentType = "MG", "FOR PRESENTATION"
    dataset.Manufacturer, dataset.ManufacturerModelName = "unary", "synthetic phantom"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "0", "1"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.ImageComments = "Synthetic phantom, not a patient"
    dataset.BodyPartExamined, dataset.OrganExposed = "BREAST", "BREAST"
    dataset.ImageLaterality, dataset.ViewPosition = phantom.laterality, phantom.view
    dataset.PatientOrientation = _ORIENTATION[phantom.laterality, phantom.view]
    dataset.PositionerType, dataset.PositionerPrimaryAngle = "MAMMOGRAPHIC", 0 if phantom.view == "CC" else 45
    dataset.BreastImplantPresent, dataset.PartialView = "NO", "NO"
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.DetectorType = "DIRECT"
    view = _code(*_VIEW_CODES[phantom.view])
    view.ViewModifierCodeSequence = Sequence()
    dataset.ViewCodeSequence = Sequence([view])
    dataset.AnatomicRegionSequence = Sequence([_code("76752008", "Breast")])
    dataset.AcquisitionContextSequence = Sequence()


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _attach_pixels(dataset: Dataset, phantom: Phantom) -> None:
    """Fill in the pixels, their spacing and how to display them."""
    dataset.Rows, dataset.Columns = phantom.pixels.shape
    dataset.ImagerPixelSpacing = [phantom.spacing_mm, phantom.spacing_mm]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1  # bright: few X-rays left
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.WindowCenter, dataset.WindowWidth = 1700, 2800
    dataset.PixelData = np.ascontiguousarray(phantom.pixels, "<u2").tobytes()


def write_phantom_dataset(
    folder: Path,
    *,
    patients_normal: int,
    patients_abnormal: int,
    config: PhantomConfig,
    seed: int,
    images_per_patient: int = 2,
) -> Manifest:
    """Write patients as ``normal/P001_L_CC.dcm``, ``abnormal/...`` under ``folder`` and return their manifest.

    The images of a patient share density and size and run through both views of one breast, then of the other. Every
    image of an abnormal patient (BI-RADS 5) holds a lesion: calcifications, or a mass in every fourth such patient.
    The same arguments give the same bytes.

    Raises
    ------
    ValueError
        If there is no patient, or not 1 to 4 images of each.
    """
    if min(patients_normal, patients_abnormal) < 0 or patients_normal + patients_abnormal < 1:
        raise ValueError(f"need at least one patient, got {patients_normal} normal and {patients_abnormal} abnormal")
    if not 1 <= images_per_patient <= 4:
        raise ValueError(f"images_per_patient must lie between 1 and 4, got {images_per_patient}")
    rows: list[ManifestRow] = []
    lesions: list[Lesion] = []
    streams = np.random.SeedSequence(seed).spawn(patients_normal + patients_abnormal)
    for number, stream in enumerate(show_progress(streams, title="drawing phantoms", unit="patient")):
        rng = np.random.default_rng(stream)
        traits, sides = draw_traits(rng), "LR" if rng.random() < 0.5 else "RL"
        normal = number < patients_normal
        kind: LesionChoice = "none" if normal else "mass" if (number - patients_normal) % 4 == 2 else "calcifications"
        patient_id = f"P{number + 1:03d}"
        target = folder.resolve() / ("normal" if normal else "abnormal")
        target.mkdir(parents=True, exist_ok=True)
        for index in range(images_per_patient):
            view: View = "CC" if index % 2 == 0 else "MLO"
            side: Laterality = "L" if sides[index // 2] == "L" else "R"
            name = f"{patient_id}_{side}_{view}"
            phantom = build_phantom(
                config, rng=rng, lesions=kind, view=view, laterality=side, image_id=name, traits=traits
            )
            path = target / f"{name}.dcm"
            write_phantom(phantom, path, image_id=name, patient_id=patient_id, seed=seed)
            lesions.extend(phantom.lesions)
            rows.append(
                ManifestRow(
                    path,
                    name,
                    patient_id,
                    label="negative" if normal else "positive",
                    laterality=side,
                    view=view,
                    assessment="1" if normal else "5",
                    density=phantom.density,
                    spacing_mm=config.spacing_mm,
                )
            )
    return Manifest(tuple(rows), tuple(lesions))
