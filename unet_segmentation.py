"""Train a U-Net from scratch to find circles on noise, score it on unseen images, and track the run in MLflow.

    python unet_segmentation.py

5 minutes on 2 cores without bfloat16; expect a mean Dice of 0.995 on 512 unseen images. Everything goes to
outputs/unet (model.keras, scores.json, per_image.csv, history.json, curves.png, predictions.png) and into the MLflow
experiment 2D_UNet_Segmentation. `--recipe report` trains as a textbook would: Dice loss pooled over the batch, Adam at
1e-3, 256 fixed images; expect 0.991.

    python unet_segmentation.py --images my/pictures --masks my/masks

trains on your own pictures instead, a mask of the same name for each; dataset.png shows what was read, split.json what
became of each. `--varied` draws circles under many kinds of light and surface, for a model that is used on photographs.
"""

import argparse
import csv
import itertools
import json
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import data_synth
import images as image_files
import tracking

# Keras and Matplotlib take seconds to import: the functions that need them import them, so that --help answers at once.

BLUE, ORANGE = "#0072B2", "#E69F00"  # told apart by every reader (Okabe and Ito 2008)
EXPERIMENT = "2D_UNet_Segmentation"
TRAIN, VALIDATION, TEST = 0, 1, 2  # streams of the seed: sets that share no image
PREDICT_BATCH = 16  # images at a time where nothing is trained

# What `--recipe` sets; each of these is a flag of its own too. The comments say what each ingredient is for.
RECIPES = {
    "lab": {
        "train_images": 256,
        "fixed_images": False,  # new images every epoch: the network cannot learn them by heart
        # Half as wide and high around the circle: what teaches is its contour, and most of a full image is background.
        # An image costs a quarter (nnU-Net trains on patches too: Isensee et al. 2021).
        "small_images": True,
        "batch_size": 8,
        "optimizer": "muon",  # see muon.py: as good as Adam after less than half of the images
        "learning_rate": 4e-3,
        "schedule": "cosine",  # up over the first tenth, then down to 0 (Loshchilov and Hutter 2017): ends settled
        # Dice alone can fall into an empty mask and stay there; cross-entropy pulls it out (Isensee et al. 2021).
        "loss": "dice+bce",
    },
    "report": {
        "train_images": 256,
        "fixed_images": True,
        "small_images": False,
        "batch_size": 8,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "loss": "pooled-dice",
    },
}


def conv_block(x, filters: int, name: str | None = None):
    """(3x3 convolution -> ReLU) * 2, same padding: (N, H, W, C) -> (N, H, W, filters)."""
    from keras import layers

    for i in (1, 2):
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",  # keeps the variance through ReLU layers (He et al. 2015)
            name=name and f"{name}_conv{i}",
        )(x)
    return x


def build_unet(input_shape: tuple = (128, 128, 1), filters: int = 32, depth: int = 3, skips: bool = True):
    """Build a U-Net (Ronneberger et al. 2015) with padded convolutions: the mask is as large as the image.

    Encoder blocks of filters, 2 filters, 4 filters, ... with 2x2 max pooling after each; a bottleneck of
    2^depth filters; a decoder of stride-2 transposed convolutions, each concatenated with the encoder block
    of its size; a 1x1 convolution with sigmoid. With the defaults 32, 64, 128, 256 and 1,925,025 parameters.

    Args:
        input_shape: (height, width, channels); height and width divisible by 2^depth.
        filters: channels of the first block, at least 1.
        depth: number of poolings, at least 1.
        skips: False leaves the concatenations out, to see what they are for.

    Returns:
        An uncompiled `keras.Model`: images (N, H, W, C) -> probabilities (N, H, W, 1), float32.

    Raises:
        ValueError: for sides that are not divisible, or counts below 1.
    """
    import keras
    from keras import layers

    check_network(input_shape[:2], filters, depth)
    inputs = x = keras.Input(input_shape, name="image")
    encoder = []
    for level in range(depth):
        x = conv_block(x, filters * 2**level, name=f"encoder{level + 1}")
        encoder.append(x)
        x = layers.MaxPooling2D(2, name=f"pool{level + 1}")(x)
    x = conv_block(x, filters * 2**depth, name="bottleneck")
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(filters * 2**level, 2, strides=2, padding="same", name=f"up{level + 1}")(x)
        if skips:
            x = layers.Concatenate(name=f"skip{level + 1}")([x, encoder[level]])
        x = conv_block(x, filters * 2**level, name=f"decoder{level + 1}")
    # float32 whatever the precision of the rest: bfloat16 has no number between 0.996 and 1.
    mask = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="mask")(x)
    return keras.Model(inputs, mask, name="unet")


def check_network(sides, filters: int, depth: int) -> None:
    """Raise ValueError for a network that `build_unet` cannot build."""
    if filters < 1 or depth < 1:
        raise ValueError(f"filters and depth must be at least 1; got filters={filters}, depth={depth}.")
    factor = 2**depth
    if any(side is not None and (side < factor or side % factor) for side in sides):
        near = tuple(max(factor, round(side / factor) * factor) for side in sides)
        raise ValueError(
            f"the sides must be divisible by 2^depth = {factor}, because each of {depth} poolings halves them; "
            f"got {tuple(sides)}. Take {near}, or another depth."
        )


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


def training_side(args: argparse.Namespace) -> int:
    """Side of the training images, in pixels: with `--small-images` half of `--size`, where one circle has room.

    Room means that the circles cover at most a quarter of the small images, on average. With less background, each
    circle has nearly the same place, and the network learns that and fails on full images. Several circles, or none,
    stay in full images, which decide how crowded they are.
    """
    half = 8 * math.ceil(args.size / 16)
    smallest, largest = args.radius
    covered = math.pi / 3 * (smallest**2 + smallest * largest + largest**2)  # mean area of radii that are uniform
    room = covered <= half**2 / 4 and 2 * largest <= half - 1
    if not args.small_images or args.varied or args.images or tuple(args.circles) != (1, 1) or not room:
        return args.size
    return half


def make_data(args: argparse.Namespace, num_images: int, *stream: int, size: int | None = None):
    """Images and masks of one stream of the seed, preprocessed: (N, size, size, 1) each, by default of `--size`."""
    settings = {"num_circles": args.circles, "radius": args.radius, "contrast": args.contrast, "noise": args.noise}
    if args.varied:
        settings = {**data_synth.VARIED, **settings}
    images, masks = data_synth.make_circles(num_images, size or args.size, seed=(args.seed, *stream), **settings)
    if args.varied:
        stretched = preprocessing(args)
        images = np.stack([image_files.preprocess(i, *image_files.grey_range(i, stretched)) for i in images])
    return images, masks


def preprocessing(args: argparse.Namespace) -> dict:
    """The settings that prepare pictures for the network: plain circles are as they should be already."""
    return image_files.STRETCHED if args.images or args.varied else image_files.ABSOLUTE


def read_own(args: argparse.Namespace) -> dict[str, list] | None:
    """The user's pictures and masks by part, training, validation and test; None for circles."""
    if args.images is None:
        return None
    return image_files.split(image_files.read_folder(args.images, args.masks, preprocessing(args)), args.seed)


def training_batches(args: argparse.Namespace, samples: list | None = None):
    """Yield (images, masks) without end, epoch after epoch: circles, or crops of `samples`.

    Only what is needed is ever in memory.
    """

    def make(num, *stream):
        if samples is None:
            return make_data(args, num, TRAIN, *stream, size=training_side(args))
        return image_files.random_crops(samples, num, args.size, (args.seed, TRAIN, *stream), args.augment)

    if args.fixed_images:
        images, masks = make(args.train_images)
    for epoch in itertools.count():
        order = np.random.default_rng((args.seed, epoch)).permutation(args.train_images)
        for batch, start in enumerate(range(0, args.train_images, args.batch_size)):
            chosen = order[start : start + args.batch_size]  # the last batch may be shorter
            if args.fixed_images:
                yield images[chosen], masks[chosen]
            else:
                yield make(len(chosen), epoch, batch)


def seen_in_training(args: argparse.Namespace, samples: list | None = None) -> np.ndarray:
    """Images (N, size, size, 1) whose grey values tell which pictures the network may be used on.

    Full images: small ones hold more of a circle, and with it other grey values, than pictures to predict.
    """
    full = argparse.Namespace(**{**vars(args), "small_images": False})
    return np.concatenate([images for images, _ in itertools.islice(training_batches(full, samples), 16)])


def choose_loss(name: str):
    """The loss of a name: one value per image, except for the report's, which pools the batch."""
    import keras

    import metrics

    dice, bce = metrics.DiceLoss(), keras.losses.BinaryCrossentropy()
    per_image = (1, 2, 3)

    def dice_and_bce(masks, probs):
        return metrics.dice_loss(masks, probs, dice.smooth, per_image) + keras.ops.mean(
            keras.losses.binary_crossentropy(masks, probs), axis=(1, 2)
        )

    return {"dice": dice, "bce": bce, "dice+bce": dice_and_bce, "pooled-dice": metrics.dice_loss}[name]


def choose_optimizer(args: argparse.Namespace):
    """The optimizer with its learning rate, constant or a cosine with warm-up over the whole training."""
    import keras

    from muon import Muon

    rate = args.learning_rate
    steps = args.epochs * math.ceil(args.train_images / args.batch_size)
    if args.schedule == "cosine":
        warmup = max(1, steps // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            rate / warmup, max(1, steps - warmup), warmup_target=rate, warmup_steps=warmup
        )
    return Muon(rate) if args.optimizer == "muon" else keras.optimizers.Adam(rate)


def choose_precision(wanted: str) -> str:
    """float32 or mixed_bfloat16; "auto" takes bfloat16 where the hardware computes it, not where it emulates it."""
    import keras

    if wanted != "auto":
        return wanted
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        found = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
    elif backend == "jax":
        import jax

        if jax.default_backend() == "tpu":
            return "mixed_bfloat16"
        found = [getattr(device, "compute_capability", "0") for device in jax.devices() if device.platform == "gpu"]
        found = [tuple(int(part) for part in str(capability).split(".")) for capability in found]
    else:
        import torch

        found = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if found:
        native = min(found) >= (8, 0)  # NVIDIA's Ampere and later
    else:
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
        native = "avx512_bf16" in flags or "amx_bf16" in flags
    return "mixed_bfloat16" if native else "float32"


def train(model, args: argparse.Namespace, validation: tuple, on_epoch_end=None, samples: list | None = None):
    """Compile and fit; the weights of the epoch with the best `val_image_dice` remain. Return the history, a dict."""
    import keras

    import metrics

    hard = {"threshold": 0.5, "average": "image"}
    model.compile(
        optimizer=choose_optimizer(args),
        loss=choose_loss(args.loss),
        metrics=[
            metrics.DiceCoefficient(),  # soft and pooled, as in the report
            metrics.IoU(),
            metrics.DiceCoefficient(**hard, name="image_dice"),  # hard and per image, as the field reports
            metrics.IoU(**hard, name="image_iou"),
        ],
    )
    model.optimizer.build(model.trainable_variables)  # now: inside the first step, TensorFlow would trace that twice
    best = keras.callbacks.EarlyStopping(  # never stops: patience is the whole training
        "val_image_dice", mode="max", patience=args.epochs, restore_best_weights=True
    )
    log = keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)
    batches, validation = feed(lambda: training_batches(args, samples), training_side(args), validation)
    history = model.fit(
        batches,
        epochs=args.epochs,
        steps_per_epoch=math.ceil(args.train_images / args.batch_size),
        validation_data=validation,
        validation_batch_size=PREDICT_BATCH,
        callbacks=[best, log],
        shuffle=False,  # the batches come as they should
        verbose=1 if sys.stdout.isatty() else 2,  # a progress bar in a pipe is a mess of backspaces
    )
    return {"epoch": [epoch + 1 for epoch in history.epoch], **history.history}


def feed(batches, side: int, validation: tuple):
    """What `fit` reads: on TensorFlow two tf.data pipelines without autotuning, else the arguments as they are.

    `batches` gives training images of side `side`.

    The thread that autotunes a pipeline sleeps for ever longer spells, and `fit` waits for it after the last step:
    seen to take 7 s on top of 13 s.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return batches(), validation
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    images, masks = (tf.TensorSpec((None, side, side, array.shape[-1]), tf.float32) for array in validation)
    training = tf.data.Dataset.from_generator(batches, output_signature=(images, masks)).prefetch(2)
    validation = tf.data.Dataset.from_tensor_slices(validation).batch(PREDICT_BATCH)
    return training.with_options(options), validation.with_options(options)


def predict(model, images) -> np.ndarray:
    """Probabilities for images (N, H, W, C), in batches: (N, H, W, 1), float32."""
    starts = range(0, len(images), PREDICT_BATCH)
    return np.concatenate([model.predict_on_batch(images[start : start + PREDICT_BATCH]) for start in starts])


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


def parse_args(argv=None) -> argparse.Namespace:
    """Read and check the command line; a bad one ends in one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        usage="%(prog)s [options]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--recipe",
        choices=RECIPES,
        default="lab",
        help="sets the training flags: the lab's, or the textbook's of the report",
    )
    own = parser.add_argument_group("your own pictures, in place of circles").add_argument
    own("--images", type=Path, metavar="DIR", help="folder of pictures: PNG, JPEG, TIFF or BMP, of any size")
    own("--masks", type=Path, metavar="DIR", help="folder of their masks, of the same names: black and one other value")
    own(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="flip, turn, brighten and darken the training crops",
    )
    data = parser.add_argument_group("data").add_argument
    data("--train-images", type=int, metavar="N", help="training images (or crops of your own) per epoch")
    data(
        "--fixed-images",
        action=argparse.BooleanOptionalAction,
        help="the same training images every epoch, instead of new ones",
    )
    data(
        "--small-images",
        action=argparse.BooleanOptionalAction,
        help="train on plain circles in images of half the side, if each holds one and has room; test on --size",
    )
    data("--val-images", type=int, default=64, metavar="N", help="validation images")
    data(
        "--test-images",
        type=int,
        default=512,
        metavar="N",
        help="test images, seen by nothing but the final scores",
    )
    data("--size", type=int, default=128, metavar="PIXELS", help="side of the images, divisible by 8")
    data("--varied", action="store_true", help="vary light, contrast, surface and blur, for use on photographs")
    data(
        "--circles",
        type=int,
        nargs=2,
        default=(1, 1),
        metavar=("MIN", "MAX"),
        help="circles per image; 0 to allow empty masks",
    )
    data(
        "--radius",
        type=float,
        nargs=2,
        default=(8, 25),
        metavar=("MIN", "MAX"),
        help="radius in pixels, 1 to (size - 1) / 2",
    )
    data(
        "--contrast",
        type=float,
        default=0.5,
        metavar="C",
        help="circle above background in grey values, above 0, up to 0.75",
    )
    data(
        "--noise",
        type=float,
        default=0.25,
        metavar="S",
        help="standard deviation of the noise in grey values, 0 or more",
    )
    fit = parser.add_argument_group("training").add_argument
    fit("--epochs", type=int, default=15, metavar="N", help="passes over the training images")
    fit("--batch-size", type=int, metavar="N", help="images per step")
    fit("--optimizer", choices=("muon", "adam"), help="see muon.py")
    fit("--learning-rate", type=float, metavar="R", help="peak step size, above 0")
    fit("--schedule", choices=("cosine", "constant"), help="course of the learning rate")
    fit(
        "--loss",
        choices=("dice", "bce", "dice+bce", "pooled-dice"),
        help="what is minimised; pooled-dice is the report's",
    )
    fit("--filters", type=int, default=32, metavar="N", help="channels of the first block; 32 is the report's network")
    fit("--skips", action=argparse.BooleanOptionalAction, default=True, help="the skip connections")
    fit(
        "--precision",
        choices=("auto", "float32", "mixed_bfloat16"),
        default="auto",
        help="auto: bfloat16 where the hardware has it",
    )
    fit("--seed", type=int, default=0, metavar="N", help="of the weights and the data, 0 or more")
    fit("--deterministic", action="store_true", help="ask TensorFlow for bit-for-bit repeatable operations")
    out = parser.add_argument_group("output").add_argument
    out("--out-dir", type=Path, default=Path("outputs/unet"), metavar="DIR", help="where all files go")
    out("--run-name", metavar="NAME", help="of the MLflow run; default: data, recipe and seed")
    known = parser.parse_known_args(argv)[0]
    parser.set_defaults(**RECIPES[known.recipe])
    if known.varied:
        of_flag = {"circles": "num_circles", "contrast": "contrast", "noise": "noise"}
        parser.set_defaults(**{flag: data_synth.VARIED[name] for flag, name in of_flag.items()})
    args = parser.parse_args(argv)
    try:
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for settings that cannot work, before anything slow begins."""
    for name in ("train_images", "val_images", "test_images", "epochs", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(args, name)}.")
    if not (math.isfinite(args.learning_rate) and args.learning_rate > 0):
        raise ValueError(f"--learning-rate must be a finite number above 0, such as 0.002; got {args.learning_rate}.")
    check_network((args.size, args.size), args.filters, depth=3)
    if (args.images is None) != (args.masks is None):
        raise ValueError("--images and --masks belong together: give both, or neither for circles.")
    if args.images and args.varied:
        raise ValueError("--varied is for circles; your own pictures are varied by --augment, which is on.")
    if args.images is None:
        make_data(args, 1, TEST)
    elif args.out_dir.resolve() in (args.images.resolve(), args.masks.resolve()):
        raise ValueError(f"--out-dir {args.out_dir} holds the input; name another folder: nothing is overwritten.")
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out_dir).close()
    except OSError as error:
        raise ValueError(
            f"--out-dir {args.out_dir} cannot be written ({error.strerror}): name another folder."
        ) from None


def write_results(folder: Path, network, prepared, history, results, rows, test, probs, own) -> None:
    """Write every file of the run into `folder`."""
    image_files.save_model(network, folder / "model.keras", prepared)
    if own:
        names = {part: [sample.name for sample in samples] for part, samples in own.items()}
        (folder / "split.json").write_text(json.dumps(names, indent=1))
        image_files.plot_dataset([sample for samples in own.values() for sample in samples], folder / "dataset.png")
    (folder / "history.json").write_text(json.dumps(history, indent=1))
    (folder / "scores.json").write_text(json.dumps(results, indent=1))
    with open(folder / "per_image.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    plot_curves(history, folder / "curves.png")
    plot_predictions(*test, probs, np.array([row["image_dice"] for row in rows]), folder / "predictions.png")


def main(argv=None) -> dict:
    """Train, score, plot and track one network; return its scores on the test set."""
    args = parse_args(argv)
    try:
        own = read_own(args)
        tracking.open_store(EXPERIMENT)  # before Keras is imported: an unusable store is told in seconds
    except (tracking.TrackingError, ValueError) as error:
        stop(error)
    try:
        return run_lab(args, own)
    except tracking.TrackingError as error:
        stop(error)


def stop(error: Exception) -> None:
    """End the script with one sentence."""
    print(f"unet_segmentation.py: error: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def run_lab(args: argparse.Namespace, own: dict[str, list] | None) -> dict:
    """What `main` does once the settings are known to be good."""
    prepare_tensorflow()
    import keras

    if args.deterministic:
        make_deterministic()
    precision = choose_precision(args.precision)
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(args.seed)
    model = build_unet((None, None, 1), args.filters, skips=args.skips)  # training images may be smaller than others
    if own:
        validation, _ = image_files.grid_crops(own["validation"], args.size, args.val_images)
        test, crops = image_files.grid_crops(own["test"], args.size, args.test_images)
        samples, what, source = own["training"], "own pictures", str(args.images)
    else:
        validation, test = make_data(args, args.val_images, VALIDATION), make_data(args, args.test_images, TEST)
        samples, what, source = None, "circles", "data_synth.make_circles"
    provenance = tracking.provenance()
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    print(f"U-Net with {model.count_params():,} parameters, {precision}, on {provenance['device']}")
    sides = {"trained": training_side(args), "scored": args.size}
    print(", ".join(f"{what} on images of {side}x{side} pixels" for what, side in sides.items()))

    description = f"U-Net on {what} ({source}), recipe `{args.recipe}`, seed {args.seed}."
    # Named here: Keras's seed is Python's too, from which MLflow would draw the same name for every run.
    name = args.run_name or f"{what}, {args.recipe}, seed {args.seed}"
    with tracking.tracked_run(EXPERIMENT, run_name=name, params=settings, description=description) as run:
        run.params({"parameters": model.count_params(), "precision_used": precision, "training_side": sides["trained"]})
        sets = {"training": next(training_batches(args, samples)), "validation": validation, "test": test}
        for name, (images, masks) in sets.items():
            run.dataset(images, masks, name=f"{what}, {name}", context=name, source=source)
        started = time.perf_counter()
        history = train(model, args, validation, lambda epoch, logs: run.metrics(logs, step=epoch + 1), samples)
        seconds = time.perf_counter() - started

        probs = predict(model, test[0])
        scores, rows = score(test[1], probs)
        if own:
            rows = [{"crop": crop, **row} for crop, row in zip(crops, rows, strict=True)]
        failure = describe_failure(history, test[1], probs)
        results = {
            "test": scores,
            "baselines": baselines(validation, test),
            "last_epoch": {name: values[-1] for name, values in history.items()},
            "selected_epoch": history["epoch"][int(np.argmax(history["val_image_dice"]))],
            "failure": failure,
            "parameters": model.count_params(),
            "training_seconds": seconds,
            "settings": settings,
            "training_side": sides["trained"],
            "provenance": {**provenance, "precision": precision},
        }
        # Without optimizer and loss the saved network needs nothing of ours: it loads in any Keras 3 program.
        network = build_unet((args.size, args.size, 1), args.filters, skips=args.skips)
        network.set_weights(model.get_weights())
        prepared = image_files.describe_training(seen_in_training(args, samples), preprocessing(args))
        # Written aside and then moved: an interruption leaves no half-written file, nor a mixture of two runs.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=args.out_dir) as aside:
            write_results(Path(aside), network, prepared, history, results, rows, test, probs, own)
            written = [args.out_dir / path.name for path in sorted(Path(aside).iterdir())]
            for path in written:
                os.replace(Path(aside) / path.name, path)
        for path in written:
            if path.suffix != ".keras":
                run.artifact(path)
        run.metrics({f"test_{name}": value for name, value in scores.items()} | {"training_seconds": seconds})
        run.tags({"collapsed": "yes" if failure else "no"})
        run.model(network, example=test[0][:1])

    print(f"\nTest set, {len(rows)} images:" if own is None else f"\nTest set, {len(rows)} crops of your pictures:")
    print(format_table({**results["baselines"], f"U-Net, epoch {results['selected_epoch']}": scores}))
    print(
        f"\nTrained in {seconds:.0f} s. Files: {args.out_dir}. "
        f"MLflow run: {run.run_id}, to see it: {tracking.how_to_view()}"
    )
    if failure:
        print(f"\nWARNING: {failure}", file=sys.stderr)
    return scores


def prepare_tensorflow() -> None:
    """Set what TensorFlow reads when it is imported; what the user has set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its notes on drivers that are not there; exceptions stay
    # TensorFlow's own memory pool: with the system's, every step maps and clears its memory anew (20% slower).
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN's convolutions, which TensorFlow takes by itself only where a processor has AVX-512 VNNI or the like:
        # with AVX2 alone, an epoch takes three quarters of the time.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def make_deterministic() -> None:
    """Ask the backend for operations that give the same bits every time."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    else:
        print(f"--deterministic is TensorFlow's; the backend is {keras.backend.backend()}: seeds alone are set.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted: no file was changed.", file=sys.stderr)
        sys.exit(130)
