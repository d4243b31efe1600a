"""What one would type: an example of each command, shown by ``--help``, and the groups that ``unary`` alone shows."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "data": ("phantom", "manifest", "split"),
    "models": ("fit", "calibrate", "evaluate", "export"),
    "images": ("check", "score", "detect", "review"),
    "a hospital": ("commission", "monitor", "send", "serve", "audit-check"),
    "experiments": ("demo", "bench", "reproduce"),
    "the shell": ("completion",),
}
"""Commands by what they are about; one that is in none is shown last."""

FIRST_STEPS = (
    "unary phantom --out data/",
    "unary split data/all.csv --train train.csv --test test.csv",
    "unary fit train.csv --out model/",
    "unary detect model/ data/abnormal/ --out results/",
)
"""From nothing to findings."""

EXAMPLES: dict[str, str] = {
    "phantom": "unary phantom --out data/ --normal 12 --abnormal 4",
    "manifest": "unary manifest folder images/ --out all.csv",
    "split": "unary split all.csv --train train.csv --test test.csv",
    "fit": "unary fit train.csv --out model/",
    "evaluate": "unary evaluate model/ test.csv --out evaluation/",
    "calibrate": "unary calibrate model/ normals.csv",
    "export": "unary export model/ --out exported/ --images normals/",
    "completion": "unary completion bash",
    "check": "unary check new_images/ --model model/",
    "score": "unary score model/ new_images/ --out scores/",
    "detect": "unary detect model/ new_images/ --out results/",
    "review": "unary review results/",
    "commission": "unary commission model/ normals.csv --out commissioning/",
    "monitor": "unary monitor results/ --out monitoring/",
    "send": "unary send results/ --dimse ORTHANC@localhost:4242",
    "serve": "unary serve NODE.toml --check",
    "audit-check": "unary audit-check audit.jsonl",
    "demo": "unary demo --out demo/",
    "bench": "unary bench --data INBREAST/ --out bench/ --detectors fusion,laplacian,wei2018",
    "reproduce": "unary reproduce wei2018 --data INBREAST/ --out runs/wei2018",
}
"""By the command's name."""
