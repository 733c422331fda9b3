"""Train a 3D U-Net from scratch to find spheres in noise where one slice does not suffice, score it, and track the run.

    python volume_segmentation.py

2 to 3 minutes on 2 cores; expect a mean Dice of about 0.966 on 32 unseen volumes. The files are those of
unet_segmentation.py, in outputs/volume, with per_volume.csv for per_image.csv; the MLflow experiment is
3D_Volume_Segmentation.

    python volume_segmentation.py --images my/scans --masks my/masks --patch 48

trains on your own scans instead, NIfTI files or TIFF stacks, with a mask of the same name for each. Without --patch the
patches are the largest that fit into --memory.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import re
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
    splits,
    tracking,
    training,
    views,
    volume_results,
    volumes,
)
from unet_segmentation import build_unet, check_network

EXPERIMENT = "3D_Volume_Segmentation"
TRAIN, VALIDATION, TEST = range(3)  # streams of the seed: sets that share no volume
DEPTH = 3  # poolings of the network: sides of patches are divisible by 8
VOLUMES = 8  # of spheres: new ones for every epoch, and as many to validate on
LARGEST = 128  # side of the patches that are planned: larger ones would take minutes per step

# What trains on spheres and, with --images, on scans; each of these is a flag of its own too. See unet_segmentation.py
# for what each ingredient is for.
SPHERES = {
    "epochs": 15,
    "train_patches": 90,
    "patch": (48,),
    "batch_size": 2,
    "optimizer": "muon",
    "learning_rate": 8e-3,
    "schedule": "cosine",
    "loss": "dice+bce",
    "filters": 8,  # steps are worth more than width
    "precision": "auto",
}
RECIPES = {
    "spheres": SPHERES,
    "scans": {
        **SPHERES,
        "epochs": 30,
        "patch": None,
        "learning_rate": 4e-3,
        # A tissue's grey value tells which it is, and bfloat16 keeps 8 bits of it. White matter in six blocks of a
        # brain, 810 steps at this rate: test Dice 0.94 in float32, 0.88 in bfloat16, on the unseen half 0.96 and 0.92.
        "precision": "float32",
    },
}
# How much scans are varied beside flips and turns. A tissue's grey value tells which it is: varied as much as pictures
# are, it hardly does (250 steps at 6e-3 on the data of benchmarks/brain.py, one seed: Dice 0.82, without it 0.90).
VARIED = {"contrast": 0.05, "brightness": 0.03, "noise": 0.05}


# The data


@dataclasses.dataclass(frozen=True)
class Volume(pictures.Sample):
    """A volume (D, H, W, 1) with its mask: what `lab/patches.py` cuts patches from."""

    spacing: tuple[float, float, float] | None = None  # along D, H, W, in mm


def make_spheres(args: argparse.Namespace, num_volumes: int, *stream: int) -> list[Volume]:
    """Volumes of one stream of the seed, of spheres in noise."""
    looks = {"radius": args.radius, "contrast": args.contrast, "noise": args.noise}
    seed = (args.seed, *stream)
    images, masks = data_synth.make_spheres(num_volumes, args.size, seed=seed, num_spheres=args.spheres, **looks)
    absolute = grey_values.range_of(images[:1], grey_values.ABSOLUTE)
    pairs = enumerate(zip(images, masks[..., 0] == 1, strict=True))
    return [Volume(f"volume {i}", image, mask, absolute) for i, (image, mask) in pairs]


def read_own(args: argparse.Namespace) -> tuple[dict[str, list] | None, dict]:
    """One's own scans by part, training, validation and test, None for spheres; and how grey values are prepared."""
    if args.images is None:
        return None, {**grey_values.ABSOLUTE, "spacing": None}
    pairs = volumes.read_folder(args.images, args.masks, args.spacing)
    args.said = volumes.describe_grids(pairs)
    found = []
    for pair in pairs:
        own_range = grey_values.range_of(grey_values.few_slices(pair.image), grey_values.STRETCHED)
        found.append(Volume(pair.name, pair.image, pair.mask, own_range, pair.spacing))
    parts = splits.split(found, args.seed, max(args.patch or (48,)))
    prepared, parts, said = grey_values.settle(parts, args.grey_range)
    args.said.append(said)
    return parts, {**prepared, "spacing": args.spacing}


def training_batches(args: argparse.Namespace, own: dict | None, epoch: int) -> Iterator[tuple]:
    """Yield the (images, masks) of one epoch, (N, *patch, 1) each: random patches of new spheres, or of one's scans."""
    samples = own["training"] if own else make_spheres(args, VOLUMES, TRAIN, epoch)
    augment = None
    if own and args.augment:
        augment = functools.partial(patches.vary, planes=turning_planes(samples, args.patch), **VARIED)
    for batch, start in enumerate(range(0, args.train_patches, args.batch_size)):
        num = min(args.batch_size, args.train_patches - start)  # the last batch may be shorter
        yield patches.random_patches(samples, num, args.patch, (args.seed, TRAIN, epoch, batch), augment)


def turning_planes(samples: list[Volume], patch: tuple) -> list[tuple[int, int]]:
    """Pairs of axes along which patches may be turned by quarters: those of equal sides and, in all scans, spacings."""
    steps = np.array([sample.spacing or (1, 1, 1) for sample in samples])
    alike = lambda a, b: patch[a] == patch[b] and np.allclose(steps[:, a], steps[:, b], rtol=0.1)  # noqa: E731
    return [plane for plane in itertools.combinations(range(3), 2) if alike(*plane)]


def held_out_patches(args: argparse.Namespace, own: dict | None, raw: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(images, masks) to validate on: patches on a grid; `raw`: the grey values as they are in the files."""
    samples = own["validation"] if own else make_spheres(args, VOLUMES, VALIDATION)
    return patches.grid_patches(grey_values.raw(samples) if raw else samples, args.patch, args.val_patches)[0]


def plan_patch(args: argparse.Namespace, samples: list[Volume]) -> tuple[int, int, int]:
    """The largest patch that trains within `--memory`, and is no larger than the scans; prints what was tried."""
    shape = np.minimum(np.median([sample.mask.shape for sample in samples], axis=0), LARGEST)
    budget = args.memory or 0.7 * memory.free_memory() / memory.GIB

    def build(sides):
        return build_unet((*sides, 1), args.filters, DEPTH, args.skips)

    step = (args.batch_size, args.optimizer, backend.processor())
    patch, tried = memory.largest_patch(build, budget, *step, tuple(shape), 2**DEPTH)
    print(f"Memory of a training step of {args.batch_size} patches, of which {budget:.1f} GiB may be taken:")
    for row in tried:
        taken = ", taken" if row["sides"] == patch else "" if row["fits"] else ", too large"
        print(f"  {' x '.join(map(str, row['sides'])):>15} voxels: {row['gib']:5.1f} GiB{taken}", flush=True)
    if patch is None:
        raise ValueError(f"no patch trains within {budget:.2f} GiB; take a larger --memory, or fewer --filters.")
    return patch


# Train, score, write


FILES = ("model.keras", "history.json", "scores.json", "per_volume.csv", "curves.png", "predictions.png",
         "split.json", "dataset.png")  # fmt: skip


def train(model, args: argparse.Namespace, own: dict | None, validation: tuple, checkpoint=None, on_epoch_end=None):
    """Compile and fit; the weights of the last epoch remain. Return the history, a dict."""
    steps = math.ceil(args.train_patches / args.batch_size)
    model.compile(
        optimizer=training.choose_optimizer(args.optimizer, args.learning_rate, args.schedule, args.epochs * steps),
        loss=training.choose_loss(args.loss, args.smooth),
        metrics=training.make_metrics(),
    )
    return training.fit(
        model,
        lambda epoch: training_batches(args, own, epoch),
        epochs=args.epochs,
        steps=steps,
        validation=validation,
        checkpoint=checkpoint,
        on_epoch_end=on_epoch_end,
    )


def finish(args, network, own: dict | None, prepared: dict, validation: tuple, test: list, found: dict, out: Path):
    """Write the network, its scores on the test volumes and the pictures; return a sentence for each that failed."""

    def save(path):
        typical = [images for images, _ in itertools.islice(training_batches(args, own, 0), 32)]
        model_file.save_model(network, path, grey_values.describe_training(np.concatenate(typical), prepared))

    def score_test():
        probs = [volume_results.predict_volume(network, sample, args.patch) for sample in test]
        found["test"], rows = volume_results.score_volumes(test, probs)
        sphere = {"noise": args.noise, "contrast": args.contrast, "radius": args.radius}
        one = own is None and tuple(args.spheres) == (1, 1)
        raw_validation = held_out_patches(args, own, raw=True) if own else None
        found["baselines"] = volume_results.baselines(validation, test, sphere if one else None, raw_validation)
        whole = (np.concatenate([a.ravel() for a in arrays]) for arrays in ([s.mask for s in test], probs))
        found["failure"] = results.describe_failure(found["history"], *whole)
        examples = {i: kind for kind, i in results.choose_examples([row["image_dice"] for row in rows])}
        shown = [
            (f"{kind}: {test[i].name}\nDice {rows[i]['image_dice']:.4f}", test[i], probs[i] >= 0.5)
            for i, kind in examples.items()
        ]
        return {
            "per_volume.csv": lambda path: results.write_table(rows, path),
            "predictions.png": lambda path: views.plot_volumes(shown, path),
        }

    pieces = {}
    if own:
        samples = [sample for part in own.values() for sample in part]
        names = {part: [sample.name for sample in found] for part, found in own.items()}
        shown = [(f"{sample.name}\n{sample.mask.mean():.2%} foreground", sample, None) for sample in samples[:4]]
        pieces["split.json"] = lambda path: results.write_json(path, names)
        pieces["dataset.png"] = lambda path: views.plot_volumes(shown, path)
    return results.write_run(out, FILES, found, save, score_test, pieces)


def parse_args(argv=None) -> argparse.Namespace:
    """Read and check the command line; a bad one ends in one sentence and exit code 2."""
    parser = command_line.make_parser(__doc__)
    own = parser.add_argument_group("your own scans, in place of spheres").add_argument
    own("--images", type=Path, metavar="DIR", help="folder of scans: NIfTI (.nii, .nii.gz) or TIFF stacks, of any size")
    own("--masks", type=Path, metavar="DIR", help="folder of their masks, of the same names: 0 and one other value")
    three = {"type": float, "nargs": "+", "metavar": "MM"}
    own("--spacing", **three, help="resample all to this spacing: one number, or depth height width")
    own("--memory", type=float, metavar="GIB", help="what a training step may take; default: 70%% of what is free")
    command_line.grey_range_flag(own)
    own("--augment", action=argparse.BooleanOptionalAction, default=True, help="flip, turn, vary the grey a little")
    data = parser.add_argument_group("data").add_argument
    chosen = functools.partial(command_line.recipe_flag, data, RECIPES)
    chosen("--train-patches", type=int, metavar="N", help="training patches per epoch")
    sides = "side of the patches, or depth height width, divisible by 8; of scans the largest that --memory allows"
    chosen("--patch", type=int, nargs="+", metavar="VOXELS", help=sides)
    data("--val-patches", type=int, default=64, metavar="N", help="validation patches, at most")
    data("--test-volumes", type=int, default=32, metavar="N", help="volumes of spheres to test on")
    data("--size", type=int, default=64, metavar="VOXELS", help="side of the volumes of spheres")
    data("--spheres", type=int, nargs=2, default=(2, 6), metavar=("MIN", "MAX"), help="spheres per volume")
    data("--radius", type=float, nargs=2, default=(4, 10), metavar=("MIN", "MAX"), help="voxels, 1 to (size - 1) / 2")
    data("--contrast", type=float, default=0.5, metavar="C", help="sphere above background, above 0, up to 0.75")
    data("--noise", type=float, default=0.5, metavar="S", help="standard deviation of the noise, 0 or more")
    command_line.add_training_flags(parser.add_argument_group("training").add_argument, RECIPES, "sample")
    command_line.add_output_flags(parser.add_argument_group("output").add_argument, "outputs/volume")
    return command_line.parse(parser, check_args, argv)


def check_args(args: argparse.Namespace) -> None:
    """Fill in the recipe; raise ValueError for settings that cannot work, before anything slow begins."""
    args.recipe, args.said = "scans" if args.images else "spheres", []
    command_line.fill_from_recipe(args, RECIPES)
    command_line.check_training_flags(args, ("train_patches", "val_patches", "test_volumes"))
    if (args.images is None) != (args.masks is None):
        raise ValueError("--images and --masks belong together: give both, or neither for spheres.")
    if args.images is None and (args.spacing, args.memory) != (None, None):
        raise ValueError("--spacing and --memory are for scans: give --images and --masks too.")
    if args.memory is not None and not 0 < args.memory < math.inf:
        raise ValueError(f"--memory must be finite and above 0, in GiB, such as 4; got {args.memory}.")
    for name in ("patch", "spacing"):
        value = getattr(args, name)
        if value is not None and len(value) not in (1, 3):
            raise ValueError(f"--{name} takes one number, or three: depth height width; got {len(value)}.")
        if value is not None:
            setattr(args, name, tuple(value) * (3 // len(value)))
    if args.spacing and not all(0 < step < math.inf for step in args.spacing):
        raise ValueError(f"--spacing must be finite and above 0, in mm; got {args.spacing}.")
    if args.patch:
        check_network((*args.patch, 1), args.filters, DEPTH)
    if args.images is None:
        if max(args.patch) > args.size:
            raise ValueError(f"--patch {max(args.patch)} is larger than --size {args.size}; take at most that.")
        command_line.check_room(4 * 4 * (2 * VOLUMES + args.test_volumes) * args.size**3, "volumes and masks")
        make_spheres(args, 1, TEST)


def prepare(args: argparse.Namespace, own: dict | None):
    """What every process of a training needs: precision, network, validation patches."""
    precision = backend.start(args.precision, args.deterministic, args.seed)
    if args.patch is None:  # process 0 decides: others may have less memory free, or not see the folder
        of_then = training.settings_of_then(args.out_dir).get("patch") if args.resume else None
        sides = map(int, re.findall(r"\d+", str(of_then))) if of_then else plan_patch(args, own["training"])
        args.patch = tuple(json.loads(backend.from_first_process(json.dumps(list(sides)).encode())))
    precision = backend.precision_for_volumes(precision, args.patch[0] // 2**DEPTH)
    fixed = build_unet((*args.patch, 1), args.filters, DEPTH, args.skips)
    step = memory.training_memory(fixed, args.batch_size, args.optimizer, backend.processor())["total"]
    command_line.check_room(step * memory.MIB, f"a training step of {args.batch_size} patches")
    validation = held_out_patches(args, own)
    backend.check_shares(args.train_patches, args.batch_size, "training patches")
    backend.check_shares(len(validation[0]), backend.num_devices(), "validation patches")
    return precision, build_network(args, own), validation


def build_network(args: argparse.Namespace, own: dict | None):
    """The network of the settings, for volumes of any size."""
    model = build_unet((None, None, None, 1), args.filters, DEPTH, args.skips)
    training.start_at_share(model, (masks for _, masks in training_batches(args, own, 0)))
    return model


def follow(args: argparse.Namespace, own: dict | None) -> dict:
    """Take part in the training of process 0: the same steps on other rows, and nothing written."""
    _, model, validation = prepare(args, own)
    if not backend.from_first_process(b""):
        train(model, args, own, validation)
    backend.leave()
    return {}


@command_line.script
def main(argv=None) -> dict:
    """Train, score, plot and track one network; return its scores on the test set."""
    args = parse_args(argv)
    process = backend.connect(args.distributed)
    own, prepared = read_own(args)
    if process > 0:
        return follow(args, own)
    with command_line.output_folder(args.out_dir, (args.images, args.masks)) as out:
        tracking.open_store(EXPERIMENT, out)  # before Keras is imported: an unusable store is told in seconds
        precision, model, validation = prepare(args, own)
        test = own["test"] if own else make_spheres(args, args.test_volumes, TEST)
        settings = command_line.training_settings(
            args, precision=precision, data=splits.describe(own) if own else "spheres"
        )
        checkpoint = training.Checkpoint(out, settings)
        finished = checkpoint.begin(args.resume, args.overwrite, out / "scores.json")
        if backend.from_first_process(b"finished" if finished else b""):
            backend.leave()
            return finished["test"]

        print(f"3D U-Net with {model.count_params():,} parameters, {precision}, on {backend.device()}")
        what, source = ("own scans", str(args.images)) if own else ("spheres", "data_synth.make_spheres")
        said = [*args.said, f"{what}: trained on patches of {' x '.join(map(str, args.patch))} voxels"]
        print(*said, sep="\n", flush=True)
        with tracking.tracked_run(
            EXPERIMENT,
            run_name=command_line.run_name(what, args),
            params={**settings, "out_dir": out, "parameters": model.count_params()},
            tags=backend.provenance(),
            description=f"3D U-Net on {what} ({source}), seed {args.seed}.",
            resume_run_id=checkpoint.notes.get("run_id"),
            journal=out,
        ) as run:
            checkpoint.notes["run_id"] = run.run_id
            sets = {"training": next(training_batches(args, own, 0)), "validation": validation}
            sets["test"] = test[0].image[None, :], test[0].mask[None, ..., None]
            counts = {"training": args.train_patches, "validation": len(validation[0]), "test": len(test)}
            for name, num in counts.items():
                run.dataset(*sets[name], name=f"{what}, {name}", context=name, source=source, num_samples=num)
            started = time.perf_counter()
            history = train(model, args, own, validation, checkpoint, run.metrics)
            found = {"history": history, "training_seconds": time.perf_counter() - started, "settings": settings}
            found["parameters"] = model.count_params()
            found["provenance"] = {**backend.provenance(), "precision": precision}
            network = training.detach(model, lambda: build_unet(model.input_shape[1:], args.filters, DEPTH, args.skips))
            failures = finish(args, network, own, prepared, validation, test, found, out)
            results.log_run(run, FILES, found, args.register)
        checkpoint.delete()
    if "test" in found:
        print(f"\nTest set, {len(test)} volumes:")
        rows = {**found["baselines"], "3D U-Net": found["test"]}
        print(results.format_table(rows, volume_results.COLUMNS, volume_results.column_groups(test)))
    command_line.end(found, failures, f"MLflow run: {run.run_id}, to see it: {tracking.how_to_view()}")
    return found["test"]


if __name__ == "__main__":
    main()
