"""Train a U-Net from scratch to find circles on noise, score it on unseen images, and track the run in MLflow.

    python unet_segmentation.py

5 minutes on 2 cores without bfloat16; expect a mean Dice of 0.995 on 512 unseen images. Everything goes to
outputs/unet (model.keras, scores.json, per_image.csv, history.json, curves.png, predictions.png) and into the MLflow
experiment 2D_UNet_Segmentation. A run that was stopped goes on with `--resume`. `--recipe report` trains as a textbook
does: Dice loss pooled over the batch, Adam at 1e-3, 256 fixed images; expect 0.990, but 1 of 5 runs finds nothing.

    python unet_segmentation.py --images my/pictures --masks my/masks

trains on your own pictures instead. Each has a mask of the same name, of one class or several. dataset.png shows what
was read, and split.json tells which pictures train, validate and test. `--check` writes these two files and ends.
`--shapes` draws discs, squares and triangles: three classes that differ only in their shape; expect a mean Dice of
0.98. `--recipe photographs` draws circles under many kinds of light and surface, for use on photographs.
"""

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

import data_synth
from lab import command_line, experiment
from lab.data import grey_values, patches, picture_folders, scenes, splits
from lab.data.classes import Classes
from lab.data.sample import to_masks
from lab.data.source import TEST, TRAIN, TYPICAL, VALIDATION, Source, image_batches, own_data
from lab.evaluate import evaluation, plots, shape_fit
from lab.model import memory, model_file, scale, training
from lab.model.network_limits import check_network

# Keras and Matplotlib take seconds to import: the functions that need them import them, so that --help answers at once.

EXPERIMENT = "2D_UNet_Segmentation"
SHAPES = ("disc", "square", "triangle")

# What `--recipe` sets; each of these is also a flag. The comments give the reason for each value.
LAB: dict = {
    "epochs": 15,
    "size": 128,
    "train_images": 256,
    "fixed_images": False,  # new images every epoch: the network cannot learn them by heart
    # Half as wide and high as --size: the network learns from the circle's contour, and most of a full image is
    # background. A small image costs a quarter (nnU-Net trains on patches too: Isensee et al. 2021).
    "train_size": 64,
    "circles": (1, 1),
    "radius": (8, 25),
    "contrast": (0.5,),
    "noise": (0.25,),
    "batch_size": 8,
    "optimizer": "muon",  # see lab/model/muon.py and benchmarks/ablation.py
    "learning_rate": 4e-3,
    "schedule": "cosine",  # up over the first tenth, then down to 0 (Loshchilov and Hutter 2017)
    # Dice alone can fall into an empty mask and stay there; cross-entropy pulls it out (Isensee et al. 2021).
    "loss": "dice+ce",
    "filters": 32,
    "precision": "auto",
}
RECIPES = {
    "lab": LAB,
    "own-pictures": {**LAB, "size": None, "train_size": None},  # the default with --images
    "report": {
        **LAB,
        "fixed_images": True,
        "train_size": 128,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "loss": "pooled-dice",
    },
    "shapes": {  # full images, because three shapes need room; half as many, in batches half as large
        **LAB,
        "train_images": 128,
        "train_size": 128,
        "radius": (9, 16),
        "batch_size": 4,
    },
    "photographs": {
        **LAB,
        "train_images": 128,
        "train_size": 128,  # several circles lie too close together in a small image
        "circles": scenes.VARIED["num_circles"],
        "contrast": scenes.VARIED["contrast"],
        "noise": scenes.VARIED["noise"],
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
    num_classes: int = 1,
    kernel_size: int = 3,
    downsampling: str = "late",
    name: str = "unet",
):
    """Build a U-Net (Ronneberger et al. 2015) with padded convolutions: the mask is as large as the image.

    Encoder blocks of filters, 2 filters, 4 filters, ... with 2x2 max pooling after each; a bottleneck of
    2^depth filters; a decoder of stride-2 transposed convolutions, each concatenated with the encoder block
    of its size; a 1x1 convolution with sigmoid, or of several classes with softmax. With the defaults 32, 64, 128, 256
    and 1,925,025 parameters.
    An input shape of rank 4 gives the same network in three dimensions (Cicek et al. 2016).

    Args:
        input_shape: (height, width, channels) or (depth, height, width, channels); sides divisible by 2^depth, or
            None for any such side.
        filters: channels of the first block, at least 1.
        depth: number of poolings, at least 1.
        skips: False leaves out the concatenations, "add" replaces them by sums; both show what they are for.
        num_classes: K, the number of classes without the background.
        kernel_size: side of the blocks' kernels, odd.
        downsampling: "early" puts a convolution of stride 2 in front and a transposed one behind: no block then works
            at full resolution. Sides must then be divisible by 2^(depth + 1).
        name: name of the model.

    Returns:
        An uncompiled `keras.Model`: images (N, H, W, C) -> probabilities (N, H, W, 1), or of K > 1 classes
        (N, H, W, K + 1), background first; float32. Volumes likewise.

    Raises:
        ValueError: for sides that are not divisible, or settings out of range.
    """
    import keras
    from keras import layers

    check_network(input_shape, filters, depth, kernel_size, downsampling, num_classes)
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
    # float32, also where the other layers use bfloat16, which has no number between 0.996 and 1.
    channels, activation = (1, "sigmoid") if num_classes == 1 else (num_classes + 1, "softmax")
    mask = convolution(channels, 1, activation=activation, dtype="float32", name="mask")(x)
    return keras.Model(inputs, mask, name=name)


def build(args: argparse.Namespace, source: Source):
    """Build the network that the command line asks for, for images of any size with the source's channels."""
    network = {"filters": args.filters, "skips": args.skips, "num_classes": source.classes.num}
    model = build_unet((None, None, source.channels), **network)
    if args.images:
        training.start_at_share(model, (masks for _, masks in source.batches(0)))
    fixed = build_unet((*source.sides, source.channels), **network)
    memory.check_step(fixed, args.batch_size, args.optimizer, "images")
    if args.start_from:
        remark = model_file.copy_weights(args.start_from, model, source.classes)
        if remark:
            print(remark)
    return model


# The data


def make_circles(args: argparse.Namespace, num_images: int, *stream: int, size: int | None = None, raw: bool = False):
    """Images and masks (N, size, size, 1) of one stream of the seed; `size` is `--size` by default. Scenes for
    photographs are prepared as the network sees them, unless they are `raw`."""
    settings = {"num_circles": args.circles, "radius": args.radius}
    for name in ("contrast", "noise"):  # one value each, or the ends of a range
        value = getattr(args, name)
        settings[name] = value if len(value) > 1 else value[0]
    size, seed = size or args.size, (args.seed, *stream)
    if args.recipe != "photographs":
        return data_synth.make_circles(num_images, size, seed=seed, **settings)
    images, masks = scenes.draw_scenes(num_images, size, seed=seed, **{**scenes.VARIED, **settings})
    if not raw:
        images = np.stack([grey_values.range_of(i, grey_values.STRETCHED).prepare(i) for i in images])
    return images, masks


def circles(args: argparse.Namespace, origin: str = "data_synth.make_circles", **fields) -> Source:
    """Circles on noise."""
    return drawn_images(args, functools.partial(make_circles, args), name="circles", origin=origin, **fields)


def photographs(args: argparse.Namespace) -> Source:
    """Scenes of circles under many kinds of light and surface."""
    held_out = {VALIDATION: args.val_images, TEST: args.test_images}
    return circles(
        args,
        origin="lab.data.scenes.draw_scenes",
        preprocessing={**grey_values.STRETCHED, "scales": scale.SCALES},  # objects have other sizes than these circles
        raw=lambda: [make_circles(args, num, stream, raw=True) for stream, num in held_out.items()],
    )


def shapes(args: argparse.Namespace) -> Source:
    """Discs, squares and triangles on noise, one of each in every image: three classes of one grey value."""
    looks = {"radius": args.radius, "contrast": args.contrast[0], "noise": args.noise[0]}
    classes = Classes(SHAPES, tuple(range(len(SHAPES) + 1)))

    def draw(num, *stream, size=args.size):
        images, labels = data_synth.make_shapes(num, size, seed=(args.seed, *stream), shapes=SHAPES, **looks)
        return images, to_masks(labels, classes.num)

    references = functools.partial(shape_fit.references, shapes=SHAPES, looks=looks)
    origin = "data_synth.make_shapes"
    return drawn_images(args, draw, name="shapes", origin=origin, classes=classes, references=references)


def drawn_images(args: argparse.Namespace, draw: Callable, **fields) -> Source:
    """The source of images that `draw(num, *stream, size=...)` draws, of full size to validate and to test on."""
    held_out = {"validation": draw(args.val_images, VALIDATION), "test": draw(args.test_images, TEST)}
    return source_of(args, draw, args.train_size, **held_out, **fields)


def source_of(args: argparse.Namespace, draw: Callable, train_size: int, **fields) -> Source:
    """A source of square images to train on, which `draw(num, *stream, size=...)` draws or cuts out."""

    def draw_training(num, *stream):
        return draw(num, TRAIN, *stream, size=train_size)

    return Source(
        batches=image_batches(draw_training, args.train_images, args.batch_size, args.seed, args.fixed_images),
        num_training=args.train_images,
        sides=(train_size, train_size),
        # Of full size: circles fill more of the small training images, whose grey values differ for that reason.
        typical=lambda: draw(128, TYPICAL)[0],
        **fields,
    )


def split_pictures(args: argparse.Namespace) -> tuple[Classes, list[dict], int]:
    """The user's classes; the pictures by part, training, validation and test, for each fold; the side of the crops."""
    samples, classes = picture_folders.read_folder(args.images, args.masks, args.classes, args.ignore)
    least = max(splits.LEAST, args.train_size or 0)
    return classes, *splits.largest_split(samples, args.seed, args.folds, args.size, LAB["size"], least)


def own_pictures(args: argparse.Namespace, classes: Classes, parts: dict[str, list], size: int) -> Source:
    """The user's pictures: random crops to train on, crops on a grid to validate on, whole pictures to test on."""
    preprocessing, parts, remark = grey_values.settle(parts, args.grey_range)
    augment = patches.vary if args.augment else None

    def crop(num, *stream, size=size):
        return patches.random_patches(parts["training"], num, size, (args.seed, *stream), augment, classes.num)

    own = own_data(
        parts, classes, (size, size), args.val_images, plots.plot_dataset, settings={"size": size}, remarks=[remark]
    )
    about = {"name": "own pictures", "origin": str(args.images), "preprocessing": preprocessing}
    return source_of(args, crop, args.train_size or size, **about, **own)


# The command line


def parse_args(argv=None) -> argparse.Namespace:
    """Read and check the command line; a bad one ends in one sentence and exit code 2."""
    parser = command_line.make_parser(__doc__)
    recipes = "sets all flags that have several defaults; report: as in a textbook"
    parser.add_argument("--recipe", choices=RECIPES, help=f"{recipes} (default: lab, with --images own-pictures)")
    parser.add_argument("--shapes", action="store_true", help="draw three classes that differ only in their shape")
    add = command_line.own_data_flags(
        parser,
        "pictures",
        "circles",
        kinds="PNG, JPEG, TIFF or BMP",
        masks="black and one other value, or a value or colour for each class",
        augment="flip, turn, brighten and darken the training crops",
    )
    add("--folds", type=int, metavar="K", help="train K networks on K splits, each tested on other pictures")
    add("--start-from", type=Path, metavar="MODEL", help="begin with the weights of a model file of the same network")
    data = parser.add_argument_group("data").add_argument
    chosen = functools.partial(command_line.recipe_flag, data, RECIPES)
    chosen("--train-images", type=int, metavar="N", help="training images (or crops of your own) per epoch")
    fixed = "the same training images every epoch, instead of new ones"
    chosen("--fixed-images", action=argparse.BooleanOptionalAction, help=fixed)
    chosen("--train-size", type=int, metavar="PIXELS", help="side of the training images, at most --size")
    # Of circles, 64 are a quarter of an epoch's arithmetic, and give the mean Dice with a standard error of 0.0004,
    # about what seeds differ by; 16 would give it with one of 0.0009.
    data("--val-images", type=int, default=64, metavar="N", help="validation images (or crops of your own)")
    tested = "circles or shapes for the final scores; of your own pictures, all test pictures are taken"
    data("--test-images", type=int, default=512, metavar="N", help=tested)
    sides = "side of the images, divisible by 8; for one or two small pictures the largest that fits their regions"
    chosen("--size", type=int, metavar="PIXELS", help=sides)
    ends = {"type": float, "nargs": "+", "metavar": "V"}
    chosen("--circles", type=int, nargs=2, metavar=("MIN", "MAX"), help="circles per image; 0 to allow empty masks")
    radius = "pixels, 1 to (size - 1) / 2; for shapes the radius of a disc of their area"
    chosen("--radius", type=float, nargs=2, metavar=("MIN", "MAX"), help=radius)
    chosen("--contrast", **ends, help="circle above background in grey values, above 0, up to 0.75; or MIN MAX")
    chosen("--noise", **ends, help="standard deviation of the noise in grey values, 0 or more; or MIN MAX")
    command_line.add_training_flags(parser.add_argument_group("training"), RECIPES, "image")
    command_line.add_output_flags(parser.add_argument_group("output").add_argument, "outputs/unet")

    def recipe(args):
        return args.recipe or ("own-pictures" if args.images else "shapes" if args.shapes else "lab")

    return command_line.parse(parser, check_args, argv, recipe, RECIPES)


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for settings that cannot work, before anything slow begins."""
    command_line.check_training_flags(args, ("train_images", "val_images", "test_images"), "circles")
    if args.folds is not None and (args.images is None or args.folds < 2):
        raise ValueError(f"--folds must be at least 2, and is for your own pictures (--images); got {args.folds}.")
    if args.folds and args.distributed:
        raise ValueError("--folds trains one network after the other on this host; give it without --distributed.")
    if (args.shapes or args.recipe == "shapes") and (args.images or args.recipe != "shapes"):
        raise ValueError("--shapes draws its images and has its own recipe; give it without --images and --recipe.")
    if args.images and args.recipe == "photographs":
        raise ValueError("--recipe photographs draws circles; your own pictures are varied by --augment, which is on.")
    for name in ("contrast", "noise"):
        if (num := len(getattr(args, name))) > 2:
            raise ValueError(f"--{name} takes one value or the two ends of a range; got {num} values.")
    size = args.size or LAB["size"]
    train_size = args.train_size or size
    for side in (size, train_size):
        check_network((side, side, 1), args.filters, depth=3)
    if train_size > size:
        raise ValueError(f"--train-size {train_size} is larger than --size {size}; take at most that.")
    stored = args.val_images + (args.images is None) * args.test_images + args.fixed_images * args.train_images
    memory.check_room(3 * 4 * stored * size**2, "images, masks and probabilities")  # float32
    if args.recipe == "shapes":
        data_synth.make_shapes(1, args.train_size, shapes=SHAPES, radius=args.radius, contrast=args.contrast[0])
    elif args.images is None:
        check_circles(args)


def check_circles(args: argparse.Namespace) -> None:
    """Raise ValueError for circles that cannot be drawn, or that cannot be learned from small training images.

    Small images suit one circle that covers at most a quarter of them, on average. With less background, all circles
    lie at nearly the same place: the network learns the place and fails on full images. Several circles, or none, need
    full images, because small ones would be more crowded than the images to test on.
    """
    make_circles(args, 1, TEST)
    make_circles(args, 1, TEST, size=args.train_size)
    smallest, largest = args.radius
    covered = math.pi / 3 * (smallest**2 + smallest * largest + largest**2)  # mean area of radii that are uniform
    if args.train_size < args.size and (tuple(args.circles) != (1, 1) or covered > args.train_size**2 / 4):
        raise ValueError(
            f"training images of {args.train_size}x{args.train_size} pixels suit one circle that covers at most a "
            f"quarter of them; add --train-size {args.size}."
        )


@command_line.script
def main(argv=None) -> dict:
    """Train, score, plot and track one network, or one per fold; return the test scores, or their mean over folds."""
    args = parse_args(argv)
    evaluate = evaluation.of_samples if args.images else evaluation.of_images
    run = functools.partial(experiment.run, EXPERIMENT, args, RECIPES, build=build, evaluate=evaluate)
    if args.images is None:
        drawn = {"shapes": shapes, "photographs": photographs}.get(args.recipe, circles)
        return run(functools.partial(drawn, args))
    classes, folds, size = split_pictures(args)
    if size < (args.size or LAB["size"]):
        print(f"--size {size}: the largest at which these few small pictures can be split by regions.", flush=True)
    sources = [functools.partial(own_pictures, args, classes, parts, size) for parts in folds]
    if not args.folds:
        return run(*sources)
    scores = [run(source, fold=fold) for fold, source in enumerate(sources, 1)]
    return {} if args.check else experiment.summarize_folds(scores, args.out_dir)


if __name__ == "__main__":
    main()
