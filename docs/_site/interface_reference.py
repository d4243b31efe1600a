"""The reference of Python names, from their docstrings: ``{unary-interface}`` in a page.

What is public is ``unary.__all__`` and the modules below, which other pages name. A name of ``unary.__all__`` that no
group lists is an error, so that the reference cannot fall behind.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

import unary

GROUPS = {
    "Fit, keep and apply a model": (
        "fit FitConfig plan_fit FitPlan FusionConfig read_model score detect calibrate_model compare_breasts"
    ),
    "Images and data sets": "read_image Image build_manifest read_manifest write_manifest split_manifest Manifest",
    "Public data sets": "read_inbreast read_cbis_ddsm read_mias read_folder read_brain_mr read_chest_films",
    "How well": "evaluate BenchConfig run_bench",
    "Tables, notebooks, archives": "tabulate_findings show read_results open_tracker",
    "Profiles and detectors": "DETECTORS PROFILES DEFAULT Profile OneClassPatchDetector",
    "Errors": "UnaryError",
}
_WORDS = {
    "DETECTORS": "The detectors by name, each as `module:Class`: what `--detector` takes.",
    "PROFILES": "The profiles by name: what `--profile` takes.",
    "DEFAULT": "The profile `mammography`.",
}
MODULES = {
    "unary.records": "The values that pass between the parts",
    "unary.errors": "Exceptions, and reasons for which files are refused",
    "unary.models.bundle": "A fitted model",
    "unary.models.examination": "From an image to scores, map and findings",
    "unary.models.calibration": "Operating points and what they guarantee",
    "unary.models.findings": "Regions that stand out",
    "unary.models.gate": "Which files a model takes",
    "unary.models.asymmetry": "One breast against the other",
    "unary.detectors.protocol": "What a detector is",
    "unary.detectors.fusion": "The default detector",
    "unary.detectors.clusters": "Its parts: specks that add up",
    "unary.detectors.blind_spot": "Its parts: the surprise of a pixel",
    "unary.detectors.mass": "Its parts: regions that stand out in every direction",
    "unary.detectors.prominence": "Its parts: regions that stand high in their own breast",
    "unary.detectors.laplacian": "The baseline without learning",
    "unary.detectors.nearest_neighbour": "The detector of the profile `general`",
    "unary.detectors.wei2018.learning": "The paper's network: how it is trained",
    "unary.training.engine": "Steps of training",
    "unary.training.context": "What a detector is given to learn with",
    "unary.patches.grid": "Where patches lie",
    "unary.patches.patch_set": "Patches of normal images",
    "unary.patches.preparation": "How images are prepared",
    "unary.profiles.profile": "What is particular to a kind of image",
    "unary.datasets.phantom": "Synthetic mammograms",
    "unary.clinic.acceptance": "Is a file accepted?",
    "unary.clinic.batch_scoring": "Many files: scores",
    "unary.clinic.batch_detection": "Many files: findings",
    "unary.datasets.phantom_tissue": "Synthetic mammograms: what is drawn",
    "unary.evaluation.evaluate": "Evaluation of a model",
    "unary.experiments.bench": "Detectors on the same patches",
    "unary.evaluation.froc": "Free-response curves",
    "unary.evaluation.roc": "Receiver operating characteristics",
    "unary.evaluation.summary": "What an evaluation says, in figures",
    "unary.outputs.evaluation_report": "The report of an evaluation",
    "unary.outputs.tables": "Results as tables",
    "unary.outputs.words": "Figures in words",
}


def write_markdown() -> str:
    """Return the reference as Markdown with autodoc's directives in it."""
    listed = {name for names in GROUPS.values() for name in names.split()}
    if listed != set(unary.__all__) - {"__version__"}:
        odd = sorted(listed ^ (set(unary.__all__) - {"__version__"}))
        raise ExtensionError(f"docs/_site/interface_reference.py and unary.__all__ differ by {', '.join(odd)}")
    lines = ["## The package", ""]
    for title, names in GROUPS.items():
        lines += [f"### {title}", "", *(_place("unary", name) for name in names.split()), ""]
    lines += ["## Modules", ""]
    for module, title in MODULES.items():
        known = importlib.import_module(module)
        names = [name for name, value in vars(known).items() if _is_own(name, value, module)]
        lines += [f"### {title}: `{module}`", "", (known.__doc__ or "").strip().partition("\n")[0], ""]
        lines += [_place(module, name) for name in names]
    return "\n".join(lines)


def _is_own(name: str, value: Any, module: str) -> bool:
    described = inspect.isfunction(value) or (inspect.isclass(value) and not name.startswith("_"))
    return described and not name.startswith("_") and value.__module__ == module and bool(value.__doc__)


def _place(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if name in _WORDS:
        return f"```{{py:data}} {module}.{name}\n{_WORDS[name]}\n```"
    if inspect.isclass(value):
        kind, options = "autoclass", "   :members:\n"
    elif inspect.isfunction(value):
        kind, options = "autofunction", ""
    else:
        raise ExtensionError(f"{module}.{name}: say in _WORDS what it is")
    again = "   :no-index:\n" if module == "unary" and value.__module__ in MODULES else ""
    return f"```{{eval-rst}}\n.. {kind}:: {module}.{name}\n{options}{again}```"


class InterfaceReference(SphinxDirective):
    """All public names."""

    def run(self) -> list[Any]:
        """Return the sections."""
        return self.parse_text_to_nodes(write_markdown(), allow_section_headings=True)


def pass_undescribed(app: Sphinx, env: Any, node: Any, shown: Any) -> Any:
    """Show a name of the package that exists and has no place in the reference as it is; of others Sphinx warns."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or not target.startswith("unary."):
        return None
    module, names = target, []
    while module:
        try:
            value = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
    for name in names:
        if not hasattr(value, name) and name not in getattr(value, "__dataclass_fields__", {}):
            return None
        value = getattr(value, name, None)
    return shown


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive, and the rule for names that have no place."""
    app.add_directive("unary-interface", InterfaceReference)
    app.connect("missing-reference", pass_undescribed)
    return {"parallel_read_safe": True}
