"""Which lesions a commissioning test asks for: sizes in mm and contrasts of specks, clusters and masses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from unary.datasets.simulated.plans import LesionPlan
from unary.errors import require_positive


@dataclass(frozen=True)
class SpeckGrid:
    """Single specks.

    Attributes
    ----------
    sizes_mm
        Diameters in mm.
    contrasts
        Peaks in units of the fine noise near the speck, measured on blocks of about 0.14 mm.
    """

    sizes_mm: tuple[float, ...] = (0.2, 0.4, 0.8)
    contrasts: tuple[float, ...] = (5.0, 10.0, 20.0)

    def __post_init__(self) -> None:
        require_positive(self, "sizes_mm", "contrasts")

    def list_plans(self) -> tuple[LesionPlan, ...]:
        """Return one plan for each size and contrast."""
        return tuple(
            LesionPlan("speck", 1, 0.0, size, contrast) for size in self.sizes_mm for contrast in self.contrasts
        )


@dataclass(frozen=True)
class ClusterGrid:
    """Clusters of specks.

    Attributes
    ----------
    sizes_mm
        Typical diameters, or lengths, of a speck in mm.
    contrasts
        Typical peaks in units of the fine noise near the speck.
    kind
        Class of the cluster.
    count
        Number of specks.
    spread_mm
        Longest diameter of the area in which they lie, in mm.
    """

    sizes_mm: tuple[float, ...] = (0.2, 0.3, 0.5)
    contrasts: tuple[float, ...] = (3.0, 6.0, 12.0)
    kind: Literal["round_cluster", "amorphous_cluster", "pleomorphic_cluster", "branching_cluster"] = (
        "pleomorphic_cluster"
    )
    count: int = 10
    spread_mm: float = 10.0

    def __post_init__(self) -> None:
        require_positive(self, "sizes_mm", "contrasts", "spread_mm")
        if self.count < 3:
            raise ValueError(f"count must be at least 3, got {self.count}")

    def list_plans(self) -> tuple[LesionPlan, ...]:
        """Return one plan for each size and contrast."""
        return tuple(
            LesionPlan(self.kind, self.count, self.spread_mm, size, contrast)
            for size in self.sizes_mm
            for contrast in self.contrasts
        )


@dataclass(frozen=True)
class MassGrid:
    """Masses.

    Attributes
    ----------
    sizes_mm
        Diameters of the body in mm.
    contrasts
        Means of the body in units of the spread of the breast's regional brightness.
    kind
        Class of the mass.
    """

    sizes_mm: tuple[float, ...] = (8.0, 15.0, 25.0)
    contrasts: tuple[float, ...] = (0.5, 1.0, 2.0)
    kind: Literal["circumscribed_mass", "irregular_mass", "spiculated_mass"] = "irregular_mass"

    def __post_init__(self) -> None:
        require_positive(self, "sizes_mm", "contrasts")

    def list_plans(self) -> tuple[LesionPlan, ...]:
        """Return one plan for each size and contrast."""
        return tuple(
            LesionPlan(self.kind, 1, 0.0, size, contrast) for size in self.sizes_mm for contrast in self.contrasts
        )


@dataclass(frozen=True)
class CommissionConfig:
    """What is asked of a model.

    Attributes
    ----------
    seed
        Of the places and shapes of lesions, and of the one image of each patient that the exact test takes.
    most_images
        At the most so many images are used, evenly spread over the manifest; by default all.
    """

    specks: SpeckGrid = field(default_factory=SpeckGrid)
    clusters: ClusterGrid = field(default_factory=ClusterGrid)
    masses: MassGrid = field(default_factory=MassGrid)
    seed: int = 0
    most_images: int | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.most_images is not None and self.most_images < 1:
            raise ValueError(f"most_images must be at least 1, got {self.most_images}")


def choose_plans(config: CommissionConfig, only: Sequence[str] | None = None) -> tuple[LesionPlan, ...]:
    """Return what is inserted into every image, in the order of the report.

    ``only`` names some of ``specks``, ``clusters`` and ``masses``; by default all.
    """
    plans = {
        "specks": config.specks.list_plans(),
        "clusters": config.clusters.list_plans(),
        "masses": config.masses.list_plans(),
    }
    return tuple(dict.fromkeys(plan for name, own in plans.items() if only is None or name in only for plan in own))
