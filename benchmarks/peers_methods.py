"""The peers, each by its own package with its own defaults: one function per family, which imports what it needs.

A method takes a `Task` and returns a fitted thing's scores through `Clock`, so that learning and scoring are timed
alike. Nothing of unary is imported but by `run_unary`: the peers live in an environment of their own.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers_features import measure_patches

SKLEARN = ("isolation_forest", "one_class_svm", "local_outlier_factor")
PYOD = ("ecod", "knn", "pyod_autoencoder")
TORCH = ("torch_autoencoder",)
ANOMALIB = ("padim", "patchcore", "fastflow", "ganomaly", "padim_256")
EXTRA = ("padim_256",)
"""Run only when named, for what they take."""
ENDLESS = ("fastflow", "ganomaly")
"""Learn for as long as they are let."""
PEERS = (*SKLEARN, *PYOD, *TORCH, *ANOMALIB)
ALONE = "_alone"
"""Ends the name of a detector of unary that is shown each patch as an image of its own, as the peers are."""

_OPERATORS = (
    *("nms", "qnms", "deform_conv2d", "_deform_conv2d_backward", "qroi_align"),
    *(f"{prefix}{name}" for name in ("roi_align", "roi_pool") for prefix in ("", "ps_")),
    *(f"_{prefix}{name}_backward" for name in ("roi_align", "roi_pool") for prefix in ("", "ps_")),
)


@dataclass(frozen=True)
class Task:
    """One division of one data set, as `peers_data` has written it: a folder, the seed, and whether pictures align.

    ``limit_s`` is how much processor time a method without an end of its own has to learn.
    """

    folder: Path
    aligned: bool
    seed: int
    limit_s: float

    def read(self, part: str) -> NDArray[np.uint16]:
        """Return the patches of ``"train"`` or ``"test"``, shape (n, side, side)."""
        found: NDArray[np.uint16] = np.load(self.folder / f"{part}.npy")
        return found


class Clock:
    """Adds up the processor time, in seconds, that is spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count what is done inside for a stage."""
        start = time.process_time()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - start


def run_method(name: str, task: Task, clock: Clock) -> tuple[NDArray[np.float64], str]:
    """Fit a method on the task's normals and return the scores of its test patches, and a note about the learning."""
    families: list[tuple[tuple[str, ...], Callable[..., Any]]] = [
        (SKLEARN, run_features),
        (PYOD, run_features),
        (ANOMALIB, run_anomalib),
        (TORCH, run_torch),
    ]
    run = next((run for names, run in families if name in names), run_unary)
    scores, note = run(name, task, clock)
    return np.asarray(scores, np.float64).reshape(-1), note


def run_features(name: str, task: Task, clock: Clock) -> tuple[Any, str]:
    """Detectors of scikit-learn and PyOD on standardised features."""
    from sklearn.preprocessing import StandardScaler

    detector, higher_is_normal = build_sklearn(name, task.seed) if name in SKLEARN else build_pyod(name, task.seed)
    with clock.measure("fit"):
        features = measure_patches(task.read("train"), aligned=task.aligned)
        scaler = StandardScaler().fit(features)
        detector.fit(scaler.transform(features))
    with clock.measure("score"):
        tested = scaler.transform(measure_patches(task.read("test"), aligned=task.aligned))
        scores = detector.score_samples(tested) if higher_is_normal else detector.decision_function(tested)
    return (-scores if higher_is_normal else scores), f"{features.shape[1]} features"


def build_sklearn(name: str, seed: int) -> tuple[Any, bool]:
    """Return a detector with its defaults, and that a higher score is more normal."""
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import LocalOutlierFactor
    from sklearn.svm import OneClassSVM

    if name == "isolation_forest":
        return IsolationForest(random_state=seed), True
    return (OneClassSVM() if name == "one_class_svm" else LocalOutlierFactor(novelty=True)), True


def build_pyod(name: str, seed: int) -> tuple[Any, bool]:
    """Return a detector with its defaults, and that a higher score is more abnormal."""
    if name == "ecod":
        from pyod.models.ecod import ECOD

        return ECOD(), False
    if name == "knn":
        from pyod.models.knn import KNN

        return KNN(), False
    from pyod.models.auto_encoder import AutoEncoder

    return AutoEncoder(random_state=seed, verbose=0), False


def run_torch(name: str, task: Task, clock: Clock) -> tuple[Any, str]:
    """The tutorial's autoencoder."""
    import torch
    from peers_autoencoder import fit_autoencoder, score_autoencoder

    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    with clock.measure("fit"):
        model = fit_autoencoder(torch.from_numpy(task.read("train").astype(np.float32) / 65535)[:, None])
    with clock.measure("score"):
        scores = score_autoencoder(model, torch.from_numpy(task.read("test").astype(np.float32) / 65535)[:, None])
    return scores.numpy(), "20 epochs"


def stand_in_for_operators() -> None:
    """Let torchvision import where its compiled operators fit another build of torch.

    It only declares the names of operators for detection and cropping, which no model here calls; calling one is an
    error. With torch and torchvision of one build nothing is done.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _OPERATORS:
            library.define(f"{name}(Tensor boxes) -> Tensor")
        globals()["_kept"] = library


def run_anomalib(name: str, task: Task, clock: Clock) -> tuple[Any, str]:
    """A model of anomalib with random first weights, by its Engine; scores before its normalisation, which clips."""
    import torch

    torch.set_num_threads(1)
    stand_in_for_operators()
    warnings.filterwarnings("ignore")
    from anomalib.engine import Engine
    from lightning.pytorch import seed_everything

    seed_everything(task.seed, verbose=False)
    logging.disable(logging.WARNING)
    model, side = build_anomalib(name, task)
    timer = build_timer(task.limit_s)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"accelerator": "cpu", "devices": 1, "default_root_dir": folder, "enable_progress_bar": False}
        engine = Engine(callbacks=[timer], logger=False, enable_model_summary=False, **quiet)
        with clock.measure("fit"):
            engine.fit(model, train_dataloaders=load_anomalib(task.read("train"), drop_last=name == "ganomaly"))
        with clock.measure("score"):
            found = engine.predict(model, dataloaders=load_anomalib(task.read("test"), shuffle=False))
    scores = torch.cat([batch.pred_score.reshape(-1) for batch in found]).float().numpy()
    return scores, f"{side} x {side}, {timer.describe()}"


def build_anomalib(name: str, task: Task) -> tuple[Any, int]:
    """Return a model and the side of the pictures that it sees: the patch's own, or anomalib's default of 256."""
    from anomalib import models

    kind = {"padim": "Padim", "patchcore": "Patchcore", "fastflow": "Fastflow", "ganomaly": "Ganomaly"}
    found = getattr(models, kind[name.removesuffix("_256")])
    settings: dict[str, Any] = {} if name == "ganomaly" else {"pre_trained": False}
    side = 256
    if not name.endswith("_256"):
        side = int(np.load(task.folder / "test.npy", mmap_mode="r").shape[-1])
        side = min(side, 64) if name == "patchcore" else side  # its time grows with the fourth power of the side
        settings["pre_processor"] = found.configure_pre_processor(image_size=(side, side))
    return found(**settings, post_processor=False, evaluator=False, visualizer=False), side


def load_anomalib(patches: NDArray[np.uint16], *, shuffle: bool = True, drop_last: bool = False) -> Any:
    """Return batches of 32, anomalib's default, of pictures in [0, 1] with three equal channels."""
    import torch
    from anomalib.data import ImageBatch, ImageItem
    from torch.utils.data import DataLoader

    pictures = torch.from_numpy(patches.astype(np.float32) / 65535)
    items = [ImageItem(image=one.expand(3, -1, -1).clone(), gt_label=torch.tensor(0)) for one in pictures]
    return DataLoader(items, batch_size=32, shuffle=shuffle, drop_last=drop_last, collate_fn=ImageBatch.collate)


def build_timer(limit_s: float) -> Any:
    """Return a callback that ends learning after so much processor time, and tells how far it came."""
    from lightning.pytorch import Callback

    class Timer(Callback):
        start, steps, batches = 0.0, 0, 1

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.start, self.batches = time.process_time(), trainer.num_training_batches

        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            self.steps += 1
            if trainer.max_epochs != 1 and time.process_time() - self.start > limit_s:
                trainer.should_stop = True

        def describe(self) -> str:
            return f"{self.steps / self.batches:.1f} epochs"

    return Timer()


def run_unary(name: str, task: Task, clock: Clock) -> tuple[Any, str]:
    """A detector of unary with its defaults, on the same patches: inside their images, or each alone; or pictures."""
    import torch

    from unary.detectors import find_detector_class
    from unary.detectors.scoring import score_patches
    from unary.training.context import FitContext

    torch.set_num_threads(1)
    if task.aligned:
        return run_unary_on_pictures(name, task, clock)
    detector = find_detector_class(name.removesuffix(ALONE))()
    grid = "alone" if name.endswith(ALONE) else detector.grid
    train, test = pickle.loads((task.folder / f"{grid}.pickle").read_bytes())
    with clock.measure("fit"):
        detector = detector.fit(train, FitContext(task.seed, progress=False))
    with clock.measure("score"):
        scores = score_patches(detector, test)
    return scores, f"{train.size_px} x {train.size_px}"


def run_unary_on_pictures(name: str, task: Task, clock: Clock) -> tuple[Any, str]:
    """A detector of unary on whole pictures, as `unary reproduce brainmri` runs and scores it."""
    from unary.detectors import find_detector_class
    from unary.experiments.bench_cells import complete_model
    from unary.experiments.contenders import Contender
    from unary.experiments.image_level import list_rows
    from unary.experiments.image_level_cells import PictureRow
    from unary.models.examination import examine_image
    from unary.patches.collection import collect_patches, read_row
    from unary.profiles import find_profile
    from unary.records import Manifest
    from unary.training.context import FitContext

    profile = find_profile("general")
    listed = {row.name: row for row in list_rows(profile)}
    row = listed[name] if name in listed else PictureRow(Contender(name, find_detector_class(name)()))
    train, test = pickle.loads((task.folder / "pictures.pickle").read_bytes())
    layout = row.choose_layout(tuple(train), profile)
    with clock.measure("fit"):
        part = collect_patches(Manifest(tuple(train)), *layout, profile.reading, progress=False)
        everything = np.arange(len(part))
        detector = row.contender.detector.fit(part.patches, FitContext(task.seed, progress=False))
        model = complete_model(detector, part, everything, profile=profile, layout=layout, progress=False)
    with clock.measure("score"):
        found = [examine_image(model, read_row(picture)) for picture in test]
    scores = [one.image_score if row.side_px is None else one.scores.max() for one in found]
    side = layout[0].working_size_px or int(task.read("test").shape[-1])
    return scores, f"{side} x {side}"
