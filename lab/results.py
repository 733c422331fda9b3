"""Scores, baselines, sets of result files, and pictures of curves and predictions, for images and volumes alike.

    with written_aside(out_dir, NAMES) as aside:
        failures = write_pieces(aside, {"scores.json": lambda path: write_json(path, scores), ...})

A set of files is one thing: it is written aside and takes the place of the former set as a whole.
"""

import contextlib
import csv
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lab import grey_values

PARTIAL, COMPLETE = ".partial-", ".complete-"  # folders of results that are being written, or moved into place
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # told apart by all (Okabe and Ito 2008)
ERRORS = {"true negative": "black", "true positive": "0.8", "false positive": ORANGE, "false negative": BLUE}
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


@contextlib.contextmanager
def written_aside(folder: Path, names=()) -> Iterator[Path]:
    """Yield a folder to write a set of files in; when the block ends well, they move into `folder` together.

    `names` are all the files that such a set may have: of a former set nothing stays. Where `folder` has gone or cannot
    be written any more, the files stay in a folder of the system's for temporary files, which is named in a line.
    """
    beside = True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{os.getpid()}-", dir=folder))
    except OSError as error:
        aside, beside = Path(tempfile.mkdtemp(prefix="results-")), False
        print(f"warning: {folder} cannot be written ({error.strerror}); the results go to {aside}.", file=sys.stderr)
    try:
        yield aside
        if beside:
            for file in aside.iterdir():
                _flush(file)
            (aside / ".names").write_text(json.dumps(list(names)))
            complete = aside.rename(folder / aside.name.replace(PARTIAL, COMPLETE))  # from here on it is kept
            move_into_place(complete, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def move_into_place(complete: Path, folder: Path) -> None:
    """Replace the set of files in `folder` by those in `complete`; what a kill interrupts, the next call finishes."""
    names = complete / ".names"
    if names.exists():  # first nothing of the former set is left, then the new one comes: never a mixture of the two
        for name in json.loads(names.read_text()):
            (folder / name).unlink(missing_ok=True)
        names.unlink()
    for file in complete.iterdir():
        os.replace(file, folder / file.name)
    shutil.rmtree(complete, ignore_errors=True)


def _flush(file: Path) -> None:
    """Have the system put a file on the disk."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_pieces(folder: Path, pieces: dict[str, Callable[[Path], object]]) -> list[str]:
    """Write each file by its function; return a sentence for each that failed, of which nothing is left."""
    failures = []
    for name, write in pieces.items():
        try:
            write(folder / name)
        except Exception as error:  # whatever a plot or a disk may do: the other files are worth having
            (folder / name).unlink(missing_ok=True)
            failures.append(f"{name} could not be written ({(str(error) or type(error).__name__).splitlines()[0]}).")
    return failures


def attempt(what: str, call: Callable[[], object], failures: list[str]):
    """The result of a call; None where it failed, with a sentence added to `failures`."""
    try:
        return call()
    except Exception as error:  # as above
        failures.append(f"{what} failed ({(str(error) or type(error).__name__).splitlines()[0]}).")


def write_json(path: Path, value) -> None:
    """Write JSON that every program reads: NaN and infinities, which JSON does not know, become null."""
    path.write_text(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(rows: list[dict], path: Path) -> None:
    """Write rows of a table as CSV; a column for each key that occurs."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # names of any bytes
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)


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


def describe_failure(history: dict, masks, probs) -> str | None:
    """One sentence if the training ended in nothing useful, else None."""
    advice = (
        "Try --loss dice+bce, a lower --learning-rate, another --seed, or larger objects; where objects have a few "
        "pixels, --loss dice --smooth 1e-6."
    )
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
        "(--epochs), then try another --learning-rate; with more labelled samples it may learn what the grey value "
        "alone does not tell."
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


def new_figure(width: float, height: float):
    """An empty Matplotlib figure of so many inches, which needs no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_ticks(axis, ticks=None) -> None:
    """Show an axis's numbers as they are, 0.995 and not 9.95e-1; at `ticks` alone, if given."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def plot_curves(history: dict, path: Path) -> None:
    """Loss, Dice and IoU by epoch, training and validation."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    epochs = history["epoch"]
    figure = new_figure(11, 4)
    panels = {"Loss": ["loss"], "Dice": ["dice_coeff", "image_dice"], "IoU": ["iou_metric", "image_iou"]}
    handles = {}
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        shown = []
        for name, style in zip(names, ("-", ":"), strict=False):
            kind = "hard, per image" if name.startswith("image_") else "soft, pooled"
            for prefix, label, color in (("", "training", ORANGE), ("val_", "validation", BLUE)):
                values = np.asarray(history[prefix + name], float)
                shown += values[np.isfinite(values)].tolist()
                if title != "Loss":
                    values = np.clip(values, 0.01, 0.9995)  # the ends of a logit scale lie at infinity
                (line,) = axes.plot(epochs, values, style, color=color, marker=".")
                handles[f"{label}, {kind}"] = line
        if title == "Loss":
            if shown and min(shown) > 0 and max(shown) > 10 * min(shown):  # else a log scale has hardly a tick
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                plain_ticks(axes.yaxis)
        else:  # so that 0.99 and 0.995 are apart
            axes.set_yscale("logit")
            last = [v for n in names for v in history["val_" + n][-1:] if math.isfinite(v)]
            axes.set_ylim(max(0.01, min(0.5, *last)) if last else 0.01, 0.9995)
            plain_ticks(axes.yaxis, [0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998])
        if not shown:
            axes.text(0.5, 0.5, "not a number", transform=axes.transAxes, ha="center")
        axes.set(title=title, xlabel="epoch", ylabel=f"{title} ({axes.get_yscale()} scale)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def choose_examples(dice) -> list[tuple[str, int]]:
    """Which results to show: two typical ones (at 65% and 35% of the ranking by Dice) and the two worst."""
    order = np.argsort(dice, kind="stable")  # from the worst to the best
    middle = [int(order[round(q * (len(order) - 1))]) for q in (0.65, 0.35)]
    return [("typical", i) for i in dict.fromkeys(middle)] + [("worst", int(i)) for i in order[:2]]


def around(mask, margin: int = 4) -> tuple[slice, ...]:
    """The square window around the true pixels of `mask` (H, W), with a margin; the whole image if there are none."""
    found = np.argwhere(mask)
    if not len(found):
        return slice(None), slice(None)
    low, high = found.min(axis=0), found.max(axis=0) + 1
    side = min((high - low).max() + 2 * margin, min(mask.shape))
    start = np.clip((low + high - side) // 2, 0, np.array(mask.shape) - side)
    return tuple(slice(first, first + side) for first in start)


def show_errors(axes, true, hard) -> None:
    """Draw which pixels of two boolean masks (H, W) agree, and how the others differ, in the colours of ERRORS."""
    from matplotlib.colors import ListedColormap

    classes = np.select([true & hard, hard, true], [1, 2, 3], 0)
    axes.imshow(classes, cmap=ListedColormap(list(ERRORS.values())), vmin=0, vmax=3, interpolation="nearest")


def error_legend(figure) -> None:
    """The colours of `show_errors`, below a figure."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=color, edgecolor="0.5", label=name) for name, color in ERRORS.items()]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8, frameon=False)


def plot_predictions(images, masks, probs, dice, path: Path) -> None:
    """Rows of image, truth, probability and errors: two typical images (N, H, W, C) and the two worst, with their Dice.

    The errors are shown enlarged, around the object and whatever was taken for one.
    """
    examples = choose_examples(dice)
    figure = new_figure(8.6, 2.12 * len(examples) + 0.7)
    grid = figure.subplots(len(examples), 4, squeeze=False)
    for line, (kind, i) in zip(grid, examples, strict=True):
        true, hard = masks[i, ..., 0] == 1, probs[i, ..., 0] >= 0.5
        line[0].imshow(grey_values.shown_range(images[i]).prepare(images[i]), cmap="gray", vmin=0, vmax=1)
        line[1].imshow(masks[i], cmap="gray", vmin=0, vmax=1)
        shade = line[2].imshow(probs[i], cmap="viridis", vmin=0, vmax=1)
        zoom = around(true | hard)
        show_errors(line[3], true[zoom], hard[zoom])
        line[0].set_ylabel(f"{kind}: image {i}\nDice {dice[i]:.4f}")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    height, width = images.shape[1:3]
    titles = (f"image, {width} x {height} px", "true mask", "probability", "errors at 0.5, enlarged")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    figure.colorbar(shade, ax=grid[:, 2], location="bottom", shrink=0.9, pad=0.01, label="probability of object")
    error_legend(figure)
    figure.savefig(path, dpi=130)
