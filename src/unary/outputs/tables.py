"""Results as Arrow tables, and as pandas data frames made of them, without copying where memory allows.

Every table is of one `TableKind`: fixed columns with types, units and a version, which stand in the schema's metadata.
A column that changes is another version. What is a contiguous numpy array of numbers becomes a column of the same
memory: scores of patches, points of a curve. What is copied says so in the description of its function. From Arrow to
pandas, columns of numbers without gaps are the same memory again, and are then read-only.

No table holds a patient: patients are numbered from 0 within a table. Images are called what the caller calls them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unary.errors import UnaryError, require
from unary.records import NOTICE, Detection, Finding

if TYPE_CHECKING:
    from unary.evaluation.evaluate import Evaluation
    from unary.evaluation.metrics import ScoreTable
    from unary.models.calibration import Calibration
    from unary.models.examination import ScoredImage
    from unary.profiles import Reading

ColumnType = Literal["string", "int32", "int64", "float64", "bool", "dictionary"]


@dataclass(frozen=True)
class Column:
    """One column: its name, Arrow's name of its type, what it holds, and the unit.

    A ``dictionary`` holds few texts many times. Where ``gaps`` is False there is a value in every row.
    """

    name: str
    type: ColumnType
    about: str
    unit: str = ""
    gaps: bool = False


@dataclass(frozen=True)
class TableKind:
    """The columns of one kind of table. ``version`` rises when a column is changed, renamed or taken away."""

    name: str
    version: int
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """The names of the columns, in order."""
        return [column.name for column in self.columns]

    def build_schema(self, more: Sequence[Column] = ()) -> Any:
        """Return the `pyarrow.Schema`, with what the columns hold in its metadata, and with further columns."""
        import pyarrow

        fields = [
            pyarrow.field(
                column.name,
                pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
                if column.type == "dictionary"
                else pyarrow.type_for_alias(column.type),
                nullable=column.gaps,
                metadata={"about": column.about, **({"unit": column.unit} if column.unit else {})},
            )
            for column in (*self.columns, *more)
        ]
        about = {"unary.table": self.name, "unary.table_version": str(self.version), "unary.notice": NOTICE}
        return pyarrow.schema(fields, metadata=about)

    def build(self, values: Mapping[str, Any], more: Sequence[Column] = ()) -> Any:
        """Return the `pyarrow.Table` of columns by name, each a sequence or an array of shape (n,)."""
        import pyarrow

        schema = self.build_schema(more)
        return pyarrow.table([_build_column(values[field.name], field) for field in schema], schema=schema)


def _build_column(values: Any, field: Any) -> Any:
    import pyarrow

    if isinstance(values, (pyarrow.Array, pyarrow.ChunkedArray)):
        return values
    if pyarrow.types.is_dictionary(field.type):
        names, codes = np.unique(np.asarray(values, str), return_inverse=True)
        return pyarrow.DictionaryArray.from_arrays(codes.astype(np.int32), pyarrow.array(names.tolist(), "string"))
    return pyarrow.array(values, field.type)


_STORED = "pixels of the stored image"
FINDINGS = TableKind(
    "findings",
    1,
    (
        Column("image", "string", "which image, as the caller calls it", gaps=True),
        Column("rank", "int32", "1 is the first of its image"),
        Column("score", "float64", "higher is more abnormal", "of the detector"),
        Column("p_value", "float64", "how often the strongest finding of a normal image scores as high", gaps=True),
        Column("r0", "int32", "first row of the half-open box", _STORED),
        Column("c0", "int32", "first column", _STORED),
        Column("r1", "int32", "row after the last", _STORED),
        Column("c1", "int32", "column after the last", _STORED),
        Column("peak_row", "int32", "row of the score's place", _STORED),
        Column("peak_col", "int32", "column of the score's place", _STORED),
        Column("regions", "int32", "connected regions merged into it"),
        Column("area_mm2", "float64", "area of its pixels", "mm2", gaps=True),
        Column("diameter_mm", "float64", "longest distance between two vertices of its outline", "mm", gaps=True),
        Column("kind", "string", "unusual region, or vascular pattern"),
    ),
)
_WORKING = "pixels of the working grid"
PATCHES = TableKind(
    "patches",
    1,
    (
        Column("row", "int32", "first row of the patch", _WORKING),
        Column("col", "int32", "first column of the patch", _WORKING),
        Column("score", "float64", "higher is more abnormal", "of the detector"),
    ),
)
SCORES = TableKind(
    "scores",
    1,
    (
        Column("image", "dictionary", "which image, by its id in the manifest"),
        Column("patient", "int32", "number of the patient within this table, from 0"),
        Column("row", "int64", "first row of the patch; 0 where images are compared", _WORKING),
        Column("col", "int64", "first column of the patch; 0 where images are compared", _WORKING),
        Column("positive", "bool", "whether it contains a lesion, or the image is labelled positive"),
    ),
)
FROC = TableKind(
    "froc",
    1,
    (
        Column("group", "dictionary", "which lesions are to be found"),
        Column("false_rate", "float64", "false findings above the threshold", "per normal image"),
        Column("sensitivity", "float64", "share of lesions found, from 0 to 1"),
        Column("threshold", "float64", "findings that score at or above it count; first infinity", "of the detector"),
    ),
)
METRICS = TableKind(
    "metrics",
    1,
    (
        Column("name", "string", "its place in metrics.json, with / between the levels"),
        Column("value", "float64", "the figure"),
        Column("low", "float64", "lower end of the 95 % interval", gaps=True),
        Column("high", "float64", "upper end of the 95 % interval", gaps=True),
    ),
)
NORMAL_IMAGES = TableKind(
    "normal_images",
    1,
    (
        Column("score", "float64", "of the image, rising", "of the detector"),
        Column("weight", "float64", "1 / (number of images of its patient)"),
        Column("findings", "int32", "how many count"),
        Column("patches", "int64", "how many it has"),
    ),
)
OPERATING_POINTS = TableKind(
    "operating_points",
    1,
    (
        Column("name", "string", "of the operating point"),
        Column("unit", "string", "what is counted: finding or patch"),
        Column("rate", "float64", "what was asked for", "findings per normal image, or share of its patches"),
        Column("threshold", "float64", "what scores above it counts", "of the detector"),
        Column("measured_rate", "float64", "the rate of the images that set it", "as rate"),
        Column("guaranteed", "bool", "whether the rate is a guarantee"),
        Column("false_alarm_rate", "float64", "bound on the share of normal images with a finding", gaps=True),
        Column("patients", "int32", "normal patients that set it"),
    ),
)


def tabulate_findings(detections: Mapping[str, Detection]) -> Any:
    """Return the findings of several images as one `pyarrow.Table` of the kind `FINDINGS`, image after image.

    Keys are what the images are to be called. An image without a finding has no row. All columns are copied: a finding
    is an object of its own.
    """
    return build_findings((name, detection.findings) for name, detection in detections.items())


def build_findings(images: Iterable[tuple[str | None, Sequence[Finding]]]) -> Any:
    """Return the table of `tabulate_findings` from names and findings; None where an image has no name."""
    rows = [[name, *list_cells(finding)] for name, findings in images for finding in findings]
    columns = zip(*rows, strict=True) if rows else ([] for _ in FINDINGS.columns)
    return FINDINGS.build(dict(zip(FINDINGS.names, columns, strict=True)))


def list_cells(finding: Finding) -> list[object]:
    """Return what the columns of `FINDINGS` but the first hold of a finding."""
    places = (*finding.box, *finding.peak)
    sizes = (finding.regions, finding.area_mm2, finding.diameter_mm)
    return [finding.rank, finding.score, finding.p_value, *places, *sizes, finding.kind]


def tabulate_patches(scored: ScoredImage) -> Any:
    """Return the patches of an image as a `pyarrow.Table` of the kind `PATCHES`.

    Scores are the memory of ``scored.scores``. Rows and columns, which lie beside each other in memory, are copied.
    """
    return PATCHES.build({"row": scored.origins[:, 0], "col": scored.origins[:, 1], "score": scored.scores})


def tabulate_scores(table: ScoreTable | None) -> Any:
    """Return the scores of a test set, such as `Evaluation.images`, as a `pyarrow.Table` of the kind `SCORES`.

    `Evaluation.patches` is None, which is an UnaryError here, where no lesions are listed or no patch holds one.

    There are further columns: ``group_NAME``, a bool for each group of lesions, and ``score_NAME``, float64, for each
    detector, which are the memory of the scores. Truth and groups become bits and are copied; so are names and places.
    """
    if table is None:
        raise UnaryError(
            "the evaluation compares no patches, for no lesions are listed, or none is in a patch; `.images` has the "
            "scores of whole images"
        )
    groups = [Column(f"group_{name}", "bool", f"whether it belongs to the group {name}") for name in table.groups]
    about = "higher is more abnormal"
    detectors = [Column(f"score_{name}", "float64", about, f"of {name}") for name in table.scores]
    _, patient = np.unique(table.patient, return_inverse=True)
    values = {
        "image": table.image,
        "patient": patient.astype(np.int32),
        "row": table.row,
        "col": table.col,
        "positive": table.positive,
        **{f"group_{name}": member for name, member in table.groups.items()},
        **{f"score_{name}": scores for name, scores in table.scores.items()},
    }
    return SCORES.build(values, [*groups, *detectors])


def tabulate_froc(evaluation: Evaluation, reading: Reading) -> Any:
    """Return the FROC curve of each group of lesions as one `pyarrow.Table` of the kind `FROC`.

    The reading is that of the model's profile. Groups without a lesion are absent, as are all of them without a normal
    image. A group's points are a chunk of their own, in the memory of the curve.
    """
    import pyarrow

    from unary.evaluation.evaluated_image import build_outcomes
    from unary.evaluation.froc import froc_curve
    from unary.evaluation.lesion_query import list_queries

    parts = []
    for name, query in list_queries(reading).items():
        outcomes = build_outcomes(evaluation.evaluated, query)
        if any(each.target_scores for each in outcomes) and any(each.counts_false("normal") for each in outcomes):
            rates, sensitivities, thresholds = froc_curve(outcomes)
            values = {"group": [name] * len(rates), "false_rate": rates, "sensitivity": sensitivities}
            parts.append(FROC.build({**values, "threshold": thresholds}))
    return pyarrow.concat_tables(parts) if parts else FROC.build({name: [] for name in FROC.names})


def tabulate_metrics(document: Mapping[str, Any]) -> Any:
    """Return the figures of a ``metrics.json``, as `json.load` gives it, as a `pyarrow.Table` of the kind `METRICS`."""
    from unary.evaluation.metrics import list_figures

    figures = list(list_figures(document))
    names = ["/".join(figure.path) for figure in figures]
    numbers = {name: [getattr(figure, name) for figure in figures] for name in ("value", "low", "high")}
    return METRICS.build({"name": names, **numbers})


def tabulate_normal_images(calibration: Calibration) -> Any:
    """Return the normal images of a calibration as a `pyarrow.Table` of the kind `NORMAL_IMAGES`; all is copied."""
    values = {
        "score": calibration.scores,
        "weight": calibration.weights,
        "findings": [len(image.findings) for image in calibration.images],
        "patches": [image.patch_count for image in calibration.images],
    }
    return NORMAL_IMAGES.build(values)


def tabulate_points(calibration: Calibration) -> Any:
    """Return operating points as a `pyarrow.Table` of the kind `OPERATING_POINTS`; all is copied."""
    points = calibration.operating_points
    return OPERATING_POINTS.build({name: [getattr(point, name) for point in points] for name in OPERATING_POINTS.names})


def convert_to_frame(table: Any) -> Any:
    """Return a `pyarrow.Table` as a `pandas.DataFrame`, each column by itself.

    Columns of numbers without gaps, in one chunk, are the memory of the table, and read-only; others are copied. A gap
    is NaN.

    Raises
    ------
    MissingPackageError
        If pandas is not installed.
    """
    require("pandas", extra="tables")
    return table.to_pandas(split_blocks=True)
