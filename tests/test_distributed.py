"""Two processes against one: same losses, same weights, one writer."""

import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing
from scipy import ndimage

from unary.cli.main import main
from unary.datasets.manifest import write_manifest
from unary.detectors.wei2018.learning import TrainingConfig, train_autoencoder
from unary.files import LOCK_FILE
from unary.models.bundle import read_model
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext
from unary.training.distributed import is_first, is_joined, joining_processes, share_batches

# 29 patches in batches of 7: shares of 4 and 3 patches, and at last of 1 and none.
CONFIGS = [TrainingConfig(epochs=3, batch_size=7, compiled=compiled) for compiled in (True, False)]
FIT = ["fit", "--detector", "wei2018", "--epochs", "2", "--batch-size", "20", "--size-px", "64", "--stride-px", "64"]


def train(config, checkpoint=None):
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(29 * 16, 16)), 3)
    pixels = np.clip((0.4 + smooth) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)
    patches = build_patch_set(pixels, grid_origins(pixels.shape, GridConfig(16, 16)), size_px=16)
    network, history = train_autoencoder(patches, config, FitContext(2, checkpoint, progress=False), widths=(2, 4))
    return torch.cat([p.detach().ravel() for p in network.parameters()]), history.losses


def work_in_group(rank, folder, ports):
    """Do what each of two processes does that torchrun started."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    os.environ["MASTER_PORT"] = ports[0]
    with joining_processes():
        assert is_joined()
        assert is_first() == (rank == 0)
        results = [train(config, folder / f"{rank}.{number}.state") for number, config in enumerate(CONFIGS)]
    torch.save(results, folder / f"{rank}.result")
    os.environ["MASTER_PORT"] = ports[1]
    assert main([*FIT, str(folder / "m.csv"), "--out", str(folder / "model"), "--store", str(folder / "store")]) == 0


@pytest.fixture(scope="module")
def group(normals, tmp_path_factory):
    """Return the folder where two processes did their work; starting them takes most of the time."""
    folder = tmp_path_factory.mktemp("group")
    write_manifest(normals, folder / "m.csv")
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = [str(bound.getsockname()[1]) for bound in (one, other)]
    torch.multiprocessing.spawn(work_in_group, (folder, ports), nprocs=2)
    return folder


def test_two_processes_train_as_one(group):
    first, second = (torch.load(group / f"{rank}.result") for rank in (0, 1))
    for config, (weights, losses), (others_weights, others_losses) in zip(CONFIGS, first, second, strict=True):
        expected_weights, expected_losses = train(config)
        assert losses == others_losses == pytest.approx(expected_losses, rel=1e-5)
        assert torch.equal(weights, others_weights)
        assert torch.allclose(weights, expected_weights, rtol=1e-4, atol=1e-5)
    assert [path.name[:9] for path in sorted(group.glob("*.state.*"))] == ["0.0.state", "0.1.state"]


def test_two_processes_fit_the_model_of_one_from_a_store(group, tmp_path):
    assert main([*FIT, str(group / "m.csv"), "--out", str(tmp_path / "model")]) == 0
    one, two = (read_model(folder / "model") for folder in (tmp_path, group))
    assert one.provenance.data_hash == two.provenance.data_hash
    assert one.calibration.scores == pytest.approx(two.calibration.scores, rel=1e-3)
    for mine, theirs in zip(one.calibration.operating_points, two.calibration.operating_points, strict=True):
        assert (mine.name, mine.guaranteed) == (theirs.name, theirs.guaranteed)
        assert mine.threshold == pytest.approx(theirs.threshold, rel=1e-3)
    assert [path.name for path in (group / "store").iterdir() if path.name != LOCK_FILE] == ["prepared.tif"]
    assert not list(group.glob("model.*"))


def test_alone_nothing_changes():
    with joining_processes():
        assert not is_joined()
        assert is_first()

    def learn(which):
        return float(len(which))

    assert share_batches(learn, []) is learn
