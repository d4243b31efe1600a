"""Archives: images a second by engine and number of workers, memory of each worker, and growth with their number.

    python benchmarks/archive.py --images 2000

Copies of a few small phantoms are made on the fly. Engines take turns; ratios are within one run. A table for people,
then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

from unary.clinic.archive import ArchiveConfig, detect_archive
from unary.clinic.engines import EngineConfig
from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.models.bundle import write_model
from unary.models.fitting import FitConfig, fit

ENGINES = (("processes", 1), ("ray", 1), ("processes", 2), ("ray", 2))


def make_archive(folder: Path, count: int) -> tuple[Path, Path]:
    """Write a model and a manifest of copies of phantoms; return both paths."""
    config = PhantomConfig(rows=384, cols=320)
    phantoms = write_phantom_dataset(
        folder / "phantoms", patients_normal=6, patients_abnormal=3, config=config, seed=11
    )
    normals = phantoms.select(tuple(row for row in phantoms.rows if row.label == "negative"))
    write_model(fit(normals, FitConfig(held_out=0.5), detector="laplacian", progress=False), folder / "model")
    (folder / "images").mkdir()
    lines = ["path"]
    for number in range(count):
        path = phantoms.rows[number % len(phantoms.rows)].path
        assert path is not None
        shutil.copyfile(path, folder / "images" / f"{number}.dcm")
        lines.append(f"images/{number}.dcm")
    for size in {*(size for size in (10, 100, 1000) if size < count), count}:
        (folder / f"M{size}.csv").write_text("\n".join(lines[: size + 1]) + "\n")
    return folder / "model", folder


def find_workers() -> dict[int, float]:
    """Return the resident memory, in MiB, of the processes that work on shards."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes()
            if entry.name.isdigit() and (b"ray::MapWorker" in title or b"spawn_main" in title):
                pages = int((entry / "statm").read_text().split()[1])
                found[int(entry.name)] = pages * 4096 / 2**20
        except OSError:
            continue
    return found


def measure(folder: Path, model: Path, count: int, engine: str, workers: int) -> dict[str, object]:
    """Return the seconds from the first shard to the last, the images in them, and the workers' memory over time."""
    out, samples, ended = folder / f"{engine}{workers}-{count}", [], threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            samples.append((time.monotonic(), max(find_workers().values(), default=0.0)))

    thread = threading.Thread(target=watch)
    thread.start()
    begun = time.monotonic()
    config = ArchiveConfig(engine=EngineConfig(engine, workers), shard_size=20, threads=1)  # type: ignore[arg-type]
    detect_archive(folder / f"M{count}.csv", out, config, model_folder=model, progress=False)
    total = time.monotonic() - begun
    ended.set()
    thread.join()
    written = sorted(path.stat().st_mtime for path in out.glob("shards/*/record.json"))
    rows = [json.loads(path.read_text())["rows"] for path in out.glob("shards/*/record.json")]
    steady = written[-1] - written[0]
    per_second = (sum(rows) - sum(rows) / len(rows)) / steady if steady > 0 else sum(rows) / total
    tables = sum(path.stat().st_size for path in out.glob("shards/*/*.parquet")) / sum(rows)
    half = [mib for _, mib in samples[len(samples) // 4 :] if mib]  # 0 where the workers have ended
    return {
        "engine": engine, "workers": workers, "images": count, "total_s": total, "images_per_s": per_second,
        "mib_early": half[0] if half else None, "mib_late": half[-1] if half else None, "bytes_per_image": tables,
    }  # fmt: skip


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model, folder = make_archive(Path(place), options.images)
        found = []
        for _ in range(options.rounds):
            for engine, workers in ENGINES:
                shutil.rmtree(folder / f"{engine}{workers}-{options.images}", ignore_errors=True)
                found.append(measure(folder, model, options.images, engine, workers))
        sizes = [size for size in (10, 100, 1000) if size < options.images]
        growth = [measure(folder, model, size, "processes", 1) for size in sizes]
    for each in (*found, *growth):
        print(
            "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in each.items()
            )
        )
    print(json.dumps({"runs": found, "growth": growth}))


if __name__ == "__main__":
    main()
