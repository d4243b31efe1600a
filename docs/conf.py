"""How the documentation site is built: `make docs`, without network, warnings as errors."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_site"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads spin while they wait
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")

project = "unary"
author = "the authors of unary"
copyright = "the authors of unary, Apache-2.0. Research software. Not for diagnosis."
release = version = metadata.version("unary")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_reference",
    "format_reference",
    "interface_reference",
]
exclude_patterns = ["_site", "images", "results/data", "tutorials/outputs"]
source_suffix = {".md": "myst-nb"}
root_doc = "index"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!unary\.).*")]  # others' types: their inventories would need a network
default_role = "py:obj"
suppress_warnings = ["myst.domains", "ref.python", "myst-nb.lexer", "toc.empty_glob"]
# In turn: no such directives here; a short name that two classes have; cells that were not run; pages still to come

myst_heading_anchors = 4
myst_enable_extensions = ["deflist", "colon_fence"]
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS.parent / "build" / "docs-notebooks")
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"unary {release}"
html_static_path = ["_static"]
html_css_files = ["unary.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "announcement": "Research software. Not for diagnosis.",
    "navigation_with_keys": True,
}
