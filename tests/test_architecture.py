"""The agreements of CONTRIBUTING.md that a machine can check."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "unary"
MODULES = sorted(SOURCE.rglob("*.py"))

# Data flows down this list; a module imports only from its own layer or from a layer above it.
LAYERS = (
    ("errors", "files"),
    ("records",),
    ("sources",),
    ("prepare",),
    ("splits",),
    ("store",),
    ("patches",),
    ("lesions",),
    ("collection",),
    ("detectors",),
    ("native", "accelerator", "checkpoints", "epochs", "distributed"),
    ("training",),
    ("fitting",),
    ("calibration", "findings"),
    ("bundle",),
    ("scoring",),
    ("detection",),
    ("commissioning",),
    ("evaluation",),
    ("outputs",),
    ("pipeline",),
    ("batch", "batch_detection"),
    ("experiments",),
    ("cli", "cli_detection"),
)
TORCH_ALLOWED = {
    "detectors",
    "native",
    "accelerator",
    "checkpoints",
    "distributed",
    "training",
    "fitting",
    "bundle",
    "scoring",
    "experiments",
}
HEAVY = {"matplotlib", "pyarrow", "jinja2", "xlrd", "highdicom", "pynetdicom", "dicomweb_client", "requests"}


def layer_of(module):
    part = module.split(".")[1] if "." in module else ""
    return next((number for number, names in enumerate(LAYERS) if part in names), None)


def imports_of(path, *, top_level_only=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in tree.body if top_level_only else ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def name_of(path):
    return ".".join(("unary", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_above(path):
    own = layer_of(name_of(path))
    if own is None:
        assert path == SOURCE / "__init__.py"
        return
    for module in imports_of(path):
        if module.startswith("unary."):
            assert layer_of(module) is not None
            assert layer_of(module) <= own, f"{name_of(path)} imports {module}, which stands below it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_and_heavy_packages_stay_where_they_belong(path):
    part = name_of(path).split(".")[1] if path.parent != SOURCE or path.stem != "__init__" else ""
    packages = {module.split(".")[0] for module in imports_of(path)}
    assert "torch" not in packages or part in TORCH_ALLOWED
    assert not HEAVY & {module.split(".")[0] for module in imports_of(path, top_level_only=True)}


def test_every_module_says_what_it_is_for():
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) or path.name == "__init__.py", path


def test_readme_shows_the_tree_that_is_on_disk():
    shown = set(
        re.findall(r"^[\s│├└─]*([a-z0-9_]+\.py)\s", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    on_disk = {path.name for path in MODULES if path.name != "__init__.py"}
    benchmarks = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert shown == on_disk | benchmarks


def test_direct_dependencies_are_pinned_and_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    declared = {re.match("[A-Za-z0-9._-]+", line).group() for line in wanted} - {project["name"]}
    assert len(declared) > 15
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert declared <= pinned
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    assert not [name for name in declared if f"`{name}`" not in explained]
