"""Wall time until the validation Dice of the report (soft, pooled) is reached: lab, literal recipe, and MONAI.

    python -m benchmarks.time_to_score                  # two hours or so, nothing else running
    python -m benchmarks.time_to_score --sides monai    # one side alone, added to what is recorded

Each side is a process of its own: its clock starts with the process, so that imports and set-up count. The sides take
turns, seed by seed. `lab, short` is the lab's recipe with one pass over as many images as it takes; the report's recipe
names no precision, so it is run in Keras's default, float32, and in bfloat16 (`report`): leave that out where the
processor has none, for there it is emulated. MONAI's `UNet` of like size (1.6 million parameters) trains with its
`DiceLoss` and Adam at 1e-3 on full images, new ones all the time, in batches of 4 and the lab's precision, until it is
there or its time is over.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import _common

TARGET = 0.9937  # val_dice_coeff of the report
LIMIT = 600  # seconds that MONAI gets
IMAGES, BATCH = 128, 4


def monai_side(seed: int) -> None:
    """Train MONAI's network; print its validation score after every 128 images, in the words of the lab's script."""
    import torch
    from monai.losses import DiceLoss
    from monai.networks.nets import UNet

    import unet_segmentation as unet

    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--no-small-images", "--train-images", str(IMAGES), "--batch-size", str(BATCH)]
        args = unet.parse_args([*flags, "--seed", str(seed), "--out-dir", folder])

    def images_first(array):
        return torch.from_numpy(array).permute(0, 3, 1, 2)

    network = UNet(2, 1, 1, channels=(32, 64, 128, 256), strides=(2, 2, 2), num_res_units=2)
    network = network.to(memory_format=torch.channels_last)
    print(f"MONAI's UNet with {sum(p.numel() for p in network.parameters()):,} parameters")
    loss_of, adam = DiceLoss(sigmoid=True), torch.optim.Adam(network.parameters(), 1e-3)
    bfloat16 = unet.choose_precision("auto") == "mixed_bfloat16"
    images, masks = map(images_first, unet.make_data(args, args.val_images, unet.VALIDATION))
    for step, batch in enumerate(unet.training_batches(args), 1):
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


LAB = [sys.executable, "unet_segmentation.py"]
SIDES = {
    "lab": LAB,
    "lab, short": [*LAB, "--epochs", "1", "--train-images", "1600"],
    "report, float32": [*LAB, "--recipe", "report", "--precision", "float32"],
    "report": [*LAB, "--recipe", "report", "--precision", "mixed_bfloat16"],
    "monai": [sys.executable, "-m", "benchmarks.time_to_score", "--work"],
}


def run(side: str, seed: int) -> dict:
    """Run one side; note the wall time at which each epoch's validation score was printed."""
    epochs = []
    with tempfile.TemporaryDirectory() as folder:
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONUNBUFFERED": "1"}
        flags = ["--seed", str(seed)] + ([] if side == "monai" else ["--out-dir", folder])
        started = time.perf_counter()
        process = subprocess.Popen(
            SIDES[side] + flags, cwd=_common.ROOT, env={**os.environ, **store}, stdout=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            seconds = time.perf_counter() - started
            found = re.search(r"\bval_dice_coeff: ([\d.]+)", line)
            if found:
                epochs.append({"seconds": round(seconds, 2), "val_dice_coeff": float(found[1])})
                print(f"{side}, seed {seed}: epoch {len(epochs)}, {seconds:.0f} s, {found[1]}", flush=True)
            if side == "monai" and epochs and (seconds > LIMIT or epochs[-1]["val_dice_coeff"] >= TARGET):
                process.kill()  # it would go on for ever
                break
        if process.wait() and side != "monai" or not epochs:
            raise SystemExit(f"{side} ended with exit code {process.returncode} after {len(epochs)} epochs.")
    reached = [epoch["seconds"] for epoch in epochs if epoch["val_dice_coeff"] >= TARGET]
    return {"seed": seed, "reached_after": reached[0] if reached else None, "epochs": epochs}


def scores_table(sides: dict[str, list[dict]]) -> str:
    """Median seconds to the target of the seeds that reach it, and how often that goes into the report's training."""
    whole = {name: statistics.median(run["epochs"][-1]["seconds"] for run in runs) for name, runs in sides.items()}
    others = {"report, float32": "float32 report's 15 epochs / it", "report": "bfloat16 report's / it"}
    others = {name: title for name, title in others.items() if name in sides}
    rows = []
    for name, runs in sides.items():
        reached = [run["reached_after"] for run in runs if run["reached_after"]]
        best = [max(epoch["val_dice_coeff"] for epoch in run["epochs"]) for run in runs]
        cells = [""] * (1 + len(others))
        if reached:
            seconds = statistics.median(reached)
            cells = [f"{seconds:.0f}"] + [f"{whole[other] / seconds:.1f}" for other in others]
        spread = f"{min(best):.4f} to {max(best):.4f}" if len(best) > 1 else f"{best[0]:.4f}"
        rows.append([name, f"{len(reached)} of {len(runs)}", cells[0], f"{whole[name]:.0f}", spread, *cells[1:]])
    titles = ["side", f"seeds that reach {TARGET}", "s until then", "s in all", "best score"]
    return _common.table([*titles, *others.values()], rows)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="which to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and images")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return monai_side(args.seed)
    for seed in args.seeds:
        for side in args.sides:
            result = {**run(side, seed), **_common.circumstances()}
            sides = _common.read("time_to_score").get("sides", {})
            others = [r for r in sides.get(side, []) if r["seed"] != seed]
            sides[side] = sorted([*others, result], key=lambda r: r["seed"])
            ordered = {name: sides[name] for name in SIDES if name in sides}
            _common.write("time_to_score", {"target": TARGET, "sides": ordered})
    print(scores_table(_common.read("time_to_score")["sides"]))


if __name__ == "__main__":
    main()
