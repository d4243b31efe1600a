"""Data sets -> manifests, and how patients are divided. A new data set is one function, and one line here."""

from __future__ import annotations

READERS: dict[str, str] = {
    "folder": "unary.datasets.folder:read_folder",
    "inbreast": "unary.datasets.inbreast:read_inbreast",
    "cbis_ddsm": "unary.datasets.cbis_ddsm:read_cbis_ddsm",
    "mias": "unary.datasets.mias:read_mias",
}
"""By name, the module and the function that makes a manifest of a data set's folder, with a line for each image that it
leaves out; imported when it is asked for."""
