"""What the test set says of a network, beside what needs no network: of images and of volumes alike."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lab.data import folders
from lab.data.classes import Classes
from lab.data.sample import to_masks
from lab.data.source import Source
from lab.evaluate import plots, scoring, views, volume_results
from lab.model import training
from lab.system import output_files


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores, with the files that show them."""

    scores: dict[str, float]
    baselines: dict[str, dict[str, float]]  # scores of what needs no network
    failure: str | None  # a sentence, if the network is of no use
    summary: str  # for the console
    files: dict[str, Callable[[Path], object]]  # name -> writes it
    unit: str | None = None  # of distances


def of_images(network, source: Source, history: dict, settings: dict | None = None) -> Evaluation:
    """Score the test images of a source; `settings` of the training are what no advice repeats."""
    images, masks = source.test
    names = source.classes.names
    probs = training.predict(network, images)
    scores, rows = scoring.score(masks, probs, names)
    dice = np.array([1.0 if row["image_dice"] is None else row["image_dice"] for row in rows])
    if source.test_names:
        rows = [{"crop": place, **row} for place, row in zip(source.test_names, rows, strict=True)]
    baselines = scoring.baselines(source.validation, source.test, source.raw and source.raw(), names)
    baselines |= source.references() if source.references else {}
    what = "crops of your pictures" if source.test_names else "images"
    table = scoring.format_table({**baselines, **scoring.with_classes("U-Net", scores, names)})
    return Evaluation(
        scores,
        baselines,
        scoring.describe_failure(history, masks, probs, names, settings, len(history["loss"]) * source.num_training),
        f"Test set, {len(images)} {what}:\n{table}",
        {
            "per_image.csv": lambda path: output_files.write_table(rows, path),
            "predictions.png": lambda path: plots.plot_predictions(
                images, masks, probs, dice, path, source.classes, source.test_names
            ),
            **confusion_files(scoring.confusion(masks, probs), source.classes),
        },
    )


def confusion_files(found: np.ndarray, classes: Classes) -> dict[str, Callable[[Path], object]]:
    """Of several classes: the confusion matrix (K + 1, K + 1) as a table and as a picture."""
    if classes.num == 1:
        return {}
    names = ("background", *classes.names)
    rows = [
        {"true": name, **dict(zip(names, map(int, line), strict=True))}
        | {f"share {other}": float(value / max(line.sum(), 1)) for other, value in zip(names, line, strict=True)}
        for name, line in zip(names, found, strict=True)
    ]
    return {
        "confusion.csv": lambda path: output_files.write_table(rows, path),
        "confusion.png": lambda path: plots.plot_confusion(found, names, path),
    }


def of_volumes(network, source: Source, history: dict, settings: dict | None = None) -> Evaluation:
    """Score the test volumes of a source; `settings` as in `of_images`."""
    test, names = source.test, source.classes.names
    probs = [volume_results.predict_volume(network, sample, source.sides) for sample in test]
    scores, rows = volume_results.score_volumes(test, probs, names)
    baselines = volume_results.baselines(source.validation, test, source.raw and source.raw(), names)
    baselines |= source.references() if source.references else {}
    table = scoring.format_table(
        {**baselines, **scoring.with_classes("3D U-Net", scores, names)},
        volume_results.COLUMNS,
        volume_results.column_groups(test),
    )
    masks = [to_masks(sample.labels[:], source.classes.num) for sample in test]
    flat_masks, flat_probs = (np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays]) for arrays in (masks, probs))
    examples = plots.choose_examples([1.0 if row["image_dice"] is None else row["image_dice"] for row in rows])
    shown = [
        (f"{kind}: {test[i].name}\n{describe_dice(rows[i])}", test[i], volume_results.hard_labels(probs[i]))
        for i, kind in {i: kind for kind, i in examples}.items()
    ]
    return Evaluation(
        scores,
        baselines,
        scoring.describe_failure(
            history, flat_masks, flat_probs, names, settings, len(history["loss"]) * source.num_training
        ),
        f"Test set, {folders.count(len(test), 'volume')}:\n{table}",
        {
            "per_volume.csv": lambda path: output_files.write_table(rows, path),
            "predictions.png": lambda path: views.plot_volumes(shown, path, source.classes),
            **confusion_files(scoring.confusion(flat_masks, flat_probs), source.classes),
        },
        volume_results.unit_of(test),
    )


def describe_dice(row: dict) -> str:
    """ "Dice 0.9876", or that there is nothing to score."""
    return "nothing there, nothing found" if row["image_dice"] is None else f"Dice {row['image_dice']:.4f}"
