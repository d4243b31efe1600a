"""Does any damaged input crash or hang unary, or pass for something that it is not?

    python benchmarks/fuzz.py --kind all --count 10000 [--seed 0] [--workers 2] [--keep FOLDER]
    python benchmarks/fuzz.py --kind png --only NUMBER        # one case again, with its verdict

Kinds: DICOM, PNG, TIFF, PGM, manifests and folders of models. Each case is made from the seed and its number alone, by
generators and encoders of this folder, then damaged, in its structure (fields, tags, lengths, checksums made anew,
leaves of JSON, tensors, cells) or in its bytes. What comes back is judged by an **oracle**, a second reading that
shares no code with unary's: a success must be what the undamaged input held, or what the oracle finds in the damaged
one. Anything else that is no `UnaryError` naming the file is a failure: a crash, a hang, a wrong value.

The cases are tried in processes of their own, with limits on memory and time; one that ends or stalls counts, and
another one goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fuzz_common import LIMITS, Case, Kind, Outcome, limiting_memory

KINDS = ("dicom", "png", "tiff", "pgm", "manifest", "model")
TIMEOUT_S = 30.0  # a case; the reader of images gives up earlier
_START_S = 300.0
_CHUNK = 16  # cases handed over at once


def build_kind(name: str, folder: Path) -> Kind:
    """Return what makes and judges the cases of one kind; slow where samples are made first."""
    from unary.images.isolation import IsolatedReader

    if name == "breaking":
        return _Breaking()
    if name == "manifest":
        from fuzz_manifest import ManifestKind

        return ManifestKind(folder)
    if name == "model":
        from fuzz_model import ModelKind

        return ModelKind(folder)
    reader = IsolatedReader(LIMITS)
    if name == "dicom":
        from fuzz_dicom import DicomKind

        return DicomKind(reader, folder)
    if name == "png":
        from fuzz_png import PngKind

        return PngKind(reader)
    if name == "tiff":
        from fuzz_tiff import TiffKind

        return TiffKind(reader)
    from fuzz_pgm import PgmKind

    return PgmKind(reader)


class _Breaking:
    """No kind of input, but what becomes of workers that end or stall; for the test of this file."""

    def build_case(self, seed: int, number: int) -> Case:
        """Return the case of one number."""
        return Case("none", str(number), {}, None)

    def judge(self, case: Case, folder: Path) -> tuple[str, str]:
        """End, stall, raise, or be content."""
        if case.mutation == "3":
            os._exit(7)
        if case.mutation == "7":
            time.sleep(3600)
        return ("equal", str(1 // (11 - int(case.mutation))))


def try_case(kind: Kind, seed: int, number: int, folder: Path, keep: Path | None) -> Outcome:
    """Make, write and judge one case; a failing one is kept."""
    case = kind.build_case(seed, number)
    place = folder / "case"
    place.mkdir(exist_ok=True)
    write_case(case, place)
    start = time.perf_counter()
    try:
        verdict, reason = kind.judge(case, place)
    except Exception as error:  # whatever unary lets out is what is looked for
        verdict, reason = f"FAILED: {type(error).__name__}", "".join(traceback.format_exception(error)[-3:])
    found = Outcome(number, case.sample, case.mutation, verdict, reason, time.perf_counter() - start)
    if keep is not None and verdict.startswith("FAILED"):
        target = keep / str(number)
        target.mkdir(parents=True, exist_ok=True)
        write_case(case, target)
        (target / "verdict.txt").write_text(f"{found}\n", encoding="utf-8")
    shutil.rmtree(place)
    return found


def write_case(case: Case, folder: Path) -> None:
    """Write the files of a case into a folder."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def serve(pipe: Connection, name: str, seed: int, folder: Path, shared: Path, keep: Path | None) -> None:
    """Be a worker: answer numbers by outcomes, until None comes."""
    kind = build_kind(name, shared)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - what libraries complain of, thousands of times
    pipe.send(None)
    with limiting_memory():
        while (numbers := pipe.recv()) is not None:
            for number in numbers:
                pipe.send(try_case(kind, seed, number, folder, keep))


@dataclass
class _Worker:
    """A process, what it has yet to answer, and by when the next answer must be there."""

    process: Any
    pipe: Connection
    waiting: list[int] = field(default_factory=list)
    deadline: float = 0.0


def run(
    name: str, *, count: int, seed: int, first: int = 0, workers: int = 2, keep: Path | None = None
) -> Iterator[Outcome]:
    """Yield what became of ``count`` cases of one kind, in any order."""
    context = multiprocessing.get_context("spawn")
    numbers = iter(range(first, first + count))
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "shared"
        shared.mkdir()

        def start(place: int) -> _Worker:
            ours, theirs = context.Pipe()
            own = Path(folder) / f"worker{place}"
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
            process = context.Process(target=serve, args=(theirs, name, seed, own, shared, keep), daemon=False)
            process.start()
            theirs.close()
            if not ours.poll(_START_S):
                process.kill()
                raise SystemExit(f"the worker for {name} does not start")
            try:
                ours.recv()
            except EOFError as error:
                raise SystemExit(f"the worker for {name} ends at its start") from error
            return _Worker(process, ours)

        active = [start(place) for place in range(min(workers, max(count // _CHUNK, 1)))]
        places = {id(worker): place for place, worker in enumerate(active)}
        for worker in active:
            _hand_over(worker, numbers)
        while any(worker.waiting for worker in active):
            ready = wait([worker.pipe for worker in active if worker.waiting], timeout=1.0)
            for index, worker in enumerate(active):
                if not worker.waiting or (worker.pipe not in ready and time.monotonic() < worker.deadline):
                    continue
                outcome = _take_answer(worker) if worker.pipe in ready else None
                if outcome is not None:
                    worker.waiting.remove(outcome.number)
                    worker.deadline = time.monotonic() + TIMEOUT_S
                    yield outcome
                    if not worker.waiting:
                        _hand_over(worker, numbers)
                    continue
                verdict = "FAILED: CRASH of the worker" if worker.pipe in ready else "FAILED: HANG"
                worker.process.kill()
                worker.process.join()
                number, *rest = worker.waiting
                yield Outcome(number, "?", "?", verdict, f"exit {worker.process.exitcode}", TIMEOUT_S)
                place = places.pop(id(worker))
                active[index] = start(place)
                places[id(active[index])] = place
                active[index].waiting = rest
                if rest:
                    active[index].pipe.send(rest)
                    active[index].deadline = time.monotonic() + TIMEOUT_S
                else:
                    _hand_over(active[index], numbers)
        for worker in active:
            worker.pipe.send(None)
            worker.process.join()


def _hand_over(worker: _Worker, numbers: Iterator[int]) -> None:
    worker.waiting = list(itertools.islice(numbers, _CHUNK))
    if worker.waiting:
        worker.pipe.send(worker.waiting)
        worker.deadline = time.monotonic() + TIMEOUT_S


def _take_answer(worker: _Worker) -> Outcome | None:
    """The answer of a worker; None if it has ended."""
    try:
        found = worker.pipe.recv()
    except (EOFError, OSError):
        return None
    return found if isinstance(found, Outcome) else None


def print_tables(name: str, outcomes: list[Outcome]) -> None:
    """Print what became of each way of damage, of each sample, and why what was refused was."""
    columns = ("refused", "equal", "as stored", "FAILED")
    for title, key in (("mutation", "mutation"), ("sample", "sample")):
        print(f"\n| {name}: {title} | tried | refused | equal | as stored | failures |\n|---|---:|---:|---:|---:|---:|")
        for group in sorted({getattr(outcome, key) for outcome in outcomes}):
            verdicts = Counter(o.verdict.split(":")[0] for o in outcomes if getattr(o, key) == group)
            cells = [verdicts[column] for column in columns]
            print(f"| {group} | {sum(cells)} | " + " | ".join(map(str, cells)) + " |")
    print(f"\n| {name}: refused as | tried |\n|---|---:|")
    for reason, number in Counter(o.reason for o in outcomes if o.verdict == "refused").most_common():
        print(f"| {reason} | {number} |")


def summarise(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the figures of one kind."""
    verdicts = Counter(outcome.verdict.split(":")[0] for outcome in outcomes)
    return {
        "tried": len(outcomes),
        "refused": verdicts["refused"],
        "equal": verdicts["equal"],
        "as_stored": verdicts["as stored"],
        "failures": verdicts["FAILED"],
        "reasons": dict(Counter(o.reason for o in outcomes if o.verdict == "refused").most_common()),
        "longest_s": round(max(outcome.seconds for outcome in outcomes), 2),
    }


def main() -> None:
    """Print tables, then one JSON line; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=(*KINDS, "all"), default="all")
    parser.add_argument("--count", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one number alone")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failing inputs are kept")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, Any] = {"seed": options.seed}
    for name in KINDS if options.kind == "all" else (options.kind,):
        start, outcomes = time.perf_counter(), []
        first, count = (0, options.count) if options.only is None else (options.only, 1)
        keep = options.keep / f"{name}-seed{options.seed}"
        for outcome in run(name, count=count, seed=options.seed, first=first, workers=options.workers, keep=keep):
            outcomes.append(outcome)
            if outcome.verdict.startswith("FAILED") or options.only is not None:
                print(f"{name} {outcome.number}: {outcome.sample}, {outcome.mutation}: {outcome.verdict}")
                print(f"    {outcome.reason}", flush=True)
        print_tables(name, outcomes)
        found[name] = summarise(outcomes) | {"total_s": round(time.perf_counter() - start)}
    print("\n| kind | tried | refused | equal | as stored | failures |\n|---|---:|---:|---:|---:|---:|")
    kinds = [(name, one) for name, one in found.items() if name != "seed"]
    for name, one in kinds:
        columns = ("tried", "refused", "equal", "as_stored", "failures")
        print(f"| {name} | " + " | ".join(f"{one[column]:,}" for column in columns) + " |")
    print(json.dumps(found))
    raise SystemExit(any(one["failures"] for _, one in kinds))


if __name__ == "__main__":
    main()
