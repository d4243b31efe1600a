import logging
import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import unary
from unary.detectors.native import compiler
from unary.detectors.native.compiler import load_library
from unary.detectors.wei2018.learning import TrainingConfig, train_autoencoder
from unary.errors import CompilerError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext

ROOT = Path(__file__).parents[1]
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="there is no C compiler"
)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@pytest.fixture
def train():
    """Return a short training of a network that the C source supports."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(480, 16)), 3)
    pixels = np.clip((0.4 + smooth) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)
    patches = build_patch_set(pixels, grid_origins(pixels.shape, GridConfig(16, 16)), size_px=16)

    def train(**settings):
        training = TrainingConfig(epochs=3, batch_size=10, **settings)
        return train_autoencoder(patches, training, FitContext(progress=False), widths=(2, 4))[1]

    return train


def write_command(folder, name, text):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@needs_compiler
def test_a_source_is_compiled_once_and_again_when_it_changes(source, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    assert load_library(source, cache=cache).answer() == 42
    (kept,) = cache.iterdir()
    written = kept.stat().st_mtime_ns
    assert load_library(source, cache=cache).answer() == 42
    assert kept.stat().st_mtime_ns == written
    header = source.with_suffix(".h")
    header.write_text("#define ANSWER 43\n")
    source.write_text('#include "answer.h"\nint answer(void) { return ANSWER; }\n')
    assert load_library(source, cache=cache).answer() == 43
    header.write_text("#define ANSWER 44\n")
    assert load_library(source, cache=cache).answer() == 44
    assert len(list(cache.iterdir())) == 3


@needs_compiler
def test_the_cache_is_where_the_user_has_it(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_library(source)
    assert [path.suffix for path in (tmp_path / "xdg" / "unary").iterdir()] == [".so"]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_library(source)
    assert len(list((tmp_path / "home" / ".cache" / "unary").iterdir())) == 1


@needs_compiler
def test_a_damaged_library_is_replaced_the_next_time(source, tmp_path):
    load_library(source, cache=tmp_path / "sound")
    (sound,) = (tmp_path / "sound").iterdir()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / sound.name).write_bytes(sound.read_bytes()[:100])
    with pytest.raises(CompilerError, match="cannot be loaded"):
        load_library(source, cache=cache)
    assert load_library(source, cache=cache).answer() == 42


@needs_compiler
def test_a_failing_compiler_leaves_nothing_and_its_first_word(source, tmp_path):
    source.write_text("this is no C\n")
    cache = tmp_path / "cache"
    with pytest.raises(CompilerError, match=r"exit status 1: .*error"):
        load_library(source, cache=cache)
    assert not list(cache.iterdir())


@needs_compiler
def test_a_cache_that_cannot_be_written_is_an_error(source, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CompilerError, match="cannot be kept"):
        load_library(source, cache=tmp_path / "file" / "cache")


def test_without_a_compiler_training_says_so_and_goes_on(train, tmp_path, monkeypatch, caplog):
    reference = train(compiled=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert train(compiled=True) == reference
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "several times slower" in record.getMessage()
    assert "no C compiler was found" in record.getMessage()


@pytest.mark.skipif(os.name != "posix", reason="a shell script plays the compiler")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'cc1: out of memory' >&2; exit 4", "exit status 4: cc1: out of memory"),
        ('case "$*" in *-dM*) echo "#define A 1";; *) echo "no space left" >&2; exit 1;; esac', "no space left"),
        (
            'case "$*" in *-dM*) exit 0;; esac; while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"',
            "cannot be loaded",
        ),
    ],
)
def test_with_a_broken_compiler_too(script, said, train, tmp_path, monkeypatch, caplog):
    reference = train(compiled=False)
    write_command(tmp_path / "bin", "cc", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert train(compiled=True) == reference
    assert said in caplog.text


def test_switched_off_it_is_not_even_looked_for(train, monkeypatch):
    def refuse(_name):
        raise AssertionError

    monkeypatch.setattr(compiler.shutil, "which", refuse)
    train(compiled=False)


def test_the_source_is_part_of_what_is_installed():
    package = Path(unary.__file__).parent
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["unary"]
    texts = [path for path in (package / "detectors" / "native").iterdir() if path.suffix in (".c", ".h")]
    assert len(texts) == 4
    for text in texts:
        assert any(text.relative_to(package).match(pattern) for pattern in patterns)
