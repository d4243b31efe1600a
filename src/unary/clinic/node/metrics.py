"""Health and figures of a node, for machines: counts and durations, never whose."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unary.clinic.node.service import Node

STATES = ("received", "queued", "running", "done", "sent", "refused", "failed")
_DELIVERY_STATES = ("waiting", "sending", "sent", "superseded", "undelivered")


def describe_health(node: Node) -> tuple[bool, dict[str, object]]:
    """Return whether a node does all that it should, and of each part whether it does."""
    parts: dict[str, object] = dict(node.list_parts())
    free = shutil.disk_usage(node.config.state).free
    parts["disk"] = free >= node.config.limits.free_gib * 2**30
    parts["queue"] = node.store.state.count_waiting() < node.config.limits.queue
    return all(parts.values()), parts


def format_metrics(node: Node) -> str:
    """Return the metrics in Prometheus' text format."""
    state = node.store.state
    objects, deliveries = state.count_objects(), state.count_deliveries()
    lines: list[str] = []

    def add(name: str, kind: str, about: str, samples: Iterable[tuple[str, float]]) -> None:
        lines.append(f"# HELP unary_node_{name} {about}")
        lines.append(f"# TYPE unary_node_{name} {kind}")
        lines.extend(f"unary_node_{name}{labels} {value:.10g}" for labels, value in samples)

    counts = [(f'{{state="{each}"}}', objects.get(each, 0)) for each in STATES]
    add("objects", "gauge", "Images known, by state.", counts)
    counts = [
        (f'{{destination="{each.name}",state="{name}"}}', deliveries.get((each.name, name), 0))
        for each in node.config.destinations
        for name in _DELIVERY_STATES
    ]
    add("deliveries", "gauge", "Results by destination and state.", counts)
    add("waiting", "gauge", "Images that wait to be examined.", [("", state.count_waiting())])
    add("bytes", "gauge", "Size of images and results.", [("", node.store.bytes)])
    add("free_bytes", "gauge", "Free on the disk.", [("", shutil.disk_usage(node.config.state).free)])
    times = sorted(node.answer_times())
    if times:
        marks = [(f'{{quantile="{q}"}}', times[min(len(times) - 1, int(q * len(times)))]) for q in (0.5, 0.9, 0.99)]
        about = "Of the answer to C-STORE, of the last 10,000, once the object is there."
        add("store_seconds", "summary", about, [*marks, ("_count", len(times))][:3])
    add("running_seconds", "counter", "How long the node has run, all starts together.", [("", state.age_s())])
    add("audit_lines", "counter", "Lines of the audit log.", [("", node.audit.head.number)])
    healthy, parts = describe_health(node)
    add("healthy", "gauge", "Whether all parts do what they should.", [("", healthy)])
    add("part_healthy", "gauge", "By part.", [(f'{{part="{name}"}}', bool(good)) for name, good in parts.items()])
    return "\n".join(lines) + "\n"
