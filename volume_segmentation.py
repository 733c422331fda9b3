"""Train a 3D U-Net from scratch to find spheres in noise where one slice does not suffice, score it, and track the run.

    python volume_segmentation.py

2 to 3 minutes on 2 cores; expect a mean Dice of about 0.966 on 32 unseen volumes. The files are those of
unet_segmentation.py, in outputs/volume, with per_volume.csv for per_image.csv; the MLflow experiment is
3D_Volume_Segmentation.

    python volume_segmentation.py --images my/scans --masks my/masks --patch 48

trains on your own scans instead, NIfTI files or TIFF stacks, with a mask of the same name for each. Without --patch the
patches have about 131,000 voxels; with --memory, or on a graphics card, they are the largest that fit into the memory.
"""

import argparse
import functools
import math
from collections.abc import Callable

import numpy as np

import data_synth
from lab import command_line, experiment
from lab.data import grey_values, patches, splits, volumes
from lab.data.classes import ONE, Classes
from lab.data.sample import Sample, drawn_samples
from lab.data.source import TEST, TRAIN, VALIDATION, Source, image_batches, own_data
from lab.evaluate import ball_fit, evaluation, shape_fit, views
from lab.model import memory, patch_plan, training
from lab.model.network_limits import check_network
from unet_segmentation import build_unet

EXPERIMENT = "3D_Volume_Segmentation"
DEPTH = 3  # poolings of the network: sides of patches are divisible by 8
VOLUMES = 8  # of spheres: new ones for every epoch, and as many to validate on
BODIES = ("ball", "cube", "octahedron")

# The settings for spheres and, with --images, for scans; each of these is also a flag. unet_segmentation.py gives the
# reason for each.
SPHERES = {
    "epochs": 15,
    "size": 64,
    "radius": (4, 10),
    "noise": 0.5,
    "train_patches": 90,
    "patch": (48, 48, 48),
    "batch_size": 2,
    "optimizer": "muon",
    "learning_rate": 8e-3,
    "schedule": "cosine",
    "loss": "dice+ce",
    "filters": 8,  # more steps help more than a wider network
    "precision": "auto",
}
RECIPES = {
    "spheres": SPHERES,
    # 15 epochs do not suffice: mean Dice 0.62 on 32 volumes, and 0.55 at the spheres' rate (seed 0).
    "bodies": {**SPHERES, "size": 48, "radius": (5, 8), "noise": 0.25, "learning_rate": 4e-3},
    "scans": {
        **SPHERES,
        "epochs": 30,
        "patch": None,
        "learning_rate": None,  # RATE_OF_ONE or RATE_OF_SEVERAL
        # The grey value tells which tissue it is, and bfloat16 keeps only 8 bits of it. White matter in six blocks of a
        # brain, 810 steps at 4e-3: test Dice 0.94 in float32, 0.88 in bfloat16; on the unseen half 0.96 and 0.92.
        "precision": "float32",
    },
}
# Learning rates for scans of one class and of several. White matter in six blocks of a brain: test Dice 0.954 at 6e-3,
# 0.950 at 3e-3. Five structures of a brain, 700 steps: mean test Dice 0.47 at 6e-3, 0.81 at 3e-3 (seed 0 each).
RATE_OF_ONE, RATE_OF_SEVERAL = 6e-3, 3e-3
# How much the grey values of scans are varied, beside flips and turns. The larger changes of pictures would make
# tissues look alike (250 steps at 6e-3 on grey matter of a brain, one seed: Dice 0.82, without it 0.90).
VARIED = {"contrast": 0.05, "brightness": 0.03, "noise": 0.05}
# Where the folder has one range, grey values are absolute and are not varied (six blocks as above, 1,350 steps at
# 4e-3: test Dice 0.949 varied as above, 0.957 nearly as they are).
ABSOLUTE = {"contrast": 0.0, "brightness": 0.0, "noise": 0.0}


def build(args: argparse.Namespace, source: Source):
    """Build the network that the command line asks for, for volumes of any size."""
    network = (args.filters, DEPTH, args.skips, source.classes.num)
    memory.check_step(build_unet((*source.sides, 1), *network), args.batch_size, args.optimizer, "patches")
    model = build_unet((None, None, None, 1), *network)
    training.start_at_share(model, (masks for _, masks in source.batches(0)))
    return model


# The data


def make_spheres(args: argparse.Namespace, num_volumes: int, *stream: int) -> list[Sample]:
    """Volumes of spheres in noise, from one stream of the seed."""
    seed = (args.seed, *stream)
    images, masks = data_synth.make_spheres(num_volumes, args.size, seed=seed, num_spheres=args.spheres, **looks(args))
    return drawn_samples(images, masks[..., 0].astype(np.uint8))


def make_bodies(args: argparse.Namespace, num_volumes: int, *stream: int) -> list[Sample]:
    """Volumes of a ball, a cube and an octahedron in noise, from one stream of the seed."""
    seed = (args.seed, *stream)
    return drawn_samples(*data_synth.make_bodies(num_volumes, args.size, seed=seed, bodies=BODIES, **looks(args)))


def looks(args: argparse.Namespace) -> dict:
    """How drawn volumes look."""
    return {"radius": args.radius, "contrast": args.contrast, "noise": args.noise}


def spheres(args: argparse.Namespace) -> Source:
    """Spheres in noise."""
    is_one = tuple(args.spheres) == (1, 1)
    references = functools.partial(ball_fit.references, looks=looks(args)) if is_one else None
    return drawn_volumes(args, make_spheres, "spheres", ONE, references)


def bodies(args: argparse.Namespace) -> Source:
    """Balls, cubes and octahedra in noise, one of each in every volume: three classes of one grey value."""
    references = functools.partial(shape_fit.references, shapes=BODIES, looks=looks(args))
    return drawn_volumes(args, make_bodies, "bodies", Classes(BODIES, tuple(range(len(BODIES) + 1))), references)


def drawn_volumes(
    args: argparse.Namespace, draw: Callable, name: str, classes: Classes, references: Callable | None
) -> Source:
    """The source of volumes that `draw(args, num, *stream)` draws, new ones in every epoch.

    `references(test)` gives the scores of methods that know the objects.
    """
    draw_epoch = functools.lru_cache(maxsize=1)(functools.partial(draw, args, VOLUMES, TRAIN))  # once for all batches
    return Source(
        name=name,
        origin=f"data_synth.{draw.__name__}",
        batches=patch_batches(args, draw_epoch, args.patch, classes.num),
        num_training=args.train_patches,
        sides=args.patch,
        validation=patches.grid_patches(draw(args, VOLUMES, VALIDATION), args.patch, args.val_patches, classes.num),
        test=draw(args, args.test_volumes, TEST),
        preprocessing={**grey_values.ABSOLUTE, "spacing": None},
        classes=classes,
        references=references,
        settings={"patch": args.patch},
    )


def split_scans(args: argparse.Namespace) -> tuple[Classes, dict[str, list[Sample]], list[str]]:
    """The user's classes; the scans by part, training, validation and test; and sentences about their grids."""
    samples, classes = volumes.read_folder(args.images, args.masks, args.spacing, args.classes, args.ignore)
    return classes, splits.split(samples, args.seed, max(args.patch or (48,))), volumes.describe_grids(samples)


def own_scans(args: argparse.Namespace, classes: Classes, parts: dict[str, list[Sample]], remarks=()) -> Source:
    """The user's scans: random patches to train on, patches on a grid to validate on, whole scans to test on."""
    preprocessing, parts, remark = grey_values.settle(parts, args.grey_range)
    patch = args.patch or patch_plan.choose_patch(
        lambda sides: build_unet((*sides, 1), args.filters, DEPTH, args.skips),
        parts["training"],
        args.batch_size,
        args.optimizer,
        args.memory,
        args.out_dir if args.resume else None,
    )
    augment: Callable | None = None
    if args.augment:
        changes: dict = ABSOLUTE if preprocessing.get("window") else VARIED
        flips, planes = patches.symmetries(parts["training"], patch)
        augment = functools.partial(patches.vary, flips=flips, planes=planes, **changes)
    spacings = {"spacing": args.spacing, "spacings_seen": volumes.spacings_of(parts["training"])}
    remarks = [*remarks, remark]
    own = own_data(
        parts, classes, patch, args.val_patches, views.plot_dataset, settings={"patch": patch}, remarks=remarks
    )
    return Source(
        name="own scans",
        origin=str(args.images),
        batches=patch_batches(args, lambda epoch: parts["training"], patch, classes.num, augment),
        num_training=args.train_patches,
        sides=patch,
        preprocessing={**preprocessing, **spacings},
        learning_rate=RATE_OF_ONE if classes.num == 1 else RATE_OF_SEVERAL,
        **own,
    )


def patch_batches(
    args: argparse.Namespace, samples_of: Callable, patch: tuple, num_classes: int, augment: Callable | None = None
) -> Callable:
    """A function epoch -> its batches of random patches, cut from the samples `samples_of(epoch)`."""

    def cut(num, epoch, batch):
        seed = (args.seed, TRAIN, epoch, batch)
        return patches.random_patches(samples_of(epoch), num, patch, seed, augment, num_classes)

    return image_batches(cut, args.train_patches, args.batch_size, args.seed)


# The command line


def parse_args(argv=None) -> argparse.Namespace:
    """Read and check the command line; a bad one ends in one sentence and exit code 2."""
    parser = command_line.make_parser(__doc__)
    bodies_help = "balls, cubes and octahedra, which differ only in their shape"
    parser.add_argument("--bodies", action="store_true", help=bodies_help)
    add = command_line.own_data_flags(
        parser,
        "scans",
        "spheres",
        kinds="NIfTI (.nii, .nii.gz) or TIFF stacks",
        masks="0, and a value per class",
        augment="flip left and right, vary the grey a little; TIFF stacks are flipped along each axis, and turned",
    )
    resampled = "resample all to this spacing: one number, or depth height width"
    add("--spacing", **command_line.one_or_three(float), metavar="MM", help=resampled)
    most = "memory of a training step, filled by the largest patch that fits; without it, and without a graphics card, "
    most += f"a patch has at most about {patch_plan.MOST_VOXELS:,} voxels"
    add("--memory", type=float, metavar="GIB", help=most)
    data = parser.add_argument_group("data").add_argument
    chosen = functools.partial(command_line.recipe_flag, data, RECIPES)
    chosen("--train-patches", type=int, metavar="N", help="training patches per epoch")
    sides = "side of the patches, or depth height width, divisible by 8; default for scans: see --memory"
    chosen("--patch", **command_line.one_or_three(int), metavar="VOXELS", help=sides)
    data("--val-patches", type=int, default=64, metavar="N", help="validation patches, at most")
    data("--test-volumes", type=int, default=32, metavar="N", help="volumes of spheres or bodies to test on")
    chosen("--size", type=int, metavar="VOXELS", help="side of the volumes of spheres or bodies")
    data("--spheres", type=int, nargs=2, default=(2, 6), metavar=("MIN", "MAX"), help="spheres per volume")
    radius = "voxels, 1 to (size - 1) / 2; for bodies the radius of a ball of their volume"
    chosen("--radius", type=float, nargs=2, metavar=("MIN", "MAX"), help=radius)
    data("--contrast", type=float, default=0.5, metavar="C", help="sphere above background, above 0, up to 0.75")
    chosen("--noise", type=float, metavar="S", help="standard deviation of the noise, 0 or more")
    rate = f"; for scans {RATE_OF_ONE}, of several classes {RATE_OF_SEVERAL}"
    command_line.add_training_flags(parser.add_argument_group("training"), RECIPES, "sample", rate)
    command_line.add_output_flags(parser.add_argument_group("output").add_argument, "outputs/volume")

    def recipe(args):
        return "scans" if args.images else "bodies" if args.bodies else "spheres"

    return command_line.parse(parser, check_args, argv, recipe, RECIPES)


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for settings that cannot work, before anything slow begins."""
    command_line.check_training_flags(args, ("train_patches", "val_patches", "test_volumes"), "spheres")
    if args.images and args.bodies:
        raise ValueError("--bodies draws its volumes; give it without --images.")
    if args.images is None and (args.spacing, args.memory) != (None, None):
        raise ValueError("--spacing and --memory are for scans: give --images and --masks too.")
    if args.memory is not None and not 0 < args.memory < math.inf:
        raise ValueError(f"--memory must be finite and above 0, in GiB, such as 4; got {args.memory}.")
    if args.spacing and not all(0 < step < math.inf for step in args.spacing):
        raise ValueError(f"--spacing must be finite and above 0, in mm; got {args.spacing}.")
    if args.patch:
        check_network((*args.patch, 1), args.filters, DEPTH)
    if args.images is None:
        if max(args.patch) > args.size:
            raise ValueError(f"--patch {max(args.patch)} is larger than --size {args.size}; take at most that.")
        memory.check_room(4 * 4 * (2 * VOLUMES + args.test_volumes) * args.size**3, "volumes and masks")
        (make_bodies if args.bodies else make_spheres)(args, 1, TEST)


@command_line.script
def main(argv=None) -> dict:
    """Train, score, plot and track one network; return its scores on the test set."""
    args = parse_args(argv)
    if args.images:
        source = functools.partial(own_scans, args, *split_scans(args))
    else:
        source = functools.partial(bodies if args.bodies else spheres, args)
    return experiment.run(EXPERIMENT, args, RECIPES, source, build, evaluation.of_samples)


if __name__ == "__main__":
    main()
