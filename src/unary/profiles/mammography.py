"""Full-field digital mammograms and digitised films of the breast.

Sources: the ACR BI-RADS atlas (5th edition) for categories and kinds of lesions; DICOM PS3.3 C.8.11 and PS3.16 CID 4014
and 4015 for what a header says; SNOMED CT for the codes of results.
"""

from __future__ import annotations

from dataclasses import replace

from unary.profiles.general import GENERAL, QC_IMAGE
from unary.profiles.profile import Codes, Comparison, HeaderFlag, Headers, LesionGroup, Profile, Reading

CALCIFICATION, MASS = "calcification", "mass"

_FLAGS = (
    QC_IMAGE,
    HeaderFlag(
        "SPECIMEN",
        "an image of a specimen, not of a breast",
        keywords=("SpecimenDescriptionSequence",),
        codes=("127457009", "G-8310"),
        patterns=(("BodyPartExamined", "specimen"),),
    ),
    HeaderFlag(
        "IMPLANT",
        "the breast has an implant (Breast Implant Present, or a view with the implant displaced)",
        keywords=("BreastImplantPresent",),
        codes=("399209000", "R-102D5"),
    ),
    HeaderFlag(
        "MAGNIFICATION",
        "a magnification or spot compression view",
        codes=("399163009", "R-102D6", "399055006", "R-102D7"),
        magnified_from=1.2,  # contact mammograms have 1.0 to 1.1, magnified ones 1.5 to 2
    ),
    HeaderFlag(
        "PARTIAL_VIEW", "it shows only a part of the breast", keywords=("PartialView", "PartialViewCodeSequence")
    ),
    HeaderFlag(
        "SYNTHETIC_2D",
        "computed from tomosynthesis: specks in it are rendered, not imaged",
        refused=False,
        image_types=("GENERATED_2D", "TOMO_2D"),
        patterns=(
            ("SeriesDescription", r"c-?view|v-?preview|s-?view|insight ?2d|synthe(tic|si[sz]ed)|intelligent ?2d"),
        ),
    ),
    HeaderFlag(
        "CONTRAST_ENHANCED",
        "from a contrast-enhanced examination",
        refused=False,
        keywords=("ContrastBolusAgent", "ContrastBolusAgentSequence"),
        image_types=("LOW_ENERGY", "HIGH_ENERGY", "RECOMBINED", "SUBTRACTION"),
    ),
)

MAMMOGRAPHY = Profile(
    name="mammography",
    noun="mammogram",
    detector="fusion",
    mask="bright_region",
    lengths=replace(GENERAL.lengths, working_spacing_mm=0.14, rim_mm=1.1, rim_px=8),
    reading=Reading(
        groups=(
            LesionGroup(CALCIFICATION, "calcifications", ("calc", "cluster", "microcalc"), True, (0.5, 1.0)),
            LesionGroup(
                MASS,
                "masses",
                ("mass", "spiculated", "espiculated", "circ", "spic", "misc", "nodule"),
                False,
                (15.0, 30.0),
            ),
            LesionGroup("asymmetry", "asymmetries", ("asym", "assym")),
            LesionGroup("distortion", "architectural distortions", ("distor", "arch")),
        ),
        assessments=("1", "2", "3", "4", "4a", "4b", "4c", "5", "6"),
        normal=("1",),
        subgroups=(
            ("calcification_birads5", "calcifications in images of BI-RADS 5", CALCIFICATION, ("5",)),
            ("calcification_birads2_4", "calcifications in images of BI-RADS 2 to 4", CALCIFICATION, ("2", "3", "4")),
        ),
        comparisons=(
            Comparison("birads_1_against_5", "BI-RADS 1 against 5", ("1",), ("5",)),
            Comparison("birads_1_against_3_to_6", "BI-RADS 1 against 3 to 6", ("1",), ("3", "4", "5", "6")),
            Comparison(
                "calcifications_2_against_5", "calcifications, BI-RADS 2 against 5", ("2",), ("5",), CALCIFICATION
            ),
        ),
    ),
    headers=Headers(
        sop_classes=("1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.1.2.1"),
        capture_modalities=("MG",),
        refusal=("NOT_MG", "not a digital mammogram"),
        flags=_FLAGS,
    ),
    codes=Codes(procedure=("71651007", "SCT", "Mammography"), site=("76752008", "SCT", "Breast")),
    spacing_range_mm=(0.02, 0.5),  # films are scanned at 0.04 to 0.2 mm, detectors have 0.05 to 0.1
    vessels=True,
    metal=True,
)
