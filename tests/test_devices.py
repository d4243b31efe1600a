"""Networks on devices: the device that holds nothing, meta, stands for one that is not here."""

import dataclasses

import numpy as np
import pytest
import torch
from test_detectors import make_view

from unary.cli.main import main
from unary.detectors.blind_spot import BlindSpot, BlindSpotConfig, build_blind_spot
from unary.detectors.denoising import Denoising, DenoisingConfig
from unary.detectors.devices import find_device, place_detector
from unary.detectors.fusion import Fusion
from unary.detectors.laplacian import Laplacian
from unary.detectors.residual import Dssim, DssimConfig
from unary.detectors.segmentation import Segmentation, SegmentationConfig
from unary.detectors.unet import build_unet
from unary.detectors.variational import Variational, VariationalNetwork
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder
from unary.detectors.wei2018.detector import Wei2018
from unary.errors import DetectorError, TrainingError
from unary.models.bundle import read_model
from unary.training import devices
from unary.training.devices import require_device

SIZE_PX = 64


def build_wei2018():
    return Wei2018(network=build_autoencoder(AutoencoderConfig(size_px=SIZE_PX), seed=0))


DETECTORS = {
    "blind_spot": lambda: BlindSpot(network=build_blind_spot(BlindSpotConfig(), seed=0).eval()),
    "segmentation": lambda: Segmentation(network=build_unet(SegmentationConfig().widths, seed=0).eval()),
    "denoising": lambda: Denoising(network=build_unet(DenoisingConfig().widths, seed=0).eval()),
    "variational": lambda: Variational(
        network=VariationalNetwork(AutoencoderConfig(size_px=SIZE_PX, bottleneck=16), seed=0).eval()
    ),
    "wei2018": build_wei2018,
    "residual_dssim": lambda: Dssim(DssimConfig(), build_wei2018()),
}


@pytest.fixture
def fetched(monkeypatch):
    """Let what comes back from a device that holds nothing be ones, and list its shapes."""
    shapes, real = [], torch.Tensor.cpu

    def fetch(tensor):
        if not tensor.is_meta:
            return real(tensor)
        shapes.append(tuple(tensor.shape))
        return torch.ones(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "cpu", fetch)
    return shapes


def find_network(detector):
    return detector.reconstruction.network if isinstance(detector, Dssim) else detector.network


@pytest.mark.parametrize("name", DETECTORS)
def test_inputs_go_where_a_network_is_and_answers_come_back(name, fetched):
    detector = DETECTORS[name]()
    view, origins = make_view(2, (160, 140)), np.array([[0, 0], [40, 30]], np.int32)
    before = detector.examine(view, origins, size_px=SIZE_PX)
    assert not fetched
    away = place_detector(detector, "meta")
    assert (find_device(find_network(detector)).type, find_device(find_network(away)).type) == ("cpu", "meta")
    there = away.examine(view, origins, size_px=SIZE_PX)
    assert fetched, "the network was applied there"
    assert there.scores.shape == before.scores.shape
    assert there.anomaly_map.shape == before.anomaly_map.shape
    assert not np.array_equal(there.scores, before.scores)
    again = place_detector(detector, "cpu").examine(view, origins, size_px=SIZE_PX)
    assert np.array_equal(again.scores, before.scores)
    assert np.array_equal(again.anomaly_map, before.anomaly_map, equal_nan=True)


def test_a_fusion_places_the_parts_that_have_networks(fetched):
    parts = [BlindSpot(network=build_blind_spot(BlindSpotConfig(), seed=0).eval()), Laplacian()]

    @dataclasses.dataclass(frozen=True)
    class Part:
        name: str
        detector: object

    @dataclasses.dataclass(frozen=True)
    class Parts:
        members: tuple[Part, ...]

        def __iter__(self):
            return iter(self.members)

    fusion = Fusion(parts=Parts(tuple(Part(str(number), part) for number, part in enumerate(parts))))
    placed = place_detector(fusion, "meta").parts.members
    assert find_device(placed[0].detector.network).type == "meta"
    assert placed[1].detector is parts[1]
    with pytest.raises(DetectorError, match="no part of the fusion has a network that cuda could apply"):
        place_detector(Fusion(parts=Parts((Part("1", Laplacian()),))), "cuda")
    with pytest.raises(DetectorError, match="fusion has not been fitted"):
        place_detector(Fusion(), "cuda")


@pytest.fixture
def without_gpu(monkeypatch):
    real = torch.zeros

    def refuse(*shape, device="cpu", **options):
        if str(device).startswith("cuda"):
            raise AssertionError("Torch not compiled with CUDA enabled")
        return real(*shape, device=device, **options)

    monkeypatch.setattr(torch, "zeros", refuse)


def test_a_device_that_is_not_there_is_refused_at_once(without_gpu, model_folder, tmp_path, capsys):
    with pytest.raises(TrainingError, match=r"device: torch cannot use 'cuda' here .Torch not compiled"):
        require_device("cuda")
    with pytest.raises(TrainingError, match="'meta'"):
        require_device("meta")
    with pytest.raises(TrainingError, match="'cuda:7'"):
        read_model(tmp_path / "no model", device="cuda:7")
    given = {
        "detect": [str(model_folder), "no.dcm", "--out", str(tmp_path / "out")],
        "score": [str(model_folder), "no.dcm", "--out", str(tmp_path / "out")],
        "evaluate": [str(model_folder), "no.csv", "--out", str(tmp_path / "out")],
        "calibrate": [str(model_folder), "no.csv"],
        "fit": ["no.csv", "--out", str(tmp_path / "model")],
    }
    for command, arguments in given.items():
        assert main([command, *arguments, "--device", "cuda:1"]) == 2
        assert "device: torch cannot use 'cuda:1' here" in capsys.readouterr().err
        assert main([command, *arguments, "--device", "gpu"]) == 2
        assert "torch's notation" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_every_learned_detector_takes_a_device_where_it_is_fitted(without_gpu, tmp_path, capsys):
    for name in (*DETECTORS, "residual", "fusion", "fusion_prior"):
        assert main(["fit", "no.csv", "--out", str(tmp_path / "m"), "--detector", name, "--device", "cuda"]) == 2
        assert "--device: torch cannot use 'cuda' here" in capsys.readouterr().err
    assert main(["fit", "no.csv", "--out", str(tmp_path / "m"), "--detector", "laplacian", "--device", "cuda"]) == 2
    assert "--device is no option of laplacian" in capsys.readouterr().err


def test_a_model_without_networks_names_itself(model_folder, monkeypatch):
    monkeypatch.setattr(devices, "require_device", lambda *_: None)
    monkeypatch.setattr("unary.models.bundle.require_device", lambda *_: None)
    with pytest.raises(DetectorError, match="laplacian has no network that cuda could apply"):
        read_model(model_folder, device="cuda")
    assert read_model(model_folder, device="cpu").name == "laplacian"
