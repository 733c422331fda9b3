"""Compare the lab's network with PyTorch's, in training and prediction, and both with the machine's matrix product.

    python -m benchmarks.train_step             # about 5 minutes, nothing else running
    python -m benchmarks.train_step --ndim 3    # the same network on volumes of 48^3

The same network (as many parameters, as many multiplications), the same Dice loss, Adam, in float32 and in bfloat16.
Each side is a process of its own that stays warm; they are asked in turns. PyTorch is run as its users run it on a
processor: eager, autocast for bfloat16, channels last or first. Keras on JAX and on PyTorch is context, in float32.
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

import numpy as np

from benchmarks import _common
from lab.system import backend

SIDES = {  # name: Keras backend, or PyTorch's memory format
    "Keras, TensorFlow": "tensorflow",
    "PyTorch": "channels last",
    "PyTorch, channels first": "channels first",
    "Keras, JAX": "jax",
    "Keras, PyTorch": "torch",
}
MAIN = tuple(SIDES)[:3]  # the first one is the lab
WORK = {  # by number of dimensions; prediction is measured with the last batch size
    2: {"shape": (128, 128, 1), "filters": 32, "batches": (4, 8)},
    3: {"shape": (48, 48, 48, 1), "filters": 16, "batches": (2,)},
}
OPTIONS = {
    "precision": "float32",
    "matrix": 3072,  # side of the matrices of the product
    "device": "cpu",  # of PyTorch
    "compiled": False,  # PyTorch's network
    "fit": False,  # Keras trains by `fit`, which has several steps under way and waits for the last one only
}
RECORDS = {2: "train_step", 3: "train_step_3d"}


def example(batch: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images and masks (batch, *shape) of noise: how long a step takes does not depend on what is in them."""
    rng = np.random.default_rng(0)
    images = rng.random((batch, *shape), np.float32)
    return images, (images < 0.1).astype(np.float32)


def keras_side(work: dict) -> dict:
    """What the side can be asked for, {name: function of how often}, its parameters, and the network's arithmetic."""
    keras = backend.import_keras()

    from lab.model.costs import layer_costs
    from metrics import DiceLoss
    from unet_segmentation import build_unet

    keras.config.set_dtype_policy(work["precision"])
    model = build_unet(tuple(work["shape"]), work["filters"])
    model.compile(keras.optimizers.Adam(1e-3), loss=DiceLoss())
    data = {batch: example(batch, work["shape"]) for batch in work["batches"]}
    last = work["batches"][-1]
    dtype = "bfloat16" if "bfloat16" in work["precision"] else "float32"
    matrix = keras.ops.cast(np.random.default_rng(0).standard_normal((work["matrix"],) * 2), dtype)

    def train(batch, count):
        if work["fit"]:
            same = (data[batch] for _ in itertools.count())
            model.fit(same, steps_per_epoch=count, shuffle=False, verbose=0)
        else:
            for _ in range(count):
                model.train_on_batch(*data[batch])

    def predict(count):
        for _ in range(count):
            model.predict_on_batch(data[last][0])

    def product(count):
        for _ in range(count):
            result = keras.ops.matmul(matrix, matrix)
        float(keras.ops.cast(result[0, 0], "float32"))  # a single element is fetched, to wait for the products

    calls = {f"train {batch}": functools.partial(train, batch) for batch in data}
    return {
        "calls": {**calls, f"predict {last}": predict, "matrix": product},
        "parameters": model.count_params(),
        # Floating-point operations for one image: two per multiply-add.
        "operations": {
            "train": 2 * training_multiply_adds(model),
            "predict": 2 * sum(row["multiply_adds"] for row in layer_costs(model)),
        },
    }


def training_multiply_adds(model, batch_size: int = 1) -> int:
    """Multiply-adds of a training step: forward, gradient of the weights, and gradient of the input.

    The last is not needed where a layer reads the images: such a layer counts twice its forward pass, others thrice.
    """
    from lab.model.costs import layer_costs, layer_kind, read_by

    total = 0
    for layer, row in zip(model.layers, layer_costs(model, batch_size), strict=True):
        reads_images = any(layer_kind(before) == "input" for _, before in read_by(layer, model))
        total += (2 if reads_images else 3) * row["multiply_adds"]
    return total


def torch_network(ndim: int, filters: int):
    """The lab's network in PyTorch: images (N, 1, ...) -> probabilities (N, 1, ...), float32."""
    import torch
    from torch import nn

    convolution, transposed = (getattr(nn, f"{name}{ndim}d") for name in ("Conv", "ConvTranspose"))
    pool = getattr(nn.functional, f"max_pool{ndim}d")
    widths = [filters * 2**level for level in range(3)]

    def block(channels, width):
        layers = [convolution(channels, width, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, convolution(width, width, 3, padding=1), nn.ReLU())

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleList([block(*pair) for pair in itertools.pairwise([1, *widths])])
            self.bottleneck = block(widths[-1], 2 * widths[-1])
            self.up = nn.ModuleList([transposed(2 * width, width, 2, stride=2) for width in reversed(widths)])
            self.decoder = nn.ModuleList([block(2 * width, width) for width in reversed(widths)])
            self.mask = convolution(filters, 1, 1)

        def forward(self, x):
            skips = []
            for encoder in self.encoder:
                x = encoder(x)
                skips.append(x)
                x = pool(x, 2)
            x = self.bottleneck(x)
            for up, decoder in zip(self.up, self.decoder, strict=True):
                x = decoder(torch.cat([up(x), skips.pop()], dim=1))
            return torch.sigmoid(self.mask(x).float())

    return UNet()


def torch_side(work: dict, layout: str) -> dict:
    """The same for PyTorch."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as Keras's backends do
    torch.backends.cudnn.benchmark = True
    ndim, last, device = len(work["shape"]) - 1, work["batches"][-1], work["device"]
    dtype = torch.bfloat16 if "bfloat16" in work["precision"] else torch.float32
    channels_last = torch.channels_last if ndim == 2 else torch.channels_last_3d
    memory_format = channels_last if layout == "channels last" else torch.contiguous_format

    def place(array):
        return torch.from_numpy(np.moveaxis(array, -1, 1)).to(device).contiguous(memory_format=memory_format)

    network = torch_network(ndim, work["filters"]).to(device=device, memory_format=memory_format)
    adam = torch.optim.Adam(network.parameters(), 1e-3)
    forward = torch.compile(network) if work["compiled"] else network
    data = {batch: [place(array) for array in example(batch, work["shape"])] for batch in work["batches"]}
    matrix = torch.randn((work["matrix"],) * 2, device=device).to(dtype)

    def probabilities(images):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return forward(images)

    def train(batch, count):
        images, masks = data[batch]
        axes = tuple(range(1, masks.ndim))
        for _ in range(count):
            adam.zero_grad()
            probs = probabilities(images)
            overlap, total = (probs * masks).sum(axes), (probs + masks).sum(axes)
            loss = (1 - (2 * overlap + 1) / (total + 1)).mean()
            loss.backward()
            adam.step()
        float(loss.detach())

    def predict(count):
        with torch.inference_mode():
            for _ in range(count):
                probabilities(data[last][0]).cpu()

    def product(count):
        for _ in range(count):
            result = matrix @ matrix
        float(result[0, 0])

    calls = {f"train {batch}": functools.partial(train, batch) for batch in data}
    return {
        "calls": {**calls, f"predict {last}": predict, "matrix": product},
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def serve(side: str, work: dict) -> None:
    """Serve one side: read the name of a call and how often to make it, answer when it is done."""
    layout = SIDES[side]
    made = torch_side(work, layout) if "channels" in layout else keras_side(work)
    calls = made.pop("calls")
    print(json.dumps({**made, "calls": list(calls)}), flush=True)
    for line in sys.stdin:
        name, count = json.loads(line)
        calls[name](count)
        print("done", flush=True)


class Worker:
    """The process of one side."""

    def __init__(self, side: str, work: dict):
        keras_backend = "tensorflow" if "channels" in SIDES[side] else SIDES[side]
        command = [sys.executable, "-m", "benchmarks.train_step", "--serve", side, "--work", json.dumps(work)]
        # JAX would take most of a card's memory, which two sides share here.
        settings = {"KERAS_BACKEND": keras_backend, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **settings}, cwd=_common.ROOT, **pipes)
        self.counts = json.loads(self._answer())
        self.often = {name: 1 for name in self.counts["calls"]}

    def call(self, name: str) -> None:
        self.process.stdin.write(json.dumps([name, self.often[name]]) + "\n")
        self.process.stdin.flush()
        self._answer()

    def warm_up(self, seconds: float) -> None:
        """Make each call once, and find out how often it is made in a turn of so many seconds."""
        for name in self.often:
            self.call(name)
            for _ in range(2):  # the second time from several calls, which wait for one another no longer
                started = time.perf_counter()
                self.call(name)
                taken = (time.perf_counter() - started) / self.often[name]
                self.often[name] = max(1, round(seconds / taken))

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the side's process has ended with code {self.process.wait()}.")
        return line

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(sides: tuple[str, ...], work: dict, rounds: int, seconds: float = 1) -> list[dict]:
    """A row per side and call: images per second, and the share of the side's own matrix product's rate.

    Args:
        sides: names in SIDES; the first one is compared with each.
        work: "shape" (..., 1), "filters", "batches", and what differs from OPTIONS.
        rounds: turns that count.
        seconds: of a turn.
    """
    work = {**OPTIONS, **work}
    workers = {side: Worker(side, work) for side in sides}
    try:
        counts = {side: worker.counts["parameters"] for side, worker in workers.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"the networks differ in their parameters: {counts}.")
        for worker in workers.values():
            worker.warm_up(seconds)
        names = workers[sides[0]].counts["calls"]
        calls = {(side, name): functools.partial(workers[side].call, name) for name in names for side in sides}
        times = {
            (side, name): [taken / workers[side].often[name] for taken in turns]
            for (side, name), turns in _common.in_turns(calls, rounds).items()
        }
    finally:
        for worker in workers.values():
            worker.close()
    operations = next(w.counts["operations"] for w in workers.values() if "operations" in w.counts)
    rows = []
    for name, side in itertools.product([name for name in names if name != "matrix"], sides):
        kind, batch = name.split()
        own = times[side, name]
        images_per_second = int(batch) / statistics.median(own)
        rate = images_per_second * operations[kind]
        product = 2 * work["matrix"] ** 3 / statistics.median(times[side, "matrix"])
        rows.append(
            {
                "call": kind,
                "precision": work["precision"],
                "shape": list(work["shape"]),
                "filters": work["filters"],
                "batch": int(batch),
                "side": side,
                "images_per_second": images_per_second,
                "lab_against_it": _common.ratio(own, times[sides[0], name]),
                "gflops_per_second": rate / 1e9,
                "matrix_gflops_per_second": product / 1e9,
                "share_of_matrix_product": rate / product,
                "seconds_per_step": own,
                "flops_per_image": operations[kind],
                "parameters": counts[side],
            }
        )
    return rows


SHOWN = {  # column of a row: its title
    "call": "",
    "precision": "precision",
    "batch": "batch",
    "side": "side",
    "images_per_second": "images/s",
    "lab_against_it": "lab / it",
    "gflops_per_second": "GFLOP/s",
    "matrix_gflops_per_second": "matrix product",
    "share_of_matrix_product": "share",
}


def show(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    return _common.table(list(SHOWN.values()), [[row[name] for name in SHOWN] for row in rows])


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ndim", type=int, choices=WORK, default=2, help="images or volumes")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        return serve(args.serve, args.work)
    others, work = _common.busy(), WORK[args.ndim]
    rows = compare(tuple(SIDES), work, args.rounds)
    rows += compare(MAIN, {**work, "precision": "mixed_bfloat16"}, args.rounds)
    print(show(rows))
    _common.write(RECORDS[args.ndim], {"rounds": args.rounds, "rows": rows}, others)


if __name__ == "__main__":
    main()
