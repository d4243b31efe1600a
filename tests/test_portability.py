"""Windows lacks modules, signals and calls of Unix; here they are taken away, as far as a Unix allows."""

import os
import subprocess
import sys

import numpy as np
import pytest

from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom

ABSENT = """
import importlib.abc, os, select, signal, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "grp", "pwd", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for module, names in {
    signal: ("SIGHUP", "SIGALRM", "setitimer", "ITIMER_REAL", "alarm"), select: ("poll", "epoll"),
    os: ("readv", "getpgid", "killpg", "setsid"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""


@pytest.fixture
def run():
    def run(script, *words):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-c", ABSENT + script, *map(str, words)], capture_output=True, text=True, env=env
        )

    return run


def test_every_command_is_there_without_what_is_unix_alone(run):
    script = "import unary; unary.fit, unary.detect, unary.evaluate; from unary.cli.main import main; main(['--help'])"
    answer = run(script)
    assert answer.returncode == 0, answer.stderr
    assert "detect" in answer.stdout


def test_what_reads_images_runs_without_what_is_unix_alone(run, tmp_path):
    image = tmp_path / "image.dcm"
    phantom = build_phantom(PhantomConfig(rows=256, cols=192, spacing_mm=0.15), rng=np.random.default_rng(5))
    write_phantom(phantom, image, image_id="i", patient_id="p")
    script = """
import unary.images.isolation as isolation
isolation._BOOT = sys.argv[2] + "\\nimport sys; sys.path.append(sys.argv[1]); " \\
    "from unary.images.isolation_process import serve; serve(sys.argv[2])"
with isolation.IsolatedReader() as reader:
    print(reader.read(sys.argv[1]).pixels.shape)
"""
    answer = run(script, image, ABSENT)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("(256, 192)")
