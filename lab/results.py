"""Scores, baselines, and pictures of curves and predictions."""

import math
from pathlib import Path

import numpy as np

BLUE, ORANGE = "#0072B2", "#E69F00"  # told apart by every reader (Okabe and Ito 2008)


def check_arrays(images, masks) -> None:
    """Raise ValueError unless images (N, H, W, C) are finite and in [0, 1], and masks (N, H, W, 1) exactly 0 or 1."""
    images, masks = np.asarray(images), np.asarray(masks)
    if images.ndim != 4 or masks.ndim != 4:
        raise ValueError(
            f"images and masks must have rank 4, (N, H, W, channels); got {images.shape} and {masks.shape}. "
            "Add a missing channel axis with images[..., None]."
        )
    if images.shape[:3] != masks.shape[:3] or masks.shape[3] != 1:
        raise ValueError(
            f"images {images.shape} and masks {masks.shape} do not belong together: "
            "masks must be (N, H, W, 1) with the N, H, W of the images."
        )
    if not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"images must be finite and in [0, 1]; got values from {images.min():g} to {images.max():g}. "
            "Divide 8-bit images by 255, and replace NaN."
        )
    other = masks[(masks != 0) & (masks != 1)]
    if other.size:
        raise ValueError(
            f"masks must be exactly 0 or 1; got {other.flat[0]:g} among others. Divide a mask of 0 and 255 by 255."
        )


def score(masks, probs) -> tuple[dict, list[dict]]:
    """Score probabilities (or hard masks) against masks, both (N, H, W, 1).

    Returns:
        The scores of the set: soft and pooled `dice_coeff` and `iou_metric`; hard (>= 0.5) means over the images
        `image_dice` and `image_iou`; soft means `soft_image_dice` and `soft_image_iou`; for the four per-image
        scores the 5th percentile (`_p5`) and the minimum (`_min`) too.
        A row per image: `image`, `foreground` (share of the true mask) and its four scores.
    """
    import keras

    import metrics

    check_arrays(probs, masks)
    hard = (probs >= 0.5).astype("float32")
    both = {"dice": metrics.dice_coeff, "iou": metrics.iou_metric}
    of_images = {
        f"{kind}image_{name}": keras.ops.convert_to_numpy(function(masks, pred, axis=(1, 2, 3)))
        for kind, pred in (("", hard), ("soft_", probs))
        for name, function in both.items()
    }
    scores = {"dice_coeff": float(both["dice"](masks, probs)), "iou_metric": float(both["iou"](masks, probs))}
    for name, values in of_images.items():
        scores[name] = float(values.mean())
        scores[f"{name}_p5"] = float(np.percentile(values, 5))
        scores[f"{name}_min"] = float(values.min())
    rows = [
        {"image": i, "foreground": float(masks[i].mean()), **{name: float(v[i]) for name, v in of_images.items()}}
        for i in range(len(masks))
    ]
    return scores, rows


def baselines(validation: tuple, test: tuple) -> dict[str, dict]:
    """Scores on the test set of what needs no network: all background, and the best global threshold.

    The threshold, in grey values, is the one of 0.00, 0.01, ..., 1.00 with the best mean Dice on the validation set.
    """
    import keras

    from metrics import dice_coeff

    def mean_dice(threshold):
        hard = (validation[0] >= threshold).astype("float32")
        return float(keras.ops.mean(dice_coeff(validation[1], hard, axis=(1, 2, 3))))

    best = max(np.arange(101) / 100, key=mean_dice)
    images, masks = test
    return {
        "all background": score(masks, np.zeros_like(masks))[0],
        "best global threshold": {"threshold": best, **score(masks, (images >= best).astype("float32"))[0]},
    }


def describe_failure(history: dict, masks, probs) -> str | None:
    """One sentence if the training ended in nothing useful, else None."""
    advice = "Try --loss dice+bce, a lower --learning-rate, another --seed, or larger objects."
    if not all(math.isfinite(loss) for loss in history["loss"]):
        return f"The loss became NaN or infinite: the network is broken and its scores mean nothing. {advice}"
    share, true = float((probs >= 0.5).mean()), float(masks.mean())
    if share < 0.01 * true:
        return f"The training collapsed: the predicted masks are all background (all black). {advice}"
    if true < 1 and share == 1:
        return f"The training collapsed: every predicted mask is all foreground (all white). {advice}"
    return None


def plot_curves(history: dict, path: Path) -> None:
    """Loss, Dice and IoU by epoch, training and validation, with the selected epoch marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    epochs = history["epoch"]
    best = int(np.nanargmax(history["val_image_dice"]))
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = {"Loss": ["loss"], "Dice": ["dice_coeff", "image_dice"], "IoU": ["iou_metric", "image_iou"]}
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name, style in zip(names, ("-", ":"), strict=False):
            kind = {"loss": "", "dice_coeff": ", soft, pooled", "iou_metric": ", soft, pooled"}.get(
                name, ", hard, per image"
            )
            for prefix, label, color in (("", "training", ORANGE), ("val_", "validation", BLUE)):
                values = np.asarray(history[prefix + name], float)
                if title != "Loss":
                    values = np.clip(values, 0.01, 0.9995)  # the ends of a logit scale lie at infinity
                axes.plot(epochs, values, style, color=color, marker=".", label=label + kind)
        axes.axvline(epochs[best], color="0.5", linewidth=0.8, zorder=0)
        axes.annotate(
            f"best epoch {epochs[best]}",
            (epochs[best], 0.97 if title == "Loss" else 0.03),  # where no curve passes
            xycoords=("data", "axes fraction"),
            xytext=(-3, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top" if title == "Loss" else "bottom",
            fontsize=8,
            color="0.35",
        )
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        if title == "Loss":
            losses = np.asarray(history["loss"] + history["val_loss"], float)
            if losses.min() > 0 and losses.max() > 10 * losses.min():  # else a log scale has hardly a tick
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter(plain)
        else:  # so that 0.99 and 0.995 are apart
            axes.set_yscale("logit")
            low = min(0.5, *(v for n in names for v in history["val_" + n][-1:]))
            axes.set_ylim(max(0.01, low), 0.9995)
            axes.yaxis.set_major_locator(FixedLocator([0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998]))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(plain)
        axes.set(title=title, xlabel="epoch", ylabel=f"{title} ({axes.get_yscale()} scale)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def around(mask, margin: int = 4) -> tuple[slice, ...]:
    """The square window around the true pixels of `mask` (H, W), with a margin; the whole image if there are none."""
    found = np.argwhere(mask)
    if not len(found):
        return slice(None), slice(None)
    low, high = found.min(axis=0), found.max(axis=0) + 1
    side = min((high - low).max() + 2 * margin, min(mask.shape))
    start = np.clip((low + high - side) // 2, 0, np.array(mask.shape) - side)
    return tuple(slice(first, first + side) for first in start)


def plot_predictions(images, masks, probs, dice, path: Path) -> None:
    """Rows of image, truth, probability and errors: two typical images and the two worst, each with its Dice.

    The errors are shown enlarged, around the object and whatever was taken for one.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    order = np.argsort(dice)  # from the worst to the best
    middle = [order[round(q * (len(order) - 1))] for q in (0.65, 0.35)]
    rows = [("typical", i) for i in dict.fromkeys(middle)] + [("worst", i) for i in order[:2]]
    colors = {"true negative": "black", "true positive": "0.8", "false positive": ORANGE, "false negative": BLUE}
    figure = Figure(figsize=(8.6, 2.12 * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), 4, squeeze=False)
    for line, (kind, i) in zip(grid, rows, strict=True):
        true, hard = masks[i, ..., 0] == 1, probs[i, ..., 0] >= 0.5
        line[0].imshow(images[i], cmap="gray", vmin=0, vmax=1)
        line[1].imshow(masks[i], cmap="gray", vmin=0, vmax=1)
        shade = line[2].imshow(probs[i], cmap="viridis", vmin=0, vmax=1)
        zoom = around(true | hard)
        line[3].imshow(
            np.select([true & hard, hard, true], [1, 2, 3], 0)[zoom],
            cmap=ListedColormap(list(colors.values())),
            vmin=0,
            vmax=3,
            interpolation="nearest",
        )
        line[0].set_ylabel(f"{kind}: image {i}\nDice {dice[i]:.4f}")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    height, width = images.shape[1:3]
    for axes, title in zip(
        grid[0], (f"image, {width} x {height} px", "true mask", "probability", "errors at 0.5, enlarged"), strict=True
    ):
        axes.set_title(title, fontsize=10)
    figure.colorbar(shade, ax=grid[:, 2], location="bottom", shrink=0.9, pad=0.01, label="probability of object")
    figure.legend(
        handles=[Patch(facecolor=c, edgecolor="0.5", label=n) for n, c in colors.items()],
        loc="outside lower right",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=130)


def format_table(rows: dict[str, dict]) -> str:
    """A plain table of test scores, one row per name, for the console."""
    columns = {
        "image_dice": "Dice",
        "image_dice_p5": "5th pct",
        "image_dice_min": "min",
        "image_iou": "IoU",
        "image_iou_p5": "5th pct",
        "image_iou_min": "min",
        "dice_coeff": "soft Dice",
        "iou_metric": "soft IoU",
    }
    lines = [f"{'':22}{'hard at 0.5, per image':^60}{'pooled':^22}"]
    lines.append(f"{'':22}" + "".join(f"{title:>10}" for title in columns.values()))
    lines += [f"{name:22}" + "".join(f"{scores[key]:10.4f}" for key in columns) for name, scores in rows.items()]
    return "\n".join(lines)
