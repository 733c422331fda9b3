"""Scores of predictions, of one class or several, and of methods that need no network.

    scores, rows = score(masks, probs)                                    # of images (N, H, W, C) or volumes
    print(format_table({**baselines(validation, test), "U-Net": scores}))

`metrics.py` says which images count for a class.
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
ONE_CLASS = ("object",)
OF_IMAGES = ("image_dice", "image_iou", "soft_image_dice", "soft_image_iou")
KNOWS_MORE = "likeliest"  # start of the names of baselines that know the objects' shapes
FEW = 1000  # images of all epochs together: with fewer, a network may not have learned enough


# Scores


def score(masks, probs, names: Sequence[str] = ONE_CLASS) -> tuple[dict, list[dict]]:
    """Score probabilities (or hard masks) against masks, both (N, ..., 1) or (N, ..., K + 1); NaN counts as 0.

    Returns:
        The scores of the set: soft and pooled `dice_coeff` and `iou_metric`; hard means over the images `image_dice`
        and `image_iou`; soft means `soft_image_dice` and `soft_image_iou`; for the four per-image scores the 5th
        percentile (`_p5`) and the minimum (`_min`) too; with several classes also those of each (see `of_rows`).
        A row per image: `image`, `foreground` (share of the true masks) and its four scores; of several classes
        `foreground/NAME` and the four scores of each class too, None where it does not count.
    """
    import metrics

    pooled = {"dice_coeff": metrics.DiceCoefficient(), "iou_metric": metrics.IoU()}
    for metric in pooled.values():
        metric.update_state(masks, np.nan_to_num(probs, nan=0.0))
    rows = rows_of_images(masks, probs, names)
    return {name: float(metric.result()) for name, metric in pooled.items()} | of_rows(rows, names), rows


def rows_of_images(masks, probs, names: Sequence[str] = ONE_CLASS) -> list[dict]:
    """A row of scores for each image, see `score`."""
    import keras

    import metrics

    probs = np.nan_to_num(probs, nan=0.0)
    several = masks.shape[-1] > 1
    labelled = masks.any(axis=-1, keepdims=True) if several else masks >= 0
    arrays = (masks, hard_masks(probs), probs)
    true, hard, probs = ((np.maximum(array, 0) * labelled)[..., several:].astype(np.float32) for array in arrays)
    axes = tuple(range(1, masks.ndim - several))
    both = {"dice": metrics.dice_coeff, "iou": metrics.iou_metric}
    values = {
        f"{kind}image_{name}": keras.ops.convert_to_numpy(function(true, pred, axis=axes)).reshape(len(masks), -1)  # K
        for kind, pred in (("", hard), ("soft_", probs))
        for name, function in both.items()
    }
    sides = tuple(range(1, masks.ndim - 1))
    shares = true.sum(axis=sides, dtype=float) / np.maximum(labelled.sum(axis=sides), 1)
    counts = true.any(axis=sides) | hard.any(axis=sides) if several else np.ones(shares.shape, bool)
    rows = []
    for i in range(len(masks)):
        row: dict = {"image": i, "foreground": float(shares[i].sum())}
        row |= {name: float(value[i][counts[i]].mean()) if counts[i].any() else None for name, value in values.items()}
        for k, class_name in enumerate(names if several else ()):
            row[f"foreground/{class_name}"] = float(shares[i, k])
            row |= {f"{n}/{class_name}": float(v[i, k]) if counts[i, k] else None for n, v in values.items()}
        rows.append(row)
    return rows


def hard_masks(probs) -> np.ndarray:
    """Probabilities (N, ..., C) as masks of 0 and 1: at least 0.5, or of several classes the most probable one."""
    if probs.shape[-1] == 1:
        return (probs >= 0.5).astype("float32")
    return (probs.argmax(axis=-1)[..., None] == np.arange(probs.shape[-1])).astype("float32")


def of_rows(rows: list[dict], names: Sequence[str] = ONE_CLASS, keys: Sequence[str] = OF_IMAGES) -> dict[str, float]:
    """Mean, 5th percentile and minimum of the rows' scores: KEY, KEY_p5 and KEY_min.

    Of several classes KEY/NAME, KEY_p5/NAME and KEY_min/NAME are those of a class, over the `images/NAME` rows where it
    counts, and KEY is the mean over the classes that count at least once.
    """
    scores: dict = {}
    ends = [f"/{name}" for name in names if len(names) > 1]
    for key in keys:
        for end in ("", *ends):
            values = [row[key + end] for row in rows if row[key + end] is not None]
            scores |= {f"images{end}": len(values)} if end else {}
            values = values if values or end else [1.0]  # no image counts
            if values:
                scores[f"{key}{end}"] = float(np.mean(values))
                scores[f"{key}_p5{end}"] = float(np.percentile(values, 5))
                scores[f"{key}_min{end}"] = float(np.min(values))
        means = [scores[key + end] for end in ends if key + end in scores]
        scores |= {key: float(np.mean(means))} if means else {}
    return scores


def confusion(masks, probs) -> np.ndarray:
    """How many pixels of class i (the line, background first) are predicted as class j: (K + 1, K + 1), integers."""
    num = max(2, masks.shape[-1])
    true, found = (array.argmax(axis=-1) if num > 2 else array[..., 0] > 0 for array in (masks, hard_masks(probs)))
    labelled = masks.any(axis=-1) if num > 2 else masks[..., 0] >= 0
    pairs = true[labelled].astype(np.int64) * num + found[labelled]
    return np.bincount(pairs, minlength=num * num).reshape(num, num)


# Methods without a network


def baselines(validation: tuple, test: tuple, raw: Sequence[tuple] | None = None, names=ONE_CLASS) -> dict[str, dict]:
    """Scores on the test set of methods without a network: all in one class, and the best thresholds of grey values.

    For one class: all background, and the threshold with the best mean Dice on the validation set (see
    `best_threshold`). For several classes see `class_baselines`. Colours are averaged. If grey values are not absolute,
    `raw` holds both sets as they are in the files. Their best threshold is a baseline too: the preprocessing for the
    network cannot make it worse.
    """

    def score_windows(windows, test):
        return score(test[1], in_windows(test[0], windows), names)[0]

    if len(names) > 1:
        return class_baselines(validation, test, raw, names, score_windows)
    results = {"all background": score(test[1], np.zeros_like(test[1]))[0]}
    sets = {"best global threshold": (validation, test), **({"best threshold, raw values": raw} if raw else {})}
    for title, (known, (images, masks)) in sets.items():
        (threshold, brighter), _ = best_threshold(*known, absolute=not raw)
        hard = above(images, threshold, brighter)
        results[title] = {"threshold": threshold, "brighter": brighter, **score(masks, hard)[0]}
    return results


def class_baselines(validation, test, raw, names: Sequence[str], score_windows: Callable) -> dict[str, dict]:
    """Scores for several classes: all pixels in the best class, and a window of grey values for each class.

    The windows are the best on the validation images and masks. `score_windows` gives the scores of windows on `test`
    (see `in_windows`). `raw` is None, or validation and test with the values of the files, for windows of their own.
    """
    nowhere, everywhere = (np.inf, -np.inf, 0.0), (-np.inf, np.inf, 1.0)
    scores = {name: score_windows([everywhere if n == name else nowhere for n in names], test) for name in names}
    best = max(scores, key=lambda name: scores[name]["image_dice"])
    results = {f"all {best}": scores[best]}
    sets = {"best grey windows": (validation, test), **({"best windows, raw values": raw} if raw else {})}
    for title, (known, tested) in sets.items():
        windows = best_windows(*known)
        results[title] = {"windows": windows, **score_windows(windows, tested)}
    return results


def best_windows(images, masks) -> list[tuple[float, float, float]]:
    """For each class (LOW, HIGH, DICE): the window of grey values with the best pooled Dice, and that Dice.

    The ends that are tried are 101 percentiles of the pixels of any class.
    """
    grey = _grey(images)[..., 0]
    ends = _percentiles(grey[masks[..., 1:].any(axis=-1)])

    def inside(pixels):
        """How many of some pixels have grey values from end i to end j, both included: (ends, ends)."""
        values = np.sort(grey[pixels])
        return np.searchsorted(values, ends, "right") - np.searchsorted(values, ends, "left")[:, None]

    total, found = inside(masks.any(axis=-1)), []
    for label in range(1, masks.shape[-1]):
        true = masks[..., label] == 1
        dice = np.triu(2 * inside(true) / np.maximum(np.count_nonzero(true) + total, 1))
        i, j = np.unravel_index(dice.argmax(), dice.shape)
        found.append((float(ends[i]), float(ends[j]), float(dice[i, j])))
    return found


def in_windows(images, windows: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Masks (N, ..., K + 1): each pixel has the class whose window holds it; of several windows the best one."""
    grey = _grey(images)[..., 0]
    labels = np.zeros(grey.shape, np.int64)
    for label in np.argsort([dice for *_, dice in windows], kind="stable") + 1:  # the best one last
        low, high, _ = windows[label - 1]
        labels[(grey >= low) & (grey <= high)] = label
    return (labels[..., None] == np.arange(len(windows) + 1)).astype(np.float32)


def above(images, threshold: float, brighter: bool):
    """The pixels of images (N, ..., C) that are at least, or at most, as bright as the threshold: (N, ..., 1)."""
    grey = _grey(images)
    return (grey >= threshold if brighter else grey <= threshold).astype("float32")


def _grey(images):
    """The mean over the channels, (N, ..., 1)."""
    return images.mean(axis=-1, keepdims=True) if images.shape[-1] > 1 else images


def _percentiles(values: np.ndarray) -> np.ndarray:
    """The different ones of 101 percentiles, rising; 0 if there are no values."""
    return np.unique(np.percentile(values, np.arange(101), method="nearest")) if values.size else np.zeros(1)


def best_threshold(images, masks, *, absolute: bool = True) -> tuple[tuple[float, bool], float]:
    """The threshold with the best mean Dice, whether objects are the brighter side of it, and that Dice.

    Tried are 0.00, 0.01, ..., 1.00, or if grey values are not `absolute`, 101 percentiles of the pixels of objects.
    """
    import metrics

    grey = _grey(images)
    levels = np.arange(101) / 100 if absolute else _percentiles(grey[masks == 1])
    thresholds = levels.astype(grey.dtype)

    def reached(values):
        """How many values are at least as bright as each threshold, and at most: (2, thresholds)."""
        values = np.sort(values)
        return len(values) - np.searchsorted(values, thresholds), np.searchsorted(values, thresholds, "right")

    pairs = list(zip(grey, masks, strict=True))
    hits, pred = (np.array([reached(image[mask >= least]) for image, mask in pairs], np.float32) for least in (1, 0))
    true = np.array([np.count_nonzero(mask == 1) for mask in masks], np.float32)[:, None, None]
    dice = np.mean(metrics.dice_of_sums(hits, true, pred), axis=0)
    side, i = np.unravel_index(dice.argmax(), dice.shape)
    return (float(levels[i]), bool(side == 0)), float(dice[side, i])


# Words and tables


def describe_failure(
    history: dict,
    found: np.ndarray,
    is_finite: bool = True,
    names: Sequence[str] = ONE_CLASS,
    settings: dict | None = None,
    num_seen: float = math.inf,
) -> str | None:
    """What ended in nothing useful, by the test set's `confusion`, and what to try, else None; `num_seen` images were
    trained on, with `settings`."""
    loss, smooth = ((settings or {}).get(name) for name in ("loss", "smooth"))
    tips = ["training longer (--epochs)"] * (num_seen < FEW) + ["--loss dice+ce"] * (loss != "dice+ce")
    advice = f"Try {', '.join([*tips, 'a lower --learning-rate', 'another --seed'])}, or larger objects"
    advice += "." if (loss, smooth) == ("dice", 1e-6) else "; for objects of a few pixels, --loss dice --smooth 1e-6."
    if not (np.isfinite(history["loss"]).all() and is_finite):
        return f"The loss became NaN or infinite: the network is broken and its scores mean nothing. {advice}"
    true, share = (found.sum(axis=axis)[1:].sum() / max(found.sum(), 1) for axis in (1, 0))
    if share < 0.01 * true:
        return f"The training collapsed: the predicted masks are all background (all black). {advice}"
    if true < 1 and share == 1:
        return f"The training collapsed: every predicted mask is all foreground (all white). {advice}"
    missed = [name for k, name in enumerate(names, 1) if found[k].sum() and not found[:, k].sum()]
    if missed:
        return f"The network never finds {', '.join(missed)}. Train longer (--epochs), or try --class-weights."
    return None


def describe_behind(scores: dict, baselines: dict[str, dict]) -> str | None:
    """A sentence if the network's test Dice is behind that of a baseline which needs no network, else None."""
    rows = {name: row["image_dice"] for name, row in baselines.items() if not name.startswith(KNOWS_MORE)}
    best = max(rows, key=rows.__getitem__)
    dice = scores["image_dice"]
    if dice >= rows[best] - 0.02:
        return None
    return (
        f"the network (Dice {dice:.4f}) is behind '{best}' ({rows[best]:.4f}), which needs no network. Train longer "
        "(--epochs), then try another --learning-rate, then label more samples."
    )


def with_classes(title: str, scores: dict, names: Sequence[str]) -> dict[str, dict]:
    """Rows of `format_table`: the scores of all, and below them those of each class with its number of images."""
    rows = {title: scores}
    for name in names if len(names) > 1 else ():
        row = {key.removesuffix(f"/{name}"): value for key, value in scores.items() if key.endswith(f"/{name}")}
        rows[f"  {name} ({row.pop('images')})"] = row
    return rows


def format_table(rows: dict[str, dict], columns: dict[str, str] = COLUMNS, groups: dict[str, int] = GROUPS) -> str:
    """A plain table of scores for the console: one row per name, one column per key, titles over groups of columns."""
    width = max(map(len, rows)) + 2
    lines = [" " * width + "".join(f"{title:^{10 * count}}" for title, count in groups.items()).rstrip()]
    lines.append(" " * width + "".join(f"{title:>10}" for title in columns.values()))
    for name, scores in rows.items():
        cells = (f"{scores[key]:10.4f}" if scores.get(key) is not None else " " * 10 for key in columns)
        lines.append(f"{name:{width}}" + "".join(cells))
    return "\n".join(lines)
