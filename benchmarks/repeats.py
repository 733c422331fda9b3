"""The report's small trainings, and repeats of them in fresh processes: what another processor is compared by.

runs = in_own_process(fingerprints, True)         # Dice and digest of the weights, for each of SEEDS
"""

import hashlib
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

import unet_segmentation as unet
from benchmarks import scores as runs_of_scores
from lab import command_line, experiment
from lab.evaluate import scoring
from lab.model import training
from lab.system import backend
from lab.track import tracking

EXPERIMENT = "Lab_Report"
SEEDS = (0, 1, 2)


# Small images, so that a laptop does it all within the hour; float32, so that every machine computes the same. Stated
# here, not left to the script's defaults, so that the recorded cells mean what they meant.
SMALL = (
    "--size 64 --train-size 64 --train-images 128 --precision float32 --val-images 32 --test-images 200 "
    "--batch-size 4 --learning-rate 3e-3"
)


def trained(name: str, seed: int, flags: str, skips: bool | str = True):
    """Train one U-Net as `unet_segmentation.py FLAGS --seed SEED` would, tracked; `skips` as in `build_unet`.

    Returns the test masks and probabilities (N, H, W, 1), the history, the test scores and the seconds of training.
    """
    args = unet.parse_args([*SMALL.split(), *flags.split(), "--seed", str(seed)])
    backend.start(args.precision, args.deterministic, args.seed)
    model = unet.build_unet((args.size, args.size, 1), args.filters, skips=skips)
    source = unet.circles(args)
    images, masks = source.test
    settings = command_line.training_settings(args)
    with tracking.tracked_run(EXPERIMENT, run_name=f"{name}, seed {seed}", params=settings) as run:
        started = time.perf_counter()
        history = experiment.train(model, source, args, on_epoch_end=run.metrics)
        seconds = time.perf_counter() - started
        probs = training.predict(model, images)
        scores, _ = scoring.score(masks, probs)
        run.metrics({f"test_{key}": value for key, value in scores.items()})
    return masks, probs, history, scores, seconds, model


def in_own_process(function, *arguments):
    """The result of a module-level function, called in a fresh Python process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def fingerprints(deterministic: bool) -> list[dict]:
    """Dice and the SHA-256 of the trained weights, for each seed."""
    flags = "--radius 4 12 --filters 8 --epochs 3 --train-images 64" + " --deterministic" * deterministic
    found = []
    for seed in SEEDS:
        *_, scores, _, model = trained(f"E8, {'deterministic' if deterministic else 'default'}", seed, flags)
        found.append({"dice": scores["image_dice"], "weights": digest(model)})
    return found


def digest(model) -> str:
    """SHA-256 of a network's weights."""
    return hashlib.sha256(
        b"".join(np.ascontiguousarray(weight).tobytes() for weight in model.get_weights())
    ).hexdigest()


def full() -> dict:
    """The default training twice, in fresh processes, with deterministic operations."""
    import keras

    found = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            run = runs_of_scores.train(["--deterministic"], Path(folder))
            model = keras.models.load_model(Path(folder) / "out" / "model.keras", compile=False)
        found.append({"dice": run["test"]["image_dice"], "weights": digest(model), "seconds": run["training_seconds"]})
    same = found[0]["weights"] == found[1]["weights"]
    return {"runs": found, "same": same, "precision": run["provenance"]["precision"]}
