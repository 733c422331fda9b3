"""Train a U-Net from scratch to find circles on noise, score it on unseen images, and track the run in MLflow.

    python unet_segmentation.py

5 minutes on 2 cores without bfloat16; expect a mean Dice of 0.995 on 512 unseen images. Everything goes to
outputs/unet (model.keras, scores.json, per_image.csv, history.json, curves.png, predictions.png) and into the MLflow
experiment 2D_UNet_Segmentation. A run that was stopped goes on with `--resume`. `--recipe report` trains as a textbook
would: Dice loss pooled over the batch, Adam at 1e-3, 256 fixed images; expect 0.990, or nothing at all (1 of 5 runs).

    python unet_segmentation.py --images my/pictures --masks my/masks

trains on your own pictures instead, a mask of the same name for each; dataset.png shows what was read, split.json what
became of each. `--recipe photographs` draws circles under many kinds of light and surface, for use on photographs.
"""

import argparse
import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import data_synth
from lab import (
    backend,
    command_line,
    grey_values,
    memory,
    model_file,
    patches,
    pictures,
    results,
    scale,
    splits,
    tracking,
    training,
)

# Keras and Matplotlib take seconds to import: the functions that need them import them, so that --help answers at once.

EXPERIMENT = "2D_UNet_Segmentation"
TRAIN, VALIDATION, TEST, TYPICAL = range(4)  # streams of the seed: sets that share no image

# What `--recipe` sets; each of these is a flag of its own too. The comments say what each ingredient is for.
LAB = {
    "epochs": 15,
    "train_images": 256,
    "fixed_images": False,  # new images every epoch: the network cannot learn them by heart
    # Half as wide and high as --size: what teaches is the circle's contour, and most of a full image is background.
    # An image costs a quarter (nnU-Net trains on patches too: Isensee et al. 2021).
    "train_size": 64,
    "circles": (1, 1),
    "contrast": (0.5,),
    "noise": (0.25,),
    "batch_size": 8,
    "optimizer": "muon",  # see lab/muon.py and benchmarks/ablation.py
    "learning_rate": 4e-3,
    "schedule": "cosine",  # up over the first tenth, then down to 0 (Loshchilov and Hutter 2017): ends settled
    # Dice alone can fall into an empty mask and stay there; cross-entropy pulls it out (Isensee et al. 2021).
    "loss": "dice+bce",
    "filters": 32,
    "precision": "auto",
}
RECIPES = {
    "lab": LAB,
    "report": {
        **LAB,
        "fixed_images": True,
        "train_size": 128,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "loss": "pooled-dice",
    },
    "photographs": {
        **LAB,
        "train_images": 128,
        "train_size": 128,  # several circles: a small image would hold them too close
        "circles": data_synth.VARIED["num_circles"],
        "contrast": data_synth.VARIED["contrast"],
        "noise": data_synth.VARIED["noise"],
        "batch_size": 4,
        "learning_rate": 3e-3,
    },
}


# The network


def conv_block(x, filters: int, name: str | None = None, kernel_size: int = 3):
    """(3x3 convolution -> ReLU) * 2, same padding: (N, H, W, C) -> (N, H, W, filters); 3x3x3 on (N, D, H, W, C)."""
    from keras import layers

    convolution = layers.Conv3D if len(x.shape) == 5 else layers.Conv2D
    start = "he_normal"  # keeps the variance through ReLU layers (He et al. 2015)
    for i in (1, 2):
        own_name = name and f"{name}_conv{i}"
        x = convolution(
            filters, kernel_size, padding="same", activation="relu", kernel_initializer=start, name=own_name
        )(x)
    return x


def build_unet(
    input_shape: tuple = (128, 128, 1),
    filters: int = 32,
    depth: int = 3,
    skips: bool | str = True,
    kernel_size: int = 3,
    downsampling: str = "late",
    name: str = "unet",
):
    """Build a U-Net (Ronneberger et al. 2015) with padded convolutions: the mask is as large as the image.

    Encoder blocks of filters, 2 filters, 4 filters, ... with 2x2 max pooling after each; a bottleneck of
    2^depth filters; a decoder of stride-2 transposed convolutions, each concatenated with the encoder block
    of its size; a 1x1 convolution with sigmoid. With the defaults 32, 64, 128, 256 and 1,925,025 parameters.
    An input shape of rank 4 gives the same network in three dimensions (Cicek et al. 2016).

    Args:
        input_shape: (height, width, channels) or (depth, height, width, channels); sides divisible by 2^depth, or
            None for any such side.
        filters: channels of the first block, at least 1.
        depth: number of poolings, at least 1.
        skips: False leaves the concatenations out, "add" adds instead, to see what they are for.
        kernel_size: side of the blocks' kernels, odd.
        downsampling: "early" puts a convolution of stride 2 in front and a transposed one behind: no block then works
            at full resolution. Sides must be divisible by twice as much.
        name: of the model.

    Returns:
        An uncompiled `keras.Model`: images (N, H, W, C) -> probabilities (N, H, W, 1), float32; volumes likewise.

    Raises:
        ValueError: for sides that are not divisible, or settings out of range.
    """
    import keras
    from keras import layers

    check_network(input_shape, filters, depth, kernel_size, downsampling)
    ndim = len(input_shape) - 1
    convolution, transposed, pooling = (
        getattr(layers, name) for name in (f"Conv{ndim}D", f"Conv{ndim}DTranspose", f"MaxPooling{ndim}D")
    )
    inputs = x = keras.Input(input_shape, name="image" if ndim == 2 else "volume")
    if downsampling == "early":
        x = convolution(filters, kernel_size, strides=2, padding="same", activation="relu", name="reduce")(x)
    encoder = []
    for level in range(depth):
        x = conv_block(x, filters * 2**level, f"encoder{level + 1}", kernel_size)
        encoder.append(x)
        x = pooling(2, name=f"pool{level + 1}")(x)
    x = conv_block(x, filters * 2**depth, "bottleneck", kernel_size)
    for level in reversed(range(depth)):
        x = transposed(filters * 2**level, 2, strides=2, padding="same", name=f"up{level + 1}")(x)
        if skips:
            join = layers.Add if skips == "add" else layers.Concatenate
            x = join(name=f"skip{level + 1}")([x, encoder[level]])
        x = conv_block(x, filters * 2**level, f"decoder{level + 1}", kernel_size)
    if downsampling == "early":
        x = transposed(filters, 2, strides=2, padding="same", activation="relu", name="restore")(x)
    # float32 whatever the precision of the rest: bfloat16 has no number between 0.996 and 1.
    mask = convolution(1, 1, activation="sigmoid", dtype="float32", name="mask")(x)
    return keras.Model(inputs, mask, name=name)


def check_network(input_shape, filters: int, depth: int, kernel_size: int = 3, downsampling: str = "late") -> None:
    """Raise ValueError for a network that `build_unet` cannot build."""
    if len(input_shape) not in (3, 4):
        raise ValueError(f"the input shape must be (height, width, channels), or with a depth; got {input_shape}.")
    if not 1 <= filters <= 4096 or depth < 1:
        raise ValueError(f"filters must be 1 to 4096 and depth at least 1; got filters={filters}, depth={depth}.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"the kernel size must be odd and at least 1, such as 3, 5 or 7; got {kernel_size}.")
    if downsampling not in ("early", "late"):
        raise ValueError(f"downsampling must be 'early' or 'late'; got {downsampling!r}.")
    halvings = depth + (downsampling == "early")
    factor, sides = 2**halvings, tuple(input_shape[:-1])
    if any(side is not None and (side < factor or side % factor) for side in sides):
        near = tuple(max(factor, round(side / factor) * factor) for side in sides)
        raise ValueError(
            f"the sides must be divisible by {factor}, because each of {halvings} poolings and strides halves them; "
            f"got {sides}. Take {near}, or another depth."
        )


# The data


def make_circles(args: argparse.Namespace, num_images: int, *stream: int, size: int | None = None, raw: bool = False):
    """Images and masks of one stream of the seed: (N, size, size, 1) each, by default of `--size`; scenes for
    photographs as the network sees them, or `raw`."""
    settings = {"num_circles": args.circles, "radius": args.radius}
    for name in ("contrast", "noise"):  # one value each, or the ends of a range
        value = getattr(args, name)
        settings[name] = value if len(value) > 1 else value[0]
    if args.recipe == "photographs":
        settings = {**data_synth.VARIED, **settings}
    images, masks = data_synth.make_circles(num_images, size or args.size, seed=(args.seed, *stream), **settings)
    if args.recipe == "photographs" and not raw:
        images = np.stack([grey_values.range_of(i, grey_values.STRETCHED).prepare(i) for i in images])
    return images, masks


def read_own(args: argparse.Namespace) -> list[tuple[dict, dict | None, str]]:
    """For each fold the settings of the grey values, the user's pictures by part, training, validation and test (None
    for circles), and what is to be said of the grey values."""
    if args.images is None:
        return [(grey_values.STRETCHED if args.recipe == "photographs" else grey_values.ABSOLUTE, None, "")]
    samples = pictures.read_folder(args.images, args.masks)
    if args.folds:
        found = splits.folds(samples, args.seed, args.folds, args.size)
    else:
        found = [splits.split(samples, args.seed, args.size)]
    return [grey_values.settle(parts, args.grey_range) for parts in found]


def draw(args: argparse.Namespace, own: dict | None, num: int, size: int, *stream: int):
    """Images and masks to train on, (num, size, size, C), of a stream: circles, or crops of one's own pictures."""
    if own is None:
        return make_circles(args, num, *stream, size=size)
    augment = patches.vary if args.augment else None
    return patches.random_patches(own["training"], num, size, (args.seed, *stream), augment)


def training_batches(args: argparse.Namespace, own: dict | None, epoch: int) -> Iterator[tuple]:
    """Yield the (images, masks) of one epoch; only what is needed is ever in memory."""

    def images(num, *stream):
        return draw(args, own, num, args.train_size, TRAIN, *stream)

    fixed = images(args.train_images) if args.fixed_images else None
    order = np.random.default_rng((args.seed, epoch)).permutation(args.train_images)
    for batch, start in enumerate(range(0, args.train_images, args.batch_size)):
        chosen = order[start : start + args.batch_size]  # the last batch may be shorter
        yield tuple(a[chosen] for a in fixed) if fixed else images(len(chosen), epoch, batch)


def held_out_images(args: argparse.Namespace, own: dict | None, part: str, num: int, raw: bool = False):
    """(images, masks) to validate or test on, and the place of each crop of one's own pictures; `raw`: the grey values
    as they are in the file."""
    if own is None:
        return make_circles(args, num, {"validation": VALIDATION, "test": TEST}[part], raw=raw), None
    return patches.grid_patches(grey_values.raw(own[part]) if raw else own[part], args.size, num)


def fit_train_size(args: argparse.Namespace, wanted: bool) -> str:
    """Settle `--train-size`; return the sentence that says what is trained on.

    A size that nobody `wanted`, the recipe's, gives way to --size where it does not suit the data. Small images suit
    one circle that covers at most a quarter of them, on average: with less background each circle has nearly the same
    place, and the network learns that and fails on full images. Several circles, or none, stay in full images, which
    decide how crowded they are; one's own pictures are cut to --size.
    """
    smallest, largest = args.radius
    covered = math.pi / 3 * (smallest**2 + smallest * largest + largest**2)  # mean area of radii that are uniform
    room = covered <= args.train_size**2 / 4 and 2 * largest <= args.train_size - 1
    suits = args.images is None and tuple(args.circles) == (1, 1) and room and args.train_size <= args.size
    if not wanted and not suits:
        args.train_size = args.size
    crowded = " (which leave little background around them: expect a lower score)" if wanted and not suits else ""
    sizes = f"{args.train_size}x{args.train_size} pixels{crowded}, scored on {args.size}x{args.size}"
    return f"{'own pictures' if args.images else 'circles'}: trained on images of {sizes}"


# Train, score, write


FILES = ("model.keras", "history.json", "scores.json", "per_image.csv", "curves.png", "predictions.png",
         "split.json", "dataset.png")  # fmt: skip


def train(model, args: argparse.Namespace, own: dict | None, validation: tuple, **more):
    """Compile and fit; the weights of the last epoch remain. Return the history, a dict. `more`: see `training.fit`."""
    steps = math.ceil(args.train_images / args.batch_size)
    model.compile(
        optimizer=training.choose_optimizer(args.optimizer, args.learning_rate, args.schedule, args.epochs * steps),
        loss=training.choose_loss(args.loss, args.smooth),
        metrics=training.make_metrics(),
    )
    batches = functools.partial(training_batches, args, own)
    return training.fit(model, batches, epochs=args.epochs, steps=steps, validation=validation, **more)


def finish(args, network, own: dict | None, prepared: dict, sets: dict, found: dict, out: Path) -> list[str]:
    """Write the network, score it on the test set, write and draw the rest; complete `found`.

    What fails costs its own piece: a sentence for each is returned.
    """
    (images, masks), places = sets["test"]
    if args.recipe == "photographs":
        prepared = {**prepared, "scales": scale.SCALES}  # objects of pictures have other sizes than circles here

    def save(path):
        # Of full size: small images hold more of a circle, and with it other grey values, than pictures to predict.
        typical, _ = draw(args, own, 128, args.size, TYPICAL)
        model_file.save_model(network, path, grey_values.describe_training(typical, prepared))

    def score_test():
        probs = training.predict(network, images)
        found["test"], rows = results.score(masks, probs)
        raw = None
        if own or args.recipe == "photographs":
            nums = {"validation": args.val_images, "test": args.test_images}
            raw = [held_out_images(args, own, part, num, raw=True)[0] for part, num in nums.items()]
        found["baselines"] = results.baselines(sets["validation"][0], (images, masks), raw)
        found["failure"] = results.describe_failure(found["history"], masks, probs)
        dice = np.array([row["image_dice"] for row in rows])
        if places:
            rows = [{"crop": place, **row} for place, row in zip(places, rows, strict=True)]
        return {
            "per_image.csv": lambda path: results.write_table(rows, path),
            "predictions.png": lambda path: results.plot_predictions(images, masks, probs, dice, path),
        }

    pieces = {}
    if own:
        samples = [sample for part in own.values() for sample in part]
        names = {part: [sample.name for sample in found] for part, found in own.items()}
        pieces["split.json"] = lambda path: results.write_json(path, names)
        pieces["dataset.png"] = lambda path: pictures.plot_dataset(samples, path)
    return results.write_run(out, FILES, found, save, score_test, pieces)


def parse_args(argv=None) -> argparse.Namespace:
    """Read and check the command line; a bad one ends in one sentence and exit code 2."""
    parser = command_line.make_parser(__doc__)
    recipes = "sets the flags with several defaults: the lab's, the textbook's of the lab report, one for photographs"
    parser.add_argument("--recipe", choices=RECIPES, default="lab", help=recipes)
    switch = {"action": argparse.BooleanOptionalAction}
    own = parser.add_argument_group("your own pictures, in place of circles").add_argument
    own("--images", type=Path, metavar="DIR", help="folder of pictures: PNG, JPEG, TIFF or BMP, of any size")
    own("--masks", type=Path, metavar="DIR", help="folder of their masks, of the same names: black and one other value")
    command_line.grey_range_flag(own)
    own("--augment", **switch, default=True, help="flip, turn, brighten and darken the training crops")
    own("--folds", type=int, metavar="K", help="train K networks on K splits, each tested on other pictures")
    own("--start-from", type=Path, metavar="MODEL", help="begin with the weights of a model file of the same network")
    data = parser.add_argument_group("data").add_argument
    chosen = functools.partial(command_line.recipe_flag, data, RECIPES)
    chosen("--train-images", type=int, metavar="N", help="training images (or crops of your own) per epoch")
    chosen("--fixed-images", **switch, help="the same training images every epoch, instead of new ones")
    chosen("--train-size", type=int, metavar="PIXELS", help="side of the training images, at most --size")
    data("--val-images", type=int, default=64, metavar="N", help="validation images")
    data("--test-images", type=int, default=512, metavar="N", help="test images, seen by the final scores alone")
    data("--size", type=int, default=128, metavar="PIXELS", help="side of the images, divisible by 8")
    ends = {"type": float, "nargs": "+", "metavar": "V"}
    chosen("--circles", type=int, nargs=2, metavar=("MIN", "MAX"), help="circles per image; 0 to allow empty masks")
    data("--radius", type=float, nargs=2, default=(8, 25), metavar=("MIN", "MAX"), help="pixels, 1 to (size - 1) / 2")
    chosen("--contrast", **ends, help="circle above background in grey values, above 0, up to 0.75; or MIN MAX")
    chosen("--noise", **ends, help="standard deviation of the noise in grey values, 0 or more; or MIN MAX")
    command_line.add_training_flags(parser.add_argument_group("training").add_argument, RECIPES, "image")
    command_line.add_output_flags(parser.add_argument_group("output").add_argument, "outputs/unet")
    return command_line.parse(parser, check_args, argv)


def check_args(args: argparse.Namespace) -> None:
    """Fill in the recipe; raise ValueError for settings that cannot work, before anything slow begins."""
    wanted = hasattr(args, "train_size")
    command_line.fill_from_recipe(args, RECIPES)
    command_line.check_training_flags(args, ("train_images", "val_images", "test_images"))
    if (args.images is None) != (args.masks is None):
        raise ValueError("--images and --masks belong together: give both, or neither for circles.")
    if args.folds is not None and (args.images is None or args.folds < 2):
        raise ValueError(f"--folds must be at least 2, and is for your own pictures (--images); got {args.folds}.")
    if args.folds and args.distributed:
        raise ValueError("--folds trains one network after the other on this host; give it without --distributed.")
    if args.images and args.recipe == "photographs":
        raise ValueError("--recipe photographs draws circles; your own pictures are varied by --augment, which is on.")
    for name in ("contrast", "noise"):
        if (num := len(getattr(args, name))) > 2:
            raise ValueError(f"--{name} takes one value or the two ends of a range; got {num} values.")
    check_network((args.size, args.size, 1), args.filters, depth=3)
    args.said = fit_train_size(args, wanted)
    check_network((args.train_size, args.train_size, 1), args.filters, depth=3)
    if args.train_size > args.size:
        raise ValueError(f"--train-size {args.train_size} is larger than --size {args.size}; take at most that.")
    kept = args.val_images + args.test_images + args.fixed_images * args.train_images
    command_line.check_room(3 * 4 * kept * args.size**2, "images, masks and probabilities")  # float32
    if args.images is None:
        make_circles(args, 1, TEST)
        make_circles(args, 1, TEST, size=args.train_size)


def prepare(args: argparse.Namespace, own: dict | None):
    """What every process of a training needs: precision, network, and (images, masks) with their places by part."""
    precision = backend.start(args.precision, args.deterministic, args.seed)
    model = build_network(args, own)
    fixed = build_unet((args.train_size, args.train_size, model.input_shape[-1]), args.filters, skips=args.skips)
    step = memory.training_memory(fixed, args.batch_size, args.optimizer)["total"]
    command_line.check_room(step * memory.MIB, f"a training step of {args.batch_size} images")
    if args.start_from:
        model_file.copy_weights(args.start_from, model)
    sets = {"training": (draw(args, own, args.batch_size, args.train_size, TRAIN, 0, 0), None)}  # a batch, to be shown
    sets["validation"] = held_out_images(args, own, "validation", args.val_images)
    sets["test"] = held_out_images(args, own, "test", args.test_images)
    backend.check_shares(args.train_images, args.batch_size, "training images")
    backend.check_shares(len(sets["validation"][0][0]), backend.num_devices(), "validation images")
    return precision, model, sets


def build_network(args: argparse.Namespace, own: dict | None):
    """The network of the settings, for images of any size."""
    if own is None:
        return build_unet((None, None, 1), args.filters, skips=args.skips)
    model = build_unet((None, None, own["training"][0].image.shape[-1]), args.filters, skips=args.skips)
    training.start_at_share(model, (masks for _, masks in training_batches(args, own, 0)))
    return model


def follow(args: argparse.Namespace, own: dict | None) -> dict:
    """Take part in the training of process 0: the same steps on other rows, and nothing written."""
    _, model, sets = prepare(args, own)
    if not backend.from_first_process(b""):
        train(model, args, own, sets["validation"][0])
    backend.leave()
    return {}


@command_line.script
def main(argv=None) -> dict:
    """Train, score, plot and track one network, or one per fold; return the test scores, of folds the mean."""
    args = parse_args(argv)
    process = backend.connect(args.distributed)
    found = []
    for fold, (prepared, own, said) in enumerate(read_own(args), 1):
        if fold > 1:
            backend.connect(False)  # the devices of this host: the fold before has left them
        out_dir = args.out_dir / f"fold-{fold}" if args.folds else args.out_dir
        if process > 0:
            found.append(follow(args, own))
            continue
        with command_line.output_folder(out_dir, (args.images, args.masks)) as out:
            found.append(run(args, own, prepared, said, out, f", fold {fold} of {args.folds}" if args.folds else ""))
    return results.summarize_folds(found, args.out_dir) if args.folds and process == 0 else found[0]


def run(args: argparse.Namespace, own: dict | None, prepared: dict, said: str, out: Path, which: str) -> dict:
    """What `main` does for one network, in the folder `out`."""
    tracking.open_store(EXPERIMENT, out)  # before Keras is imported: an unusable store is told in seconds
    precision, model, sets = prepare(args, own)
    data = splits.describe(own) if own else "circles"
    settings = command_line.training_settings(args, precision=precision, data=data)
    checkpoint = training.Checkpoint(out, settings)
    finished = checkpoint.begin(args.resume, args.overwrite, out / "scores.json")
    if backend.from_first_process(b"finished" if finished else b""):
        backend.leave()
        return finished["test"]

    print(f"U-Net with {model.count_params():,} parameters, {precision}, on {backend.device()}")
    print(*filter(None, [args.said, said]), sep="\n", flush=True)
    what, source = ("own pictures", str(args.images)) if own else ("circles", "data_synth.make_circles")
    with tracking.tracked_run(
        EXPERIMENT,
        run_name=command_line.run_name(what, args) + which,
        params={**settings, "out_dir": out, "parameters": model.count_params()},
        tags=backend.provenance(),
        description=f"U-Net on {what} ({source}), recipe `{args.recipe}`, seed {args.seed}{which}.",
        resume_run_id=checkpoint.notes.get("run_id"),
        journal=out,
    ) as tracked:
        checkpoint.notes["run_id"] = tracked.run_id
        for name, ((images, masks), _) in sets.items():
            num = args.train_images if name == "training" else len(images)
            tracked.dataset(images, masks, name=f"{what}, {name}", context=name, source=source, num_samples=num)
        started = time.perf_counter()
        history = train(model, args, own, sets["validation"][0], checkpoint=checkpoint, on_epoch_end=tracked.metrics)
        found = {"history": history, "training_seconds": time.perf_counter() - started, "settings": settings}
        found |= {"parameters": model.count_params(), "provenance": {**backend.provenance(), "precision": precision}}
        network = training.detach(model, lambda: build_unet(model.input_shape[1:], args.filters, skips=args.skips))
        failures = finish(args, network, own, prepared, sets, found, out)
        results.log_run(tracked, FILES, found, args.register)
    checkpoint.delete()
    if "test" in found:
        print(f"\nTest set, {len(sets['test'][0][0])} {'crops of your pictures' if own else 'images'}:")
        print(results.format_table({**found["baselines"], "U-Net": found["test"]}))
    command_line.end(found, failures, f"MLflow run: {tracked.run_id}, to see it: {tracking.how_to_view()}")
    return found["test"]


if __name__ == "__main__":
    main()
