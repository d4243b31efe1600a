"""The figure of the results page, from `docs/results/data/bench.json`: `python docs/_site/results_figure.py`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from results_tables import DOCS, SHOWN, read_record

GROUPS = {
    "Calcifications in images of BI-RADS 5": "calcifications,\nBI-RADS 5",
    "Calcifications in images of BI-RADS 2 to 4": "calcifications,\nBI-RADS 2 to 4",
    "Masses": "masses",
}
COLOURS = ("#0b62a4", "#c0392b", "#7f8c8d", "#b7b7b7")


def draw_aurocs(result: dict[str, Any]) -> Figure:
    """Draw AUROC with interval for each group, one colour a detector."""
    figure = Figure(figsize=(8, 3.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, (name, colour) in enumerate(zip(SHOWN, COLOURS, strict=True)):
        found = [result[name][group]["AUROC"] for group in GROUPS]
        values = [each["value"] for each in found]
        bounds = [
            [each["value"] - each["value_ci95"][0] for each in found],
            [each["value_ci95"][1] - each["value"] for each in found],
        ]
        rows = [group + 0.18 * (place - 1.5) for group in range(len(GROUPS))]
        axes.errorbar(values, rows, xerr=bounds, fmt="o", color=colour, capsize=3, label=SHOWN[name])
        for value, row in zip(values, rows, strict=True):
            axes.annotate(f"{value:.2f}", (value, row), xytext=(0, 4), textcoords="offset points", ha="center", size=7)
    axes.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(GROUPS)), list(GROUPS.values()))
    axes.set_ylim(len(GROUPS) - 0.5, -0.6)
    axes.set_xlim(0.3, 1.02)
    axes.set_xlabel("AUROC by patch, 95 % interval over patients (0.5: no better than chance)")
    axes.legend(loc="upper left", fontsize=8, frameon=False, borderaxespad=0)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    draw_aurocs(read_record("bench")["result"]).savefig(DOCS / "images" / "results.png", dpi=130)
