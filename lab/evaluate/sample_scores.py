"""Scores of networks and baselines on pictures and volumes of any size; volumes have surface distances too.

    scores, rows = score_samples(samples, probs)

Samples are those of `lab/data/sample.py`; their `spacing` (depth, height, width) is in millimetres, or None.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from lab.data import volumes
from lab.data.classes import NOT_LABELLED
from lab.data.sample import to_masks
from lab.evaluate import scoring, surfaces
from lab.model import model_file, prediction

SIGMAS = (1.0, 1.5, 2.0, 3.0)  # of the Gaussian filter before a threshold, in pixels
DISTANCES = {"surface": "mean", "hausdorff95": "95% Hd."}  # of volumes: key and title


def table_columns(samples: list) -> tuple[dict[str, str], dict[str, int]]:
    """Columns of a table of scores, and the titles over them, with the unit of the distances."""
    columns = dict(list(scoring.COLUMNS.items())[:6])
    if samples[0].labels.ndim == 2:
        return columns, {"hard at 0.5, per picture": 6}
    return columns | DISTANCES, {"hard at 0.5, per volume": 6, f"surface, {unit_of(samples)}": 2}


def unit_of(samples: list) -> str:
    """The unit of distances: voxels as soon as one of the samples does not say its spacing."""
    return "mm" if all(sample.spacing for sample in samples) else "voxels"


def predict_sample(network, sample, least: Sequence[int]) -> np.ndarray:
    """The probabilities (*sides, C) of a sample of any size, on disk, in tiles whose sides are `least` or more."""
    model = model_file.Model(network, {"size": least, "divisor": 8})  # for three poolings
    return volumes.collect(prediction.probabilities([model], sample.image, [sample.prepare]), sample.labels.shape)


def hard_labels(probs: np.ndarray) -> np.ndarray:
    """Labels (*sides), uint8, of probabilities (*sides, C): at least 0.5, or the most probable class."""
    return (probs[..., 0] >= 0.5 if probs.shape[-1] == 1 else probs.argmax(axis=-1)).astype(np.uint8)


def score_samples(
    samples: list, found: Iterable[np.ndarray], names: Sequence[str] = scoring.ONE_CLASS
) -> tuple[dict, list[dict]]:
    """Score the probabilities, or masks, `found` (*sides, C) for each sample, one after the other.

    Returns:
        The scores of the set: means over the samples `image_dice` and `image_iou`, hard at 0.5, with their 5th
        percentiles (`_p5`) and minima (`_min`); for volumes also means of the surface distances `surface` and
        `hausdorff95` where both masks hold objects, in millimetres, or in voxels if the spacing of a scan is unknown
        (see `lab/evaluate/surfaces.py`). With several classes, also the scores of each class, as KEY/NAME. A row per
        sample with its name and its scores.
    """
    rows, known = [], all(sample.spacing for sample in samples)
    for sample, probs in zip(samples, found, strict=True):
        masks = to_masks(sample.labels[None], len(names))
        (row,) = scoring.rows_of_images(masks, np.asarray(probs, np.float32)[None], names)
        del row["image"]
        if sample.labels.ndim == 2:
            height, width = sample.labels.shape
            rows.append({"image": sample.name, "width": width, "height": height, **row})
            continue
        row = {"volume": sample.name, **row}
        steps = 1.0 if not known else sample.spacing if sample.steps is None else sample.steps
        rows.append(row | class_distances(sample.labels[:], hard_labels(probs), names, steps))
    scores = scoring.of_rows(rows, names, ("image_dice", "image_iou"))
    for key in (key for key in rows[0] if key.split("/")[0] in DISTANCES):
        defined = [row[key] for row in rows if row[key] is not None]
        scores |= {key: float(np.mean(defined))} if defined else {}
    return scores, rows


def class_distances(true: np.ndarray, found: np.ndarray, names: Sequence[str], spacing) -> dict[str, float | None]:
    """The surface distances of labels (D, H, W); for several classes those of each, and the mean over the defined."""
    row, found = {}, np.where(true == NOT_LABELLED, 0, found)
    of_class = [surfaces.surface_distances(true == k, found == k, spacing) for k in range(1, len(names) + 1)]
    for i, key in enumerate(DISTANCES):
        defined = [distances[i] for distances in of_class if distances]
        row[key] = float(np.mean(defined)) if defined else None
        if len(names) > 1:
            row |= {f"{key}/{n}": d[i] if d else None for n, d in zip(names, of_class, strict=True)}
    return row


def baselines(validation: tuple, test: list, raw: Sequence | None = None, names=scoring.ONE_CLASS) -> dict[str, dict]:
    """Scores on the test samples of methods without a network, with the settings that are best on the validation.

    All background; the best threshold; the best threshold after a Gaussian filter, of the best of SIGMAS. If grey
    values are not absolute, also the best threshold of the values in the files: `raw` holds these for validation and
    test. For several classes see `scoring.class_baselines`.
    """
    from scipy.ndimage import gaussian_filter

    def score_windows(windows, samples):
        hard = (scoring.in_windows(sample.prepare(sample.image[:])[None], windows)[0] for sample in samples)
        return score_samples(samples, hard, names)[0]

    if len(names) > 1:
        return scoring.class_baselines(validation, test, raw, names, score_windows)
    axes = tuple(range(-1 - test[0].labels.ndim, -1))

    def smooth(images, sigma):  # (..., *sides, C)
        return gaussian_filter(images, sigma, axes=axes) if sigma else images

    def above(samples, threshold, sigma=0.0):
        for sample in samples:
            yield scoring.above(smooth(sample.prepare(sample.image[:]), sigma), *threshold)

    images, masks = validation
    bests = {}
    for sigma in (0.0, *SIGMAS):
        bests[sigma] = scoring.best_threshold(smooth(images, sigma), masks, absolute=not raw)
    width = max(SIGMAS, key=lambda sigma: bests[sigma][1])
    found = {
        "all background": (np.zeros((*sample.labels.shape, 1)) for sample in test),
        "best threshold": above(test, bests[0.0][0]),
        f"Gaussian filter of {width:g}, threshold": above(test, bests[width][0], width),
    }
    if raw:
        found["best threshold, raw values"] = above(raw[1], scoring.best_threshold(*raw[0], absolute=False)[0])
    return {name: score_samples(test, masks)[0] for name, masks in found.items()}
