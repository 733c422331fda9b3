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
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import data_synth
from lab import backend, model_file, pictures, tracking, training
from lab import results as lab_results

# Keras and Matplotlib take seconds to import: the functions that need them import them, so that --help answers at once.
EXPERIMENT = "2D_UNet_Segmentation"
TRAIN, VALIDATION, TEST = 0, 1, 2  # streams of the seed: sets that share no image

# What `--recipe` sets; each of these is a flag of its own too. The comments say what each ingredient is for.
RECIPES = {
    "lab": {
        "train_images": 256,
        "fixed_images": False,  # new images every epoch: the network cannot learn them by heart
        # Half as wide and high around the circle: what teaches is its contour, and most of a full image is background.
        # An image costs a quarter (nnU-Net trains on patches too: Isensee et al. 2021).
        "small_images": True,
        "batch_size": 8,
        "optimizer": "muon",  # see lab/muon.py: as good as Adam after less than half of the images
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
        images = np.stack([pictures.preprocess(i, *pictures.grey_range(i, stretched)) for i in images])
    return images, masks


def preprocessing(args: argparse.Namespace) -> dict:
    """The settings that prepare pictures for the network: plain circles are as they should be already."""
    return pictures.STRETCHED if args.images or args.varied else pictures.ABSOLUTE


def read_own(args: argparse.Namespace) -> dict[str, list] | None:
    """The user's pictures and masks by part, training, validation and test; None for circles."""
    if args.images is None:
        return None
    return pictures.split(pictures.read_folder(args.images, args.masks, preprocessing(args)), args.seed)


def training_batches(args: argparse.Namespace, samples: list | None = None):
    """Yield (images, masks) without end, epoch after epoch: circles, or crops of `samples`.

    Only what is needed is ever in memory.
    """

    def make(num, *stream):
        if samples is None:
            return make_data(args, num, TRAIN, *stream, size=training_side(args))
        return pictures.random_crops(samples, num, args.size, (args.seed, TRAIN, *stream), args.augment)

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


def train(model, args: argparse.Namespace, validation: tuple, on_epoch_end=None, samples: list | None = None):
    """Compile and fit; the weights of the epoch with the best `val_image_dice` remain. Return the history, a dict."""
    import keras

    import metrics

    hard = {"threshold": 0.5, "average": "image"}
    model.compile(
        optimizer=training.choose_optimizer(args),
        loss=training.choose_loss(args.loss),
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
    batches, validation = training.feed(lambda: training_batches(args, samples), training_side(args), validation)
    history = model.fit(
        batches,
        epochs=args.epochs,
        steps_per_epoch=math.ceil(args.train_images / args.batch_size),
        validation_data=validation,
        validation_batch_size=training.PREDICT_BATCH,
        callbacks=[best, log],
        shuffle=False,  # the batches come as they should
        verbose=1 if sys.stdout.isatty() else 2,  # a progress bar in a pipe is a mess of backspaces
    )
    return {"epoch": [epoch + 1 for epoch in history.epoch], **history.history}


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
    fit("--optimizer", choices=("muon", "adam"), help="see lab/muon.py")
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
    model_file.save_model(network, folder / "model.keras", prepared)
    if own:
        names = {part: [sample.name for sample in samples] for part, samples in own.items()}
        (folder / "split.json").write_text(json.dumps(names, indent=1))
        pictures.plot_dataset([sample for samples in own.values() for sample in samples], folder / "dataset.png")
    (folder / "history.json").write_text(json.dumps(history, indent=1))
    (folder / "scores.json").write_text(json.dumps(results, indent=1))
    with open(folder / "per_image.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    lab_results.plot_curves(history, folder / "curves.png")
    lab_results.plot_predictions(
        *test, probs, np.array([row["image_dice"] for row in rows]), folder / "predictions.png"
    )


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
    backend.prepare_tensorflow()
    import keras

    if args.deterministic:
        backend.make_deterministic()
    precision = backend.choose_precision(args.precision)
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(args.seed)
    model = build_unet((None, None, 1), args.filters, skips=args.skips)  # training images may be smaller than others
    if own:
        validation, _ = pictures.grid_crops(own["validation"], args.size, args.val_images)
        test, crops = pictures.grid_crops(own["test"], args.size, args.test_images)
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

        probs = training.predict(model, test[0])
        scores, rows = lab_results.score(test[1], probs)
        if own:
            rows = [{"crop": crop, **row} for crop, row in zip(crops, rows, strict=True)]
        failure = lab_results.describe_failure(history, test[1], probs)
        results = {
            "test": scores,
            "baselines": lab_results.baselines(validation, test),
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
        prepared = pictures.describe_training(seen_in_training(args, samples), preprocessing(args))
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
    print(lab_results.format_table({**results["baselines"], f"U-Net, epoch {results['selected_epoch']}": scores}))
    print(
        f"\nTrained in {seconds:.0f} s. Files: {args.out_dir}. "
        f"MLflow run: {run.run_id}, to see it: {tracking.how_to_view()}"
    )
    if failure:
        print(f"\nWARNING: {failure}", file=sys.stderr)
    return scores


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted: no file was changed.", file=sys.stderr)
        sys.exit(130)
