"""What cards of models say of the detectors that are fitted most; ``docs/model_card.md`` says the same, and more."""

from __future__ import annotations

from dataclasses import dataclass

FOR_ALL = "No output may decide about a patient."
NOT_FOR = "Diagnosis, screening, triage, or any other decision about a patient."


@dataclass(frozen=True)
class Words:
    """What a detector is, what it is meant for, and its limits."""

    what: str
    meant_for: str
    limits: str


WORDS = {
    "wei2018": Words(
        "The autoencoder of Wei et al. 2018 (Proc. SPIE 10575, 105751M), rebuilt from its description: strided "
        "convolutions and ReLU, 128 x 128 to 4 x 4 x 32 and back, fitted on patches of normal images alone; a patch's "
        "score is the root mean square error of its reconstruction.",
        "repeating the paper, and as a baseline. Not for finding lesions.",
        "A speck of a few pixels is lost in the 16,384 of a patch; the score follows contrast and brightness.",
    ),
    "fusion": Words(
        "The default for mammograms: specks that are rare in normal tissue summed over millimetres, a blind-spot "
        "network that says how surprising a pixel is given what surrounds it, regions that are brighter than their "
        "surroundings in every direction, and regions that stand high in their own breast; each calibrated on normal "
        "patches alone.",
        "research on marking places in digital mammograms that differ from normal tissue, with operating points set "
        "on normal images of one's own.",
        "Asymmetry is no part of it. Faint fields of specks, rings and masses below 1 cm are often missed. What is "
        "metal, and where the pectoral muscle lies, it judges by rules drawn on few images. It needs the whole breast.",
    ),
    "nearest_neighbour": Words(
        "The default for other pictures (`--profile general`): the distance of each place of a picture from the "
        "nearest normal picture there, in shape and in texture. Nothing is trained; the memory of normal pictures is "
        "the model.",
        "research on whether a whole picture departs from normal ones. It does not say where: a place is a quarter of "
        "the picture, and tumours are often not where the map is highest.",
        "It tells unlike from like, whatever makes it so: another plane, scanner, child or disease. Its memory "
        "resembles the pictures that it was fitted on: guard the model as they are guarded.",
    ),
}
