"""What the bench writes for people: a Markdown table, the same in JSON, and a page with curves and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import ALL, NORMAL_LOOKING
from unary.experiments.bench import BenchResult
from unary.experiments.common import describe_range, draw_curves
from unary.files import replacing
from unary.outputs.figures import figure_png
from unary.outputs.gallery import Box, plot_gallery
from unary.outputs.leads import (
    IMAGES,
    PATCHES,
    describe_auroc,
    describe_means,
    describe_outcome,
    is_few,
    join_words,
    judge_difference,
)
from unary.outputs.report import (
    Cell,
    Link,
    Picture,
    Report,
    Section,
    Table,
    build_results_section,
    write_report,
)
from unary.outputs.words import IMAGE_GROUP, MEANINGS, name_groups
from unary.records import Lesion, count_words

_MISSES, _FALSE_ALARMS, _PER_IMAGE = 12, 18, 3
_DASH = "\u2013"
_WITH_INTERVALS = "The same with an interval for every figure"
_IMAGE_SCORE = "Whole images, each by the score of the most abnormal place of its map, of every detector and control."


def describe_bench(result: BenchResult) -> Iterator[str]:
    """Yield the outcome as lines for a terminal: AUROC with interval per detector and main group, then the lead."""
    for row in list_rows(result, result.main_groups):
        what = f"AUROC {describe_auroc(row)}" if row["auroc"] is not None else f"{_DASH} ({row['note']})"
        yield f"{row['group']:24s} {row['detector']:18s} {what}"
    yield _lead(result)


def write_bench_report(result: BenchResult, out: Path) -> None:
    """Write ``bench.md``, ``bench.json`` and ``report.html`` into a folder."""
    with replacing(out / "bench.md") as partial:
        partial.write_text(build_markdown(result), encoding="utf-8")
    groups = result.main_groups if result.data.by_image else (*result.main_groups, *result.data.sizes, NORMAL_LOOKING)
    document = {
        "notice": result.meta["notice"],
        "banners": result.meta["banners"],
        "rows": list_rows(result, groups),
        **{key: result.meta[key] for key in ("differences", "detectors", "failures", "gaps")},
        **{key: result.meta[key] for key in ("command", "versions", "data_hash", "config", "counts", "folds")},
    }
    with replacing(out / "bench.json") as partial:
        partial.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_report(build_bench_report(result), out / "report.html")


def list_rows(result: BenchResult, groups: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per group and detector; where there is no figure its values are None and ``note`` says why."""
    nothing = dict.fromkeys(("auroc", "auroc_ci95", "average_precision", "sensitivity_at_specificity"))
    rows = []
    for group in groups:
        gap = result.meta["gaps"].get(group)
        for contender in result.contenders:
            found = result.metrics.get(contender.name, {}).get(group)
            if found is None:
                nobody = f"there is no such {'image' if result.data.by_image else 'patch'}"
                found = {**nothing, "note": result.failures.get(contender.name) or gap or nobody}
            elif notes := [text for text in (found.get("note"), gap) if text]:
                found = {**found, "note": "; ".join(notes)}
            rows.append({"group": group, "detector": contender.name, "kind": contender.kind, **found})
    return rows


def build_markdown(result: BenchResult) -> str:
    """Return ``bench.md``."""
    meta, normal = result.meta, result.meta["counts"]["normal"]
    parts = ["# Bench", f"**{meta['notice']}**", *(f"**{banner}**" for banner in (*meta["banners"], *meta["notices"]))]
    parts.append(_lead(result))
    parts.append(
        f"{result.config.folds} folds over the patients of the normals, {_name_seeds(result)}; "
        f"{count_words(normal['patches'], 'normal patch')} of {count_words(normal['patients'], 'patient')}. "
        f"Figures: {describe_figures(result)}; intervals are 95 %, over patients. sens@95: share of "
        f"positive {result.units} found when 95 % of normal ones pass."
    )
    notes: list[str] = []
    tables = [_main_table(result, notes), *([] if result.data.by_image else [_size_table(result, notes)])]
    for table in (*tables, *_difference_tables(result), _cost_table(result)):
        parts += [f"## {table.caption}", _as_markdown(table)]
    parts.append("\n".join(f"[{number}] {note}  " for number, note in enumerate(notes, 1)))
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    parts.append(f"Command: `{meta['command']}`  \nData: `{meta['data_hash']}`  \nVersions: {versions}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _as_markdown(table: Table) -> str:
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "\n".join("| " + " | ".join(_as_text(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _as_text(cell: Cell) -> str:
    if cell is None:
        return _DASH
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) >= 100 or 0 < abs(cell) < 0.01 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell.text if isinstance(cell, Link) else cell


def _with_interval(row: dict[str, Any]) -> str:
    return _bounded(row["auroc"], row["auroc_ci95"], places=3)


def _bounded(value: float, interval: Sequence[float] | None, *, places: int = 2) -> str:
    between = "no interval" if interval is None else ", ".join(f"{bound:.{places}f}" for bound in interval)
    return f"{value:.{places}f} [{between}]"


def _marked(row: dict[str, Any], notes: list[str]) -> str:
    """The AUROC, or a dash, with the number of its footnote."""
    text = _DASH if row["auroc"] is None else _with_interval(row)
    if "note" not in row:
        return text
    if row["note"] not in notes:
        notes.append(row["note"])
    return f"{text} [{notes.index(row['note']) + 1}]"


def _main_table(result: BenchResult, notes: list[str]) -> Table:
    lines: list[tuple[Cell, ...]] = []
    for row in list_rows(result, result.main_groups):
        rates: list[Cell] = [None, None, None]
        if row["auroc"] is not None:
            found, bounds = row["sensitivity_at_specificity"], row["sensitivity_ci95"]
            precision = _bounded(row["average_precision"], row["average_precision_ci95"])
            rates = [precision, *(_bounded(found[level], bounds[level]) for level in ("0.95", "0.99"))]
        lines.append((name_group(result, row["group"]), row["detector"], row["kind"], _marked(row, notes), *rates))
    header = ("lesions", "detector", "kind", "AUROC [95 %]", "AP [95 %]", "sens@95 [95 %]", "sens@99 [95 %]")
    return Table(f"Detectors on the same {result.units}", header, tuple(lines))


def _size_table(result: BenchResult, notes: list[str]) -> Table:
    groups = [name for name in result.data.sizes if any(name in found for found in result.metrics.values())]
    rows = list_rows(result, groups)
    names = [contender.name for contender in result.contenders]
    lines = tuple((name, *(_marked(row, notes) for row in rows if row["detector"] == name)) for name in names)
    caption = "AUROC by the size of the largest lesion in the patch" if groups else "No lesion has a known size"
    return Table(caption, ("detector", *(name_group(result, name) for name in groups)), lines if groups else ())


def _difference_tables(result: BenchResult) -> list[Table]:
    def judge(group: str, name: str, reference: str, found: Estimate) -> str:
        few = is_few(result.metrics[name][group])
        return "too few patients to tell" if few else f"{judge_difference(found)} {reference}"

    tables = []
    for reference, by_name in result.differences.items():
        lines = tuple(
            (
                name_group(result, group),
                name,
                f"{found.value:+.3f}",
                describe_range(found),
                judge(group, name, reference, found),
            )
            for group in result.main_groups
            for name, groups in by_name.items()
            if (found := groups.get(group)) is not None
        )
        header = ("lesions", "detector", "difference", "95 % interval", "")
        tables.append(Table(f"AUROC minus that of {reference}, paired", header, lines))
    return tables


def _cost_table(result: BenchResult) -> Table:
    keys = ("kind", "summary", "runs", "parameters", "fit_seconds", "score_seconds_per_image")
    lines = tuple((name, *map(facts.get, keys)) for name, facts in result.meta["detectors"].items())
    header = ("detector", "kind", "what it is", "runs", "fitted numbers", "seconds to fit", "seconds per image")
    return Table("What they cost on this machine (means over runs)", header, lines)


def name_group(result: BenchResult, group: str) -> str:
    """Return what reports call a group: the profile's words, or its name in plain letters."""
    return name_groups(result.data.reading).get(group) or group.replace("_", " ").replace("mm", " mm")


def build_bench_report(result: BenchResult) -> Report:
    """Return the content of ``report.html``."""
    best = result.best
    sections = (
        _results_section(result),
        Section("ROC curves", pictures=tuple(_curves(result))),
        *(() if result.data.by_image else (_size_section(result),)),
        Section(
            "Is one better than the other?",
            paragraphs=(
                "The difference of two AUROCs on the same data of the same patients. An interval that holds 0 does "
                "not settle which is better. None of them speaks of other training runs than these.",
            ),
            tables=tuple(_difference_tables(result)),
        ),
        *(() if best is None or result.data.by_image else _picture_sections(result, best)),
        Section("Costs", tables=(_cost_table(result),)),
        _folds_section(result),
    )
    troubles = (*result.failures.values(), *result.meta["gaps"].values(), *result.meta["skipped"])
    return Report(
        title="Bench",
        lead=_lead(result),
        banners=tuple(result.meta["banners"]),
        notices=(*result.meta["notices"], *troubles),
        sections=sections,
        provenance={key: result.meta[key] for key in ("command", "versions", "data_hash", "config", "grids")},
    )


def _size_section(result: BenchResult) -> Section:
    notes: list[str] = []
    table = _size_table(result, notes)
    return Section("By size", tuple(f"[{number}] {note}" for number, note in enumerate(notes, 1)), tables=(table,))


def _lead(result: BenchResult) -> str:
    best, group = result.best, result.main_groups[-1]
    if best is None:
        return "Only controls took part: nothing here says how well lesions are found."
    outcomes = {name: groups[group] for name, groups in result.metrics.items() if group in groups}
    controls = [row.name for row in result.contenders if row.is_control and row.name in outcomes]
    beside = ["laplacian"] if "laplacian" in outcomes and best != "laplacian" else []
    return describe_outcome(
        outcomes,
        subject=best,
        differences={name: result.differences.get(name, {}).get(best, {}).get(group) for name in (*beside, *controls)},
        sides=IMAGES if result.data.by_image else PATCHES,
        among=len(outcomes) - len(controls),
        controls=controls,
    )


def describe_figures(result: BenchResult) -> str:
    """Return what the figures are means over."""
    folds = count_words(result.config.folds, "fold")
    return describe_means(len(result.config.seeds) * result.config.folds) + f" ({folds}, {_name_seeds(result)})"


def _name_seeds(result: BenchResult) -> str:
    seeds = result.config.seeds
    return f"seed{'' if len(seeds) == 1 else 's'} {join_words([*map(str, seeds)])}"


def _results_section(result: BenchResult) -> Section:
    shown = {*result.main_groups, NORMAL_LOOKING}
    detectors = {
        one.name: {group: found for group, found in result.metrics.get(one.name, {}).items() if group in shown}
        for one in result.contenders
    }
    titles = name_groups(result.data.reading)
    section = build_results_section("Results", detectors, titles=titles, figures=describe_figures(result))
    own = tuple((c.name, f"{c.describe()} ({c.kind}).") for c in result.contenders if c.name not in MEANINGS)
    notes: list[str] = []
    intervals = _main_table(result, notes)
    told = " ".join(f"[{number}] {note}." for number, note in enumerate(notes, 1))
    intervals = dataclasses.replace(intervals, caption=f"{_WITH_INTERVALS}. {told}".rstrip())
    terms = tuple((term, _IMAGE_SCORE if term == titles[IMAGE_GROUP] else said) for term, said in section.terms)
    return dataclasses.replace(section, tables=(*section.tables, intervals), terms=(*own, *terms))


def _curves(result: BenchResult) -> Iterator[Picture]:
    for group in result.main_groups:
        found = {name: groups[group] for name, groups in result.metrics.items() if group in groups}
        if found:
            text = f"{name_group(result, group)}: ROC curves by detector, {describe_figures(result)}"
            unit = "image" if result.data.by_image else "patch"
            yield Picture(draw_curves(result.tables, found, group, each_seed=False, unit=unit), text, text)


def rank_among_normals(result: BenchResult, name: str) -> NDArray[np.float64]:
    """Return each patch's place among the normals of its fold, shape (n,): the share that scores lower, in [0, 1].

    Averaged over the folds and seeds that score the patch; NaN where none does.
    """
    total, times = np.zeros(len(result.data)), np.zeros(len(result.data))
    for fold, table in zip(result.folds, result.tables, strict=True):
        scores = table.scores[name]
        negatives = np.sort(scores[table.roles(ALL)[1]])
        total[fold.test] += np.searchsorted(negatives, scores) / len(negatives)
        times[fold.test] += 1
    return np.where(times > 0, total / np.maximum(times, 1), np.nan)


def _picture_sections(result: BenchResult, name: str) -> tuple[Section, ...]:
    place = rank_among_normals(result, name)
    pictures = []
    for group in result.main_groups[:-1] or result.main_groups:
        member = result.data.groups.get(group, result.data.positive)
        chosen = _pick(result, np.flatnonzero(member & ~np.isnan(place)), place, count=_MISSES)
        if len(chosen):
            text = f"{name_group(result, group)}: {count_words(len(chosen), 'patch')}, least abnormal by {name}"
            pictures.append(_gallery(result, chosen, place, text))
    alarms = _pick(result, np.flatnonzero(result.data.normal & ~np.isnan(place)), -place, count=_FALSE_ALARMS)
    text = f"{count_words(len(alarms), 'normal patch')}, most abnormal by {name}"
    said = (
        f"Above each patch stands its image and the share of normal patches that {name} finds less abnormal. At most "
        f"{_PER_IMAGE} patches of an image are shown. Annotated lesions are framed; each patch has a grey window of "
        "its own."
    )
    return (
        Section(f"What {name} misses", (said,), pictures=tuple(pictures)),
        Section(f"What alarms {name} falsely", pictures=(_gallery(result, alarms, place, text),)),
    )


def _pick(result: BenchResult, members: NDArray[np.intp], key: NDArray[np.float64], *, count: int) -> NDArray[np.intp]:
    """The members of the lowest key, a few of each image."""
    ordered = members[np.argsort(key[members], kind="stable")]
    image = result.data.fine.image[ordered]
    grouped = np.argsort(image, kind="stable")
    rank = np.arange(len(image)) - np.searchsorted(image[grouped], image[grouped])  # within its image
    return ordered[np.sort(grouped[rank < _PER_IMAGE])[:count]]


def _gallery(result: BenchResult, chosen: NDArray[np.intp], place: NDArray[np.float64], text: str) -> Picture:
    fine = result.data.fine
    titles, boxes = [], []
    for position in chosen.tolist():
        image_id = fine.rows[fine.image[position]].image_id
        titles.append(f"{image_id[-16:]}\nabove {100 * place[position]:.4g} %")
        lesions = [lesion for lesion in result.manifest.lesions_of(image_id) if lesion.kind != "mask"]
        boxes.append([_frame(lesion, fine.origins[position]) for lesion in lesions])
    figure = plot_gallery(fine.patches.gather(chosen), titles=titles, boxes=boxes)
    return Picture(figure_png(figure), text, text)


def _frame(lesion: Lesion, origin: NDArray[np.int32]) -> Box:
    """The upright box of a lesion, no mask (which would have to be read), in the stored pixels of a patch."""
    points = np.asarray(lesion.points, float) - origin
    low, high = points.min(axis=0), points.max(axis=0)
    if lesion.kind != "box":
        radius = lesion.radius_px or 0.0
        low, high = low - radius, high + radius + 1  # half-open, from the edges of the outermost pixels
    return (*low.tolist(), *high.tolist())


def _folds_section(result: BenchResult) -> Section:
    counts, folds = result.meta["counts"], result.meta["folds"]
    groups = tuple((name_group(result, name), *found.values()) for name, found in counts.items())
    header = tuple(name.replace("_", " ") for name in folds[0])
    return Section(
        "What was counted",
        tables=(
            Table("Patches, images and patients", ("", "patches", "images", "patients"), groups),
            Table("Folds", header, tuple(tuple(fold.values()) for fold in folds)),
        ),
    )
