"""Damaged DICOM files, for `fuzz.py`: one small phantom in nine encodings, damaged in one of 23 ways.

A flipped bit inside pixel values, or inside entropy-coded data, makes another valid file, and nobody can tell. So an
accepted image must either have the pixels of the undamaged phantom, or those that a second, strict reader
(`fuzz_dicom_oracle.py`) finds in the same bytes. If that one refuses the file, or sees another shape or other pixels,
the success is *silent and wrong*: padding, a partly decoded image and a false size are all caught by this. What remains
undetected by construction: damage that both readers take at face value, such as rows and columns exchanged in an
uncompressed file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from fuzz_common import Case, Grey, judge_image
from fuzz_dicom_mutations import MUTATIONS, Sample
from fuzz_dicom_oracle import read_strictly, walk
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.images.isolation import IsolatedReader

ROWS, COLS = 96, 80


class DicomKind:
    """Mutations by their numbers: the encoding changes first, then the way."""

    def __init__(self, reader: IsolatedReader, folder: Path) -> None:
        self.reader = reader
        if not any(folder.iterdir()):
            write_samples(folder)
        self.samples = read_samples(folder)

    def build_case(self, seed: int, number: int) -> Case:
        """Return the case of one number."""
        rng = np.random.default_rng((seed, number))
        sample = self.samples[number % len(self.samples)]
        name = list(MUTATIONS)[number // len(self.samples) % len(MUTATIONS)]
        content = MUTATIONS[name](sample, rng)
        return Case(sample.name, name, {"mutated.bin": content}, Grey(sample.pixels, None))

    def judge(self, case: Case, folder: Path) -> tuple[str, str]:
        """As `judge_image`; a codec that crashes is a named failure, which its process contains."""
        verdict, reason = judge_image(
            self.reader, case, folder, lambda content: Grey(read_strictly(content), None), names=("Phantom^",)
        )
        return ("refused", "CRASH") if verdict == "FAILED: CRASH" and "crashed (SIG" in reason else (verdict, reason)


def write_samples(folder: Path) -> None:
    """Write the phantom in all encodings."""
    config = PhantomConfig(rows=128, cols=128, spacing_mm=0.2)
    phantom = build_phantom(config, rng=np.random.default_rng(0))
    phantom = replace(phantom, pixels=np.ascontiguousarray(phantom.pixels[16 : 16 + ROWS, :COLS]))
    plain = folder / "explicit.dcm"
    write_phantom(phantom, plain, image_id="fuzz", patient_id="fuzz")
    for name, syntax in (("rle", RLELossless), ("jpeg2000", JPEG2000Lossless), ("jpegls", JPEGLSLossless)):
        dataset = pydicom.dcmread(plain)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    for name, syntax in (("implicit", ImplicitVRLittleEndian), ("big", ExplicitVRBigEndian)):
        source = pydicom.dcmread(plain)
        if name == "big":
            source.PixelData = phantom.pixels.astype(">u2").tobytes()
        dataset = pydicom.Dataset({element.tag: element for element in source})  # forgets how it was read
        dataset.file_meta = source.file_meta
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(folder / f"{name}.dcm", dataset, enforce_file_format=True)
    _write_with_gdcm(plain, folder / "jpeglossless.dcm", gdcm.TransferSyntax.JPEGLosslessProcess14_1)
    _write_with_gdcm(plain, folder / "gdcm2000.dcm", gdcm.TransferSyntax.JPEG2000Lossless)
    inverted = pydicom.dcmread(plain)
    inverted.PixelData, inverted.PhotometricInterpretation = (4095 - phantom.pixels).tobytes(), "MONOCHROME1"
    inverted.save_as(folder / "monochrome1.dcm", enforce_file_format=True)


def read_samples(folder: Path) -> list[Sample]:
    """Read the samples with the second reader, which must find the same pixels in all."""
    samples = []
    for path in sorted(folder.glob("*.dcm")):
        content = path.read_bytes()
        syntax, elements = walk(content)
        samples.append(Sample(path.stem, content, syntax, tuple(elements), read_strictly(content)))
        if not np.array_equal(samples[-1].pixels, samples[0].pixels):
            raise AssertionError(f"the second reader misreads {path.name}")
    return samples


def _write_with_gdcm(source: Path, target: Path, syntax: int) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    if not reader.Read():
        raise AssertionError("gdcm cannot read the phantom")
    change.SetInput(reader.GetImage())
    changed = change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not (changed and writer.Write()):
        raise AssertionError("gdcm cannot write the phantom")
