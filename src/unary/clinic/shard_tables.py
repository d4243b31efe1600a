"""The Parquet tables of a shard: images, findings, candidates and patches; their columns, and how they are written.

The same rows give the same bytes: nothing in a file tells when, where or by how many it was made. Coordinates are (row,
col) of the stored image, and of the working grid for patches. No column holds a patient.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.clinic.file_work import InspectedFile
from unary.evaluation.evaluated_image import MOST_CANDIDATES, count_tissue
from unary.images.attributes import Acquisition, hash_uid
from unary.models.bundle import Model
from unary.models.examination import ScoredImage, build_detection
from unary.outputs.tables import FINDINGS, list_cells
from unary.patches.measures import TissueValues
from unary.patches.patch_set import build_patch_set
from unary.records import NOTICE, Detection, Finding, Image

VERSION = 1
"""Of all four tables; rises when a column is changed, renamed or taken away."""

_FINDING: dict[str, str] = {column.name: column.type for column in FINDINGS.columns}
_ACQUISITION = {
    field.name: "double" if field.name in ("exposure_mas", "kvp", "thickness_mm") else "string"
    for field in fields(Acquisition)
}
COLUMNS: dict[str, dict[str, str]] = {
    "images": {
        "image": "string", "location": "string", "sha256": "string", "reason": "string", "detail": "string",
        "image_score": "double", "image_p_value": "double", "findings": "int32", "candidates": "int32",
        "patches": "int32", "out_of_domain": "strings", "notes": "strings", "accepted_despite": "strings",
        "instance": "string", "study": "string", "laterality": "string", "view": "string",
        "stored_rows": "int32", "stored_cols": "int32", "row_spacing_mm": "double", "col_spacing_mm": "double",
        "working_rows": "int32", "working_cols": "int32", "row_scale": "double", "col_scale": "double",
        "tissue_px": "int64", "scored_share": "double", "prepared_sha256": "string",
        "tissue_level": "double", "tissue_dark": "double", "tissue_bright": "double", "tissue_noise": "double",
        "has_header": "bool", **_ACQUISITION, "dicom_missing": "string",
    },
    "findings": _FINDING,
    "candidates": {**_FINDING, "outline": "doubles", "pixels": "binary"},
    "patches": {"image": "string", "row": "int32", "col": "int32", "score": "double"},
}  # fmt: skip
"""The columns of each table, with their Arrow types; ``strings`` and ``doubles`` are lists."""


@dataclass(frozen=True, eq=False)
class TableRows:
    """What one image adds to the tables: its row of the images, and those of the three others."""

    image: Mapping[str, Any]
    findings: Sequence[Mapping[str, Any]] = ()
    candidates: Sequence[Mapping[str, Any]] = ()
    patches: tuple[NDArray[np.int32], NDArray[np.float64]] | None = None

    @property
    def failed(self) -> bool:
        """Whether the image has no result."""
        return self.image.get("reason") is not None


def describe_failed(name: str, location: str, reason: str, detail: str, *, sha256: str) -> TableRows:
    """Return what the tables hold of an image without a result; ``sha256`` is empty where it is unknown."""
    return TableRows(
        {"image": name, "location": location, "sha256": sha256 or None, "reason": reason, "detail": detail}
    )


def describe_image(
    inspected: InspectedFile,
    image: Image,
    scored: ScoredImage,
    detection: Detection,
    measured: TissueValues | None,
    *,
    model: Model,
) -> Mapping[str, Any]:
    """Return what the table of images holds of an image that was examined; ``image`` and ``location`` are missing."""
    prepared, acquisition = scored.prepared, inspected.attributes.acquisition
    spacing = prepared.stored_spacing_mm or (None, None)
    patches = build_patch_set(prepared.pixels, scored.origins, size_px=model.grid.size_px, mask=prepared.mask)
    return {
        "sha256": inspected.source.sha256,
        "image_score": detection.image_score,
        "image_p_value": detection.image_p_value,
        "findings": len(detection.findings),
        "patches": len(scored.scores),
        "out_of_domain": list(detection.out_of_domain),
        "notes": list(detection.notes),
        "accepted_despite": list(inspected.verdict.accepted_despite),
        "instance": None if image.instance_uid is None else hash_uid(image.instance_uid),
        "study": inspected.attributes.study,
        "laterality": image.laterality,
        "view": image.view,
        "stored_rows": prepared.stored_shape[0],
        "stored_cols": prepared.stored_shape[1],
        "row_spacing_mm": spacing[0],
        "col_spacing_mm": spacing[1],
        "working_rows": prepared.shape[0],
        "working_cols": prepared.shape[1],
        "row_scale": prepared.scale[0],
        "col_scale": prepared.scale[1],
        "tissue_px": count_tissue(prepared),
        "scored_share": scored.scored_px / scored.anomaly_map.size,
        "prepared_sha256": patches.digest(),
        **({} if measured is None else {f"tissue_{name}": value for name, value in asdict(measured).items()}),
        "has_header": acquisition is not None,
        **({} if acquisition is None else asdict(acquisition)),
    }


def describe_candidates(name: str, model: Model, scored: ScoredImage) -> list[Mapping[str, Any]]:
    """Return the strongest candidates, whatever they score, with their outlines and pixels: what lesions can hit."""
    detection = build_detection(scored, model, None, most=MOST_CANDIDATES)
    rows: list[Mapping[str, Any]] = []
    for finding in detection.findings:
        r0, c0, r1, c1 = finding.box
        own = detection.labels[r0:r1, c0:c1] == finding.rank
        outline = [float(value) for point in finding.outline for value in point]
        rows.append({**describe_finding(name, finding), "outline": outline, "pixels": np.packbits(own).tobytes()})
    return rows


def describe_finding(name: str, finding: Finding) -> dict[str, Any]:
    """Return a row of the table of findings."""
    return dict(zip(_FINDING, [name, *list_cells(finding)], strict=True))


def write_tables(rows: Sequence[TableRows]) -> dict[str, bytes]:
    """Return the four tables as Parquet, by file name."""
    import pyarrow

    tables = {
        "images": _build_table("images", [row.image for row in rows]),
        "findings": _build_table("findings", [each for row in rows for each in row.findings]),
        "candidates": _build_table("candidates", [each for row in rows for each in row.candidates]),
    }
    found = [(row.image["image"], *row.patches) for row in rows if row.patches is not None]
    columns = [
        pyarrow.array([name for name, origins, _ in found for _ in range(len(origins))], "string"),
        *(
            pyarrow.array(np.concatenate([np.zeros(0, np.int32), *(origins[:, axis] for _, origins, _ in found)]))
            for axis in (0, 1)
        ),
        pyarrow.array(np.concatenate([np.zeros(0), *(scores for *_, scores in found)])),
    ]
    tables["patches"] = pyarrow.table(columns, schema=build_schema("patches"))
    return {f"{name}.parquet": _serialise(table) for name, table in tables.items()}


def build_schema(table: str) -> Any:
    """Return the `pyarrow.Schema` of a table."""
    import pyarrow

    lists = {"strings": pyarrow.list_(pyarrow.string()), "doubles": pyarrow.list_(pyarrow.float64())}
    columns = [(name, lists.get(kind) or pyarrow.type_for_alias(kind)) for name, kind in COLUMNS[table].items()]
    about = {"unary.table": table, "unary.table_version": str(VERSION), "unary.notice": NOTICE}
    return pyarrow.schema(columns, metadata=about)


def _build_table(table: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    import pyarrow

    schema = build_schema(table)
    return pyarrow.table(
        [pyarrow.array([row.get(name) for row in rows], schema.field(name).type) for name in schema.names],
        schema=schema,
    )


def _serialise(table: Any) -> bytes:
    import pyarrow.parquet

    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content, compression="zstd", compression_level=3)
    return content.getvalue()


def hash_and_measure(content: bytes) -> tuple[str, int]:
    """Return the SHA-256 of bytes, and how many they are."""
    return hashlib.sha256(content).hexdigest(), len(content)
