"""A small run of ``benchmarks/fuzz.py``, and the second reader that it trusts."""

from pathlib import Path

import numpy as np
import pytest

from unary.errors import REASONS

COUNT = 300


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import fuzz

    return fuzz


def test_no_damaged_file_crashes_hangs_or_passes_for_another_image(fuzz, tmp_path, capsys):
    outcomes = fuzz.run(tmp_path, count=COUNT, seed=2018)
    assert len(outcomes) == COUNT
    assert [outcome for outcome in outcomes if outcome.verdict.startswith("WRONG")] == []
    assert {outcome.reason for outcome in outcomes if outcome.verdict == "refused"} <= set(REASONS)
    assert max(outcome.seconds for outcome in outcomes) < fuzz.LIMITS.timeout_s + 5
    verdicts = {outcome.verdict for outcome in outcomes}
    assert verdicts == {"refused", "equal", "as stored"}
    assert len({outcome.mutation for outcome in outcomes}) == len(fuzz.MUTATIONS)
    fuzz.print_table(outcomes)
    assert "| CORRUPT_PIXELS |" in capsys.readouterr().out


def test_a_mutation_depends_on_seed_and_number_alone(fuzz, tmp_path):
    samples = fuzz.write_samples(tmp_path)
    for number in range(0, 230, 7):
        first = fuzz.mutate(samples, seed=1, number=number)[2]
        assert first == fuzz.mutate(samples, seed=1, number=number)[2]


def test_the_second_reader_is_strict(fuzz, tmp_path):
    from fuzz_oracle import read_strictly

    for sample in fuzz.write_samples(tmp_path):
        assert np.array_equal(read_strictly(sample.content), sample.pixels)
        for damaged in (sample.content[:-1], sample.content + b"\1\2", sample.content[:4000]):
            with pytest.raises(ValueError):
                read_strictly(damaged)


def test_a_forgiving_reader_would_be_caught(fuzz, tmp_path):
    class Forgiving:
        def read(self, path):
            return type("Image", (), {"pixels": np.ones((96, 80), np.uint16)})

    [sample] = [sample for sample in fuzz.write_samples(tmp_path) if sample.name == "jpeglossless"]
    half = sample.content[: len(sample.content) // 2]
    verdict, _ = fuzz.judge(Forgiving(), sample, half, tmp_path / "half.dcm")
    assert verdict == "WRONG: second reader refuses"
