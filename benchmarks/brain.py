"""Grey matter in a brain template: the lab's 3D U-Net beside MONAI's two and a 2D one on slices; Dice against seconds.

    python -m benchmarks.brain                                      # two hours or so, nothing else running
    python -m benchmarks.brain --sides lab --seeds 0 --budgets 40   # a part of it, added to what is recorded
    python -m benchmarks.brain --plot                               # pictures/brain.png, from what is recorded

nilearn's wheel holds the MNI152 template (T1, 1 mm) with its map of grey matter, of which more than one half counts.
The template is symmetric to the voxel: its right half is the mirror image of the left one, so a test on it would be one
on the training data, mirrored. Trained is on the back of the left half, tested on its front, with a gap of 16 mm
between. `--halves left-right` makes the easy split, for those who want to compare.

Every side sees patches from the same function, 48^3 voxels, two at a time (the one on slices 96^2, eight at a time),
flipped, turned and varied in brightness, in bfloat16 where the processor has it. The clock is that of the training
steps, tracing included; scoring stops it. A side of the lab's trains anew for each budget of seconds, because its rate
falls to zero at the end; MONAI's, with a constant rate, go on. Of four rates, tried with one seed, those that lead at a
time are to be run with the others too (--rates, --seeds), and of these the best mean is taken. The best threshold
interval on the training part is row 0.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import _common

NAME = "brain"
BUDGETS = (40, 90, 240)  # seconds of training
PATCH, BATCH, SLICE = 48, 2, (1, 96, 96)
SLICE_FILTERS = 14  # about as many parameters as the 3D network has with 8
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of MONAI's Adam
SIDES = ("lab", "slices", "UNet", "DynUNet")
HALVES = {  # (depth, height, width) of training and test part
    "back-front": ((slice(None), slice(0, 110), slice(0, 99)), (slice(None), slice(126, None), slice(0, 99))),
    "left-right": ((slice(None), slice(None), slice(0, 98)), (slice(None), slice(None), slice(99, None))),
}


# The data


def read_parts(halves: str) -> tuple:
    """The training and the test part of the template, as samples."""
    from lab.data import grey_values, scans
    from lab.data.sample import Sample

    folder = Path(importlib.util.find_spec("nilearn").origin).parent / "datasets" / "data"
    head, grey = (
        scans.open_scan(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz") for kind in ("t1", "gm")
    )
    own_range = grey_values.range_of(grey_values.few_slices(head.voxels[..., None]), grey_values.STRETCHED)
    mask = np.asarray(grey.voxels) > 127
    return tuple(
        Sample(name, head.voxels[part][..., None], mask[part], own_range, head.spacing)
        for name, part in zip(("training", "test"), HALVES[halves], strict=True)
    )


def score(test, probs) -> dict:
    """Dice, and mean and 95% Hausdorff distance of the surfaces in mm, of the test part."""
    from lab.evaluate import sample_scores

    scores, _ = sample_scores.score_samples([test], [np.reshape(probs, (*test.labels.shape, 1))])
    return {"dice": scores["image_dice"], **{name: scores.get(name) for name in ("surface", "hausdorff95")}}


def best_interval(train, test) -> dict:
    """The interval of grey values with the best Dice on the training part, scored on the test part."""
    grey, edges = train.image[..., 0], np.linspace(0, 255, 86)
    inside, outside = (np.histogram(grey[where], edges)[0] for where in (train.labels, ~train.labels))
    hits, misses = (np.concatenate([[0], np.cumsum(counts)]) for counts in (inside, outside))
    dice = {
        (i, j): 2 * (hits[j] - hits[i]) / (hits[j] - hits[i] + misses[j] - misses[i] + hits[-1])
        for i, j in itertools.combinations(range(len(edges)), 2)
    }
    low, high = (float(edges[i]) for i in max(dice, key=dice.get))
    image = test.image[..., 0]
    return {"low": low, "high": high, **score(test, (image >= low) & (image < high))}


# The sides, each a process of its own


def lab_side(train, test, args) -> list[dict]:
    """The lab's 3D U-Net, as `volume_segmentation.py --images ... --patch 48` trains it, for each budget."""
    import volume_segmentation as script
    from lab import experiment
    from lab.data.classes import ONE
    from lab.evaluate import sample_scores
    from lab.model import training
    from lab.system import backend

    flags = ["--images", "scans", "--masks", "masks", "--patch", str(PATCH), *args.flags]
    flags += ["--seed", str(args.seeds[0]), "--val-patches", "2"]
    usual = script.parse_args(flags)
    backend.start("auto", False, usual.seed)

    def prepare(steps):
        num = str(usual.batch_size * steps)
        settings = script.parse_args([*flags, "--epochs", "1", "--train-patches", num])
        source = script.own_scans(settings, ONE, {"training": [train], "validation": [train], "test": [test]})
        # The script's `build` makes another network first, to predict the memory; this one's random weights would
        # then not be those of the recorded rows.
        model = script.build_unet((None, None, None, 1), usual.filters, script.DEPTH, usual.skips)
        training.start_at_share(model, (masks for _, masks in source.batches(0)))
        return model, lambda: experiment.train(model, source, settings)

    return train_for_budgets(prepare, lambda model: sample_scores.predict_sample(model, test, usual.patch), test, args)


def slices_side(train, test, args) -> list[dict]:
    """The lab's 2D U-Net on axial slices, as `unet_segmentation.py` trains on one's own pictures, for each budget."""
    import unet_segmentation as script
    import volume_segmentation
    from lab.data import patches
    from lab.model import training
    from lab.system import backend

    settings, seed = script.parse_args(["--images", "scans", "--masks", "masks"]), args.seeds[0]
    backend.start("auto", False, seed)
    vary = functools.partial(patches.vary, **volume_segmentation.VARIED)

    def batch(num, *stream):
        images, masks = patches.random_patches([train], num, SLICE, (seed, *stream), vary)
        return images[:, 0], masks[:, 0]

    def fit(model, steps):
        model.compile(
            optimizer=training.choose_optimizer(settings.optimizer, settings.learning_rate, settings.schedule, steps),
            loss=training.choose_loss(settings.loss),
            metrics=training.make_metrics(),
        )
        batches = lambda epoch: (batch(settings.batch_size, epoch, step) for step in range(steps))  # noqa: E731
        training.fit(model, batches, epochs=1, steps=steps, validation=batch(2, 1))

    def predict(model):
        _, height, width, _ = test.image.shape
        image = test.prepare(np.asarray(test.image))
        image = np.pad(image, [(0, 0), (0, -height % 8), (0, -width % 8), (0, 0)], mode="reflect")
        return training.predict(model, image)[:, :height, :width, 0]

    def prepare(steps):
        model = script.build_unet((None, None, 1), SLICE_FILTERS)
        return model, lambda: fit(model, steps)

    return train_for_budgets(prepare, predict, test, args)


def train_for_budgets(prepare, predict, test, args, scored=None) -> list[dict]:
    """Train a new network for each budget, of as many steps as fit into it; a row for each.

    `prepare(steps)` gives the network and a function that trains it so many steps; `scored`, by default `score`, what a
    row says of the test part and the network's prediction.
    """
    rows, seconds_per_step, start = [], None, 0.0
    for budget in [None, *args.budgets]:  # the first one finds out how long steps take
        for steps in (1, 100) if budget is None else (max(2, round((budget - start) / seconds_per_step)),):
            model, fit = prepare(steps)
            started = time.perf_counter()
            fit()
            seconds = time.perf_counter() - started
            if steps == 1:
                start = seconds  # tracing, and one validation
        seconds_per_step = (seconds - start) / (steps - 1)  # what the last one took: a machine's speed drifts
        if budget is not None:
            rows.append({"budget": budget, "seconds": seconds, "steps": steps})
            rows[-1] |= (scored or score)(test, predict(model))
            rows[-1]["parameters"] = model.count_params()
    return rows


def monai_side(train, test, args) -> list[dict]:
    """One of MONAI's networks, of as many channels as the lab's, with Dice + cross-entropy and Adam, at each budget."""
    import torch
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceCELoss
    from monai.networks import nets

    import volume_segmentation as script
    from lab.data import patches
    from lab.system import backend

    vary = functools.partial(patches.vary, **script.VARIED)  # as ours
    torch.manual_seed(args.seeds[0])
    channels = (8, 16, 32, 64)
    if args.work == "UNet":
        network = nets.UNet(3, 1, 1, channels=channels, strides=(2, 2, 2), num_res_units=2)
    else:
        network = nets.DynUNet(3, 1, 1, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=channels)
    loss_of, adam = DiceCELoss(sigmoid=True), torch.optim.Adam(network.parameters(), args.rate)
    bfloat16 = bool({"avx512_bf16", "amx_bf16"} & set(backend.processor()["flags"]))

    def channels_first(array):
        return torch.from_numpy(np.moveaxis(array, -1, -4).copy())

    def forward(images):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return network(images).float()

    def predict():
        network.eval()
        image = channels_first(test.prepare(np.asarray(test.image)))[None]
        with torch.no_grad():
            logits = sliding_window_inference(image, (96,) * 3, 1, forward, overlap=0.25, mode="gaussian")
        network.train()
        return torch.sigmoid(logits)[0, 0].numpy()

    rows, seconds, steps = [], 0.0, 0
    for budget in args.budgets:
        started = time.perf_counter()
        while seconds + time.perf_counter() - started < budget:
            batch = patches.random_patches([train], BATCH, PATCH, (args.seeds[0], 0, steps), vary)
            images, masks = map(channels_first, batch)
            adam.zero_grad()
            loss_of(forward(images), masks).backward()
            adam.step()
            steps += 1
        seconds += time.perf_counter() - started
        rows.append({"budget": budget, "seconds": seconds, "steps": steps, "rate": args.rate, **score(test, predict())})
        rows[-1]["parameters"] = sum(p.numel() for p in network.parameters())
    return rows


def work(args: argparse.Namespace) -> None:
    """What the process of a side does: train, score, print the rows as the last line."""
    train, test = read_parts(args.halves)
    side = {"lab": lab_side, "slices": slices_side}.get(args.work, monai_side)
    print(json.dumps(side(train, test, args)))


def run_side(side: str, seed: int, rate: float | None, args: argparse.Namespace) -> list[dict]:
    """Run a side in a process of its own; its rows."""
    command = [sys.executable, "-m", "benchmarks.brain", "--work", side, "--seeds", str(seed), "--halves", args.halves]
    command += ["--budgets", *map(str, args.budgets)] + (["--rate", str(rate)] if rate else [])
    command += [f"--flags={' '.join(args.flags)}"] if args.flags else []
    done = subprocess.run(command, cwd=_common.ROOT, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# What is recorded


def key(row: dict) -> tuple:
    return row["halves"], row["side"], row["budget"], row["seed"], row.get("rate") or 0


def best_rates(rows: list[dict]) -> list[dict]:
    """Of the rows of a side and budget those of the rate that most seeds have, of several the best in mean Dice."""
    groups = {}
    for row in rows:
        groups.setdefault((row["halves"], row["side"], row["budget"]), {}).setdefault(row.get("rate"), []).append(row)
    best = []
    for of_rate in groups.values():
        best += max(of_rate.values(), key=lambda found: (len(found), statistics.mean(row["dice"] for row in found)))
    return best


def scores_table(rows: list[dict], halves: str) -> str:
    """Mean over the seeds: Dice, surface distance and steps of each side, a column for each budget."""
    found = [row for row in best_rates(rows) if row["halves"] == halves]
    budgets = sorted({row["budget"] for row in found if row["budget"]})
    lines = []
    for side in ("interval", *SIDES):
        of = {budget: [r for r in found if (r["side"], r["budget"]) == (side, budget)] for budget in (0, *budgets)}
        some = [row for rows in of.values() for row in rows]
        if some:
            rates = sorted({row["rate"] for row in some if row.get("rate")})
            seeds = len({row["seed"] for row in some})
            cells = [describe(of[budget] or of[0], seeds) for budget in budgets]
            lines.append([side, seeds, ", ".join(map(str, rates)), *cells])
    return _common.table(["side", "seeds", "best rate", *(f"{budget:g} s" for budget in budgets)], lines)


def describe(rows: list[dict], seeds: int) -> str:
    """Means of some rows, in a cell: 0.9471 (0.35 mm, 285 steps); and of how many seeds, if not of `seeds`."""
    if not rows:
        return ""
    dice, steps = (statistics.mean(row[name] for row in rows) for name in ("dice", "steps"))
    surfaces = [row["surface"] for row in rows if row["surface"] is not None]  # an empty mask has none
    told = [f"{statistics.mean(surfaces):.2f} mm"] if surfaces else []
    told += [f"{steps:.0f} steps"] if steps else []
    told += [f"{len(rows)} of the seeds"] if len(rows) != seeds else []
    return f"{dice:.4f} ({', '.join(told)})"


def plot(rows: list[dict], halves: str, path: Path) -> None:
    """The error 1 - Dice against seconds of training, for each side: every seed, and a line through the means."""
    from lab.evaluate import plots

    names = {"lab": "3D U-Net, this lab", "slices": "2D U-Net, this lab, slices", "UNet": "MONAI UNet"}
    names |= {"DynUNet": "MONAI DynUNet", "interval": "best interval of grey values"}
    colours = dict(zip(names, (plots.BLUE, plots.GREEN, plots.ORANGE, plots.VERMILION, "0.5"), strict=True))
    figure = plots.new_figure(6.4, 4)
    axes = figure.subplots()
    for side, name in names.items():
        found = [row for row in best_rates(rows) if row["halves"] == halves and row["side"] == side]
        if side == "interval":
            for row in found:
                axes.axhline(1 - row["dice"], color=colours[side], linestyle=":", label=name)
            continue
        if not found:
            continue
        budgets = sorted({row["budget"] for row in found})
        means = [statistics.mean(1 - row["dice"] for row in found if row["budget"] == b) for b in budgets]
        axes.plot(budgets, means, color=colours[side], label=name)
        axes.plot([row["seconds"] for row in found], [1 - row["dice"] for row in found], ".", color=colours[side])
    axes.set(xscale="log", yscale="log", xlabel="seconds of training on 2 cores", ylabel="error, 1 - Dice")
    plots.plain_ticks(axes.xaxis, BUDGETS)
    plots.plain_ticks(axes.yaxis, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="which to run")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and patches")
    add("--budgets", nargs="+", type=float, default=list(BUDGETS), help="seconds of training, rising")
    add("--rates", nargs="+", type=float, default=list(RATES), help="of MONAI's Adam")
    add("--halves", choices=HALVES, default="back-front", help="what is trained on and tested on")
    add("--flags", type=str.split, default=[], help="further flags of volume_segmentation.py, in one text")
    add("--plot", action="store_true", help="draw what is recorded, and run nothing")
    add("--dry", action="store_true", help="print, record nothing")
    add("--work", help=argparse.SUPPRESS)
    add("--rate", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return work(args)
    rows = []

    def keep(row):
        rows.append(row | {"halves": args.halves})
        print(json.dumps(rows[-1]), flush=True)
        if not args.dry:
            _common.record(NAME, rows[-1], key, others)

    if not args.plot:
        others = _common.busy()
        keep({"side": "interval", "budget": 0, "seed": 0, "steps": 0, **best_interval(*read_parts(args.halves))})
        turns = itertools.product(args.seeds, args.rates, args.sides)  # in turns: a machine's speed drifts
        for seed, rate, side in turns:
            monai = side in ("UNet", "DynUNet")
            if not monai and rate != args.rates[0]:
                continue
            others = _common.busy()
            for row in run_side(side, seed, rate if monai else None, args):
                keep({"side": side, "seed": seed, **row})
    recorded = rows if args.dry else _common.rows(NAME)
    print(scores_table(recorded, args.halves))
    if not args.dry:
        plot(recorded, args.halves, _common.ROOT / "pictures" / "brain.png")


if __name__ == "__main__":
    main()
