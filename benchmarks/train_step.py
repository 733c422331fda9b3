"""Compare the training step of the lab's network with PyTorch's, and both with the machine's matrix product.

    python -m benchmarks.train_step        # about 4 minutes, nothing else running

The same network (as many parameters, as many multiplications), the same Dice loss, Adam, 128x128 images, in float32
and in bfloat16. Each side is a process of its own that stays warm; they are asked in turns. PyTorch is run as its users
run it on a processor: eager, channels last, autocast for bfloat16. Keras on JAX and on PyTorch is context, in float32.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

from benchmarks import _common

SIZE, BATCHES = 128, (4, 8)
CALLS = {"4": 4, "8": 2, "matrix": 4}  # calls in one turn: about a second
SIDES = {  # name: Keras backend, or none
    "Keras, TensorFlow": "tensorflow",
    "PyTorch": None,
    "Keras, JAX": "jax",
    "Keras, PyTorch": "torch",
}
MAIN = ("Keras, TensorFlow", "PyTorch")
MATRIX = 3072  # side of the matrices of the product


def training_flops(model) -> int:
    """Floating-point operations of one training step on one image: two per multiply-add of the convolutions.

    Forward, gradient of the weights, and gradient of the input, which the first layer does not need.
    """
    import keras

    total = 0
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.Conv2DTranspose):
            continue
        # Each kernel entry is used once per output pixel, or, where the convolution is transposed, per input pixel.
        transposed = isinstance(layer, keras.layers.Conv2DTranspose)
        _, height, width, _ = (layer.input if transposed else layer.output).shape
        entries = layer.count_params() - layer.filters  # without the biases
        passes = 2 if layer.input is model.inputs[0] else 3
        total += 2 * passes * height * width * entries
    return total


def keras_side(precision: str) -> dict:
    """Calls of one round: a training step for each batch size, a matrix product; and counts."""
    import keras
    import numpy as np

    import data_synth
    from metrics import DiceLoss
    from unet_segmentation import build_unet

    keras.config.set_dtype_policy(precision)
    model = build_unet((SIZE, SIZE, 1))
    model.compile(keras.optimizers.Adam(1e-3), loss=DiceLoss())
    data = {batch: data_synth.make_circles(batch, SIZE) for batch in BATCHES}
    dtype = "bfloat16" if "bfloat16" in precision else "float32"
    matrix = keras.ops.cast(np.random.default_rng(0).standard_normal((MATRIX, MATRIX)), dtype)
    calls = {str(batch): lambda batch=batch: float(model.train_on_batch(*data[batch])) for batch in BATCHES}
    # A single element is fetched, to wait for the product.
    calls["matrix"] = lambda: float(keras.ops.cast(keras.ops.matmul(matrix, matrix)[0, 0], "float32"))
    return {"calls": calls, "parameters": model.count_params(), "flops": training_flops(model)}


def torch_side(precision: str) -> dict:
    """The same for PyTorch."""
    import torch
    from torch import nn

    import data_synth

    def block(channels, filters):
        layers = [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU())

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleList([block(1, 32), block(32, 64), block(64, 128)])
            self.bottleneck = block(128, 256)
            self.up = nn.ModuleList([nn.ConvTranspose2d(2 * f, f, 2, stride=2) for f in (128, 64, 32)])
            self.decoder = nn.ModuleList([block(2 * f, f) for f in (128, 64, 32)])
            self.mask = nn.Conv2d(32, 1, 1)

        def forward(self, x):
            skips = []
            for encoder in self.encoder:
                x = encoder(x)
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
            x = self.bottleneck(x)
            for up, decoder in zip(self.up, self.decoder, strict=True):
                x = decoder(torch.cat([up(x), skips.pop()], dim=1))
            return torch.sigmoid(self.mask(x).float())

    def images_first(array):
        return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    dtype = torch.bfloat16 if "bfloat16" in precision else torch.float32
    model = UNet().to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    data = {batch: [images_first(a) for a in data_synth.make_circles(batch, SIZE)] for batch in BATCHES}
    matrix = torch.randn(MATRIX, MATRIX).to(dtype)

    def step(batch):
        images, masks = data[batch]
        adam.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            probs = model(images)
        overlap, total = (probs * masks).sum((1, 2, 3)), (probs + masks).sum((1, 2, 3))
        loss = (1 - (2 * overlap + 1) / (total + 1)).mean()
        loss.backward()
        adam.step()
        return float(loss.detach())

    calls = {str(batch): lambda batch=batch: step(batch) for batch in BATCHES}
    calls["matrix"] = lambda: float((matrix @ matrix)[0, 0])
    return {"calls": calls, "parameters": sum(p.numel() for p in model.parameters())}


def work(side: str, precision: str) -> None:
    """Serve one side: read the name of a call and how often to make it, answer when it is done."""
    made = keras_side(precision) if SIDES[side] else torch_side(precision)
    calls = made.pop("calls")
    print(json.dumps(made), flush=True)
    for line in sys.stdin:
        name, count = line.split()
        for _ in range(int(count)):
            calls[name]()
        print("done", flush=True)


class Worker:
    """The process of one side."""

    def __init__(self, side: str, precision: str):
        backend = SIDES[side] or "tensorflow"
        command = [sys.executable, "-m", "benchmarks.train_step", "--work", side, "--precision", precision]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "KERAS_BACKEND": backend},
        )
        self.counts = json.loads(self.process.stdout.readline())

    def call(self, name: str) -> None:
        self.process.stdin.write(f"{name} {CALLS[name]}\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise RuntimeError("the side's process has ended")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(precision: str, sides: tuple[str, ...], rounds: int) -> list[dict]:
    """A row per side and batch size: images per second, and the share of the side's own matrix product."""
    workers = {side: Worker(side, precision) for side in sides}
    counts = [worker.counts for worker in workers.values()]
    if len({count["parameters"] for count in counts}) != 1:
        raise ValueError(f"the networks differ: {dict(zip(sides, counts, strict=True))}")
    flops = counts[0]["flops"]
    tasks = {(side, name): lambda w=worker, n=name: w.call(n) for name in CALLS for side, worker in workers.items()}
    times = {task: [t / CALLS[task[1]] for t in taken] for task, taken in _common.in_turns(tasks, rounds).items()}
    for worker in workers.values():
        worker.close()
    rows = []
    for batch in BATCHES:
        for side in sides:
            own = times[side, str(batch)]
            rate = batch * flops / statistics.median(own)
            product = 2 * MATRIX**3 / statistics.median(times[side, "matrix"])
            rows.append(
                {
                    "precision": precision,
                    "batch": batch,
                    "side": side,
                    "images_per_second": batch / statistics.median(own),
                    "lab_against_it": _common.ratio(own, times[MAIN[0], str(batch)]),
                    "gflops_per_second": rate / 1e9,
                    "matrix_gflops_per_second": product / 1e9,
                    "share_of_matrix_product": rate / product,
                    "seconds_per_step": own,
                    "flops_per_image": flops,
                    "parameters": counts[0]["parameters"],
                }
            )
    return rows


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--work", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return work(args.work, args.precision)
    rows = compare("float32", tuple(SIDES), args.rounds) + compare("mixed_bfloat16", MAIN, args.rounds)
    titles = ["precision", "batch", "side", "images/s", "lab / it", "GFLOP/s", "matrix product", "share"]
    print(_common.table(titles, [list(row.values())[:8] for row in rows]))
    _common.write("train_step", {"rows": rows})


if __name__ == "__main__":
    main()
