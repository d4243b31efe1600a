import numpy as np
import pytest

from unary.detectors.dense_laplacian import DenseLaplacian, DenseLaplacianConfig, Scale, measure_responses
from unary.detectors.protocol import View
from unary.errors import TrainingError
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext

CONFIG = DenseLaplacianConfig()


def make_tissue(seed, shape=(256, 192)):
    """Noisy tissue on the left three quarters, nothing on the right."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros(shape, np.uint16)
    width = shape[1] * 3 // 4
    pixels[:, :width] = np.clip(rng.normal(26000, 800, (shape[0], width)), 1, 65535)
    return pixels


def test_it_answers_to_a_speck_of_either_width():
    pixels = make_tissue(3)
    pixels[100:102, 60:62] += 9000
    pixels[180:186, 90:96] += 6000
    detector = DenseLaplacian(CONFIG, (Scale(0.0, 1.0),) * 4)
    answer = detector.examine(View(pixels, pixels > 0), np.zeros((0, 2), np.int32), size_px=64).anomaly_map
    strongest = {tuple(place) for place in np.argwhere(answer > 0.8 * answer[182, 92])}
    assert answer[100:102, 60:62].max() > 3
    assert any(180 <= row < 186 and 90 <= col < 96 for row, col in strongest)


def test_fitting_measures_the_strongest_answers_of_normal_patches():
    images = tuple(make_tissue(seed) for seed in range(3))
    index = np.array([[image, row, 20] for image in range(3) for row in (0, 60, 150)], np.int32)
    fitted = DenseLaplacian().fit(PatchSet(images, index, 64), FitContext(progress=False))
    assert len(fitted.scales) == 4
    for number, scale in enumerate(fitted.scales):
        pooled = []
        for image, row, col in index.tolist():
            response = measure_responses(View(images[image], images[image] > 0).tissue, CONFIG)[number]
            pooled.append(np.sort(response[row : row + 64, col : col + 64].ravel())[-2:].mean())
        assert scale.mean == pytest.approx(np.mean(pooled), rel=1e-5)
        assert scale.deviation == pytest.approx(np.std(pooled), rel=1e-4)


def test_blank_images_and_too_few_patches_are_named():
    blank = np.full((128, 128), 20000, np.uint16)
    with pytest.raises(TrainingError, match="at least two"):
        DenseLaplacian().fit(PatchSet((blank,), np.array([[0, 0, 0]], np.int32), 64), FitContext())
    with pytest.raises(TrainingError, match="blank"):
        DenseLaplacian().fit(PatchSet((blank,), np.array([[0, 0, 0], [0, 0, 0]], np.int32), 64), FitContext())


@pytest.mark.parametrize("wrong", [{"sigmas_px": ()}, {"sigmas_px": (0.0,)}, {"neighbourhood_px": float("nan")}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="sigmas_px"):
        DenseLaplacianConfig(**wrong)
