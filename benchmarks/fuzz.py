"""Does any damaged DICOM file crash or hang the reader, or pass for an image that it is not?

Starts from one small phantom in nine encodings, damages each copy in one of twenty ways, and reads it through
`IsolatedReader`. Every mutation is made from the seed and its number alone, so one can be repeated by itself.

    python benchmarks/fuzz.py --count 10000 [--seed 0] [--only NUMBER] [--keep FOLDER]

**When is a success wrong?** A flipped bit inside pixel values, or inside entropy-coded data, makes another valid file,
and nobody can tell. So an accepted image must either have the pixels of the undamaged phantom, or those that a second,
independent and strict reader (`fuzz_oracle.py`) finds in the same bytes. If that one refuses the file, or sees another
shape or other pixels, the success is *silent and wrong*: padding, a partly decoded image and a false size are all
caught by this. What remains undetected by construction: damage that both readers take at face value, such as rows and
columns exchanged in an uncompressed file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from fuzz_mutations import MUTATIONS, Sample
from fuzz_oracle import read_strictly, walk
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import ImageError
from unary.images.isolation import IsolatedReader
from unary.images.isolation_process import ReadingLimits

LIMITS = ReadingLimits(timeout_s=10, memory_mib=1024, file_mib=64, megapixels=100)
ROWS, COLS = 96, 80


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation."""

    sample: str
    mutation: str
    verdict: str
    reason: str
    seconds: float


def write_samples(folder: Path) -> list[Sample]:
    """Write the phantom in all encodings and read each back with both readers."""
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
    samples = []
    for path in sorted(folder.glob("*.dcm")):
        content = path.read_bytes()
        syntax, elements = walk(content)
        pixels = read_strictly(content)
        if not np.array_equal(pixels, phantom.pixels):
            raise AssertionError(f"the second reader misreads {path.name}")
        samples.append(Sample(path.stem, content, syntax, tuple(elements), pixels))
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


def mutate(samples: list[Sample], *, seed: int, number: int) -> tuple[Sample, str, bytes]:
    """Return the sample, the name of the mutation and the damaged file of one number."""
    rng = np.random.default_rng((seed, number))
    sample = samples[number % len(samples)]
    name = list(MUTATIONS)[number // len(samples) % len(MUTATIONS)]
    return sample, name, MUTATIONS[name](sample, rng)


def judge(reader: IsolatedReader, sample: Sample, content: bytes, path: Path) -> tuple[str, str]:
    """Return the verdict on one file and, where it was refused, the reason."""
    path.write_bytes(content)
    try:
        pixels = reader.read(path).pixels.astype(np.float64)
    except ImageError as error:
        return ("WRONG: names the patient", "") if "Phantom^" in str(error) else ("refused", str(error.reason))
    if np.array_equal(pixels, sample.pixels):
        return "equal", ""
    try:
        second = read_strictly(content)
    except ValueError as error:
        return "WRONG: second reader refuses", str(error)
    if second.shape != pixels.shape:
        return "WRONG: shapes differ", f"{second.shape} {pixels.shape}"
    if not np.allclose(second, pixels, rtol=1e-6, atol=1e-6 * np.abs(second).max()):
        return "WRONG: pixels differ", f"{np.mean(second != pixels):.3f} of them"
    return "as stored", ""


def run(folder: Path, *, count: int, seed: int, first: int = 0, keep: Path | None = None) -> list[Outcome]:
    """Read ``count`` mutations."""
    samples = write_samples(folder)
    found, path = [], folder / "mutated.bin"
    with IsolatedReader(LIMITS) as reader:
        for number in range(first, first + count):
            sample, mutation, content = mutate(samples, seed=seed, number=number)
            start = time.perf_counter()
            verdict, reason = judge(reader, sample, content, path)
            found.append(Outcome(sample.name, mutation, verdict, reason, time.perf_counter() - start))
            if verdict.startswith("WRONG") or reason in ("CRASH", "TIMEOUT"):
                print(f"{number}: {sample.name}, {mutation}: {verdict} {reason}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}.dcm").write_bytes(content)
    return found


def print_table(outcomes: list[Outcome]) -> None:
    """Print what became of each kind of mutation, and of each encoding."""
    for title, key in (("mutation", "mutation"), ("encoding", "sample")):
        print(f"\n| {title} | files | refused | equal | as stored | silent and wrong |\n|---|---:|---:|---:|---:|---:|")
        for name in dict.fromkeys(getattr(outcome, key) for outcome in outcomes):
            verdicts = Counter(o.verdict.split(":")[0] for o in outcomes if getattr(o, key) == name)
            cells = [verdicts[v] for v in ("refused", "equal", "as stored", "WRONG")]
            print(f"| {name} | {sum(cells)} | " + " | ".join(map(str, cells)) + " |")
    print("\n| reason | files |\n|---|---:|")
    for reason, number in Counter(o.reason for o in outcomes if o.verdict == "refused").most_common():
        print(f"| {reason} | {number} |")


def main() -> None:
    """Print tables, then one JSON line; exit with 1 if a success was silent and wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one number alone")
    parser.add_argument("--keep", type=Path, help="where to keep the files that matter")
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        first, count = (0, options.count) if options.only is None else (options.only, 1)
        outcomes = run(Path(folder), count=count, seed=options.seed, first=first, keep=options.keep)
    print_table(outcomes)
    verdicts = Counter(outcome.verdict.split(":")[0] for outcome in outcomes)
    reasons = Counter(outcome.reason for outcome in outcomes if outcome.verdict == "refused")
    summary = {
        "files": len(outcomes),
        "seed": options.seed,
        "refused": verdicts["refused"],
        "equal": verdicts["equal"],
        "as_stored": verdicts["as stored"],
        "silent_and_wrong": verdicts["WRONG"],
        "reasons": dict(reasons.most_common()),
        "longest_s": round(max(outcome.seconds for outcome in outcomes), 2),
        "total_s": round(time.perf_counter() - start),
    }
    print(json.dumps(summary))
    raise SystemExit(bool(verdicts["WRONG"]))


if __name__ == "__main__":
    main()
