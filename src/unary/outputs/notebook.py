"""What results show of themselves in a notebook: a heading, a picture, a table, and the notice.

A `Display` is one piece of HTML without scripts, styles or requests of its own; pictures are inside it, at most
`LONG_SIDE_PX` pixels long. It holds no path, no identifier and no date. A picture of an image is a picture of a patient
all the same: a notebook that holds one is to be guarded as the image is.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unary.outputs.report import Picture, Table, fill_template
from unary.records import Detection, Finding, Image, count_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unary.evaluation.evaluate import Evaluation
    from unary.evaluation.metrics import ScoreTable
    from unary.models.bundle import Model
    from unary.models.examination import ScoredImage

LONG_SIDE_PX = 800
_SKETCH_PX = 600  # of outlines alone
_MOST_LINES = 8


@dataclass(frozen=True)
class Display:
    """What a notebook shows.

    Attributes
    ----------
    heading
        One line: what it is, and what came out.
    facts
        Terms with what holds of them.
    picture, tables
        As reports hold them.
    remarks
        What must not be overlooked.
    """

    heading: str
    facts: tuple[tuple[str, str], ...] = ()
    picture: Picture | None = None
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """Return the piece of HTML; every text is escaped."""
        picture = None if self.picture is None else base64.b64encode(self.picture.png).decode()
        return fill_template("notebook.html", {"shown": self, "picture": picture})


def show(scored: ScoredImage, detection: Detection) -> Display:
    """Return the display of a scored image with what was found in it: findings in colour and as a table, on one scale.

    Both are of the same image and model; a detection alone has no pixels to show.

    Raises
    ------
    ValueError
        If they are of images of different size, or a finding is none of the scored image's candidates.
    """
    shape = scored.prepared.stored_shape
    if detection.labels.shape != shape:
        raise ValueError(f"the detection is of an image of {detection.labels.shape}, the scores are of one of {shape}")
    if len(detection.findings) > len(scored.candidates.scores) or not _holds(scored, detection):
        raise ValueError("the detection is not of these scores: another image, or another model?")
    from unary.outputs.heat_map import describe_count, plot_heat_map

    caption, heading = "The image as the detector saw it; in colour what was found.", describe_count(detection)
    picture = Picture(_draw(plot_heat_map(scored, detection, heading="")), caption, heading)
    facts = _describe_scores(scored, detection)
    return Display(heading, facts, picture, _list_findings(detection), _warn(detection))


def _holds(scored: ScoredImage, detection: Detection) -> bool:
    return {finding.score for finding in detection.findings} <= set(scored.candidates.scores.tolist())


def show_detection(detection: Detection) -> Display:
    """Return the display of a detection: the findings as a table, and where they lie."""
    from unary.outputs.detection_figures import plot_findings
    from unary.outputs.heat_map import describe_count

    picture = None
    if detection.findings:
        nothing = np.broadcast_to(np.uint8(0), detection.labels.shape)
        caption = "Where the findings lie. A detection has no pixels: unary.show(scored, detection) shows both."
        picture = Picture(_draw(plot_findings(nothing, detection.findings), _SKETCH_PX), caption, "outlines")
    return Display(
        describe_count(detection), _describe_point(detection), picture, _list_findings(detection), _warn(detection)
    )


def show_scored(scored: ScoredImage) -> Display:
    """Return the display of a scored image: what stands out at the model's level, whatever counts as a finding."""
    from unary.outputs.heat_map import plot_overlay

    candidates, labels = scored.candidates, scored.candidates.labels
    count = len(candidates.scores)
    heading = f"{count_words(count, 'candidate')} above the model's level (score {candidates.level:.3g})"
    figure = plot_overlay(scored.prepared.pixels, scored.anomaly_map, glowing=labels > 0, level=candidates.level)
    caption = "The image as the detector saw it; in colour what stands out at the model's level."
    remarks = (*scored.out_of_domain, *scored.prepared.notes)
    return Display(
        heading, _describe_scores(scored, None), Picture(_draw(figure), caption, heading), remarks=remarks[:_MOST_LINES]
    )


def show_image(image: Image) -> Display:
    """Return the display of an image: its pixels between their 0.5th and 99.8th percentile, and what is known of it."""
    from unary.outputs.figures import find_factor, reduce_mean

    rows, cols = image.shape
    grey = reduce_mean(image.pixels, max(find_factor(image.shape), -(-max(image.shape) // LONG_SIDE_PX)))
    low, high = np.percentile(grey, [0.5, 99.8]).tolist()
    shown = np.clip((grey - low) / max(high - low, 1e-6), 0, 1) * 255
    heading = f"Image, {rows} x {cols}, {image.pixels.dtype}"
    known = {
        "Pixel spacing": None if image.spacing_mm is None else "{:.4g} x {:.4g} mm".format(*image.spacing_mm),
        "Side and view": " ".join(filter(None, (image.laterality, image.view))),
        "Modality": image.modality,
        "Presentation intent": image.intent,
        "Equipment": " ".join(filter(None, (image.manufacturer, image.model_name))),
        "Values": "{:g} to {:g}".format(*image.value_range) + (f" {image.units}" if image.units else ""),
    }
    facts = tuple((name, text) for name, text in known.items() if text)
    picture = Picture(_encode(shown.astype(np.uint8)), "The pixels, reduced.", heading)
    return Display(heading, facts, picture, remarks=image.notes[:_MOST_LINES])


def show_model(model: Model) -> Display:
    """Return the display of a model: what it has learned from, on which grid, and what its operating points promise."""
    from unary.models.card import describe_domain, describe_place, describe_training

    facts = (
        ("Grid", describe_place(model)),
        *describe_training(model),
        *describe_domain(model.domain),
        ("Data hash", model.provenance.data_hash[:16]),
        ("Fitted with", ", ".join(f"{name} {model.provenance.versions.get(name, '')}" for name in ("unary", "torch"))),
    )
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()
    if model.calibration is None:
        remarks = ("Not calibrated: it has no operating points, and nothing is guaranteed.",)
    else:
        header = ("operating point", "score above", "rate", "measured", "guaranteed", "normal images alarmed, at most")
        rows = tuple(
            (
                point.name,
                f"{point.threshold:.4g}",
                f"{point.rate:.3g}",
                f"{point.measured_rate:.3g}",
                "yes" if point.guaranteed else "no",
                None if point.false_alarm_rate is None else f"{point.false_alarm_rate:.3g}",
            )
            for point in model.calibration.operating_points
        )
        caption = "Operating points: false findings per normal image; patch_: share of a normal image's patches."
        tables = (Table(caption, header, rows),)
        if model.calibration.overlap == "allowed":
            remarks = ("Set on patients that the model was trained on: nothing is guaranteed.",)
    return Display(f"Model: {model.name} for {model.profile.noun}s", facts, tables=tables, remarks=remarks)


def show_evaluation(evaluation: Evaluation) -> Display:
    """Return the display of an evaluation: areas under the ROC curve, and lesions found at rates of false findings.

    The figures are those of `metrics.json`; intervals, which take resampling, are in the report that
    `unary.outputs.evaluation_report.write_evaluation` writes.
    """
    images = evaluation.evaluated
    normal = [image for image in images if image.normal]
    patients = len({image.row.patient_id for image in images})
    facts = (
        (
            "Images",
            f"{len(images):,} of {count_words(patients, 'patient')}, {len(normal):,} of them known to be normal",
        ),
        ("Not usable", count_words(len(evaluation.skipped), "image")),
        ("Outside the model's domain", count_words(sum(bool(image.out_of_domain) for image in images), "image")),
    )
    remarks = ["Figures without intervals: unary evaluate, or write_evaluation, gives them."]
    if evaluation.seen != 0:
        remarks.append("The model may have been fitted on patients of this evaluation, which flatters every figure.")
    heading = f"Evaluation of {count_words(len(images), 'image')}"
    tables = (*_list_areas(evaluation), *_list_sensitivities(evaluation))
    return Display(heading, facts, tables=tables, remarks=tuple(remarks))


def _list_areas(evaluation: Evaluation) -> Iterator[Table]:
    parts = {"by patch": evaluation.patches, "by image": evaluation.images}
    known = {name: table for name, table in parts.items() if table is not None}
    names = dict.fromkeys(name for table in known.values() for name in table.scores)
    if known:
        rows = tuple((name, *(_find_area(table, name) for table in known.values())) for name in names)
        yield Table("AUROC: the model first, then baseline and controls", ("detector", *known), rows)


def _find_area(table: ScoreTable, name: str) -> str | None:
    from unary.evaluation.metrics import select_runs
    from unary.evaluation.roc import auroc

    (run,) = select_runs([table], detector=name) if name in table.scores else (None,)
    return None if run is None else f"{auroc(run.scores, run.positive):.3f}"


def _list_sensitivities(evaluation: Evaluation) -> Iterator[Table]:
    from unary.evaluation.evaluated_image import build_outcomes
    from unary.evaluation.froc import FALSE_RATES, sensitivity_at_rates
    from unary.evaluation.lesion_query import LesionQuery

    outcomes = build_outcomes(evaluation.evaluated, LesionQuery())
    lesions = sum(len(each.target_scores) for each in outcomes)
    if lesions and any(each.counts_false("normal") for each in outcomes):
        found = sensitivity_at_rates(outcomes).tolist()
        rows = tuple((f"{rate:g}", f"{value:.3f}") for rate, value in zip(FALSE_RATES, found, strict=True))
        yield Table(f"Of {count_words(lesions, 'lesion')}", ("false findings per normal image", "share found"), rows)


def _describe_scores(scored: ScoredImage, detection: Detection | None) -> tuple[tuple[str, str], ...]:
    score = "nothing could be scored" if scored.image_score is None else f"{scored.image_score:.4g}"
    share = scored.scored_px / scored.anomaly_map.size
    seen = f"{count_words(len(scored.scores), 'patch')}; {share:.0%} of the image has a score"
    rest = (("Image score", score),) if detection is None else _describe_point(detection)
    return (*rest, ("Scored", seen))


def _describe_point(detection: Detection) -> tuple[tuple[str, str], ...]:
    from unary.models.calibration import describe_guarantee

    score = "nothing could be scored" if detection.image_score is None else f"{detection.image_score:.4g}"
    if detection.image_p_value is not None:
        score += f", p = {detection.image_p_value:.3g}"
    point = detection.operating_point
    said = "none: the model is not calibrated, nothing is guaranteed" if point is None else describe_guarantee(point)
    return ("Image score", score), ("Operating point", said)


def _list_findings(detection: Detection) -> tuple[Table, ...]:
    if not detection.findings:
        return ()
    header = ("finding", "kind", "score", "p", "longest, mm", "area, mm\u00b2", "rows", "columns")
    return (Table("", header, tuple(_lay_out(finding) for finding in detection.findings)),)


def _lay_out(finding: Finding) -> tuple[str | None, ...]:
    r0, c0, r1, c1 = finding.box
    return (
        str(finding.rank),
        finding.kind,
        f"{finding.score:.4g}",
        None if finding.p_value is None else f"{finding.p_value:.3g}",
        None if finding.diameter_mm is None else f"{finding.diameter_mm:.1f}",
        None if finding.area_mm2 is None else f"{finding.area_mm2:.1f}",
        f"{r0}\u2013{r1 - 1}",
        f"{c0}\u2013{c1 - 1}",
    )


def _warn(detection: Detection) -> tuple[str, ...]:
    return (*detection.out_of_domain, *detection.notes)[:_MOST_LINES]


def _draw(figure: Figure, long_side_px: int = LONG_SIDE_PX) -> bytes:
    """A figure as PNG whose longer side has at most so many pixels."""
    from unary.outputs.figures import FIGURE_DPI, figure_png

    return figure_png(figure, dpi=min(FIGURE_DPI, long_side_px / max(figure.get_size_inches())))


def _encode(grey: Any) -> bytes:
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()
