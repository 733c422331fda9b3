"""What the test set says of a network, beside what needs no network: of images and of volumes alike."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lab.data import folders
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


def of_images(network, source: Source, history: dict, settings: dict | None = None) -> Evaluation:
    """Score the test images of a source; `settings` of the training are what no advice repeats."""
    images, masks = source.test
    probs = training.predict(network, images)
    scores, rows = scoring.score(masks, probs)
    dice = np.array([row["image_dice"] for row in rows])
    if source.test_names:
        rows = [{"crop": place, **row} for place, row in zip(source.test_names, rows, strict=True)]
    baselines = scoring.baselines(source.validation, source.test, source.raw and source.raw())
    what = "crops of your pictures" if source.test_names else "images"
    return Evaluation(
        scores,
        baselines,
        scoring.describe_failure(history, masks, probs, settings, len(history["loss"]) * source.num_training),
        f"Test set, {len(images)} {what}:\n" + scoring.format_table({**baselines, "U-Net": scores}),
        {
            "per_image.csv": lambda path: output_files.write_table(rows, path),
            "predictions.png": lambda path: plots.plot_predictions(images, masks, probs, dice, path),
        },
    )


def of_volumes(
    network, source: Source, history: dict, settings: dict | None = None, sphere: dict | None = None
) -> Evaluation:
    """Score the test volumes of a source; `settings` as in `of_images`.

    `sphere` are noise, contrast and radius where each volume is known to hold one sphere: a fit that knows it is a
    baseline then.
    """
    test = source.test
    probs = [volume_results.predict_volume(network, sample, source.sides) for sample in test]
    scores, rows = volume_results.score_volumes(test, probs)
    baselines = volume_results.baselines(source.validation, test, sphere, source.raw and source.raw())
    table = scoring.format_table(
        {**baselines, "3D U-Net": scores}, volume_results.COLUMNS, volume_results.column_groups(test)
    )
    whole = (np.concatenate([a.ravel() for a in arrays]) for arrays in ([s.mask for s in test], probs))
    examples = plots.choose_examples([row["image_dice"] for row in rows])
    shown = [
        (f"{kind}: {test[i].name}\nDice {rows[i]['image_dice']:.4f}", test[i], probs[i] >= 0.5)
        for i, kind in {i: kind for kind, i in examples}.items()
    ]
    return Evaluation(
        scores,
        baselines,
        scoring.describe_failure(history, *whole, settings, len(history["loss"]) * source.num_training),
        f"Test set, {folders.count(len(test), 'volume')}:\n{table}",
        {
            "per_volume.csv": lambda path: output_files.write_table(rows, path),
            "predictions.png": lambda path: views.plot_volumes(shown, path),
        },
    )
