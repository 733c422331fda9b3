"""Several classes: told apart by shape alone; one of them rare; one of few pixels, under each loss.

    python -m benchmarks.classes shapes        # 5 trainings of some minutes on 2 cores
    python -m benchmarks.classes rare          # 10 of about a minute
    python -m benchmarks.classes imbalance     # 60 of about a minute
    python -m benchmarks.classes rare --tiny   # only whether it runs; nothing is recorded

Each row is a training in a process of its own. It is recorded as soon as it ends, and not repeated.

shapes      `unet_segmentation.py --shapes`. An object, a connected region of the true mask, is confused if most of the
            pixels found in it have another class, and missed if none is found.
rare        24 pictures of 25 objects, split as one's own are. One of 50 objects, hence of 50 pixels of the foreground,
            is a triangle among discs of the same grey value and areas. "even" aims every second crop at a class drawn
            evenly, then at one of its pixels; "uniform" at any pixel of the foreground. Tested on 96 other pictures.
imbalance   A disc that covers about 5% of each image, and in every second image a square of about 32 pixels, 0.1% of
            all pixels, of the same grey value. Each loss is trained at each rate with the seeds SWEEP. The rate with
            the best mean validation Dice is trained again with seeds that the choice has not seen.
"""

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import data_synth
import unet_segmentation as unet
from benchmarks import _common, scores
from benchmarks.intervals import paired, told
from lab import experiment
from lab.data import grey_values, splits
from lab.data.classes import NOT_LABELLED, Classes
from lab.data.sample import Sample, to_masks
from lab.data.source import Source, image_batches
from lab.evaluate import scoring
from lab.system import backend

NAME = "classes"
LOSSES = {
    "dice+ce": "--loss dice+ce",
    "ce": "--loss ce",
    "dice": "--loss dice",
    "ce+weights": "--loss ce --class-weights",
}
SIDES = {"shapes": ("lab",), "rare": ("even", "uniform"), "imbalance": tuple(LOSSES)}
SEEDS, SWEEP = (0, 1, 2, 3, 4), (100, 101)
RATES = (3e-4, 1e-3, 3e-3, 9e-3, 2.7e-2)
OWN = "--images pictures --masks masks --grey-range picture --filters 16 --train-images 128 --batch-size 4"
TINY = "--filters 4 --epochs 1 --train-images 8 --val-images 4 --test-images 8"
RARE, SMALL = (Classes(("disc", shape), (0, 1, 2)) for shape in ("triangle", "square"))


# The data


def draw(side: int, objects: list[tuple], seed) -> tuple[np.ndarray, np.ndarray]:
    """An image (side, side, 1), float32, and labels of objects (label, shape, radius), as `make_shapes` draws them."""
    rng, labels, placed = np.random.default_rng(seed), np.zeros((side, side), np.uint8), []
    for i in rng.permutation(len(objects)):  # the last ones find less room: none is always the last
        label, shape, radius = objects[i]
        reach = data_synth.SHAPES["triangle"][1] * radius  # of discs too: a place says nothing of the class
        while True:
            centre = rng.uniform(reach, side - 1 - reach, 2)
            if all(math.dist(centre, other) >= reach + taken + data_synth.GAP for other, taken in placed):
                break
        placed.append((centre, reach))
        data_synth.fill_shape(labels, label, shape, radius, centre, data_synth.random_turns(rng, 1, 2)[0])
    image = data_synth.BACKGROUND + 0.5 * (labels > 0) + rng.normal(0, 0.25, labels.shape)
    return image.clip(0, 1).astype(np.float32)[..., None], labels


class AimedUniformly(Sample):
    """A sample at whose foreground patches are aimed pixel by pixel, whatever the class."""

    @property
    def classes(self) -> list[int]:
        return [1] if self.share else []

    @functools.cached_property
    def places(self) -> dict[int, np.ndarray]:
        return {1: np.flatnonzero((self.labels > 0) & (self.labels != NOT_LABELLED))}


def draw_pictures(num: int, kind: type, *seed: int) -> list[Sample]:
    """Pictures (256, 256, 1), uint8, of 25 objects; in every second one of them is a triangle, all others are discs."""
    samples = []
    for i in range(num):
        radii = np.random.default_rng((*seed, i, 0)).uniform(8, 11, 25)
        rare = i % 2
        objects = [(2, "triangle", radii[0])] * rare + [(1, "disc", radius) for radius in radii[rare:]]
        image, labels = draw(256, objects, (*seed, i, 1))
        image = (255 * image).round().astype(np.uint8)
        samples.append(kind(f"{i:02}.png", image, labels, grey_values.range_of(image, grey_values.STRETCHED)))
    return samples


def draw_unequal(seed: int, num: int, *stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and masks (num, 128, 128, 3) of a large disc, and in half of the images a small square."""
    pairs = []
    for i in range(num):
        rng = np.random.default_rng((seed, *stream, i, 0))
        small = [(2, "square", rng.uniform(3, 3.4))] * int(rng.integers(2))
        pairs.append(draw(128, [(1, "disc", rng.uniform(14, 19)), *small], (seed, *stream, i, 1)))
    images, labels = map(np.stack, zip(*pairs, strict=True))
    return images, to_masks(labels, SMALL.num)


# What is measured


def objects_of(labels: np.ndarray, found: np.ndarray, names) -> dict[str, dict[str, int]]:
    """For each class: its objects in labels (N, H, W), and how many are confused and missed (see the top)."""
    from scipy.ndimage import label

    counts = {name: {"objects": 0, "confused": 0, "missed": 0} for name in names}
    for true, taken in zip(labels, found, strict=True):
        for k, name in enumerate(names, 1):
            regions, num = label(true == k, np.ones((3, 3)))
            for i in range(1, num + 1):
                classes = taken[regions == i]
                classes = classes[classes > 0]
                counts[name]["objects"] += 1
                counts[name]["missed"] += not classes.size
                counts[name]["confused"] += bool(2 * np.count_nonzero(classes != k) > classes.size)
    return counts


def measured(masks, probs, names) -> dict:
    """Dice of a test set by class, its objects, which classes are found nowhere, and the confusion matrix.

    The matrix has pixels: a line for the background and each true class, a column for what was found.
    """
    found = scoring.score(masks, probs, names)[0]
    counts = scoring.confusion(masks, probs)
    hits = np.diag(counts)
    return {
        "test": {key: value for key, value in found.items() if key.startswith(("image_dice", "images/"))},
        "objects": objects_of(masks.argmax(axis=-1), scoring.hard_masks(probs).argmax(axis=-1), names),
        "never_found": [name for k, name in enumerate(names, 1) if not hits[k]],
        "confusion": counts.tolist(),
    }


def run_shapes(job: dict) -> dict:
    """The script's own training, with its baselines."""
    import keras

    from lab.model import training

    flags = ["--shapes", "--seed", str(job["seed"]), *(TINY.split() if job["tiny"] else [])]
    with tempfile.TemporaryDirectory() as folder:
        found = scores.train(flags, Path(folder), quiet=True)
        network = keras.models.load_model(Path(folder) / "out" / "model.keras", compile=False)
    source = unet.shapes(unet.parse_args(flags))
    images, masks = source.test
    found |= measured(masks, training.predict(network, images), source.classes.names)
    found["baselines"] = {title: row["image_dice"] for title, row in found["baselines"].items()}
    return {key: value for key, value in found.items() if key != "val_dice_coeff"}


def settings_of(job: dict, flags: str = "") -> argparse.Namespace:
    """The settings of a training on one's own pictures."""
    flags = f"{OWN} {flags} --seed {job['seed']} {TINY if job['tiny'] else ''}"
    return unet.parse_args(flags.split())


def train(settings: argparse.Namespace, source: Source):
    """Train as the script does; the network, its last validation Dice and the seconds."""
    backend.start(settings.precision, False, settings.seed)
    model, started = unet.build(settings, source), time.perf_counter()
    history = experiment.train(model, source, settings)
    dice = float(np.nan_to_num(history["val_image_dice"][-1]))
    return model, {"val_dice": dice, "training_seconds": time.perf_counter() - started}


def run_rare(job: dict) -> dict:
    """A training on pictures with a rare class, of which every second crop aims at a class, or at any pixel."""
    from lab.model import training

    kind, settings = {"even": Sample, "uniform": AimedUniformly}[job["side"]], settings_of(job)
    pictures = draw_pictures(24, kind, settings.seed, unet.TRAIN)
    parts, size = splits.split(pictures, settings.seed), unet.LAB["size"]
    test = draw_pictures(4 if job["tiny"] else 96, Sample, settings.seed, unet.TEST)
    model, about = train(settings, unet.own_pictures(settings, RARE, {**parts, "test": test}, size))
    images = np.stack([sample.prepare(sample.image) for sample in test])
    masks = to_masks(np.stack([sample.labels for sample in test]), RARE.num)
    counts = sum(sample.counts for sample in pictures)
    about["rare_share"] = float(counts[2] / counts[1:3].sum())
    return {**about, **measured(masks, training.predict(model, images), RARE.names)}


def run_imbalance(job: dict) -> dict:
    """A training with one loss at one rate."""
    from lab.model import training

    settings = settings_of(job, f"{LOSSES[job['side']]} --learning-rate {job['rate']:g}")
    make = functools.partial(draw_unequal, settings.seed)
    test = make(settings.test_images, unet.TEST)
    source = Source(
        name="unequal shapes",
        origin="benchmarks.classes.draw_unequal",
        batches=image_batches(
            lambda num, *stream: make(num, unet.TRAIN, *stream),
            settings.train_images,
            settings.batch_size,
            settings.seed,
        ),
        num_training=settings.train_images,
        sides=test[0].shape[1:3],
        validation=make(settings.val_images, unet.VALIDATION),
        test=test,
        typical=lambda: test[0],
        classes=SMALL,
    )
    model, about = train(settings, source)
    about["shares"] = dict(zip(SMALL.names, test[1].mean(axis=(0, 1, 2))[1:].tolist(), strict=True))
    return {**about, **measured(test[1], training.predict(model, test[0]), SMALL.names)}


# What is recorded


RUNS = {"shapes": run_shapes, "rare": run_rare, "imbalance": run_imbalance}


def key(row: dict) -> tuple:
    sides = SIDES[row["part"]]
    return list(SIDES).index(row["part"]), sides.index(row["side"]), row["seed"], row["rate"] or 0


def of(rows: list[dict], part: str, side: str | None = None) -> list[dict]:
    return [row for row in rows if row["part"] == part and side in (None, row["side"])]


def best_rate(rows: list[dict], side: str) -> float:
    """The rate of a loss with the best mean validation Dice over the seeds of the sweep."""
    dice: dict = {}
    for row in of(rows, "imbalance", side):
        if row["seed"] in SWEEP:
            dice.setdefault(row["rate"], []).append(row["val_dice"])
    return max(dice, key=lambda rate: statistics.mean(dice[rate]))


def plan(args: argparse.Namespace, rows: list[dict]):
    """Yield (side, seed, rate) of what a part wants; `rows`, those that there are, grows meanwhile."""
    sides = args.only or SIDES[args.part]
    if args.part == "imbalance":
        for side in sides:
            yield from ((side, seed, rate) for seed in SWEEP for rate in RATES)
            yield from ((side, seed, best_rate(rows, side)) for seed in args.seeds)
    else:
        yield from ((side, seed, None) for seed in args.seeds for side in sides)


def run(job: dict) -> dict:
    """Run one training in a process of its own; its row."""
    command = [sys.executable, "-m", "benchmarks.classes", job["part"], "--work", json.dumps(job)]
    done = subprocess.run(command, cwd=_common.ROOT, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def record_part(args: argparse.Namespace) -> list[dict]:
    """Run and record what a part wants and is not yet recorded; all rows that there are."""
    rows = [] if args.tiny else _common.rows(NAME)
    for side, seed, rate in plan(args, rows):
        job = {"part": args.part, "side": side, "seed": seed, "rate": rate}
        if key(job) in map(key, rows):
            continue
        row = {"others_busy": _common.busy(), **job, **run(job | {"tiny": args.tiny})}
        rows.append(row)
        print(json.dumps(row), flush=True)
        if not args.tiny:
            _common.record(NAME, row, key)
    return rows


# What is told


def told_mean(rows: list[dict], name: str) -> str:
    """Mean and spread of a score of the test set."""
    return scores.mean_and_spread([row["test"][name] for row in rows])


def apart(rows: list[dict], others: list[dict], name: str) -> str:
    """A score of `rows` less that of `others`, paired by seed, with the 95% interval; nothing for less than two."""
    of_seed = {row["seed"]: row["test"][name] for row in others}
    pairs = [(of_seed[row["seed"]], row["test"][name]) for row in rows if row["seed"] in of_seed]
    return told(paired(*zip(*pairs, strict=True))) if len(pairs) > 1 else ""


def count(rows: list[dict], what: str, names: tuple) -> int:
    """How many objects of the classes are "objects", "confused" or "missed" in all rows."""
    return sum(row["objects"][name][what] for row in rows for name in names)


def shapes_sentence(rows: list[dict]) -> str:
    """What the network reaches where only shape tells the classes apart."""
    rows = of(rows, "shapes")
    if not rows:
        return ""
    names, baselines = tuple(rows[0]["objects"]), rows[0]["baselines"]
    fit = next(title for title in baselines if title.startswith(scoring.KNOWS_MORE))
    bound = next(dice for title, dice in baselines.items() if title.startswith("any rule"))
    each = (f"{n} {told_mean(rows, f'image_dice/{n}')}" for n in names)
    images = rows[0]["test"][f"images/{names[0]}"]
    knowing = scores.mean_and_spread([row["baselines"][fit] for row in rows])
    fitted = fit.removeprefix(scoring.KNOWS_MORE)[9:]  # "64 images"
    seconds = statistics.median(row["training_seconds"] for row in rows)
    return (
        f"`--shapes`, {len(rows)} seeds: mean Dice {told_mean(rows, 'image_dice')} ({', '.join(each)}) of {images} "
        f"images, after {seconds:.0f} s of training; no rule per pixel exceeds {bound:.3f}, and a fit that knows the "
        f"shapes ({fitted}) reaches {knowing}. Of {count(rows, 'objects', names):,} objects "
        f"{count(rows, 'confused', names)} got another class, {count(rows, 'missed', names)} none."
    )


def rare_sentence(rows: list[dict]) -> str:
    """What drawing the class evenly does for a rare class, and for the frequent one."""
    sides = even, uniform = [of(rows, "rare", side) for side in SIDES["rare"]]
    if not even or not uniform:
        return ""
    rare, frequent = (
        f"{told_mean(even, name)} and {told_mean(uniform, name)}, difference {apart(even, uniform, name)}"
        for name in ("image_dice/triangle", "image_dice/disc")
    )
    lost = [sum(count(side, what, ("triangle",)) for what in ("confused", "missed")) for side in sides]
    share = statistics.mean(row["rare_share"] for row in even)
    return (
        f"Where crops aim at a class drawn evenly, or at any pixel of the foreground, a class of {share:.1%} of the "
        f"foreground has a Dice of {rare} (95% interval, {len(even)} seeds); {lost[0]} and {lost[1]} of "
        f"{count(even, 'objects', ('triangle',))} of its objects are confused or missed. The frequent "
        f"class has {frequent}."
    )


def finals(rows: list[dict], loss: str) -> list[dict]:
    """The trainings with a loss at its best rate, of seeds that the choice has not seen."""
    if not any(row["seed"] in SWEEP for row in of(rows, "imbalance", loss)):
        return []
    rate = best_rate(rows, loss)
    return [row for row in of(rows, "imbalance", loss) if row["rate"] == rate and row["seed"] not in SWEEP]


def losses_table(rows: list[dict]) -> str:
    """Each loss at its best rate: Dice by class, how it differs from the lab's loss, how often a class is not found."""
    found = {loss: finals(rows, loss) for loss in LOSSES}
    lines = []
    for loss, some in found.items():
        if some:
            less = apart(some, found["dice+ce"], "image_dice/square") if loss != "dice+ce" else ""
            lost = f"{sum(bool(row['never_found']) for row in some)} of {len(some)}"
            dice = [told_mean(some, f"image_dice/{name}") for name in SMALL.names]
            lines.append([loss, f"{some[0]['rate']:g}", *dice, less, lost])
    titles = ["loss", "rate", "disc, 5%", "square, 0.1%", "less dice+ce's (95% interval)", "class never found"]
    return _common.table(titles, lines) if lines else ""


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("part", nargs="?", choices=SIDES, help="what to record; without it the tables are printed")
    add("--only", nargs="+", metavar="SIDE", help="; ".join(f"{part}: {', '.join(of)}" for part, of in SIDES.items()))
    add("--seeds", nargs="+", type=int, default=list(SEEDS), help="of data, weights and patches")
    add("--tiny", action="store_true", help="one epoch of few images: whether all runs; nothing is recorded")
    add("--work", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return print(json.dumps(RUNS[args.part](args.work)))
    if not set(args.only or ()) <= set(SIDES.get(args.part, ())) or set(args.seeds) & set(SWEEP):
        parser.error(f"--only takes sides of the part, --seeds none of {SWEEP}, which choose the rates.")
    rows = record_part(args) if args.part else _common.rows(NAME)
    print(shapes_sentence(rows), rare_sentence(rows), losses_table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
