"""The report's experiments, as plain functions: cells that compute, and one summary per experiment.

    python -m report.build --only e2    # is how they are run

A cell is one training, or one computation, with one seed: it is what `build.py` records and never repeats. A summary
turns the recorded cells of its experiment into the numbers that the report cites. E1 and E7 have few cells of their
own and E9 none: they read what `benchmarks/` has recorded.
"""

import base64
import importlib
import json
import math
import os
import statistics
import tempfile
import zlib
from pathlib import Path

import numpy as np

import data_synth
import unet_segmentation as unet
from benchmarks import _common, ablation, time_to_score
from benchmarks import scores as runs_of_scores
from benchmarks.intervals import over_seeds, paired, wilson
from benchmarks.repeats import EXPERIMENT, SEEDS, SMALL, fingerprints, full, in_own_process, trained
from lab.evaluate import plots, scoring
from lab.evaluate.surfaces import surface_dice, surface_distances
from lab.model import training
from lab.model.costs import layer_costs
from lab.model.memory import training_memory
from lab.system import backend
from lab.track import tracking

ROOT = Path(__file__).resolve().parent.parent


def summarize(runs: list[dict]) -> dict:
    """`over_seeds` of every number that the runs share; numbers that are None in one run are left out of it."""
    names = [name for name, value in runs[0].items() if isinstance(value, (int, float)) and name != "wall_seconds"]
    kept = {name: [run[name] for run in runs if run[name] is not None] for name in names}
    return {name: over_seeds(values) for name, values in kept.items() if values}


def settings_of(flags: str) -> dict:
    """What `unet_segmentation.py FLAGS` is set to, as far as the report says it."""
    args = unet.parse_args(flags.split())
    names = ("epochs", "train_images", "val_images", "test_images", "size", "train_size", "batch_size", "filters")
    found = {name: getattr(args, name) for name in (*names, "learning_rate")}
    for name in ("radius", "circles"):
        found[f"{name}_min"], found[f"{name}_max"] = getattr(args, name)
    return {**found, "noise": args.noise[0], "contrast": args.contrast[0]}


def last_of_each(flags: str) -> str:
    """The same command line without the flags that a later one overrides."""
    kept = {}
    for words in (group.split() for group in f" {flags}".split(" --")[1:]):
        kept[words[0]] = words
    return " ".join("--" + " ".join(words) for words in kept.values())


# Of benchmarks/, by reader.
RECORDS = {"scores": "e1", "ablation": "e1", "time_to_score": "e1", "conv3d_study": "e7", "noise": "e9"}


def benchmark(name: str) -> dict:
    """What `benchmarks/results/NAME.json` holds; ValueError if it is not there."""
    found = _common.read(name)
    if not found:
        script = "memory_study" if name == "conv3d_study" else name
        raise ValueError(f"benchmarks/results/{name}.json is missing: python -m benchmarks.{script} records it.")
    return found


# E1: reproduction


def e1_cells():
    return {"predictions": (predictions, ()), "network": (network, ())}


def network() -> dict:
    """Side and channels of each block of the default U-Net, and its parameters."""
    model = unet.build_unet()
    blocks = [layer for layer in model.layers if layer.name.endswith("conv2")]
    rows = [
        {"name": layer.name.removesuffix("_conv2"), "side": layer.output.shape[1], "channels": layer.output.shape[-1]}
        for layer in blocks
    ]
    return {"blocks": rows, "parameters": model.count_params()}


def predictions() -> dict:
    """Two typical and the two worst test images of the lab's recipe at seed 0: index, Dice, probabilities."""
    import keras

    import metrics

    with tempfile.TemporaryDirectory() as folder:  # a model that lies about may be of another recipe
        flags = ["--seed", "0", "--out-dir", folder]
        unet.main([*flags, "--run-name", "E1, lab recipe, seed 0"])
        args = unet.parse_args(flags)
        images, masks = unet.make_circles(args, args.test_images, unet.TEST)
        probs = training.predict(keras.models.load_model(Path(folder) / "model.keras"), images)
    dice = np.asarray(metrics.dice_coeff(masks, (probs >= 0.5).astype("float32"), axis=(1, 2, 3)))
    chosen = [(kind, int(i)) for kind, i in plots.choose_examples(dice)]
    shown = [{"kind": k, "image": i, "dice": float(dice[i]), "probs": pack(probs[i, ..., 0])} for k, i in chosen]
    return {"num_images": len(images), "shown": shown}


def pack(probs) -> str:
    """Probabilities (H, W) as text, in steps of 1/255."""
    return base64.b85encode(zlib.compress(np.round(probs * 255).astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str, side: int = 128) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8).reshape(side, side) / 255


def of_runs(runs: list[dict]) -> dict:
    """Scores over the runs that did not fail, and how many did."""
    fine = [run for run in runs if not ablation.failed(run)]
    return {
        "seeds": len(fine),
        "failed": wilson(len(runs) - len(fine), len(runs)),
        "val_soft_dice": over_seeds(run["last_epoch"]["val_dice_coeff"] for run in fine),
        "val_soft_iou": over_seeds(run["last_epoch"]["val_iou_metric"] for run in fine),
        "test_dice": over_seeds(run["test"]["image_dice"] for run in fine),
        "test_iou": over_seeds(run["test"]["image_iou"] for run in fine),
        "test_p5": over_seeds(run["test"]["image_dice_p5"] for run in fine),
        # A minimum falls with the number of images: only the means of equally many are compared.
        "test_worst": over_seeds(run["test"]["image_dice_min"] for run in fine),
        "precisions": sorted({run["provenance"]["precision"].removeprefix("mixed_") for run in runs}),
    }


def of_recipe(runs: list[dict]) -> dict:
    """The same of a recipe, with its curves, and what keeping the best epoch instead of the last would have gained."""
    curves = [run["val_dice_coeff"] for run in runs if not ablation.failed(run)]
    return {**of_runs(runs), "curves": curves, "lost": max(max(curve) - curve[-1] for curve in curves)}


def ingredients(runs: list[dict]) -> dict:
    """The ablation: of each row its scores at the best rate, and its paired differences to the lab's recipe."""
    lab, found = ablation.final("lab", runs), {}
    for row, (_, _, rates) in ablation.ROWS.items():
        of_row = ablation.final(row, runs)
        apart = {
            "test_dice": ablation.against_lab(of_row, lab),
            "val_soft_dice": ablation.against_lab(of_row, lab, lambda run: run["last_epoch"]["val_dice_coeff"]),
        }
        tried = {"rate": ablation.best_rate(row, runs), "rates": list(rates)}
        found[row] = {**of_runs(of_row), **tried, "against_lab": apart if apart["test_dice"] else {}}
    return found


def reaching(runs: list[dict]) -> dict:
    """How many runs reach the original's score and how many fail; median seconds until then, and of the whole."""
    reached = [run["reached_after"] for run in runs if run["reached_after"]]
    return {
        "share": wilson(len(reached), len(runs)),
        "failed": sum((run["epochs"][-1]["val_dice_coeff"] or 0) < FAILED for run in runs),
        "seconds": statistics.median(reached) if reached else None,
        "whole": statistics.median(run["epochs"][-1]["seconds"] for run in runs),
    }


def e1(runs: dict) -> dict:
    scores = benchmark("scores")["rows"]
    of_rows = {row: [run for run in scores if run["row"] == row] for row in runs_of_scores.ROWS}
    trials = benchmark("ablation")["rows"]
    baselines = {
        key: summarize([run["baselines"][name] for run in of_rows["lab"]])
        for key, name in (("background", "all background"), ("threshold", "best global threshold"))
    }
    clocked = benchmark("time_to_score")["rows"]  # all on one machine
    sides = {"lab": "lab", "short": "lab, short", "report": "report, float32"}
    clock = {name: reaching([row for row in clocked if row["side"] == side]) for name, side in sides.items()}
    clock["short"]["images"] = settings_of(time_to_score.FLAGS["lab, short"])["train_images"]
    original = {"dice": 0.9937, "iou": 0.9875}  # what the report of 22 January 2026 states
    original["dice_of_iou"] = 2 * original["iou"] / (1 + original["iou"])
    return {
        "rows": {row: of_recipe(some) for row, some in of_rows.items()},
        "ablation": ingredients(trials),
        "card": trials[0]["provenance"]["device"].removeprefix("1 x "),
        "precision": ", ".join(sorted({r["provenance"]["precision"].removeprefix("mixed_") for r in scores + trials})),
        "baselines": baselines,
        "original": original,
        "time": clock,
        "settings": {"report": settings_of("--recipe report"), "lab": settings_of("")},
        "network": runs["network"]["blocks"],
        "parameters": runs["network"]["parameters"],
        "num_images": runs["predictions"]["num_images"],
        "shown": runs["predictions"]["shown"],
    }


# E2: skip connections

TASKS = {  # size and number apart
    f"{size}_{number}": f"--radius {radius} --circles {circles}"
    for size, radius in (("large", "6 10"), ("small", "2 4"))
    for number, circles in (("one", "1 1"), ("three", "3 3"))
}
SKIPS = {"concatenated": (True, 8), "added": ("add", 9), "none": (False, 9)}  # filters: at least as many parameters
MEASURES = ("dice", "surface", "hausdorff95", "surface_dice")
TOLERANCE = 1  # pixels, of the normalised surface Dice


def e2_cells():
    return {
        f"{task}/{kind}/seed {seed}": (skips, (task, kind, seed)) for task in TASKS for kind in SKIPS for seed in SEEDS
    }


def skips(task: str, kind: str, seed: int) -> dict:
    joined, filters = SKIPS[kind]
    flags = f"{TASKS[task]} --filters {filters}"
    masks, probs, _, scores, seconds, model = trained(f"E2, {task}, skips {kind}", seed, flags, joined)
    pairs = [(t[..., 0] == 1, p[..., 0] >= 0.5) for t, p in zip(masks, probs, strict=True)]
    found = [pair for pair in pairs if pair[1].any()]  # of an empty mask there is no distance
    distances = np.array([surface_distances(*pair) for pair in found])
    return {
        "dice": scores["image_dice"],
        "surface": float(distances[:, 0].mean()),
        "hausdorff95": float(distances[:, 1].mean()),
        "surface_dice": float(np.mean([surface_dice(*pair, TOLERANCE) for pair in found])),
        "undefined": len(pairs) - len(found),
        "parameters": model.count_params(),
        "seconds": seconds,
    }


def e2(runs: dict) -> dict:
    """Scores by task and kind of skips; what another kind changes, paired by seed; how much more on small circles."""

    def values(task, kind, name):
        return [runs[f"{task}/{kind}/seed {seed}"][name] for seed in SEEDS]

    found = {}
    for task in TASKS:
        found[task] = {kind: summarize([runs[f"{task}/{kind}/seed {seed}"] for seed in SEEDS]) for kind in SKIPS}
        for kind in ("added", "none"):
            found[task][f"{kind}_less"] = {
                name: paired(values(task, "concatenated", name), values(task, kind, name)) for name in MEASURES
            }
    more = {  # what leaving the skips out does to small circles, less what it does to large ones
        number: {
            name: paired(*(found[f"{size}_{number}"]["none_less"][name]["values"] for size in ("large", "small")))
            for name in MEASURES
        }
        for number in ("one", "three")
    }
    flags = {task: f"{SMALL} {flags} --filters {SKIPS['none'][1]}" for task, flags in TASKS.items()}
    settings = {task: settings_of(text) for task, text in flags.items()}
    kept = {"settings": settings, "flags": flags, "seeds": len(SEEDS), "tolerance": TOLERANCE}
    return {**found, "more_on_small": more, "filters": {kind: filters for kind, (_, filters) in SKIPS.items()}, **kept}


# E3: class imbalance

SHARES = {"10": 0.1, "1": 0.01, "0.1": 0.001}  # of the pixels, in percent: keys without a point for the report
LOSSES = {  # name: flags of the script. Dice averaged per image or pooled over the batch, with two constants
    "bce": "--loss ce",
    "dice": "--loss dice",
    "dice_tiny": "--loss dice --smooth 1e-6",
    "pooled_dice": "--loss pooled-dice",
    "pooled_dice_one": "--loss pooled-dice --smooth 1",
    "dice_bce": "--loss dice+ce",
}
RARE, MANY_SEEDS = "0.1", tuple(range(10))  # where runs fail, more seeds say how often


def seeds_of(share: str) -> tuple:
    return MANY_SEEDS if share == RARE else SEEDS


def e3_cells():
    return {
        f"{share}%/{loss}/seed {seed}": (imbalance, (share, loss, seed))
        for share in SHARES
        for loss in LOSSES
        for seed in seeds_of(share)
    }


def radius_of(share: str) -> float:
    """Radius of the circle that covers this share of an image."""
    return math.sqrt(SHARES[share] * 64 * 64 / math.pi)


def imbalance_flags(radius: float, loss: str) -> str:
    return (
        f"--radius {radius} {radius} --noise 0.1 --filters 8 --epochs 10 {LOSSES[loss]} "
        "--optimizer adam --learning-rate 1e-3 --schedule constant"
    )


def imbalance(share: str, loss: str, seed: int) -> dict:
    flags = imbalance_flags(radius_of(share), loss)
    masks, probs, history, scores, seconds, _ = trained(f"E3, {share}%, {loss}", seed, flags)
    failure = scoring.describe_failure(history, scoring.confusion(masks, probs), np.isfinite(probs).all())
    return {
        "dice": scores["image_dice"],
        "accuracy": float(((probs >= 0.5) == masks).mean()),
        "background_accuracy": float(1 - masks.mean()),
        "foreground": float(masks.mean()),
        "collapsed": int(failure is not None),
        **calibration(masks, probs),
        "reliability": reliability(masks, probs),
        "seconds": seconds,
    }


NUM_BINS, SURE = 15, 0.99


def reliability(masks, probs, num_bins: int = NUM_BINS) -> dict:
    """Of each bin of probabilities: number of pixels, sum of p, number with y = 1; a list each."""
    p, y = probs.ravel().astype(float), masks.ravel().astype(float)
    bins = np.minimum((p * num_bins).astype(int), num_bins - 1)
    sums = {"pixels": None, "p": p, "y": y}
    return {name: np.bincount(bins, weights, num_bins).tolist() for name, weights in sums.items()}


def calibration(masks, probs, num_bins: int = NUM_BINS) -> dict:
    """How far probabilities can be believed, over all pixels.

    brier: mean of (p - y)^2. ece: expected calibration error, the mean over pixels of |mean p - share of y = 1| of the
    pixel's bin, in `num_bins` bins of equal width (Guo et al. 2017, here of the foreground's probability).
    confident: of the pixels that are wrong at 0.5, the share given a probability below 0.01 or above 0.99; None
    where no pixel is wrong.
    """
    p, y = probs.ravel().astype(float), masks.ravel().astype(float)
    bins = reliability(masks, probs, num_bins)
    gaps = np.abs(np.subtract(bins["p"], bins["y"]))
    wrong = (p >= 0.5) != (y == 1)
    sure = (p < 1 - SURE) | (p > SURE)
    return {
        "brier": float(np.mean((p - y) ** 2)),
        "ece": float(gaps.sum() / len(p)),
        "confident": float(sure[wrong].mean()) if wrong.any() else None,
    }


FAILED = 0.5  # a mean Dice below it counts as a failure; a collapse, as `describe_failure` says, is one too


def e3(runs: dict) -> dict:
    """Scores by share and loss; failures as k of n; what each loss changes against cross-entropy, paired by seed."""
    summary = {}
    for share in SHARES:
        of_share = {loss: [runs[f"{share}%/{loss}/seed {seed}"] for seed in seeds_of(share)] for loss in LOSSES}
        found = {loss: summarize(some) for loss, some in of_share.items()}
        for loss, some in of_share.items():
            found[loss]["failed"] = wilson(sum(run["dice"] < FAILED for run in some), len(some))
            found[loss]["collapses"] = sum(run["collapsed"] for run in some)
            found[loss]["reliability"] = diagram([run["reliability"] for run in some if run["dice"] >= FAILED])
            if loss != "bce":
                found[loss]["against_bce"] = {
                    name: paired(*([run[name] for run in some] for some in (of_share["bce"], of_share[loss])))
                    for name in ("dice", "ece", "brier", "confident")
                    if all(run[name] is not None for run in of_share["bce"] + of_share[loss])
                }
        some = of_share["bce"][0]
        kept = {name: some[name] for name in ("background_accuracy", "foreground")}
        kept |= {"radius": radius_of(share), "share": SHARES[share], "seeds": len(seeds_of(share))}
        summary[_name(share)] = {**found, **kept, "pixels": some["foreground"] * 64 * 64}
    flags = {loss: f"{SMALL} {imbalance_flags(round(radius_of(RARE), 2), loss)}" for loss in LOSSES}
    return {
        **summary,
        "settings": settings_of(flags["dice"]),
        "flags": {loss: last_of_each(text) for loss, text in flags.items()},
        "failed_below": FAILED,
        "num_bins": NUM_BINS,
        "sure": SURE,
    }


LEAST = 20  # pixels of a bin that is drawn


def diagram(bins: list[dict]) -> dict:
    """Mean probability and observed share of each bin of all the runs together that holds enough pixels."""
    sums = {name: np.sum([some[name] for some in bins], axis=0) for name in ("pixels", "p", "y")} if bins else {}
    if not sums:
        return {"p": [], "y": []}
    enough = sums["pixels"] >= LEAST
    return {name: (sums[name][enough] / sums["pixels"][enough]).tolist() for name in ("p", "y")}


def _name(text: str) -> str:
    """As a key of the report, which has no point in it."""
    return text.replace("+", "_").replace("-", "_").replace(".", "_")


# E4: IoU against Dice

RADII = (2, 3, 4, 6, 8, 10, 15, 20, 25, 30)
POSITIONS = 64  # of each disc


def e4_cells():
    return {"overlap": (overlap, ())}


def overlap() -> dict:
    """Everything about Dice and IoU that needs no training, computed by `metrics` on masks."""
    from scipy import ndimage

    import metrics

    def both(true, pred):
        true, pred = (np.asarray(mask, np.float32) for mask in (true, pred))
        axis = tuple(range(1, true.ndim))
        return [np.asarray(score(true, pred, axis=axis), float) for score in (metrics.dice_coeff, metrics.iou_metric)]

    rng = np.random.default_rng(0)
    random_masks = (rng.random((2, 10_000, 64)) < rng.random((2, 10_000, 1))).astype(np.float32)
    dice, iou = both(*random_masks)
    radii = []
    for radius in RADII:
        _, masks = data_synth.make_circles(POSITIONS, 80, seed=0, radius=(radius, radius), noise=0)
        disc = masks[..., 0] == 1
        cross = ndimage.generate_binary_structure(2, 1)[None]
        outside = ndimage.binary_dilation(disc, cross) & ~disc
        one_more = disc.copy()
        for image, ring in zip(one_more, outside, strict=True):
            image[tuple(np.argwhere(ring)[0])] = True
        # A margin, so that a shifted disc does not leave the image.
        wide = np.pad(disc, ((0, 0), (1, 1), (1, 1)))
        errors = {
            "shift": (wide, np.roll(wide, 1, axis=1)),
            "grown": (wide, ndimage.binary_dilation(wide, cross)),
            "shrunk": (wide, ndimage.binary_erosion(wide, cross)),
            "one_pixel": (disc, one_more),
        }
        row = {"radius": radius, "pixels": float(disc.sum(axis=(1, 2)).mean())}
        for name, pair in errors.items():
            d, j = (float(values.mean()) for values in both(*pair))
            row[name] = {"dice": d, "iou": j, "dice_lost": 1 - d, "iou_lost": 1 - j, "ratio": (1 - d) / (1 - j)}
        radii.append(row)

    def with_iou(shares):
        """Masks (N, 100) and predictions inside them whose IoU are `shares`."""
        return np.ones((len(shares), 100)), np.array([np.arange(100) < round(100 * share) for share in shares])

    models = {"a": (0.5, 0.5), "b": (0.10, 0.92)}
    reversal = {}
    for name, shares in models.items():
        d, j = both(*with_iou(shares))
        reversal[name] = {"dice": d.tolist(), "iou": j.tolist(), "mean_dice": d.mean(), "mean_iou": j.mean()}
    true, pred = np.zeros((2, 10, 4096))
    true[:9, :1000], pred[:9, 10:1010], true[9, :30] = 1, 1, 1  # nine large objects, well found; a small one, missed
    per_image, pooled = both(true, pred)[0].mean(), both(true[None], pred[None])[0].mean()
    best = math.sqrt(2) - 1
    return {
        "pairs": len(dice),
        "identity_error": float(np.abs(dice - 2 * iou / (1 + iou)).max()),
        "same_ranking": bool((np.diff(dice[np.argsort(iou, kind="stable")]) >= -1e-6).all()),
        "largest_gap": {"iou": best, "gap": 2 * best / (1 + best) - best},
        "radii": {str(row["radius"]): row for row in radii},
        "reversal": reversal,
        "aggregation": {"large": both(true, pred)[0][0], "per_image": per_image, "pooled": pooled, "small_pixels": 30},
    }


def e4(runs: dict) -> dict:
    found = {key: value for key, value in runs["overlap"].items() if key not in ("provenance", "wall_seconds")}
    return {**found, "positions": POSITIONS}


# E5: what the number means


def e5_cells():
    cells = {f"scores/seed {seed}": (conventions, (seed,)) for seed in SEEDS}
    return {**cells, "empty masks": (empty_masks, ())}


CONVENTIONS = "--radius 2 10 --circles 0 2 --filters 8 --epochs 6"


def conventions(seed: int) -> dict:
    """The same predictions under twelve names of one score: soft or hard, three means, two constants."""
    import metrics

    masks, probs, *_ = trained("E5, empty masks and small circles", seed, CONVENTIONS)
    batches = np.array_split(np.arange(len(masks)), range(16, len(masks), 16))  # 16, ..., and a short last one
    found = {}
    for kind, pred in (("soft", probs), ("hard", (probs >= 0.5).astype(np.float32))):
        for smooth in (1e-6, 1.0):
            means = {
                "batch": np.mean([metrics.dice_coeff(masks[b], pred[b], smooth) for b in batches]),
                "image": np.mean(metrics.dice_coeff(masks, pred, smooth, axis=(1, 2, 3))),
                "pooled": metrics.dice_coeff(masks, pred, smooth),
            }
            found |= {f"{kind}_{name}_{'tiny' if smooth < 1 else 'one'}": float(v) for name, v in means.items()}
    found["empty"] = float((masks.sum(axis=(1, 2, 3)) == 0).mean())
    found["range"] = max(v for k, v in found.items() if k != "empty") - min(v for k, v in found.items() if k != "empty")
    return found


CASES = {  # true mask, prediction: 16 pixels each
    "both_empty": (np.zeros(16), np.zeros(16)),
    "false_alarm": (np.zeros(16), np.eye(1, 16)[0]),
    "miss": (np.eye(1, 16)[0], np.zeros(16)),
}


def empty_masks() -> dict:
    """What implementations say of empty masks: name, package, version, and the three scores (None: not a number)."""
    found = []
    for name, package, function in implementations():
        try:
            version = getattr(importlib.import_module(package), "__version__", "")
        except ImportError:
            continue  # MONAI and TorchMetrics are no requirements of the lab
        row = {"name": name, "package": package, "version": version}
        for case, (true, pred) in CASES.items():
            value = float(function(true.astype(np.float32), pred.astype(np.float32)))
            row[case] = None if math.isnan(value) else value
        found.append(row)
    return {"rows": found}


def implementations():
    """(name, package, function of a true and a predicted mask (16,)): each returns a score, 1 the best."""
    import warnings

    import keras

    import metrics

    warnings.filterwarnings("ignore")  # some of them warn of the very case

    def image(mask):
        return mask.reshape(1, 4, 4, 1)

    def updated(metric, true, pred):
        metric.update_state(image(true), image(pred))
        return metric.result()

    def sklearn(name, **options):
        return lambda t, p: getattr(importlib.import_module("sklearn.metrics"), name)(t, p, **options)

    def monai(**options):
        def score(true, pred):
            torch, monai_metrics = importlib.import_module("torch"), importlib.import_module("monai.metrics")
            true, pred = (torch.tensor(mask).reshape(1, 1, 4, 4) for mask in (true, pred))
            return monai_metrics.compute_dice(pred, true, **options)

        return score

    def torchmetrics(module, name, shape, **options):
        def score(true, pred):
            torch, found = importlib.import_module("torch"), importlib.import_module(module)
            true, pred = (torch.tensor(mask).int().reshape(shape) for mask in (true, pred))
            return getattr(found, name)(**options)(pred, true)

        return score

    def scipy(true, pred):
        return 1 - importlib.import_module("scipy.spatial.distance").dice(true == 1, pred == 1)

    return [
        ("dice_coeff, smooth = 1e-6", "metrics", lambda t, p: metrics.dice_coeff(t, p)),
        ("dice_coeff, smooth = 1", "metrics", lambda t, p: metrics.dice_coeff(t, p, smooth=1)),
        ("1 - losses.dice", "keras", lambda t, p: 1 - keras.losses.dice(image(t), image(p))),
        ("metrics.BinaryIoU()", "keras", lambda t, p: updated(keras.metrics.BinaryIoU(), t, p)),
        (
            "metrics.BinaryIoU(target_class_ids=[1])",
            "keras",
            lambda t, p: updated(keras.metrics.BinaryIoU(target_class_ids=[1]), t, p),
        ),
        ("f1_score", "sklearn", sklearn("f1_score")),
        ("f1_score(zero_division=1)", "sklearn", sklearn("f1_score", zero_division=1)),
        ("1 - spatial.distance.dice", "scipy", scipy),
        ("compute_dice", "monai", monai()),
        ("compute_dice(ignore_empty=False)", "monai", monai(ignore_empty=False)),
        ("BinaryF1Score()", "torchmetrics", torchmetrics("torchmetrics.classification", "BinaryF1Score", -1)),
        (
            "DiceScore(num_classes=1)",
            "torchmetrics",
            torchmetrics("torchmetrics.segmentation", "DiceScore", (1, 1, 4, 4), num_classes=1, input_format="one-hot"),
        ),
    ]


def e5(runs: dict) -> dict:
    rows = runs["empty masks"]["rows"]
    return {
        "scores": summarize([runs[f"scores/seed {seed}"] for seed in SEEDS]),
        "empty": rows,
        "answers": {
            case: len({row[case] if row[case] is None else round(row[case], 3) for row in rows}) for case in CASES
        },
        "implementations": len(rows),
        "settings": settings_of(f"{SMALL} {CONVENTIONS}"),
        "flags": f"{SMALL} {CONVENTIONS}",
        "seeds": len(SEEDS),
    }


# E6: slices against volumes

VOLUME, VOLUME_NOISE = 24, {"low": 0.25, "high": 0.75}
TRAIN_VOLUMES, VOLUME_BATCH, VOLUME_EPOCHS, FILTERS_3D = 64, 4, 10, 8
TEST_VOLUMES, VOLUME_RADIUS = 64, (3, 8)
VOLUME_KINDS = ("volumes", "volumes_longer", "slices", "slices_longer")


def e6_cells():
    return {
        f"noise {level}/seed {seed}": (slices_and_volumes, (level, seed)) for level in VOLUME_NOISE for seed in SEEDS
    }


def slices_and_volumes(level: str, seed: int) -> dict:
    """The 3D network, and the 2D one with about as many parameters; both again with three times the epochs."""
    parameters = volume_net(3, FILTERS_3D).count_params()
    filters = min(range(1, 40), key=lambda f: abs(volume_net(2, f).count_params() - parameters))
    return {
        name: volume_training(ndim, width, epochs, level, seed)
        for kind, ndim, width in (("volumes", 3, FILTERS_3D), ("slices", 2, filters))
        for name, epochs in ((kind, VOLUME_EPOCHS), (f"{kind}_longer", 3 * VOLUME_EPOCHS))
    }


def volume_net(ndim: int, filters: int):
    """The lab's U-Net with one level, for slices (ndim=2) or volumes (ndim=3)."""
    return unet.build_unet((VOLUME,) * ndim + (1,), filters, depth=1)


def volume_training(ndim: int, filters: int, epochs: int, level: str, seed: int) -> dict:
    """Train one network on spheres, whole or slice by slice, by the lab's recipe; score it per volume."""
    import metrics

    noise, steps = VOLUME_NOISE[level], TRAIN_VOLUMES // VOLUME_BATCH

    def spheres(num, *stream):
        return data_synth.make_spheres(num, VOLUME, seed=(seed, *stream), radius=VOLUME_RADIUS, noise=noise)

    def seen(volumes):
        """What the network sees: the volumes, or their slices, (N, D, H, W, 1) -> (N * D, H, W, 1)."""
        return volumes if ndim == 3 else volumes.reshape(-1, VOLUME, VOLUME, 1)

    def batches(epoch):
        images, masks = spheres(TRAIN_VOLUMES, unet.TRAIN, epoch)
        for start in range(0, TRAIN_VOLUMES, VOLUME_BATCH):
            yield tuple(seen(array[start : start + VOLUME_BATCH]) for array in (images, masks))

    backend.start("float32", False, seed)
    model = volume_net(ndim, filters)
    optimizer = training.choose_optimizer("muon", 3e-3, "cosine", epochs * steps)
    model.compile(optimizer, training.choose_loss("dice+ce"), metrics=training.make_metrics())
    arithmetic = sum(row["multiply_adds"] for row in layer_costs(model)) * (1 if ndim == 3 else VOLUME)
    maps = sum(math.prod(layer.output.shape[1:]) for layer in model.layers) * 4 / 2**20  # float32
    ends = []
    with tracking.tracked_run(EXPERIMENT, run_name=f"E6, {ndim}D, noise {level}, seed {seed}") as run:

        def on_epoch_end(logs, epoch, timestamp):
            ends.append(timestamp / 1000)
            run.metrics(logs, epoch, timestamp)

        validation = tuple(map(seen, spheres(4, unet.VALIDATION)))
        history = training.fit(
            model, batches, epochs=epochs, steps=steps, validation=validation, on_epoch_end=on_epoch_end
        )
        images, masks = spheres(TEST_VOLUMES, unet.TEST)
        probs = training.predict(model, seen(images)).reshape(masks.shape)
        scores = np.asarray(metrics.dice_coeff(masks, (probs >= 0.5).astype(np.float32), axis=(1, 2, 3, 4)))
        run.metrics({"test_volume_dice": float(scores.mean())})
    return {
        "dice": float(scores.mean()),
        "dice_min": float(scores.min()),
        # From the fastest epoch: the first one also builds the graph, and other programs only ever slow one down.
        "seconds": min(np.diff(ends)) * epochs,
        # What a forward pass keeps for the backward one: of the least that the network can be given, and of a volume.
        "sample_mib": maps,
        "volume_mib": maps if ndim == 3 else maps * VOLUME,
        "giga_multiply_adds": arithmetic / 1e9,  # of a prediction, per volume
        "val_dice": history["val_dice_coeff"],  # soft, over all voxels, by epoch
        "parameters": model.count_params(),
        "filters": filters,
        "epochs": epochs,
    }


def e6(runs: dict) -> dict:
    levels = {
        level: {kind: summarize([runs[f"noise {level}/seed {seed}"][kind] for seed in SEEDS]) for kind in VOLUME_KINDS}
        | {"noise": noise}
        for level, noise in VOLUME_NOISE.items()
    }
    for name, level in levels.items():
        dice = {kind: level[kind]["dice"]["values"] for kind in VOLUME_KINDS}
        # What the 3D network is ahead by, seed by seed, and what three times the epochs still bring.
        level["ahead"] = {
            "usual": paired(dice["slices"], dice["volumes"]),
            "longer": paired(dice["slices_longer"], dice["volumes_longer"]),
        }
        level["gain"] = {kind: paired(dice[kind], dice[f"{kind}_longer"]) for kind in ("volumes", "slices")}
        level["curves"] = {
            kind: [runs[f"noise {name}/seed {seed}"][kind]["val_dice"] for seed in SEEDS] for kind in VOLUME_KINDS
        }
    maps = {
        (kind, of): levels["low"][kind][f"{of}_mib"]["mean"]
        for kind in ("volumes", "slices")
        for of in ("sample", "volume")
    }
    ratio = {
        "input": maps["volumes", "sample"] / maps["slices", "sample"],
        "volume": maps["slices", "volume"] / maps["volumes", "volume"],
        "arithmetic": levels["low"]["slices"]["giga_multiply_adds"]["mean"]
        / levels["low"]["volumes"]["giga_multiply_adds"]["mean"],
    }
    sizes = {"size": VOLUME, "train_volumes": TRAIN_VOLUMES, "batch_size": VOLUME_BATCH, "epochs": VOLUME_EPOCHS}
    sizes |= {"test_volumes": TEST_VOLUMES, "radius_min": VOLUME_RADIUS[0], "radius_max": VOLUME_RADIUS[1]}
    return {**levels, **sizes, "ratio": ratio, "seeds": len(SEEDS), "filters": FILTERS_3D}


# E7: memory of the Conv3D lab


BASE = {"input_shape": (64, 64, 64, 1), "filters": 16}
VARIANTS = {  # of build_conv3d's arguments
    "base": {},
    "kernel5": {"kernel_size": 5},
    "kernel7": {"kernel_size": 7},
    "filters": {"filters": 32},
    "large": {"input_shape": (128, 128, 128, 1)},
    "patch": {"input_shape": (32, 32, 32, 1)},
    "early": {"downsampling": "early"},
}


def e7_cells():
    return {"costs": (costs, ())}


def costs() -> dict:
    """What each of the compromises does to a training step with one volume: counted and predicted, not measured."""
    import conv3d_analysis

    found = {}
    for name, options in VARIANTS.items():
        model = conv3d_analysis.build_conv3d(**{**BASE, **options})
        rows = layer_costs(model)
        found[name] = {
            "parameters": sum(row["parameters"] for row in rows),
            "giga_multiply_adds": sum(row["multiply_adds"] for row in rows) / 1e9,
            "activations_mib": sum(row["activation_bytes"] for row in rows) / 2**20,
            "predicted_mib": training_memory(model)["total"],
        }
    weights = {f"k{k}": k**3 * 32 * 32 + 32 for k in (3, 5, 7)}
    feature_maps = {f"side{side}": side**3 * 32 * 4 / 2**20 for side in (64, 128)}
    return {"variants": found, "weights": weights, "feature_maps_mib": feature_maps}


def measured_variant(points: list[dict], options: dict) -> float | None:
    """The peak that the study measured for these arguments of build_conv3d, in float32; None if it did not."""
    wanted = (options["input_shape"][0], options["filters"], options.get("kernel_size", 3))
    wanted += (options.get("downsampling", "late"), "float32")
    names = ("side", "filters", "kernel_size", "downsampling", "precision")
    return next((point["measured"] for point in points if tuple(point[name] for name in names) == wanted), None)


def e7(runs: dict) -> dict:
    study = benchmark("conv3d_study")
    rows = [row for row in study["rows"] if row["status"] == "measured"]
    points = [
        {
            "side": row["input_shape"][0],
            "predicted": row["predicted_total_mib"],
            "measured": row["measured_peak_mib"],
            **{name: row[name] for name in ("filters", "kernel_size", "downsampling", "precision")},
        }
        for row in rows
    ]
    found = {name: value for name, value in runs["costs"].items() if name not in ("provenance", "wall_seconds")}
    for name, options in VARIANTS.items():
        found["variants"][name]["measured_mib"] = measured_variant(points, {**BASE, **options})
    base = found["variants"]["base"]
    kernel7 = found["variants"]["kernel7"]
    found["kernel7_factor"] = {name: kernel7[name] / base[name] for name in ("giga_multiply_adds",)}
    more = {
        name: kernel7[name] - base[name] for name in ("predicted_mib", "measured_mib") if kernel7[name] and base[name]
    }
    copies = 4 * 4 * (kernel7["parameters"] - base["parameters"]) / 2**20  # weight, gradient, Adam's two, of 4 bytes
    found["kernel7_more"] = {**more, "copies_mib": copies}
    measured = [point["measured"] for point in points]
    ends = {"smallest": min(measured), "largest": max(measured)}
    return {**found, "summary": {**study["summary"], **ends}, "points": points, "provenance": study["provenance"]}


# E8: reproducibility


def e8_cells():
    names = {"repeats": repeats, "full": full, "elsewhere": elsewhere, "architecture": architecture}
    return {name: (function, ()) for name, function in names.items()}


def repeats() -> dict:
    """Short trainings in fresh processes: the same seed twice, with and without deterministic operations."""
    runs = {
        f"{kind}_{turn}": in_own_process(fingerprints, kind == "deterministic")
        for kind in ("deterministic", "default")
        for turn in ("first", "second")
    }
    same = {
        kind: [a["weights"] == b["weights"] for a, b in zip(runs[f"{kind}_first"], runs[f"{kind}_second"], strict=True)]
        for kind in ("deterministic", "default")
    }
    return {
        **runs,
        "same_bits": {kind: sum(values) for kind, values in same.items()},
        "largest_difference": {
            kind: max(
                abs(a["dice"] - b["dice"]) for a, b in zip(runs[f"{kind}_first"], runs[f"{kind}_second"], strict=True)
            )
            for kind in ("deterministic", "default")
        },
        "different_seeds_differ": len({run["weights"] for run in runs["deterministic_first"]}) == len(SEEDS),
        "dice": over_seeds(run["dice"] for run in runs["deterministic_first"]),
        "seeds": len(SEEDS),
    }


ELSEWHERE = {  # what makes this machine compute as another one would: a variable of the environment, its value
    "no_onednn": ("TF_ENABLE_ONEDNN_OPTS", "0"),
    "avx2": ("ONEDNN_MAX_CPU_ISA", "AVX2"),
    "one_thread": ("TF_NUM_INTRAOP_THREADS", "1"),
}


def elsewhere() -> dict:
    """The same short trainings as this machine computes them, and as others would."""
    here, found = in_own_process(fingerprints, True), {}
    for kind, (name, value) in ELSEWHERE.items():
        before = os.environ.get(name)
        os.environ[name] = value  # the process that is started reads it
        try:
            there = in_own_process(fingerprints, True)
        finally:
            os.environ.pop(name) if before is None else os.environ.update({name: before})
        pairs = list(zip(here, there, strict=True))
        same = sum(a["weights"] == b["weights"] for a, b in pairs)
        difference = max(abs(a["dice"] - b["dice"]) for a, b in pairs)
        found[kind] = {"runs": there, "same_bits": same, "largest_difference": difference}
    return {"here": here, **found}


def architecture() -> dict:
    """The Conv3D network rebuilt from the JSON of its tracked run."""
    import keras
    import mlflow

    import conv3d_analysis

    run_id = conv3d_analysis.main(["--out-dir", str(ROOT / "outputs" / "report" / "conv3d")])
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/model/architecture.json")
    first, second = (keras.models.model_from_json(text) for _ in range(2))
    rng = np.random.default_rng(0)
    volume = rng.random((1, *first.input_shape[1:]), dtype=np.float32)
    before = float(np.abs(first(volume) - second(volume)).max())
    second.set_weights(first.get_weights())
    return {
        "characters": len(text),
        "parameters": first.count_params(),
        "same_json": json.loads(first.to_json()) == json.loads(second.to_json()) == json.loads(text),
        "difference_without_weights": before,
        "difference_with_weights": float(np.abs(first(volume) - second(volume)).max()),
    }


def e8(runs: dict) -> dict:
    repeats = runs["repeats"]
    same = {kind: wilson(count, repeats["seeds"]) for kind, count in repeats["same_bits"].items()}
    same |= {kind: wilson(runs["elsewhere"][kind]["same_bits"], repeats["seeds"]) for kind in ELSEWHERE}
    return {**repeats, "same": same, **{name: runs[name] for name in ("full", "elsewhere", "architecture")}}


# E9: limits


def e9_cells():
    return {}  # all of it is recorded by benchmarks/noise.py


def e9(runs: dict) -> dict:
    """Scores of threshold, network and circle fit over the seeds, by noise level."""
    rows = benchmark("noise")["rows"]
    levels = {}
    for noise in sorted({row["noise"] for row in rows}):
        of_level = [row for row in rows if row["noise"] == noise]
        levels[f"{noise:g}".replace(".", "_")] = {
            "noise": noise,
            "seeds": len(of_level),
            **{side: summarize([row[side] for row in of_level]) for side in ("threshold", "network", "fit")},
            "fit_ahead": paired(*([row[side]["image_dice"] for row in of_level] for side in ("network", "fit"))),
            "lost": sum(row["network"]["image_dice_min"] < 0.01 for row in of_level),  # seeds that miss a circle
        }
    errors = {side: 1 - levels["0_25"][side]["image_dice"]["mean"] for side in ("network", "fit")}
    return {"levels": levels, "ratio": errors["network"] / errors["fit"]}


EXPERIMENTS = {  # name: (what it asks, its cells, its summary, seconds of a cell on 2 cores)
    "e1": ("reproduction", e1_cells, e1, 200),
    "e2": ("skip connections", e2_cells, e2, 25),
    "e3": ("class imbalance", e3_cells, e3, 12),
    "e4": ("IoU against Dice", e4_cells, e4, 3),
    "e5": ("what the number means", e5_cells, e5, 10),
    "e6": ("slices against volumes", e6_cells, e6, 60),
    "e7": ("memory", e7_cells, e7, 10),
    "e8": ("reproducibility", e8_cells, e8, 60),
    "e9": ("limits", e9_cells, e9, 60),
}
