"""Eight labelled crops of a real picture: our training beside variants of it and MONAI's networks; Dice on the rest.

    python -m benchmarks.own_data                          # less than 40 minutes on 2 cores, nothing else running
    python -m benchmarks.own_data --sides ours DynUNet --data coins --splits 0 --seconds 60 --dry     # a part, longer

The pictures are those of `benchmarks/photographs.py`, in grey, with its masks: coins (enlarged by a half), nuclei of a
stained section and, if asked for, galaxies. A band of 256 pixels across the picture holds the eight crops of 128x128,
4 by 2, evenly spaced; the split says where it lies. Tested is what lies at least GAP pixels away from it. The crops get
their grey ranges as if read from a folder; all eight are trained on, the last weights are tested.

All sides meet the same crops in the same order, for at most --seconds of training, tracing included, and at most
--crops of them; `bound` in a row says what came first. A rate that falls to zero has to know how many steps there will
be: one process finds out how long ours take, and as many crops as ours meets in --seconds are the most for all.

    ours                as `unet_segmentation.py --images --masks` trains: batches of 8, flipped, turned, made brighter
    no augmentation     without that (--no-augment)
    richer              turned by any angle, enlarged, deformed, with another gamma too: `vary_richer`
    start from circles  from what `--recipe photographs` trained (--start-from), a recipe chosen on the coins among
                        others; trained once, 3 minutes, and kept in outputs/photographs
    mean of weights     of ours, after the last AVERAGED of its EPOCHS
    flips               ours, the mean over mirror images (predict.py --flips)
    UNet, DynUNet       MONAI's, with as many channels, Adam, a constant rate and Dice + cross-entropy; of RATES the one
                        with the best test on the first split goes on, which favours them a little
    Otsu                Otsu's threshold (1979) on the whole picture, told whether objects are dark or bright
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
from PIL import Image

import unet_segmentation as script
from benchmarks import _common, photographs
from benchmarks.intervals import paired, told
from lab import experiment
from lab.data import grey_values, patches, pictures
from lab.data.classes import ONE
from lab.data.sample import Sample
from lab.data.source import Source
from lab.model import model_file, prediction
from lab.system import backend

NAME = "own_data"
DATA = {"coins": 1.5, "nuclei": 1, "galaxies": 1}  # by how much the photographs are enlarged
CROP, GAP = 128, 16
BATCH, EPOCHS, AVERAGED = 8, 10, 3
RATES = (3e-4, 1e-3, 3e-3)  # of MONAI's Adam
BENT, GAMMA = {"rotation": 45, "scale": 0.25, "elastic": 4}, 0.5  # of the side "richer": see `bend`, `change_gamma`
KERAS = ("ours", "no augmentation", "richer", "start from circles")
OF_OURS = ("mean of weights", "flips")  # from the same training
MONAI = ("UNet", "DynUNet")
MODEL = _common.ROOT / "outputs" / "photographs" / "model.keras"


# The data


def read_data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (H, W, 1), uint8, and its mask (H, W), bool."""
    picture = Image.fromarray(photographs.photographs()[name])
    mask = Image.fromarray(pictures.read_labels(photographs.MASKS / f"{name}_mask.png") * np.uint8(255))
    sides = [round(DATA[name] * side) for side in picture.size]
    picture, mask = (np.asarray(image.resize(sides, Image.Resampling.BICUBIC)) for image in (picture, mask))
    return picture[..., None], mask >= 128


def split(image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[list, np.ndarray]:
    """Eight crops of a band across the picture, and which pixels (H, W) are tested on."""
    long, short = (0, 1) if mask.shape[0] >= mask.shape[1] else (1, 0)
    first = round(seed * 0.618034 % 1 * (mask.shape[long] - 2 * CROP))  # by golden steps: bands are spread
    places = np.linspace(0, mask.shape[short] - CROP, 4).round().astype(int).tolist()
    tested = np.ones(mask.shape, bool)
    np.moveaxis(tested, long, 0)[max(0, first - GAP) : first + 2 * CROP + GAP] = False
    samples = []
    for start in itertools.product((first, first + CROP), places):
        place = tuple(slice(start[axis], start[axis] + CROP) for axis in (long, short))  # rows first
        own_range = grey_values.range_of(image[place], grey_values.STRETCHED)
        samples.append(Sample(f"crop {start}", image[place], mask[place], own_range))
    return samples, tested


def score(network, image, mask, tested, grey: dict, flips: bool = False) -> float:
    """Hard Dice on the tested pixels: 2 |A.B| / (|A| + |B|); `grey` are the settings of the grey values."""
    settings = {**grey, "size": [CROP, CROP], "divisor": 8, "channels": 1, "ndim": 2}
    models = [model_file.Model(network, settings)]
    slabs = prediction.probabilities(models, image, prediction.prepare_pictures(models, image), flips)
    return dice(mask, prediction.segment(slabs, mask.shape)[0], tested)


def dice(mask: np.ndarray, found: np.ndarray, tested: np.ndarray) -> float:
    found, mask = found[tested] != 0, mask[tested]
    return 2 * np.count_nonzero(found & mask) / (np.count_nonzero(found) + np.count_nonzero(mask))


# How the crops of the side "richer" are varied


def vary_richer(image, mask, rng, vary=patches.vary) -> tuple[np.ndarray, np.ndarray]:
    """Bend a crop (H, W, C) and its mask (H, W), change its gamma, and vary both as ours are varied."""
    image, mask = bend(image, mask, rng, **BENT)
    return vary(change_gamma(image, rng, GAMMA), mask, rng)


def change_gamma(image: np.ndarray, rng: np.random.Generator, gamma: float) -> np.ndarray:
    """Grey values raised to a power of 2^-gamma to 2^gamma."""
    return patches.power(image, np.float32(2 ** rng.uniform(-gamma, gamma)))


def bend(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, rotation: float, scale: float, elastic: float
) -> tuple[np.ndarray, np.ndarray]:
    """Turn, enlarge and deform a picture (H, W, C) and its mask (H, W), reflected where it reaches over the end.

    Args:
        image, mask, rng: as for `patches.vary`.
        rotation: degrees about the centre, -rotation to rotation.
        scale: all is enlarged by 1 / (1 + scale) to 1 + scale.
        elastic: standard deviation, in pixels, of how far the points of a grid of 4 x 4 are moved; what lies between
            follows by cubic splines (Ronneberger et al. 2015).
    """
    from scipy.ndimage import map_coordinates, zoom

    angle, factor = np.deg2rad(rng.uniform(-rotation, rotation)), (1 + scale) ** rng.uniform(-1, 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / factor
    centre = (np.array(mask.shape)[:, None, None] - 1) / 2
    places = np.tensordot(turn, np.indices(mask.shape) - centre, 1) + centre  # (2, H, W): where a pixel comes from
    down, across = (zoom(np.eye(4), (side / 4, 1)) for side in mask.shape)  # (side, 4): cubic splines, a point each
    places += down @ rng.normal(0, elastic, (2, 4, 4)) @ across.T
    layers = [map_coordinates(layer, places, order=1, mode="mirror") for layer in np.moveaxis(image, -1, 0)]
    bent = map_coordinates(mask.astype(np.float32), places, order=1, mode="mirror") >= 0.5
    return np.stack(layers, axis=-1), bent


# The sides, each a process of its own


def own_settings(args: argparse.Namespace, crops: int, epochs: int = EPOCHS) -> argparse.Namespace:
    """The settings of a training on one's own pictures, of so many crops in all, a multiple of `epochs`."""
    flags = ["--images", "pictures", "--masks", "masks", "--seed", str(args.splits[0])]
    flags += ["--epochs", str(epochs), "--train-images", str(crops // epochs)]
    flags += ["--no-augment"] if args.work == "no augmentation" else []
    flags += ["--start-from", str(MODEL)] if args.work == "start from circles" else []
    return script.parse_args(flags)


def own_source(settings: argparse.Namespace, samples: list) -> Source:
    """What the script makes of the crops; nobody looks at the scores of its validation."""
    parts = {"training": samples, "validation": samples[:1], "test": samples[:1]}
    return script.own_pictures(settings, ONE, parts, CROP)


def train_ours(settings: argparse.Namespace, source: Source):
    """Train our network: the model, the seconds that took, and its weights after each epoch."""
    backend.start("auto", False, settings.seed)
    model, weights = script.build(settings, source), []
    started = time.perf_counter()
    experiment.train(model, source, settings, on_epoch_end=lambda *_: weights.append(model.get_weights()))
    return model, time.perf_counter() - started, weights


def keras_side(samples, test, args) -> list[dict]:
    """Our training or a variant of it; of ours, the mean of weights and the flips too."""
    if args.work == "richer":
        patches.vary = vary_richer  # this process trains nothing else
    settings = own_settings(args, args.crops)
    source = own_source(settings, samples)
    model, seconds, weights = train_ours(settings, source)
    score_test = functools.partial(score, model, *test, source.preprocessing)
    row = {"seconds": seconds, "crops": args.crops, "parameters": model.count_params()}
    found = [{"side": args.work, **row, "dice": score_test()}]
    if args.work == "ours":
        found.append({"side": "flips", **row, "dice": score_test(flips=True)})
        model.set_weights([np.mean(arrays, axis=0) for arrays in zip(*weights[-AVERAGED:], strict=True)])
        found.append({"side": "mean of weights", **row, "dice": score_test()})
    return found


def speed(samples, test, args) -> dict[str, float]:
    """Seconds of our first step, tracing and a validation included, and of each further one."""
    seconds = []
    for steps in (1, 9):
        settings = own_settings(args, steps * BATCH, epochs=1)
        seconds.append(train_ours(settings, own_source(settings, samples))[1])
    return {"start": seconds[0], "step": (seconds[1] - seconds[0]) / 8}


def monai_side(samples, test, args) -> list[dict]:
    """One of MONAI's networks, of as many channels as ours, with Dice + cross-entropy and Adam."""
    import torch
    from monai.losses import DiceCELoss
    from monai.networks import nets

    torch.manual_seed(args.splits[0])
    channels = (32, 64, 128, 256)
    if args.work == "UNet":
        network = nets.UNet(2, 1, 1, channels=channels, strides=(2, 2, 2), num_res_units=2)
    else:
        network = nets.DynUNet(2, 1, 1, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=channels)
    loss_of, adam = DiceCELoss(sigmoid=True), torch.optim.Adam(network.parameters(), args.rates[0])
    bfloat16 = bool({"avx512_bf16", "amx_bf16"} & set(backend.processor()["flags"]))

    def forward(images):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return network(torch.from_numpy(np.moveaxis(images, -1, 1))).float()

    def predict(images):
        with torch.inference_mode():
            return np.moveaxis(torch.sigmoid(forward(images)).numpy(), 1, -1)

    source = own_source(own_settings(args, args.crops), samples)
    crops, started = 0, time.perf_counter()
    for images, masks in itertools.chain.from_iterable(map(source.batches, range(EPOCHS))):
        if time.perf_counter() - started >= args.seconds:
            break
        adam.zero_grad()
        loss_of(forward(images), torch.from_numpy(np.moveaxis(masks, -1, 1))).backward()
        adam.step()
        crops += len(images)
    row = {"side": args.work, "rate": args.rates[0], "seconds": time.perf_counter() - started, "crops": crops}
    network.eval()
    row["dice"] = score(SimpleNamespace(predict_on_batch=predict), *test, source.preprocessing)
    return [{**row, "parameters": sum(p.numel() for p in network.parameters())}]


def work(args: argparse.Namespace) -> None:
    """What the process of a side does: train, score, print the rows as the last line."""
    image, mask = read_data(args.data[0])
    samples, tested = split(image, mask, args.splits[0])
    side = {"speed": speed, **dict.fromkeys(MONAI, monai_side)}.get(args.work, keras_side)
    print(json.dumps(side(samples, (image, mask, tested), args)))


def run_side(side: str, data: str, seed: int, crops: int, rate: float | None, args: argparse.Namespace):
    """Run a side in a process of its own; its rows."""
    command = [sys.executable, "-m", "benchmarks.own_data", "--work", side, "--data", data, "--splits", str(seed)]
    command += ["--seconds", str(args.seconds), "--crops", str(crops)] + (["--rates", str(rate)] if rate else [])
    done = subprocess.run(command, cwd=_common.ROOT, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(args: argparse.Namespace) -> int:
    """Train the network to start from, unless it is there; find out how many crops each side meets."""
    if "start from circles" in args.sides and not MODEL.exists():
        flags = ["--recipe", "photographs", "--out-dir", str(MODEL.parent), "--resume"]
        subprocess.run([sys.executable, "unet_segmentation.py", *flags], cwd=_common.ROOT, check=True)
    found = run_side("speed", args.data[0], args.splits[0], EPOCHS * BATCH, None, args)
    fitting = BATCH * (1 + (args.seconds - found["start"]) / found["step"])
    return min(whole(fitting), args.crops)


def whole(crops: float) -> int:
    """The nearest lower number of crops that is so many whole batches in each epoch."""
    return max(1, int(crops) // (EPOCHS * BATCH)) * EPOCHS * BATCH


# What is recorded


def key(row: dict) -> tuple:
    return row["data"], row["side"], row["split"], row.get("rate") or 0


def best_rates(rows: list[dict]) -> dict[tuple, list[dict]]:
    """The rows of each data and side, of the rate that most splits have; of several such, of the best one."""
    groups = {}
    for row in rows:
        groups.setdefault((row["data"], row["side"]), {}).setdefault(row.get("rate"), []).append(row)
    return {
        place: max(found.values(), key=lambda some: (len(some), statistics.mean(row["dice"] for row in some)))
        for place, found in groups.items()
    }


def difference(rows: list[dict], ours: list[dict]) -> str:
    """Mean over the splits of a side's Dice less ours, and the 95% interval of Student's t."""
    of_ours = {row["split"]: row["dice"] for row in ours}
    pairs = [(of_ours[row["split"]], row["dice"]) for row in rows if row["split"] in of_ours]
    if len(pairs) < 2:
        return "".join(f"{theirs - own:+.4f}" for own, theirs in pairs)
    return told(paired(*zip(*pairs, strict=True)))


def scores_table(rows: list[dict]) -> str:
    """Of each side and data: mean Dice over the splits, and how it differs from ours, in Markdown."""
    best = best_rates(rows)
    names = [data for data in DATA if (data, "ours") in best]
    lines = []
    for side in ("Otsu", "ours", *KERAS[1:], *OF_OURS, *MONAI):
        of_side = {data: best[data, side] for data in names if (data, side) in best}
        if not of_side:
            continue
        seconds, splits = ([f(some) for some in of_side.values()] for f in (mean_seconds, len))
        line = [side, min(splits), f"{statistics.mean(seconds):.0f}"]
        for data in names:
            some = of_side.get(data, [])
            apart = "" if side == "ours" or not some else difference(some, best[data, "ours"])
            scored = f"{statistics.mean(row['dice'] for row in some):.4f}" if some else ""
            line += [scored, apart, some[0].get("rate") or "" if some else ""]
        lines.append(line)
    titles = ["side", "splits", "s"] + [title for data in names for title in (data, "less ours (95% interval)", "rate")]
    return _common.table(titles, lines)


def mean_seconds(rows: list[dict]) -> float:
    return statistics.mean(row["seconds"] for row in rows)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sides", nargs="+", choices=KERAS + MONAI, default=KERAS + MONAI, help="ours brings weights and flips along")
    add("--data", nargs="+", choices=DATA, default=["coins", "nuclei"], help="which pictures")
    add("--splits", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds of band, weights and crops")
    add("--seconds", type=float, default=23, help="of a training, at most")
    add("--crops", type=whole, default=800, help="of a training, at most; a multiple of 80")
    add("--rates", nargs="+", type=float, default=RATES, help="of MONAI's Adam")
    add("--dry", action="store_true", help="print, record nothing")
    add("--work", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return work(args)
    rows, crops = [], prepare(args)

    def keep(row, others=None):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if not args.dry:
            _common.record(NAME, row, key, others)

    for data, seed in itertools.product(args.data, args.splits):
        image, mask = read_data(data)
        otsu = dice(mask, photographs.classical(data, image[..., 0])["Otsu's threshold"], split(image, mask, seed)[1])
        keep({"data": data, "split": seed, "side": "Otsu", "dice": otsu, "seconds": 0, "crops": 0, "bound": ""})
        for side in args.sides:  # in turns: a machine's speed drifts
            rates = [None]
            if side in MONAI:
                rates = args.rates if seed == args.splits[0] else [best_rates(rows)[data, side][0]["rate"]]
            for rate in rates:
                others, most = _common.busy(1), crops if side in MONAI else args.crops
                for row in run_side(side, data, seed, crops, rate, args):
                    bound = "seconds" if row["crops"] < most else "crops"
                    keep({"data": data, "split": seed, "budget": args.seconds, **row, "bound": bound}, others)
    print(scores_table(_common.rows(NAME) if not args.dry else rows))


if __name__ == "__main__":
    main()
