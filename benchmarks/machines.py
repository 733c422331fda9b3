"""The lab on each kind of processor: its commands, its training steps and its predictions, beside PyTorch's.

    python -m benchmarks.machines                             # 12 minutes a kind on 2 quiet cores
    python -m benchmarks.machines --kinds AVX2 --parts predict

A processor stands in for those that know less: oneDNN, which computes the convolutions of TensorFlow and of PyTorch, is
told to use no newer instructions, and so are PyTorch's other kernels. Such rows are marked as emulated. ONNX Runtime
cannot be told, and is compared on the processor's own kind only, in float32. Graphics cards: `benchmarks/gpu.py`.

commands   three commands of the README, each a process of its own, from start to end.
steps      a training step of 8 images of 128x128 and 2 volumes of 48^3, and prediction of 2 images of 512x512, in turns
           with PyTorch, channels last, eager and compiled; in the precision that the lab chooses there.
predict    `predict.py` in a process of its own: pictures of three sizes, and a scan with a network of 16 filters.
onnx       prediction of 2 images of 512x512, in turns with ONNX Runtime (needs `requirements-onnx.txt`).
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import _common, commands, tiles, train_step
from lab.system import backend

NAME = "machines"
# The newest instructions that oneDNN and PyTorch's other kernels may use; the flag of a processor that has them.
KINDS = {
    "AVX2": ("AVX2", "avx2", "avx2"),
    "AVX-512": ("AVX512_CORE", "avx512", "avx512f"),
    "AVX-512 with bfloat16": ("AVX512_CORE_BF16", "avx512", "avx512_bf16"),
    "AMX": ("ALL", "avx512", "amx_bf16"),
}
PICTURES = {"512 x 512": (512, 512), "2048 x 2048": (2048, 2048), "12 megapixels": (3000, 4000)}
SCAN = (184, 218, 217)  # 8.7 million voxels
WORK = {  # the calls that are shown of each
    ("train", "128 x 128"): {"shape": (128, 128, 1), "filters": 32, "batches": (8,)},
    ("predict", "512 x 512"): {"shape": (512, 512, 1), "filters": 32, "batches": (2,)},
    ("train", "48^3"): {"shape": (48, 48, 48, 1), "filters": 16, "batches": (2,)},
}
SIDES = ("Keras, TensorFlow", "PyTorch")


def own_kind() -> str:
    """The newest kind that this processor is."""
    flags = backend.processor()["flags"]
    return [kind for kind, (*_, flag) in KINDS.items() if flag in flags][-1]


@contextlib.contextmanager
def limited_to(kind: str):
    """Processes that start within the block use the instructions of a kind of processor."""
    onednn, aten, _ = KINDS[kind]
    former = dict(os.environ)
    os.environ.update(ONEDNN_MAX_CPU_ISA=onednn, ATEN_CPU_CAPABILITY=aten)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


# The parts


def run_commands(kind: str) -> dict:
    """Seconds of each command, and the test Dice of those that train."""
    found = {name: commands.run(name, seed=1) for name in ("circles", "volumes", "conv3d")}
    return {
        "seconds": {name: row["seconds"] for name, row in found.items()},
        "dice": {name: row["test"]["image_dice"] for name, row in found.items() if "test" in row},
    }


def run_steps(kind: str) -> dict:
    """Images per second of each call, and how many times those of PyTorch, eager and compiled."""
    precision = "mixed_bfloat16" if "bf16" in KINDS[kind][2] else "float32"
    found = {}
    for (call, what), work in WORK.items():
        entry = {}
        for compiled in (False, True):
            rows = train_step.compare(SIDES, {**work, "precision": precision, "compiled": compiled}, rounds=5)
            ours, other = (next(r for r in rows if (r["side"], r["call"]) == (side, call)) for side in SIDES)
            entry |= {"images_per_second": ours["images_per_second"], "share": ours["share_of_matrix_product"]}
            name = "compiled" if compiled else "eager"
            entry |= {f"times_{name}": other["lab_against_it"], f"share_{name}": other["share_of_matrix_product"]}
        found[f"{call} {what}"] = entry
    return {"precision": precision, "steps": found}


def save_networks(folder: Path) -> None:
    """Untrained networks of pictures and of scans, in the precision that the lab chooses: their speed is the same.

    They find nothing, so that no time goes into the tables of thousands of objects in noise.
    """
    keras = backend.import_keras()

    from lab.data import grey_values
    from lab.model import model_file
    from unet_segmentation import build_unet

    keras.config.set_dtype_policy(backend.choose_precision("auto"))
    for name, sides, filters in (("pictures", (None, None), 32), ("scans", (None, None, None), 16)):
        images = np.random.default_rng(0).random((4, *(16,) * len(sides), 1), np.float32)
        about = grey_values.describe_training(images, grey_values.ABSOLUTE)
        network = build_unet((*sides, 1), filters)
        network.get_layer("mask").bias.assign([-100.0])
        model_file.save_model(network, folder / f"{name}.keras", about)


def run_predict(kind: str) -> dict:
    """Seconds of `predict.py` as a whole, and its peak memory, for each picture and the scan."""
    import nibabel
    from PIL import Image

    rng, found = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.machines", "--save", str(folder)],
            cwd=_common.ROOT,
            check=True,
        )
        for name, sides in PICTURES.items():
            Image.fromarray(rng.integers(0, 255, sides, np.uint8)).save(folder / f"{name}.png", compress_level=1)
            found[name] = ("pictures", folder / f"{name}.png")
        voxels = rng.integers(0, 255, SCAN[::-1], np.uint8)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / "scan.nii.gz")
        found["scan"] = ("scans", folder / "scan.nii.gz")
        runs = {
            name: tiles.run(folder / f"{network}.keras", path, "--out-dir", folder / "out")
            for name, (network, path) in found.items()
        }
    return {"predict": {name: {"seconds": seconds, "gib": gib} for name, (seconds, _, gib) in runs.items()}}


def run_onnx(kind: str) -> dict:
    """How many times ONNX Runtime's images per second the lab predicts, in float32, on images of 512x512."""
    import onnxruntime

    from lab.data import grey_values
    from lab.model import export, model_file
    from lab.system import library_limits
    from unet_segmentation import build_unet

    images = np.random.default_rng(0).random((2, 512, 512, 1), np.float32)
    network = build_unet((None, None, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model_file.save_model(network, path, grey_values.describe_training(images, grey_values.ABSOLUTE))
        export.export(path, path.with_suffix(".onnx"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = backend.num_cores()
        session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), options)
        (entry,) = session.get_inputs()
        sides = {
            "lab": lambda: library_limits.predict_batch(network, images),
            "ONNX Runtime": lambda: session.run(None, {entry.name: images}),
        }
        times = _common.in_turns(sides, 7)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "images_per_second": {name: len(images) / value for name, value in seconds.items()},
        "times_onnx": _common.ratio(times["ONNX Runtime"], times["lab"]),
    }


PARTS = {"commands": run_commands, "steps": run_steps, "predict": run_predict, "onnx": run_onnx}


# What is recorded


def key(row: dict) -> tuple:
    return list(KINDS).index(row["kind"]), list(PARTS).index(row["part"])


def times_table(rows: list[dict], recorded: list[dict]) -> str:
    """Seconds of the README's commands: medians of what `benchmarks.commands` `recorded`, and on each kind."""

    def line(provenance, more, bfloat16, seconds):
        device = provenance["device"].replace("(R)", "").replace(" Processor", "")
        side = f"{device}{more}, {'bfloat16' if bfloat16 else 'float32'}"
        return [side, *(f"{seconds[name]:.0f} s" if name in seconds else "" for name in commands.COMMANDS)]

    bfloat16 = any(flag.endswith("bf16") for flag in recorded[0]["machine"]["flags"])
    lines = [line(recorded[0]["provenance"], "", bfloat16, commands.times(recorded))]
    for row in rows:
        if row["part"] == "commands":
            more = f", {row['kind']}" + " (emulated)" * row["emulated"]
            lines.append(line(row["provenance"], more, "bf16" in KINDS[row["kind"]][2], row["seconds"]))
    titles = [f"`{' '.join(command)}`" for command in commands.COMMANDS.values()]
    return _common.table(["from start to end", *titles], lines)


def machines_table(rows: list[dict]) -> str:
    """A row for each kind of processor: seconds of the commands and of predict.py, speeds beside PyTorch's."""
    lines = []
    for kind in KINDS:
        parts = {row["part"]: row for row in rows if row["kind"] == kind}
        if not parts:
            continue
        seconds = parts.get("commands", {}).get("seconds", {})
        predicted = {name: one["seconds"] for name, one in parts.get("predict", {}).get("predict", {}).items()}
        steps = parts.get("steps", {}).get("steps", {})
        emulated = ", emulated" if any(row["emulated"] for row in parts.values()) else ""
        lines.append(
            [
                f"{kind}{emulated}",
                *(f"{seconds[name]:.0f}" if name in seconds else "" for name in ("circles", "volumes", "conv3d")),
                *(describe_step(*name, steps) for name in WORK),
                *(f"{predicted[name]:.0f}" if name in predicted else "" for name in (*PICTURES, "scan")),
                f"{parts['onnx']['times_onnx']:.2f}" if "onnx" in parts else "",
            ]
        )
    titles = ["processor", "circles, s", "spheres, s", "Conv3D, s", *(f"{call} {what}" for call, what in WORK)]
    titles += [*(f"`predict.py`, {name}, s" for name in PICTURES), "scan, s", "/ ONNX Runtime"]
    return _common.table(titles, lines)


def describe_step(call: str, what: str, steps: dict) -> str:
    """ "13.5/s, 1.07 and 0.98": images per second, and times PyTorch's, eager and compiled."""
    one = steps.get(f"{call} {what}")
    return f"{one['images_per_second']:.3g}/s, {one['times_eager']:.2f} and {one['times_compiled']:.2f}" if one else ""


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        help="of processors; those newer than this are left out",
    )
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    add("--table", action="store_true", help="print the table from what is recorded")
    add("--save", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.save:
        return save_networks(args.save)
    own = own_kind()
    kinds = [kind for kind in KINDS if kind in args.kinds and list(KINDS).index(kind) <= list(KINDS).index(own)]
    for kind in [] if args.table else kinds:
        for part in args.parts:
            if part == "onnx" and kind != own:
                continue
            others = _common.busy()
            with limited_to(kind):
                row = {"kind": kind, "emulated": kind != own, "part": part, **PARTS[part](kind)}
            print(row, flush=True)
            _common.record(NAME, row, key, others)
    print(machines_table(_common.rows(NAME)))


if __name__ == "__main__":
    main()
