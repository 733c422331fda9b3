"""Measure a graphics card: the training step beside PyTorch's, how it grows, and how soon the report's score is there.

    export JAX_COMPILATION_CACHE_DIR=$PWD/outputs/jax
    python -m benchmarks.gpu          # one NVIDIA card, JAX and PyTorch with CUDA, nothing else running
    python -m benchmarks.gpu --parts training    # some of it, added to what is recorded
    python -m benchmarks.gpu --cpu    # tiny and on the processor, not recorded: to see that it runs

The lab's network in bfloat16, Keras on JAX, in turns with the same network in PyTorch, channels last and compiled, and
both beside the card's own matrix product. A step always has as many pixels or voxels: what changes with the size is how
many images they make. Then the script as it is: seconds until a validation Dice of 0.9937, and how many images per
second it trains with large batches, beside what the generator makes and what the step takes. Each row is recorded when
it is there. PyTorch's batches lie on the card, Keras's come from memory each time.
"""

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import unet_segmentation as unet
from benchmarks import _common, time_to_score, train_step

SIDES = ("Keras, JAX", "PyTorch")
CARD = {
    "step": {"precision": "mixed_bfloat16", "device": "cuda", "fit": True, "compiled": True, "matrix": 8192},
    "sides": {2: (64, 128, 512), 3: (32, 64, 128)},
    "filters": {2: 32, 3: 16},
    "values": {2: 64 * 128**2, 3: 128**3},  # pixels, voxels in a step
    "rounds": 5,
    "seconds": 0.5,
    "flags": "",
    "seeds": (0, 1, 2),
    "large": "--epochs 3 --batch-size 256 --train-images 65536",
}
PROCESSOR = {
    "step": {"fit": True, "matrix": 256},
    "sides": {2: (16, 32), 3: (8, 16)},
    "filters": {2: 2, 3: 2},
    "values": {2: 32**2, 3: 16**3},
    "rounds": 1,
    "seconds": 0.1,
    "flags": "--epochs 2 --train-images 8 --filters 2 --val-images 4 --test-images 4",
    "seeds": (0,),
    "large": "--epochs 3 --batch-size 8 --train-images 16 --filters 2 --val-images 4 --test-images 4",
}


def card() -> str:
    """Name of the card that both JAX and PyTorch can use; SystemExit with a sentence if there is none."""
    code = (
        "import jax, torch; "
        "print(jax.devices()[0].device_kind if jax.default_backend() == 'gpu' and torch.cuda.is_available() else '')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if found.returncode:
        raise SystemExit("gpu.py: JAX and PyTorch are needed: pip install -r benchmarks/requirements.txt.")
    if not found.stdout.strip():
        raise SystemExit(
            "gpu.py: no graphics card that JAX and PyTorch can both use; --cpu tries it all, small, on the processor."
        )
    return found.stdout.strip()


def sizes(plan: dict) -> list[dict]:
    """The work of `train_step.compare` for each size."""
    works = []
    for ndim, sides in plan["sides"].items():
        for side in sides:
            shape = (*[side] * ndim, 1)
            batch = max(1, plan["values"][ndim] // side**ndim)
            works.append({**plan["step"], "shape": shape, "filters": plan["filters"][ndim], "batches": [batch]})
    return works


def key(row: dict) -> tuple:
    """Which rows are the same measurement, and their order."""
    place = [len(row.get("shape", ())), *row.get("shape", ())]
    return row["what"], place, row.get("call", ""), row.get("side", ""), row.get("seed", 0)


def compile_pytorch(works: list[dict]) -> None:
    """Let PyTorch compile its networks side by side, so that the timed processes find them in its cache.

    Keras's are compiled when their turn comes, for XLA tries its kernels on the card, and does so best on a quiet one.
    """

    def compile_one(work):
        worker = train_step.Worker("PyTorch", {**train_step.OPTIONS, **work})
        try:
            worker.warm_up(0.01)
        finally:
            worker.close()

    with ThreadPoolExecutor(len(works)) as pool:
        list(pool.map(compile_one, works))


def steps(plan: dict) -> Iterator[dict]:
    """Rows of `train_step.compare` for each size, with the pixels or voxels per second."""
    works = sizes(plan)
    compile_pytorch(works)
    for work in works:
        for row in train_step.compare(SIDES, work, plan["rounds"], plan["seconds"]):
            speed = row["images_per_second"] * math.prod(work["shape"])
            yield {"what": "step", **row, "values_per_second": speed}


def soon(plan: dict) -> Iterator[dict]:
    """The lab's training on JAX, seed by seed: when the target is reached."""
    for seed in plan["seeds"]:
        epochs = train(f"{plan['flags']} --seed {seed}")
        reached = time_to_score.reached_after(epochs)
        yield {"what": "training", "seed": seed, "reached_after": reached, "epochs": epochs}


def train(flags: str) -> list[dict]:
    """Seconds and score of each epoch of `unet_segmentation.py FLAGS` on JAX."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "unet_segmentation.py", *flags.split(), "--out-dir", folder]
        store = f"sqlite:///{folder}/mlflow.db"
        return time_to_score.watch(command, KERAS_BACKEND="jax", MLFLOW_TRACKING_URI=store)


def feeding(plan: dict) -> Iterator[dict]:
    """Images per second that the script trains on with large batches, and that its generator makes alone."""
    args = unet.parse_args(plan["large"].split())
    first, *_, last = [epoch["seconds"] for epoch in train(plan["large"])]  # the first epoch compiles
    batches = unet.circles(args).batches(0)
    started = time.perf_counter()
    num = sum(len(images) for images, _ in itertools.islice(batches, 32))
    made = num / (time.perf_counter() - started)
    trained = (args.epochs - 1) * args.train_images / (last - first)
    speeds = {"trained_images_per_second": trained, "generated_images_per_second": made}
    yield {"what": "feeding", "flags": plan["large"], **speeds}


PARTS = {"step": steps, "training": soon, "feeding": feeding}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which measurements to make")
    parser.add_argument("--cpu", action="store_true", help="try everything, small, on the processor; record nothing")
    args = parser.parse_args(argv)
    plan, name = (PROCESSOR, "processor") if args.cpu else (CARD, card())
    others = _common.busy()
    for row in itertools.chain.from_iterable(PARTS[part](plan) for part in args.parts):
        print({name: value for name, value in row.items() if name not in ("epochs", "seconds_per_step")}, flush=True)
        if not args.cpu:
            _common.record("gpu", {"card": name, **row}, key, others)


if __name__ == "__main__":
    main()
