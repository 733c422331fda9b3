"""Wall time until the validation Dice of the report (soft, pooled) is reached: lab, literal recipe, and MONAI.

    python -m benchmarks.time_to_score                  # more than an hour, nothing else running
    python -m benchmarks.time_to_score --sides monai    # one side alone, added to what is recorded

Each side is a process of its own: its clock starts with the process, so that imports and set-up count. The sides take
turns, seed by seed. `lab, short` is the lab's recipe with one pass over as many images as it takes; the report's recipe
names no precision, so it is run in Keras's default, float32, and in bfloat16 (`report`): leave that out where the
processor has none, for there it is emulated. MONAI's `UNet` of like size (1.6 million parameters) trains with its
`DiceLoss` and Adam on full images, new ones all the time, in batches of 4 and the lab's precision, until it is there or
its time is over; three learning rates are tried.
"""

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks import _common
from lab.system import backend

TARGET = 0.9937  # val_dice_coeff of the report
LIMIT = 300  # seconds that MONAI gets, more than twice what the lab takes
IMAGES, BATCH = 128, 4
DATA = f"--train-size 128 --train-images {IMAGES} --batch-size {BATCH}"  # what MONAI's network sees


def monai_side(seed: int, rate: float) -> None:
    """Train MONAI's network; print its validation score after every 128 images, in the words of the lab's script."""
    import torch
    from monai.losses import DiceLoss
    from monai.networks.nets import UNet

    import unet_segmentation as unet

    torch.manual_seed(seed)
    # No test set is drawn: that would be on this side's clock.
    source = unet.circles(unet.parse_args([*DATA.split(), "--seed", str(seed), "--test-images", "1"]))

    def images_first(array):
        return torch.from_numpy(array).permute(0, 3, 1, 2)

    network = UNet(2, 1, 1, channels=(32, 64, 128, 256), strides=(2, 2, 2), num_res_units=2)
    network = network.to(memory_format=torch.channels_last)
    print(f"MONAI's UNet with {sum(p.numel() for p in network.parameters()):,} parameters")
    loss_of, adam = DiceLoss(sigmoid=True), torch.optim.Adam(network.parameters(), rate)
    # As the lab chooses, but without Keras, whose import is no business of this side's clock.
    bfloat16 = bool({"avx512_bf16", "amx_bf16"} & set(backend.processor()["flags"]))
    images, masks = map(images_first, source.validation)
    batches = itertools.chain.from_iterable(map(source.batches, itertools.count()))
    for step, batch in enumerate(batches, 1):
        x, true = map(images_first, batch)
        adam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = network(x.contiguous(memory_format=torch.channels_last))
        loss_of(logits.float(), true).backward()
        adam.step()
        if step % (IMAGES // BATCH) == 0:
            network.eval()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                probs = torch.cat([torch.sigmoid(network(part).float()) for part in images.split(16)])
            network.train()
            dice = 2 * (probs * masks).sum() / (probs + masks).sum()
            print(f"epoch {step * BATCH // IMAGES} - val_dice_coeff: {float(dice):.4f}")


FLAGS = {  # of unet_segmentation.py
    "lab": "",
    "lab, short": "--epochs 1 --train-images 2400",
    "report, float32": "--recipe report --precision float32",
    "report": "--recipe report --precision mixed_bfloat16",
}
RATES = {"monai, 3e-4": 3e-4, "monai": 1e-3, "monai, 3e-3": 3e-3}  # of MONAI's Adam
SIDES = (*FLAGS, *RATES)


def key(run: dict) -> tuple:
    """Which runs are the same one, and their order."""
    return SIDES.index(run["side"]), run["seed"]


def run(side: str, seed: int) -> dict:
    """Run one side; note when each epoch's validation score was printed."""
    flags = ["--seed", str(seed)]
    if side in RATES:
        command = [sys.executable, "-m", "benchmarks.time_to_score", "--work", str(RATES[side]), *flags]
        epochs = watch(command, lambda epoch: epoch["seconds"] > LIMIT or epoch["val_dice_coeff"] >= TARGET)
    else:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "unet_segmentation.py", *FLAGS[side].split(), *flags, "--out-dir", folder]
            epochs = watch(command, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db")
    return {"side": side, "seed": seed, "reached_after": reached_after(epochs), "epochs": epochs}


def reached_after(epochs: list[dict]) -> float | None:
    """Seconds until the first score that is at least the target's."""
    return next((epoch["seconds"] for epoch in epochs if epoch["val_dice_coeff"] >= TARGET), None)


def watch(command: list[str], enough: Callable[[dict], bool] | None = None, **environment) -> list[dict]:
    """Run a training; return the seconds at which it printed each epoch's validation score, and the scores.

    With `enough`, it is one that goes on for ever: it is ended after the epoch of which that says so.
    """
    epochs, ended, started = [], False, time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    process = subprocess.Popen(command, cwd=_common.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        found = re.search(r"\bval_dice_coeff: (\S+)", line)  # of an empty mask 1.7802e-11
        if not found:
            continue
        epochs.append({"seconds": round(time.perf_counter() - started, 2), "val_dice_coeff": float(found[1])})
        print(f"epoch {len(epochs)}, {epochs[-1]['seconds']:.0f} s, {found[1]}", flush=True)
        if enough and enough(epochs[-1]):
            process.kill()
            ended = True
            break
    if process.wait() and not ended or not epochs:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode} after {len(epochs)} epochs.")
    return epochs


def scores_table(rows: list[dict]) -> str:
    """Of each side: how many seeds reach the target, their median seconds until then, and the seconds of a training."""
    lines = []
    for name in SIDES:
        runs = [run for run in rows if run["side"] == name]
        if not runs:
            continue
        reached = [run["reached_after"] for run in runs if run["reached_after"]]
        best = [max(epoch["val_dice_coeff"] or 0 for epoch in run["epochs"]) for run in runs]  # NaN is null
        spread = f"{min(best):.4f} to {max(best):.4f}" if len(best) > 1 else f"{best[0]:.4f}"
        seconds = f"{statistics.median(reached):.0f}" if reached else ""
        whole = statistics.median(run["epochs"][-1]["seconds"] for run in runs)
        lines.append([name, f"{len(reached)} of {len(runs)}", seconds, f"{whole:.0f}", spread])
    return _common.table(["side", f"seeds that reach {TARGET}", "s until then", "s in all", "best score"], lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="which to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and images")
    parser.add_argument("--work", type=float, metavar="RATE", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return monai_side(args.seed, args.work)
    for seed in args.seeds:
        for side in args.sides:
            print(f"{side}, seed {seed}", flush=True)
            others = _common.busy()
            _common.record("time_to_score", {"target": TARGET, **run(side, seed)}, key, others)
    print(scores_table(_common.rows("time_to_score")))


if __name__ == "__main__":
    main()
