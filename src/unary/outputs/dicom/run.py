"""What makes DICOM results, and what identifies them; apart from what writes them, which imports pydicom."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from unary.profiles.profile import Codes
from unary.records import Detection, ModelIdentity


@dataclass(frozen=True)
class Run:
    """What is the same in all results of a run: the model, the codes of its profile, date and time of the results.

    ``moment`` has a time zone; one without is taken for this machine's.
    """

    identity: ModelIdentity
    codes: Codes
    moment: datetime


def hash_case(source_sha256: str, detection: Detection, run: Run) -> str:
    """Return a hash of what an image's results are made of: the image's file, what was found, by what and when."""
    point, findings = detection.operating_point, detection.findings
    numbers = (
        findings,
        detection.image_score,
        detection.image_p_value,
        point,
        detection.out_of_domain,
        detection.notes,
    )
    labels = hashlib.sha256(detection.labels.tobytes()).hexdigest()
    parts = (source_sha256, numbers, labels, run.identity, run.codes, run.moment.isoformat())
    return hashlib.sha256(repr(parts).encode()).hexdigest()
