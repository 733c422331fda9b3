"""Scores of volumes of any size, and of what needs no network: per volume, with the distances of their surfaces.

    scores, rows = score_volumes(samples, probs)

Samples are those of `lab/data/sample.py`; their `spacing` (depth, height, width) is in millimetres, or None.
"""

from collections.abc import Iterable

import numpy as np

from lab.data import volumes
from lab.evaluate import ball_fit, scoring, surfaces
from lab.model import model_file, prediction

SIGMAS = (1.0, 1.5, 2.0, 3.0)  # of the Gaussian filter before a threshold, in voxels
COLUMNS = {  # of the table of scores: key and title
    "image_dice": "Dice",
    "image_dice_p5": "5th pct",
    "image_dice_min": "min",
    "image_iou": "IoU",
    "image_iou_p5": "5th pct",
    "image_iou_min": "min",
    "surface": "mean",
    "hausdorff95": "95% Hd.",
}


def column_groups(samples: list) -> dict[str, int]:
    """Titles over the columns of a table, with the unit of the distances."""
    unit = "mm" if all(sample.spacing for sample in samples) else "voxels"
    return {"hard at 0.5, per volume": 6, f"surface, {unit}": 2}


def predict_volume(network, sample, patch: tuple, divisor: int = 8) -> np.ndarray:
    """The probabilities (D, H, W) of a volume of any size, on disk, by a sliding window no smaller than `patch`."""
    model = model_file.Model(network, {"size": patch, "divisor": divisor})
    return volumes.collect(prediction.probabilities([model], sample.image, [sample.prepare]), sample.mask.shape)


def score_volumes(samples: list, found: Iterable[np.ndarray]) -> tuple[dict, list[dict]]:
    """Score probabilities, or masks, (D, H, W) for each sample, one after the other.

    Returns:
        The scores of the set: means over the volumes `image_dice` and `image_iou`, hard at 0.5, with their 5th
        percentiles (`_p5`) and minima (`_min`); means of the surface distances `surface` and `hausdorff95` over the
        volumes where both masks hold something, in millimetres, or in voxels if one of the scans does not say its
        spacing (see `lab/evaluate/surfaces.py`). A row per volume with its name and its own.
    """
    rows, known = [], all(sample.spacing for sample in samples)
    for sample, probs in zip(samples, found, strict=True):
        _, (row,) = scoring.score(*(a[None, ..., None].astype(np.float32) for a in (sample.mask, probs)))
        steps = 1.0 if not known else sample.spacing if sample.steps is None else sample.steps
        distances = surfaces.surface_distances(sample.mask, probs >= 0.5, steps) or (None, None)
        own = {"volume": sample.name} | {name: value for name, value in row.items() if name != "image"}
        rows.append(own | dict(zip(("surface", "hausdorff95"), distances, strict=True)))
    scores = {}
    for name in ("image_dice", "image_iou"):
        scores |= scoring.summary([row[name] for row in rows], name)
    for name in ("surface", "hausdorff95"):
        defined = [row[name] for row in rows if row[name] is not None]
        scores |= {name: float(np.mean(defined))} if defined else {}
    return scores, rows


def baselines(
    validation: tuple, test: list, sphere: dict | None = None, raw: tuple[tuple, list] | None = None
) -> dict[str, dict]:
    """Scores on the test volumes of what needs no network, with settings that are the best on the validation patches.

    All background; the best threshold; the best threshold after a Gaussian filter, of the best of SIGMAS; where each
    volume is known to hold one `sphere`, of a noise, contrast and radius, the likeliest one; and where grey values are
    not absolute, the best threshold of the values in the files, which `raw` holds, validation and test.
    """
    from scipy.ndimage import gaussian_filter

    def smooth(volumes, sigma):  # (..., D, H, W, 1)
        return gaussian_filter(volumes, sigma, axes=(-4, -3, -2)) if sigma else volumes

    def best(images, masks):
        return scoring.best_threshold(images, masks, scoring.object_levels(images, masks) if raw else None)

    def above(samples, threshold, sigma=0.0):
        for sample in samples:
            yield scoring.above(smooth(sample.prepare(sample.image[:]), sigma), *threshold)[..., 0]

    def fit(sample):
        (ball,) = ball_fit.fit_balls(sample.image[None], **sphere)
        return ball_fit.draw_balls(ball[None], sample.mask.shape)[0, ..., 0]

    images, masks = validation
    found = {sigma: best(smooth(images, sigma), masks) for sigma in (0.0, *SIGMAS)}
    width = max(SIGMAS, key=lambda sigma: found[sigma][1])
    masks_of = {
        "all background": (np.zeros_like(sample.mask) for sample in test),
        "best threshold": above(test, found[0.0][0]),
        f"Gaussian filter of {width:g}, threshold": above(test, found[width][0], width),
    }
    if raw:
        masks_of["best threshold, raw values"] = above(raw[1], best(*raw[0])[0])
    if sphere:
        masks_of["likeliest sphere"] = map(fit, test)
    return {name: score_volumes(test, masks)[0] for name, masks in masks_of.items()}
