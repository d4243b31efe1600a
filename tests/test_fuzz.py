"""Small runs of ``benchmarks/fuzz.py``, and the second readers that it trusts."""

from pathlib import Path

import numpy as np
import pytest

from unary.errors import REASONS
from unary.records import Image

COUNTS = {"dicom": 230, "png": 150, "tiff": 120, "pgm": 200, "manifest": 150, "model": 40}


class Kinds(dict):
    """Every kind, made when it is asked for, with its samples in a folder of its own; of models the quickest alone."""

    def __init__(self, folder):
        self.folder = folder

    def __missing__(self, name):
        from fuzz import build_kind
        from fuzz_model import ModelKind

        (self.folder / name).mkdir()
        own = self.folder / name
        self[name] = ModelKind(own, ("laplacian", "laplacian")) if name == "model" else build_kind(name, own)
        return self[name]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNARY_PATIENT_KEY", "")  # which models are given, and put back
        found = Kinds(tmp_path_factory.mktemp("fuzz"))
        yield found
    for kind in found.values():
        if hasattr(kind, "reader"):
            kind.reader.close()


@pytest.fixture(autouse=True)
def benchmarks(kinds, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")


@pytest.mark.parametrize("name", COUNTS)
def test_no_damaged_input_crashes_hangs_or_passes_for_another(name, kinds, tmp_path, capsys):
    from fuzz import print_tables, summarise, try_case

    kind = kinds[name]
    outcomes = [try_case(kind, 2018, number, tmp_path, None) for number in range(COUNTS[name])]
    assert [outcome for outcome in outcomes if outcome.verdict.startswith("FAILED")] == []
    assert {outcome.verdict for outcome in outcomes} == {"refused", "equal", "as stored"}
    if name not in ("manifest", "model"):
        assert {outcome.reason for outcome in outcomes if outcome.verdict == "refused"} <= set(REASONS)
    assert summarise(outcomes)["tried"] == COUNTS[name]
    print_tables(name, outcomes)
    assert f"| {name}: refused as | tried |" in capsys.readouterr().out


@pytest.mark.parametrize("name", COUNTS)
def test_a_case_depends_on_seed_and_number_alone(name, kinds):
    kind = kinds[name]
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


def test_the_second_reader_of_dicom_is_strict(kinds):
    from fuzz_dicom_oracle import read_strictly

    for sample in kinds["dicom"].samples:
        assert np.array_equal(read_strictly(sample.content), sample.pixels)
        for damaged in (sample.content[:-1], sample.content + b"\1\2", sample.content[:4000]):
            with pytest.raises(ValueError):
                read_strictly(damaged)


class Forgiving:
    """A reader that takes everything, and gives an image of its own."""

    def read(self, path):
        return Image(np.ones((96, 80), np.uint16), (0.0, 65535.0))


@pytest.mark.parametrize("name", ["dicom", "png", "tiff", "pgm"])
def test_a_forgiving_reader_would_be_caught(name, kinds, tmp_path, monkeypatch):
    kind = kinds[name]
    monkeypatch.setattr(kind, "reader", Forgiving())
    verdicts = {kind.judge(kind.build_case(3, number), tmp_path)[0] for number in range(80)}
    assert verdicts <= {"FAILED: second reader refuses", "FAILED: shapes differ", "FAILED: pixels differ"}
    assert {"FAILED: second reader refuses", "FAILED: shapes differ"} & verdicts


def test_a_forgiving_manifest_would_be_caught(kinds, tmp_path, monkeypatch):
    import fuzz_manifest

    from unary.records import Manifest

    kind = kinds["manifest"]
    monkeypatch.setattr(fuzz_manifest, "read_manifest", lambda path: Manifest(()))
    verdicts = {kind.judge(kind.build_case(3, number), tmp_path)[0] for number in range(80)}
    assert verdicts == {"FAILED: second reader refuses", "FAILED: rows differ"}


def test_a_forgiving_model_would_be_caught(kinds, tmp_path, monkeypatch):
    from dataclasses import replace

    import unary.models.bundle
    from unary.models.bundle import read_model

    kind = kinds["model"]
    for name, content in kind.samples[0].files.items():
        (tmp_path / name).write_bytes(content)
    whole = read_model(tmp_path)
    monkeypatch.setattr(unary.models.bundle, "read_model", lambda folder: replace(whole, level=1e9, calibration=None))
    verdicts = {kind.judge(kind.build_case(3, number), tmp_path)[0] for number in range(40)}
    assert verdicts == {"FAILED: another model under old hashes", "FAILED: quietly finds nothing"}


def test_a_worker_that_ends_or_stalls_is_counted_and_replaced(monkeypatch, tmp_path):
    import fuzz

    monkeypatch.setattr(fuzz, "TIMEOUT_S", 2.0)
    outcomes = list(fuzz.run("breaking", count=40, seed=0, workers=1))
    assert sorted(outcome.number for outcome in outcomes) == list(range(40))
    verdicts = {outcome.number: outcome.verdict for outcome in outcomes if outcome.verdict != "equal"}
    assert verdicts == {3: "FAILED: CRASH of the worker", 7: "FAILED: HANG", 11: "FAILED: ZeroDivisionError"}
