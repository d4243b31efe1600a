"""The sets of the image-level experiments: what is learned from, what is tested, and what must be said of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from unary.datasets.annotation import count_names
from unary.datasets.brain_mr import is_for_training, read_brain_mr
from unary.datasets.chest_films import is_reserved, read_chest_films
from unary.errors import ManifestError
from unary.records import ManifestRow


@dataclass(frozen=True)
class Published:
    """An image AUROC that others have printed for the same split."""

    method: str
    auroc: float


@dataclass(frozen=True)
class ImageSet:
    """Normal pictures to learn from and pictures to test, without a patient on both sides.

    Attributes
    ----------
    name, title
        In files, and at the head of a report.
    has_patients
        Whether patients are known; where not, intervals are over pictures.
    remarks
        What must be known to read the figures, one sentence each.
    published, source
        Figures of others on this split, and where they stand.
    """

    name: str
    title: str
    train: tuple[ManifestRow, ...]
    test: tuple[ManifestRow, ...]
    has_patients: bool
    remarks: tuple[str, ...]
    notices: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    source: str = ""


_BRAIN_SOURCE = (
    "Cai, Chen and Cheng, Rethinking Autoencoders for Medical Anomaly Detection from a Theoretical Perspective "
    "(arXiv:2403.09303, 2024), data set BrainTumor, pictures of 64 x 64; in brackets the numbers of the code. Taken "
    "from their tables, not run again."
)
_BRAIN_PUBLISHED = (
    Published("Autoencoder (32)", 0.871),
    Published("Autoencoder (16)", 0.859),
    Published("Variational autoencoder", 0.853),
    Published("Memory autoencoder (MemAE)", 0.826),
    Published("Context autoencoder (CeAE)", 0.853),
)


def open_brain_mr(folder: Path) -> ImageSet:
    """Return the brain MR slices in their published split; raises as `read_brain_mr`."""
    manifest, notices = read_brain_mr(folder)
    return ImageSet(
        name="brainmri",
        title="Brain MR slices: tumour against none",
        train=tuple(row for row in manifest.rows if is_for_training(row)),
        test=tuple(row for row in manifest.rows if not is_for_training(row)),
        has_patients=False,
        remarks=(
            "The set was put together from several collections: normal slices and slices with a tumour differ in size, "
            "contrast agent, plane and compression, not in disease alone. The controls measure some of that and not "
            "all.",
            "No patient is known. Intervals are over pictures, copies of one picture held together; slices of one "
            "patient that are not copies count as independent, so that the intervals are too narrow.",
        ),
        notices=notices,
        published=_BRAIN_PUBLISHED,
        source=_BRAIN_SOURCE,
    )


def open_chest_films(folder: Path, test: Path | None = None) -> ImageSet:
    """Return the children's chest films, divided by patient.

    Without a folder of test films, a third of the patients is the test part, by a fixed hash of the patient
    (`unary.datasets.chest_films.is_reserved`), and the normal films of the others are learned from. With one, all of
    it is the test part, and all normal films of ``folder`` are learned from whose patients are not in it.

    Raises
    ------
    ManifestError
        As `read_chest_films`, or if the two folders are one.
    """
    manifest, notices = read_chest_films(folder)
    normal = [row for row in manifest.rows if row.label == "negative"]
    if test is None:
        tested = tuple(row for row in manifest.rows if is_reserved(row.patient_id))
        train = tuple(row for row in normal if not is_reserved(row.patient_id))
        divided = "A third of the patients, drawn by a fixed hash of the patient, is tested, the same for every seed."
    else:
        if os.path.realpath(folder) == os.path.realpath(test):
            raise ManifestError(f"{test}: the test films are the training films; --test needs another folder")
        other, more = read_chest_films(test)
        tested, patients = other.rows, {row.patient_id for row in other.rows}
        train = tuple(row for row in normal if row.patient_id not in patients)
        shared = [row.image_id for row in normal if row.patient_id in patients]
        notices += more + count_names("training film", shared, "of a test patient, left out")
        divided = "The test films lie in a folder of their own; training films of their patients are left out."
    sides = {"to learn from": train, "normal to test": [row for row in tested if row.label == "negative"]}
    sides["abnormal to test"] = [row for row in tested if row.label == "positive"]
    for what, rows in sides.items():
        if not rows:
            raise ManifestError(f"{folder}: no film is left {what}; are there enough patients?")
    return ImageSet(
        name="chestxray",
        title="Children's chest films: pneumonia against none",
        train=train,
        test=tested,
        has_patients=True,
        remarks=(
            "The pictures were made smaller, and compressed, by whoever published them: what a detector sees is not "
            "what a radiologist saw.",
            divided,
        ),
        notices=notices,
    )
