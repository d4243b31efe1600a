"""A batch of a thousand files of which a hundred are bad, in 25 ways: 900 results, and 100 named reasons.

Every bad file is a sound one with one thing wrong, four of each way. `detect` runs over the folder once; every result
and every row of failures.csv is compared with what was written. Prints a table and, last, one JSON line; ends with 1
unless all are right.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import JPEGExtended12Bit, JPEGLSLossless, SecondaryCaptureImageStorage

from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.models.bundle import write_model
from unary.models.fitting import FitConfig, fit
from unary.records import Manifest

STORAGE = "1.2.840.10008.5.1.4.1.1."
EACH = 4


def change(**elements: object) -> Callable[[Dataset], None]:
    """Return what sets elements of a header."""

    def apply(dataset: Dataset) -> None:
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        if "SOPClassUID" in elements:
            dataset.file_meta.MediaStorageSOPClassUID = elements["SOPClassUID"]

    return apply


def view(code: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "a view"
    return item


def even(dataset: Dataset) -> None:
    """Tissue nowhere: two values side by side."""
    dataset.PixelData = np.tile(np.uint16([900, 901]), dataset.Rows * dataset.Columns // 2).tobytes()


def damage(syntax: str, stream: bytes) -> Callable[[Dataset], None]:
    def apply(dataset: Dataset) -> None:
        dataset.PixelData = pydicom.encaps.encapsulate([stream])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = syntax

    return apply


HEADERS: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "more rows than pixels": (change(Rows=400), "CORRUPT_PIXELS"),
    "four billion pixels": (change(Rows=65535, Columns=65535), "TOO_LARGE"),
    "blank": (lambda d: setattr(d, "PixelData", bytes(len(d.PixelData))), "BLANK"),
    "no tissue": (even, "BLANK"),
    "colour": (change(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "COLOUR"),
    "cine": (change(NumberOfFrames=9), "MULTIFRAME"),
    "tomosynthesis": (change(SOPClassUID=STORAGE + "13.1.3", NumberOfFrames=40), "MULTIFRAME"),
    "CT": (change(SOPClassUID=STORAGE + "2", Modality="CT"), "NOT_MG"),
    "MR": (change(SOPClassUID=STORAGE + "4", Modality="MR"), "NOT_MG"),
    "private class": (change(SOPClassUID="1.3.46.670589.11.0.0.12.1"), "NOT_MG"),
    "capture": (change(SOPClassUID=SecondaryCaptureImageStorage), "SECONDARY_CAPTURE"),
    "report": (change(SOPClassUID=STORAGE + "88.11", Modality="SR"), "NOT_MG"),
    "no decoder": (damage(JPEGExtended12Bit, b"\xff\xd8\xff\xd9"), "UNSUPPORTED_SYNTAX"),
    "damaged stream": (damage(JPEGLSLossless, b"\xff\xd8" + bytes(900)), "CORRUPT_PIXELS"),
    "raw": (change(SOPClassUID=STORAGE + "1.2.1"), "FOR_PROCESSING_MODEL_MISMATCH"),
    "implant": (change(BreastImplantPresent="YES"), "IMPLANT"),
    "magnified": (change(ViewCodeSequence=[view("399163009")]), "MAGNIFICATION"),
    "partial": (change(PartialView="YES"), "PARTIAL_VIEW"),
    "test object": (change(QualityControlImage="YES"), "QC_IMAGE"),
    "specimen": (change(BodyPartExamined="SPECIMEN"), "SPECIMEN"),
    "micrometres": (change(ImagerPixelSpacing=[200.0, 200.0]), "IMPLAUSIBLE_SPACING"),
    "no spacing": (change(ImagerPixelSpacing=None), "NO_SPACING"),
}
BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "NOT_READABLE"),
    "text": (lambda content: b"a letter\n" * 40, "NOT_READABLE"),
    "cut": (lambda content: content[:-4000], "CORRUPT_PIXELS"),
}


def write_files(folder: Path, sound: list[Path], count: int, *, each: int = EACH) -> dict[str, str]:
    """Write so many files, ``each`` bad in every way, in a mixed order; return the reasons of the bad ones by name."""
    bad = [kind for kind in (*HEADERS, *BYTES) for _ in range(each)]
    order = np.random.default_rng(5).permutation(count)
    expected = {}
    for number in range(count):
        dataset = pydicom.dcmread(sound[number % len(sound)])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.{number + 1}"
        kind = bad[order[number]] if order[number] < len(bad) else None
        path = folder / f"{number:04d}.dcm"
        if kind in HEADERS:
            HEADERS[kind][0](dataset)
        dataset.save_as(path, enforce_file_format=True)
        if kind in BYTES:
            path.write_bytes(BYTES[kind][0](path.read_bytes()))
        if kind is not None:
            expected[str(path)] = (HEADERS | BYTES)[kind][1]  # type: ignore[operator]
    return expected


def write_small_model(folder: Path) -> tuple[Path, list[Path]]:
    """Fit a model that needs the pixel spacing on small phantoms; return its folder, and phantoms."""
    manifest = write_phantom_dataset(
        folder / "phantoms", patients_normal=4, patients_abnormal=2, config=PhantomConfig(rows=256, cols=192), seed=1
    )
    normals = Manifest(tuple(row for row in manifest.rows if row.label == "negative"))
    model = fit(
        normals,
        FitConfig(held_out=0.5, size_px=32, stride_px=16, working_spacing_mm=0.2),
        detector="laplacian",
        progress=False,
    )
    write_model(model, folder / "model")
    return folder / "model", [row.path for row in manifest.rows if row.path is not None]


def main() -> int:
    from unary.models.bundle import read_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--dicom", action="store_true", help="write the DICOM results too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in").mkdir()
        model_folder, sound = write_small_model(folder)
        expected = write_files(folder / "in", sound, options.count)
        begun = time.monotonic()
        config = DetectConfig(dicom=None if options.dicom else ())
        model = read_model(model_folder)
        summary = detect_files(model, [folder / "in"], folder / "out", config, model_folder=model_folder)
        seconds = time.monotonic() - begun
        with (folder / "out" / "failures.csv").open(newline="", encoding="utf-8") as file:
            failures = {row["file"]: row for row in csv.DictReader(file)}
        results = [path for path in (folder / "out").iterdir() if (path / "result.json").exists()]
    wrong = {
        name: (reason, failures.get(name, {}).get("reason"))
        for name, reason in expected.items()
        if failures.get(name, {}).get("reason") != reason
    }
    reasons = Counter(row["reason"] for row in failures.values())
    for reason, count in sorted(reasons.items()):
        print(f"{reason:32} {count:4}")
    for name, (asked, given) in wrong.items():
        print(f"WRONG {name}: {asked} expected, {given} given")
    good = options.count - len(expected)
    right = not wrong and len(results) == len(summary.done) == good and failures.keys() == expected.keys()
    told = {
        "benchmark": "batch_failures",
        "files": options.count,
        "ways": len(HEADERS | BYTES),  # type: ignore[operator]
        "results": len(results),
        "named": len(failures),
        "right": right,
        "seconds": round(seconds, 1),
        "machine": platform.machine(),
    }
    print(json.dumps(told))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
