"""Scores, baselines, sets of result files, and pictures of curves and predictions, for images and volumes alike.

    with written_aside(out_dir, NAMES) as aside:
        failures = write_pieces(aside, {"scores.json": lambda path: write_json(path, scores), ...})

A set of files is one thing: it is written aside and takes the place of the former set as a whole.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

COLUMNS = {  # of the table of scores: key and title
    "image_dice": "Dice",
    "image_dice_p5": "5th pct",
    "image_dice_min": "min",
    "image_iou": "IoU",
    "image_iou_p5": "5th pct",
    "image_iou_min": "min",
    "dice_coeff": "soft Dice",
    "iou_metric": "soft IoU",
}
GROUPS = {"hard at 0.5, per image": 6, "pooled": 2}  # how many of the columns belong together


# Sets of files


# Scores


def score(masks, probs) -> tuple[dict, list[dict]]:
    """Score probabilities (or hard masks) against masks, both (N, ..., 1); NaN counts as 0.

    Returns:
        The scores of the set: soft and pooled `dice_coeff` and `iou_metric`; hard (>= 0.5) means over the images
        `image_dice` and `image_iou`; soft means `soft_image_dice` and `soft_image_iou`; for the four per-image
        scores the 5th percentile (`_p5`) and the minimum (`_min`) too.
        A row per image: `image`, `foreground` (share of the true mask) and its four scores.
    """
    import keras

    import metrics

    probs = np.nan_to_num(probs, nan=0.0)
    hard = (probs >= 0.5).astype("float32")
    both = {"dice": metrics.dice_coeff, "iou": metrics.iou_metric}
    axes = tuple(range(1, masks.ndim))
    of_images = {
        f"{kind}image_{name}": keras.ops.convert_to_numpy(function(masks, pred, axis=axes))
        for kind, pred in (("", hard), ("soft_", probs))
        for name, function in both.items()
    }
    scores = {"dice_coeff": float(both["dice"](masks, probs)), "iou_metric": float(both["iou"](masks, probs))}
    for name, values in of_images.items():
        scores |= summary(values, name)
    rows = [
        {"image": i, "foreground": float(masks[i].mean()), **{name: float(v[i]) for name, v in of_images.items()}}
        for i in range(len(masks))
    ]
    return scores, rows


def summary(values, name: str) -> dict[str, float]:
    """Mean, 5th percentile and minimum of per-image values, as NAME, NAME_p5 and NAME_min."""
    return {
        name: float(np.mean(values)),
        f"{name}_p5": float(np.percentile(values, 5)),
        f"{name}_min": float(np.min(values)),
    }


KNOWS_MORE = ("likeliest sphere",)  # baselines that are told what the objects are


def baselines(validation: tuple, test: tuple, raw: Sequence[tuple] | None = None) -> dict[str, dict]:
    """Scores on the test set of what needs no network: all background, and the best global threshold.

    The threshold, in grey values, is the one of 0.00, 0.01, ..., 1.00 with the best mean Dice on the validation set,
    of the pixels that are at least as bright or, where that is better, at most as bright. Colours count by their mean.
    Where grey values are not absolute, `raw` holds both sets as they are in the files: their best threshold is a
    baseline too, so that none can be spoilt by the preprocessing that the network gets.
    """
    images, masks = test
    found = {"all background": score(masks, np.zeros_like(masks))[0]}
    found["best global threshold"] = _threshold_baseline(validation, test, None if raw is None else object_levels)
    if raw is not None:
        found["best threshold, raw values"] = _threshold_baseline(*raw, object_levels)
    return found


def _threshold_baseline(validation, test, levels: Callable | None) -> dict:
    (threshold, brighter), _ = best_threshold(*validation, levels and levels(*validation))
    hard = above(test[0], threshold, brighter)
    return {"threshold": threshold, "brighter": brighter, **score(test[1], hard)[0]}


def object_levels(images, masks) -> np.ndarray:
    """Thresholds to try where grey values may be any numbers: 101 percentiles of the pixels of objects."""
    values = _grey(images)[masks == 1]
    return np.unique(np.percentile(values, np.arange(101), method="nearest")) if values.size else np.zeros(1)


def above(images, threshold: float, brighter: bool):
    """The pixels of images (N, ..., C) that are at least, or at most, as bright as the threshold: (N, ..., 1)."""
    grey = _grey(images)
    return (grey >= threshold if brighter else grey <= threshold).astype("float32")


def _grey(images):
    """The mean over the channels, (N, ..., 1)."""
    return images.mean(axis=-1, keepdims=True) if images.shape[-1] > 1 else images


def best_threshold(images, masks, levels: np.ndarray | None = None) -> tuple[tuple[float, bool], float]:
    """The threshold with the best mean Dice, whether objects are the brighter side of it, and that Dice.

    Tried are `levels`, which rise; by default 0.00, 0.01, ..., 1.00.
    """
    import metrics

    grey, num = _grey(images), len(images)
    levels = np.arange(101) / 100 if levels is None else levels
    thresholds = levels.astype(grey.dtype)
    bins = len(thresholds) + 1
    first = bins * np.arange(num).reshape(-1, *[1] * (grey.ndim - 1))  # of an image's bins
    found = {}
    for brighter, side in ((True, "right"), (False, "left")):
        # A pixel's bin is how many thresholds it reaches, or exceeds: one count of pixels serves all thresholds.
        places = first + np.searchsorted(thresholds, grey, side)
        of_both = [np.bincount(chosen.ravel(), minlength=bins * num) for chosen in (places[masks == 1], places)]
        hits, pred = np.cumsum(np.reshape(of_both, (2, num, bins)), axis=2)  # as many pixels lie in this bin or below
        true = np.repeat(hits[:, -1:], bins, axis=1)
        if brighter:
            hits, pred = true - hits, pred[:, -1:] - pred
        dice = metrics.dice_of_sums(*(np.float32(sums[:, :-1]) for sums in (hits, true, pred)))
        found |= {(float(levels[i]), brighter): value for i, value in enumerate(np.mean(dice, axis=0).tolist())}
    best = max(found, key=found.get)
    return best, found[best]


FEW = 1000  # images, of all epochs together, after which a network may only have begun to learn


def describe_failure(
    history: dict, masks, probs, settings: dict | None = None, num_seen: float = math.inf
) -> str | None:
    """What ended in nothing useful and what to try, else None; `num_seen` images were trained on, with `settings`."""
    loss, smooth = ((settings or {}).get(name) for name in ("loss", "smooth"))
    tips = ["training longer (--epochs)"] * (num_seen < FEW) + ["--loss dice+bce"] * (loss != "dice+bce")
    advice = f"Try {', '.join([*tips, 'a lower --learning-rate', 'another --seed'])}, or larger objects"
    advice += "." if (loss, smooth) == ("dice", 1e-6) else "; for objects of a few pixels, --loss dice --smooth 1e-6."
    if not (np.isfinite(history["loss"]).all() and np.isfinite(probs).all()):
        return f"The loss became NaN or infinite: the network is broken and its scores mean nothing. {advice}"
    share, true = float((probs >= 0.5).mean()), float(masks.mean())
    if share < 0.01 * true:
        return f"The training collapsed: the predicted masks are all background (all black). {advice}"
    if true < 1 and share == 1:
        return f"The training collapsed: every predicted mask is all foreground (all white). {advice}"
    return None


def describe_behind(scores: dict, baselines: dict[str, dict], margin: float = 0.02) -> str | None:
    """A sentence if the network's test Dice is behind that of a baseline which needs no network, else None."""
    rows = {name: row["image_dice"] for name, row in baselines.items() if name not in KNOWS_MORE}
    best = max(rows, key=rows.get)
    dice = scores["image_dice"]
    if dice >= rows[best] - margin:
        return None
    return (
        f"the network (Dice {dice:.4f}) is behind '{best}' ({rows[best]:.4f}), which needs no network. Train longer "
        "(--epochs), then try another --learning-rate, then label more samples."
    )


def format_table(rows: dict[str, dict], columns: dict[str, str] = COLUMNS, groups: dict[str, int] = GROUPS) -> str:
    """A plain table of scores for the console: one row per name, one column per key, titles over groups of columns."""
    width = max(map(len, rows)) + 2
    lines = [" " * width + "".join(f"{title:^{10 * count}}" for title, count in groups.items()).rstrip()]
    lines.append(" " * width + "".join(f"{title:>10}" for title in columns.values()))
    for name, scores in rows.items():
        cells = (f"{scores[key]:10.4f}" if scores.get(key) is not None else " " * 10 for key in columns)
        lines.append(f"{name:{width}}" + "".join(cells))
    return "\n".join(lines)


# Pictures
