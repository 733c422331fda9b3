"""Evaluate a network on a test set, of images or volumes, and compare it with methods that need no network."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lab.data import folders
from lab.data.classes import Classes
from lab.data.sample import to_masks
from lab.data.source import Source
from lab.evaluate import plots, sample_scores, scoring, views
from lab.model import training
from lab.system import output_files


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a network on the test set, and the files that show them."""

    scores: dict[str, float]
    baselines: dict[str, dict[str, float]]  # scores of methods that need no network
    failure: str | None  # a sentence, if the network is of no use
    summary: str  # for the console
    files: dict[str, Callable[[Path], object]]  # name -> writes it
    unit: str | None = None  # of distances


def of_images(network, source: Source, history: dict, settings: dict) -> Evaluation:
    """Score the drawn test images of a source; the advice after a failure does not repeat the training's `settings`."""
    (images, masks), names = source.test, source.classes.names
    probs = training.predict(network, images)
    scores, rows = scoring.score(masks, probs, names)
    baselines = scoring.baselines(source.validation, source.test, source.raw and source.raw(), names)
    titles = titles_of(rows, [f"image {i}" for i in range(len(images))])

    def plot_examples(path):
        shown = [(title, images[i], masks[i], probs[i]) for i, title in titles.items()]
        plots.plot_predictions(shown, path, source.classes)

    what = f"{len(images)} images"
    return _evaluation(source, history, settings, scores, rows, baselines, [(masks, probs)], plot_examples, what)


def of_samples(network, source: Source, history: dict, settings: dict) -> Evaluation:
    """Score the test samples of a source, pictures or volumes, each as a whole; `settings` as in `of_images`."""
    test, names, num = source.test, source.classes.names, source.classes.num
    probs = [sample_scores.predict_sample(network, sample, source.validation[0].shape[1:-1]) for sample in test]
    scores, rows = sample_scores.score_samples(test, probs, names)
    baselines = sample_scores.baselines(source.validation, test, source.raw and source.raw(), names)
    titles = titles_of(rows, [sample.name for sample in test])
    pairs = ((to_masks(sample.labels[None], num), values[None]) for sample, values in zip(test, probs, strict=True))

    def plot_examples(path):
        examples = [(title, test[i], probs[i]) for i, title in titles.items()]
        if len(source.sides) == 3:
            shown = [(title, sample, sample_scores.hard_labels(values)) for title, sample, values in examples]
            return views.plot_volumes(shown, path, source.classes)
        pictures = [(title, s.prepare(s.image), to_masks(s.labels, num), values) for title, s, values in examples]
        return plots.plot_predictions(pictures, path, source.classes)

    what = folders.count(len(test), "volume" if len(source.sides) == 3 else "picture") + describe_empty(test, rows)
    columns = sample_scores.table_columns(test)
    return _evaluation(source, history, settings, scores, rows, baselines, pairs, plot_examples, what, *columns)


def _evaluation(source, history, settings, scores, rows, baselines, pairs, plot_examples, what, *columns) -> Evaluation:
    """The common part: `pairs` of masks and probabilities (N, ..., C), `what` was tested, `columns` of the table."""
    names, confusion, is_finite = source.classes.names, np.zeros((), np.int64), True
    for masks, probs in pairs:
        confusion = confusion + scoring.confusion(masks, probs)
        is_finite = is_finite and bool(np.isfinite(probs).all())
    baselines |= source.references(source.test) if source.references else {}
    title, file = ("3D U-Net", "per_volume.csv") if len(source.sides) == 3 else ("U-Net", "per_image.csv")
    table = scoring.format_table({**baselines, **scoring.with_classes(title, scores, names)}, *columns)
    num_seen = len(history["loss"]) * source.num_training
    return Evaluation(
        scores,
        baselines,
        scoring.describe_failure(history, confusion, is_finite, names, settings, num_seen),
        f"Test set, {what}:\n{table}",
        {
            file: lambda path: output_files.write_table(rows, path),
            "predictions.png": plot_examples,
            **confusion_files(confusion, source.classes),
        },
        sample_scores.unit_of(source.test) if len(source.sides) == 3 else None,
    )


def confusion_files(confusion: np.ndarray, classes: Classes) -> dict[str, Callable[[Path], object]]:
    """The confusion matrix (K + 1, K + 1) of several classes as a table and as a picture; nothing for one class."""
    if classes.num == 1:
        return {}
    names, rows = ("background", *classes.names), []
    for name, line in zip(names, confusion, strict=True):
        shares = (line / max(line.sum(), 1)).tolist()
        counts = dict(zip(names, line.tolist(), strict=True))
        rows.append({"true": name, **counts, **{f"share {n}": share for n, share in zip(names, shares, strict=True)}})
    return {
        "confusion.csv": lambda path: output_files.write_table(rows, path),
        "confusion.png": lambda path: plots.plot_confusion(confusion, names, path),
    }


def describe_empty(samples: list, rows: list[dict]) -> str:
    """How many of the samples hold no object, in how many of them one is found, and the mean Dice of the others."""
    pairs = [(bool(sample.classes), row["image_dice"]) for sample, row in zip(samples, rows, strict=True)]
    full, empty = ([dice for holds, dice in pairs if holds is wanted] for wanted in (True, False))
    if not empty:
        return ""
    wrong = sum(dice is not None and dice < 0.5 for dice in empty)  # if both masks are empty, Dice is 1 or None
    rest = f"; mean Dice of the other {len(full)}: {np.mean(full):.4f}" if full else ""
    return f", {len(empty)} without any object, in {wrong} of which the network finds one{rest}"


def titles_of(rows: list[dict], names: list[str]) -> dict[int, str]:
    """Which rows to show, and the title of each: kind, name and Dice."""
    dice = [row["image_dice"] for row in rows]
    titles = {}
    for kind, i in plots.choose_examples([1.0 if value is None else value for value in dice]):
        score = "nothing there, nothing found" if dice[i] is None else f"Dice {dice[i]:.4f}"
        titles[i] = f"{kind}: {names[i]}\n{score}".replace(" (x ", "\n(x ")  # of a region: a line of its own
    return titles
