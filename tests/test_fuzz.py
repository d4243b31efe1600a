"""Small runs of ``benchmarks/fuzz.py``, and the second readers that it trusts."""

from pathlib import Path

import numpy as np
import pytest

from unary.errors import REASONS

COUNTS = {"dicom": 300, "png": 250, "tiff": 200, "pgm": 300, "manifest": 300}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture
def build(tmp_path):
    """Return what makes a kind, with its samples in a folder of its own."""
    from fuzz import build_kind

    kinds = []

    def build_one(name):
        folder = tmp_path / "shared"
        folder.mkdir()
        kinds.append(build_kind(name, folder))
        return kinds[-1]

    yield build_one
    for kind in kinds:
        if hasattr(kind, "reader"):
            kind.reader.close()


@pytest.mark.parametrize("name", COUNTS)
def test_no_damaged_input_crashes_hangs_or_passes_for_another(name, build, tmp_path, capsys):
    from fuzz import print_tables, summarise, try_case

    kind = build(name)
    outcomes = [try_case(kind, 2018, number, tmp_path, None) for number in range(COUNTS[name])]
    assert [outcome for outcome in outcomes if outcome.verdict.startswith("FAILED")] == []
    assert {outcome.verdict for outcome in outcomes} == {"refused", "equal", "as stored"}
    if name != "manifest":
        assert {outcome.reason for outcome in outcomes if outcome.verdict == "refused"} <= set(REASONS)
    assert summarise(outcomes)["tried"] == COUNTS[name]
    print_tables(name, outcomes)
    assert f"| {name}: refused as | tried |" in capsys.readouterr().out


@pytest.mark.parametrize("name", COUNTS)
def test_a_case_depends_on_seed_and_number_alone(name, build):
    kind = build(name)
    for number in range(0, 230, 7):
        first, again, other = (kind.build_case(seed, number) for seed in (1, 1, 2))
        assert first.files == again.files
        assert first.files != other.files or name == "dicom"


@pytest.mark.parametrize("name", ["png", "tiff", "pgm"])
def test_an_oracle_reads_what_the_generator_writes_and_refuses_what_is_cut(name):
    from importlib import import_module

    module = import_module(f"fuzz_{name}")
    kind = {"png": "PngKind", "tiff": "TiffKind", "pgm": "PgmKind"}[name]
    made = getattr(module, kind)(None)
    whole = [
        case
        for case in (made.build_case(7, number) for number in range(160))
        if case.mutation.startswith("another enc")
    ]
    assert len(whole) > 20
    for case in whole:
        [content] = case.files.values()
        if case.right is None:
            with pytest.raises(ValueError):
                module.read_strictly(content)
            continue
        found = module.read_strictly(content)
        assert np.array_equal(found.pixels, case.right.pixels)
        assert found.maximum == case.right.maximum
        with pytest.raises(ValueError):
            module.read_strictly(content[: len(content) // 3])


def test_the_second_reader_of_dicom_is_strict(build):
    from fuzz_dicom_oracle import read_strictly

    for sample in build("dicom").samples:
        assert np.array_equal(read_strictly(sample.content), sample.pixels)
        for damaged in (sample.content[:-1], sample.content + b"\1\2", sample.content[:4000]):
            with pytest.raises(ValueError):
                read_strictly(damaged)


class Forgiving:
    """A reader that takes everything, and gives an image of its own."""

    def read(self, path):
        return type("Image", (), {"pixels": np.ones((96, 80), np.uint16), "value_range": (0.0, 65535.0)})

    def close(self):
        pass


@pytest.mark.parametrize("name", ["dicom", "png", "tiff", "pgm"])
def test_a_forgiving_reader_would_be_caught(name, build, tmp_path):
    kind = build(name)
    kind.reader.close()
    kind.reader = Forgiving()
    verdicts = {kind.judge(kind.build_case(3, number), tmp_path)[0] for number in range(80)}
    assert verdicts <= {"FAILED: second reader refuses", "FAILED: shapes differ", "FAILED: pixels differ"}
    assert {"FAILED: second reader refuses", "FAILED: shapes differ"} & verdicts


def test_a_forgiving_manifest_would_be_caught(build, tmp_path, monkeypatch):
    import fuzz_manifest

    from unary.records import Manifest

    kind = build("manifest")
    monkeypatch.setattr(fuzz_manifest, "read_manifest", lambda path: Manifest(()))
    verdicts = {kind.judge(kind.build_case(3, number), tmp_path)[0] for number in range(80)}
    assert verdicts == {"FAILED: second reader refuses", "FAILED: rows differ"}


def test_a_worker_that_ends_or_stalls_is_counted_and_replaced(monkeypatch, tmp_path):
    import fuzz

    monkeypatch.setattr(fuzz, "TIMEOUT_S", 2.0)
    outcomes = list(fuzz.run("breaking", count=40, seed=0, workers=1))
    assert sorted(outcome.number for outcome in outcomes) == list(range(40))
    verdicts = {outcome.number: outcome.verdict for outcome in outcomes if outcome.verdict != "equal"}
    assert verdicts == {3: "FAILED: CRASH of the worker", 7: "FAILED: HANG", 11: "FAILED: ZeroDivisionError"}
