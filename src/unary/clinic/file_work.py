"""What is done with one image file, wherever it is done: in this process, in another one, or on another machine.

Hash, header, admission, pixels, examination: `unary.clinic.batch` does them file by file, others shard by shard. What
goes wrong with a file is an `ImageError` with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from unary.clinic.inputs import refuse_folder
from unary.clinic.result_folder import Source, Write
from unary.errors import ImageError, UnaryError, explain_unexpected
from unary.files import hash_file
from unary.images.attributes import Attributes, hash_uid
from unary.images.isolation import IsolatedReader, show_path
from unary.images.isolation_process import ReadingLimits
from unary.models.gate import Gate, Verdict, admit_image, complete_spacing, require_admission
from unary.records import Image

Examine = Callable[[Image, Source], Write]
"""Work on an image, of a file, and return what writes the results."""


@dataclass(frozen=True)
class Job:
    """What is done with every image.

    Attributes
    ----------
    command
        Its name on the command line; a folder holds results of one command.
    examine
        Works on one image and returns what will write its results. Called from as many threads as torch would use,
        which torch then does not divide its work among, while earlier results are written; but for a single image, and
        those of more than sixteen megapixels, several of which might not fit in memory.
    made_from
        What every result depends on beside its file: the model's hash, options.
    gate
        Which images are examined.
    probe
        Examines an image that is surely sound, when something unexpected was raised by the first: if that fails too,
        the model is broken.
    writes_apart
        Whether what ``examine`` returns can be pickled, so that processes of their own may write the results.
    prepare
        Imports what writing needs; called where results are written, while the first image is worked on.
    verify
        Whether a file is read again though it looks as it did when its result was made.
    """

    command: str
    examine: Examine
    made_from: Mapping[str, Any]
    gate: Gate
    probe: Callable[[], object] = field(default=lambda: None)
    writes_apart: bool = False
    prepare: Callable[[], object] = field(default=lambda: None)
    verify: bool = False


@dataclass(frozen=True)
class InspectedFile:
    """A file whose header lets its image be examined, and what a result of it is made from.

    ``own`` is the part of that which depends on the file and its header.
    """

    source: Source
    verdict: Verdict
    attributes: Attributes
    own: Mapping[str, Any]


def hash_image_file(path: Path, limits: ReadingLimits) -> str:
    """Return the hash of a file's bytes; "" of what is no file, or too large to be read, which the reader refuses."""
    if path.is_dir():
        raise refuse_folder(path)
    return hash_file(path) if path.is_file() and path.stat().st_size <= limits.file_mib * 2**20 else ""


def build_source(path: Path, job: Job, own: Mapping[str, Any], *, raster: bool) -> Source:
    """Return what a result of a file is made from; ``own`` is what depends on the file and its header."""
    return Source(path, {"command": job.command, **job.made_from, **own}, raster)


def inspect_file(path: Path, sha256: str, job: Job, reader: IsolatedReader) -> InspectedFile:
    """Read a file's header, and judge whether its image may be examined.

    Raises
    ------
    ImageError
        If it cannot be read, or may not be examined.
    UnaryError
        If the process that reads cannot be started.
    OSError
        If the file cannot be opened.
    """
    attributes = reader.read_attributes(path, job.gate.profile.headers)
    verdict = require_admission(attributes, job.gate, show_path(path))
    assumed = job.gate.spacing_mm if attributes.spacing_mm is None else None
    own = {"sha256": sha256, "assumed_spacing_mm": assumed, "accepted_despite": verdict.accepted_despite}
    return InspectedFile(build_source(path, job, own, raster=attributes.raster), verdict, attributes, own)


def load_image(inspected: InspectedFile, job: Job, reader: IsolatedReader) -> Image:
    """Read the pixels of a file, and complete what the gate knows of them; raises as `inspect_file`."""
    image = admit_image(reader.read(inspected.source.path), inspected.verdict)
    return complete_spacing(image, job.gate)


def explain_failure(error: Exception, path: Path) -> ImageError:
    """Return why a file has no result; what is wrong with all, such as a reader that cannot start, is raised."""
    where = show_path(path)
    if isinstance(error, ImageError):
        return error
    if isinstance(error, UnaryError):
        raise error
    if isinstance(error, OSError):
        return ImageError(f"{where}: cannot be opened ({error.strerror})", reason="NOT_READABLE")
    return explain_unexpected(error, where)


def require_working_model(job: Job) -> None:
    """Raise a `UnaryError` if the model, which has failed unexpectedly on an image, fails on a sound one as well."""
    try:
        job.probe()
    except Exception as error:
        told = str(explain_unexpected(error, "")).removeprefix(": ")
        raise UnaryError(f"the model examines nothing, not even a test picture: {told}") from error


def describe_origin(inspected: InspectedFile, image: Image, moment: datetime) -> dict[str, Any]:
    """Return what ``result.json`` says of an image beside what was found: pseudonyms, view, acquisition, time."""
    uid, acquisition = image.instance_uid, inspected.attributes.acquisition
    return {
        "instance": None if uid is None else hash_uid(uid),
        "study": inspected.attributes.study,
        "laterality": image.laterality,
        "view": image.view,
        "accepted_despite": list(inspected.verdict.accepted_despite),
        "acquisition": None if acquisition is None else asdict(acquisition),
        "moment": moment.isoformat(),
    }
