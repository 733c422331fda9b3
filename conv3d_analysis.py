"""Build a small Conv3D network, account for its memory and arithmetic before any training, and log it to MLflow.

    python conv3d_analysis.py                 # one run in the experiment 3D_Volumetric_Analysis
    python conv3d_analysis.py --fit-in 4      # what trains within 4 GiB
    python conv3d_analysis.py --study         # predicted against measured memory, over a grid

On 2 cores the first takes 18 s once the store exists, and the study 13 minutes: 68 processes, one after another, whose
memory is predicted to within 6.2% in the median and 20% at worst. The first trains nothing: its loss
and Dice by step are SIMULATED, and named so everywhere; what was measured (training steps on noise, in a process of
their own) is named `measured/`. Files go to outputs/conv3d.
"""

import argparse
import csv
import json
import math
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from lab import tracking
from lab.memory import ITEM_BYTES, MIB, RUNTIME_MIB, SLOTS, layer_costs, memory_status, training_memory

# Keras and Matplotlib take seconds to import: the functions that need them import them, so that --help answers at once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe and Ito 2008
EXPERIMENT = "3D_Volumetric_Analysis"
SIMULATION = (
    "loss = 0.05 + 0.65 exp(-step / 8) + 0.01 n1; dice = 0.97 - 0.87 exp(-step / 8) + 0.01 n2; n1, n2 ~ N(0, 1)"
)


def conv_block(x, filters: int, kernel_size: int, name: str):
    """(convolution -> ReLU) * 2, same padding: (N, D, H, W, C) -> (N, D, H, W, filters)."""
    from keras import layers

    for i in (1, 2):
        x = layers.Conv3D(
            filters,
            kernel_size,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            name=f"{name}_conv{i}",
        )(x)
    return x


def build_conv3d(
    input_shape: tuple = (32, 32, 32, 1), filters: int = 8, kernel_size: int = 3, downsampling: str = "late"
):
    """Build the 3D twin of the U-Net's first steps (Cicek et al. 2016): two poolings, concatenated skips, sigmoid mask.

    Blocks of filters and 2 filters, a bottleneck of 4 filters, and back. `downsampling="early"` puts a convolution of
    stride 2 in front and a transposed one behind: no block then works at full resolution, an eighth of the voxels.

    Args:
        input_shape: (depth, height, width, channels); sides divisible by 4, or by 8 with early downsampling.
        filters: channels of the first block, at least 1.
        kernel_size: side of the kernels, odd and at least 1.
        downsampling: "late" or "early".

    Returns:
        An uncompiled `keras.Model`: volumes (N, D, H, W, C) -> probabilities (N, D, H, W, 1), float32.

    Raises:
        ValueError: for settings outside these ranges.
    """
    import keras
    from keras import layers

    check_network(input_shape, filters, kernel_size, downsampling)
    x = inputs = keras.Input(input_shape, name="volume")
    if downsampling == "early":
        x = layers.Conv3D(filters, kernel_size, strides=2, padding="same", activation="relu", name="reduce")(x)
    encoder1 = conv_block(x, filters, kernel_size, "encoder1")
    x = layers.MaxPooling3D(2, name="pool1")(encoder1)
    encoder2 = conv_block(x, filters * 2, kernel_size, "encoder2")
    x = layers.MaxPooling3D(2, name="pool2")(encoder2)
    x = conv_block(x, filters * 4, kernel_size, "bottleneck")
    for level, skip in ((2, encoder2), (1, encoder1)):
        width = filters * level
        x = layers.Conv3DTranspose(width, 2, strides=2, padding="same", name=f"up{level}")(x)
        x = layers.Concatenate(name=f"skip{level}")([x, skip])
        x = conv_block(x, width, kernel_size, f"decoder{level}")
    if downsampling == "early":
        x = layers.Conv3DTranspose(filters, 2, strides=2, padding="same", activation="relu", name="restore")(x)
    # float32 whatever the precision of the rest: bfloat16 has no number between 0.996 and 1.
    mask = layers.Conv3D(1, 1, activation="sigmoid", dtype="float32", name="mask")(x)
    return keras.Model(inputs, mask, name="conv3d")


def check_network(input_shape, filters: int, kernel_size: int, downsampling: str) -> None:
    """Raise ValueError for a network that `build_conv3d` cannot build."""
    if filters < 1:
        raise ValueError(f"filters must be at least 1; got {filters}.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"the kernel size must be odd and at least 1, such as 3, 5 or 7; got {kernel_size}.")
    if downsampling not in ("early", "late"):
        raise ValueError(f"downsampling must be 'early' or 'late'; got {downsampling!r}.")
    factor = 8 if downsampling == "early" else 4
    sides = tuple(input_shape[:3])
    if len(input_shape) != 4 or min(input_shape) < 1 or any(side % factor for side in sides):
        raise ValueError(
            f"the input shape must be (depth, height, width, channels) with sides divisible by {factor}, which "
            f"{downsampling} downsampling halves down to 1/{factor}; got {tuple(input_shape)}. Take 32 32 32 1."
        )


def make_model(config: dict):
    """The network of one configuration, in its precision; the global precision is left as it was."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config["precision"])
    try:
        return build_conv3d(*(config[key] for key in ("input_shape", "filters", "kernel_size", "downsampling")))
    finally:
        keras.config.set_dtype_policy(before)


def measure_step(config: dict, num_steps: int = 3) -> dict[str, float]:
    """Train some steps on noise and say what they took; meant for a process that has done nothing else.

    Returns:
        `build_seconds`, `step_seconds` (the fastest, so without the compilation in the first), `forward_seconds`,
        `process_mib` (resident before the model is built) and `peak_mib` (the peak over all steps, less that).
    """
    import keras

    keras.ops.ones(1)  # the backend wakes up
    process = memory_status("VmRSS")
    started = time.perf_counter()
    model = make_model(config)
    build_seconds = time.perf_counter() - started
    model.compile(optimizer=config["optimizer"], loss="binary_crossentropy")
    volumes = np.random.default_rng(0).random((config["batch_size"], *config["input_shape"]), np.float32)
    masks = (volumes[..., :1] > 0.5).astype(np.float32)
    step_seconds = min(timed(lambda: model.train_on_batch(volumes, masks)) for _ in range(num_steps))
    peak = memory_status("VmHWM") - process
    forward_seconds = min(timed(lambda: model.predict_on_batch(volumes)) for _ in range(2))
    return {
        "build_seconds": build_seconds,
        "step_seconds": step_seconds,
        "forward_seconds": forward_seconds,
        "process_mib": process,
        "peak_mib": peak,
    }


def timed(call) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def in_fresh_process(config: dict) -> dict[str, float]:
    """`measure_step` in a process of its own, so that nothing else is in the peak.

    The child decides nothing about allocators: TensorFlow on x86 takes its tensors from its own pool in any case.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=silence) as pool:
        return pool.submit(measure_step, config).result()


def silence() -> None:
    """Drop what TensorFlow's libraries write to stderr; exceptions travel to the parent all the same."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def predict_config(config: dict) -> dict[str, float]:
    """Parameters, multiply-adds of a forward pass, and predicted memory of one configuration."""
    model = make_model(config)
    memory = training_memory(model, config["batch_size"], config["optimizer"])
    costs = layer_costs(model, config["batch_size"])
    return {
        "parameters": model.count_params(),
        "multiply_adds": sum(row["multiply_adds"] for row in costs),
        **{f"predicted_{name}_mib": value for name, value in memory.items()},
    }


def study_grid() -> list[dict]:
    """Configurations of the study: the full cross at kernel 3, slices of it at 5 and 7, and one too large for most."""
    both = [(d, p) for d in ("late", "early") for p in ("float32", "mixed_bfloat16")]
    points = [(side, f, 3, d, p) for side in (32, 48, 64, 96) for f in (8, 16, 32) for d, p in both]
    points += [(side, 16, kernel, d, p) for side in (48, 64) for kernel in (5, 7) for d, p in both]
    points += [(32, 32, kernel, "late", p) for kernel in (5, 7) for p in ("float32", "mixed_bfloat16")]
    points += [(256, 32, 3, "late", "float32")]
    return [
        {
            "input_shape": (side, side, side, 1),
            "filters": filters,
            "kernel_size": kernel,
            "downsampling": downsampling,
            "precision": precision,
            "batch_size": 1,
            "optimizer": "adam",
        }
        for side, filters, kernel, downsampling, precision in points
    ]


def study_row(config: dict) -> dict:
    """Predict one configuration and, if the memory that is free holds it, measure it."""
    row = {**config, "input_shape": list(config["input_shape"]), **predict_config(config)}
    free = memory_status("MemAvailable", "/proc/meminfo")
    if row["predicted_total_mib"] + memory_status("VmRSS") > free:
        return {**row, "status": "would not fit"}
    try:
        row |= {f"measured_{name}": value for name, value in in_fresh_process(config).items()}
    except BrokenProcessPool:  # killed, most likely by the kernel for want of memory
        return {**row, "status": "died"}
    return {**row, "status": "measured", "error": row["predicted_total_mib"] / row["measured_peak_mib"] - 1}


def summarize(rows: list[dict]) -> dict[str, float]:
    """Median and largest absolute error, and Spearman's rank correlation, over the measured rows."""
    rows = [row for row in rows if row["status"] == "measured"]
    errors = [abs(row["error"]) for row in rows]
    ranks = [np.argsort(np.argsort([row[key] for row in rows])) for key in ("predicted_total_mib", "measured_peak_mib")]
    return {
        "num_measured": len(rows),
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
        "spearman": float(np.corrcoef(*ranks)[0, 1]) if len(rows) > 1 else math.nan,
    }


def fit_in(gib: float, config: dict) -> tuple[list[int], dict[int, list[int]]]:
    """The largest cubic patch that trains within `gib` GiB for the whole process, by prediction.

    Returns:
        The batch sizes, and for each number of filters the side in voxels at each batch size (0: none fits).

    Raises:
        ValueError: if not even the smallest network fits.
    """
    import keras

    keras.ops.ones(1)
    process = memory_status("VmRSS")
    batches, table = [1, 2, 4, 8], {}
    for filters in (8, 16, 32, 64):
        sides, side = [0] * len(batches), 16
        while True:
            model = make_model({**config, "input_shape": (side, side, side, 1), "filters": filters})
            totals = [process + training_memory(model, batch, config["optimizer"])["total"] for batch in batches]
            if side == 16 and filters == 8 and not totals[0] <= gib * 1024:
                raise ValueError(
                    f"--fit-in {gib:g} GiB is too small: TensorFlow and the smallest network (16^3 voxels, 8 filters) "
                    f"need {totals[0] / 1024:.2f} GiB. Give at least that."
                )
            fits = [total <= gib * 1024 for total in totals]
            sides = [side if fit else old for fit, old in zip(fits, sides, strict=True)]
            if not fits[0]:
                break
            side += 16
        table[filters] = sides
    return batches, table


def simulate(num_steps: int, seed: int) -> dict[str, list[float]]:
    """SIMULATED loss and Dice by step, from the formula SIMULATION and not from any training; Dice within [0, 1]."""
    step = np.arange(1, num_steps + 1)
    noise = 0.01 * np.random.default_rng(seed).standard_normal((2, num_steps))
    decay = np.exp(-step / 8)
    loss = np.maximum(0.05 + 0.65 * decay + noise[0], 0)
    dice = np.clip(0.97 - 0.87 * decay + noise[1], 0, 1)
    return {"step": step.tolist(), "simulated/loss": loss.tolist(), "simulated/dice": dice.tolist()}


def plot_simulation(curves: dict, path: Path) -> None:
    """Loss and Dice by step, with a title that nobody can take for a result."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, color, style in (("simulated/loss", ORANGE, "-"), ("simulated/dice", BLUE, "--")):
        axes.plot(curves["step"], curves[name], style, color=color, label=name)
    axes.set(
        xlabel="simulated step", ylabel="value", ylim=(0, 1), title="SIMULATED by a formula: no network was trained"
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def plot_tradeoffs(config: dict, path: Path) -> None:
    """Memory and multiply-adds against kernel size, filters, patch side and downsampling, one at a time."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    base = {**config, "input_shape": (64, 64, 64, 1), "filters": 16, "kernel_size": 3, "downsampling": "late"}
    base |= {"batch_size": 1}
    panels = {
        "kernel size": ("kernel_size", [3, 5, 7]),
        "filters of the first block": ("filters", [8, 16, 32]),
        "patch side in voxels": ("input_shape", [32, 48, 64, 96]),
        "downsampling": ("downsampling", ["late", "early"]),
    }
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    grid = figure.subplots(1, 4, sharey=True)
    arithmetic = [axes.twinx() for axes in grid]
    for axes, right, (title, (key, values)) in zip(grid, arithmetic, panels.items(), strict=True):
        lines = {"predicted peak of training": [], "activations, all layers": [], "weights": [], "multiply-adds": []}
        for value in values:
            model = make_model({**base, key: (value, value, value, 1) if key == "input_shape" else value})
            costs = layer_costs(model)
            lines["predicted peak of training"].append(training_memory(model, 1, base["optimizer"])["total"])
            lines["activations, all layers"].append(sum(row["activation_bytes"] for row in costs) / MIB)
            lines["weights"].append(model.count_params() * ITEM_BYTES["float32"] / MIB)
            lines["multiply-adds"].append(sum(row["multiply_adds"] for row in costs) / 1e9)
        styles = ((BLUE, "o-"), (GREEN, "s--"), (VERMILION, "^:"), (ORANGE, "D-."))
        places = range(len(values))
        handles = [
            (right if name == "multiply-adds" else axes).plot(places, line, style, color=color, label=name)[0]
            for (name, line), (color, style) in zip(lines.items(), styles, strict=True)
        ]
        axes.set(yscale="log", xlabel=title, xticks=places, xticklabels=values, ylim=(0.2, 4000))
        axes.set_xlim(-0.4, len(values) - 0.6)
        right.set(yscale="log", ylim=(0.2, 4000))
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        for side in (axes, right):
            side.yaxis.set_major_locator(FixedLocator([1, 10, 100, 1000]))
            side.yaxis.set_major_formatter(plain)
            side.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        if right is not arithmetic[-1]:
            right.tick_params(labelright=False)
    grid[0].set_ylabel("memory (MiB)")
    arithmetic[-1].set_ylabel("multiply-adds, forward (10^9)", color="0.2")
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"One setting at a time around 64^3 voxels, 16 filters, 3^3 kernels, {base['precision']}", fontsize=10
    )
    figure.savefig(path, dpi=130)


def plot_study(rows: list[dict], path: Path) -> None:
    """Predicted against measured peak memory, with the bands of 15% and 30%."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    measured = [row for row in rows if row["status"] == "measured"]
    values = [row[key] for row in measured for key in ("measured_peak_mib", "predicted_total_mib")]
    ends = np.array([0.8 * min(values), 1.25 * max(values)])
    figure = Figure(figsize=(5.8, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(ends, 0.85 * ends, 1.15 * ends, color="0.85", label="within 15%", linewidth=0)
    axes.plot(ends, ends, color="0.4", linewidth=0.8)
    for factor in (0.7, 1.3):
        axes.plot(ends, factor * ends, ":", color="0.4", linewidth=0.8, label="30%" if factor < 1 else None)
    for precision, color in (("float32", BLUE), ("mixed_bfloat16", ORANGE)):
        for downsampling, marker in (("late", "o"), ("early", "^")):
            chosen = [r for r in measured if (r["precision"], r["downsampling"]) == (precision, downsampling)]
            axes.scatter(
                [row["measured_peak_mib"] for row in chosen],
                [row["predicted_total_mib"] for row in chosen],
                s=[14 * row["kernel_size"] - 14 for row in chosen],
                marker=marker,
                color=color,
                edgecolor="black",
                linewidth=0.5,
                alpha=0.85,
                label=f"{precision}, {downsampling} downsampling",
            )
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.set(xlabel="measured peak memory (MiB)", ylabel="predicted from the layers (MiB)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([50, 100, 200, 500, 1000, 2000, 5000]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_title(f"{len(measured)} configurations; larger marks: kernels 5 and 7", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def format_costs(rows: list[dict]) -> str:
    """A plain table of the layers, with a line of sums, for the console."""
    lines = [f"{'layer':18}{'type':17}{'output shape':24}{'parameters':>11}{'10^6 multiply-adds':>20}{'MiB':>8}"]
    total = {"name": "all", "type": "", "output_shape": ""}
    total |= {key: sum(row[key] for row in rows) for key in ("parameters", "multiply_adds", "activation_bytes")}
    for row in (*rows, total):
        lines.append(
            f"{row['name']:18}{row['type']:17}{row['output_shape']!s:24}{row['parameters']:11,}"
            f"{row['multiply_adds'] / 1e6:20,.1f}{row['activation_bytes'] / MIB:8.2f}"
        )
    return "\n".join(lines)


def write_table(rows: list[dict], path: Path) -> None:
    """A CSV file of rows, which MLflow's interface shows as a table."""
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)


def parse_args(argv=None) -> argparse.Namespace:
    """Read and check the command line; a bad one ends in one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        usage="%(prog)s [options]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    what = parser.add_argument_group("instead of one run").add_argument
    what("--study", action="store_true", help="predict 69 networks, and measure each that fits in a process of its own")
    what("--fit-in", type=float, metavar="GIB", help="print what trains within this memory, and end")
    net = parser.add_argument_group("network").add_argument
    net(
        "--input-shape",
        type=int,
        nargs="+",
        default=(32, 32, 32, 1),
        metavar="N",
        help="depth, height, width, channels; sides divisible by 4, by 8 with early downsampling",
    )
    net("--filters", type=int, default=8, metavar="N", help="channels of the first block, at least 1")
    net("--kernel-size", type=int, default=3, metavar="N", help="side of the kernels, odd")
    net("--downsampling", choices=("late", "early"), default="late", help="early: a first convolution of stride 2")
    fit = parser.add_argument_group("training step").add_argument
    fit("--batch-size", type=int, default=1, metavar="N", help="volumes per step")
    fit("--optimizer", choices=tuple(SLOTS), default="adam", help="adam keeps two more copies of the weights")
    fit("--precision", choices=("float32", "mixed_bfloat16"), default="float32", help="of activations and arithmetic")
    fit("--steps", type=int, default=40, metavar="N", help="simulated steps; nothing is trained")
    fit("--seed", type=int, default=0, metavar="N", help="of the simulation, 0 or more")
    out = parser.add_argument_group("output").add_argument
    out("--out-dir", type=Path, default=Path("outputs/conv3d"), metavar="DIR", help="where all files go")
    out("--run-name", metavar="NAME", help="of the MLflow run; the network if none is given")
    args = parser.parse_args(argv)
    args.input_shape = tuple(args.input_shape)
    try:
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for settings that cannot work, before anything slow begins."""
    check_network(args.input_shape, args.filters, args.kernel_size, args.downsampling)
    for name, low in (("batch_size", 1), ("steps", 1), ("seed", 0)):
        if getattr(args, name) < low:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {low}; got {getattr(args, name)}.")
    if args.fit_in is not None:
        if not (math.isfinite(args.fit_in) and args.fit_in > 0):
            raise ValueError(f"--fit-in must be a finite number of GiB above 0, such as 4; got {args.fit_in}.")
        return  # writes nothing
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out_dir).close()
    except OSError as error:
        raise ValueError(
            f"--out-dir {args.out_dir} cannot be written ({error.strerror}): name another folder."
        ) from None


def main(argv=None) -> str:
    """Analyse one network, or a grid, and log it; return the MLflow run's id ("" after --fit-in, which has no run)."""
    args = parse_args(argv)
    keys = ("input_shape", "filters", "kernel_size", "downsampling", "precision", "batch_size", "optimizer")
    config = {key: getattr(args, key) for key in keys}
    try:
        if args.fit_in is not None:
            show_fit(args.fit_in, config)
            return ""
        tracking.open_store(EXPERIMENT)  # before Keras is imported: an unusable store is told in seconds
        return run_study(args) if args.study else run_analysis(args, config)
    except BrokenProcessPool:
        print(
            "conv3d_analysis.py: error: the training step was killed, most likely for want of memory.", file=sys.stderr
        )
        print("See --fit-in for what fits.", file=sys.stderr)
        raise SystemExit(2) from None
    except (tracking.TrackingError, ValueError) as error:
        print(f"conv3d_analysis.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def show_fit(gib: float, config: dict) -> None:
    """Print the table of `fit_in`."""
    batches, table = fit_in(gib, config)
    print(f"Largest cubic patch (side in voxels, in steps of 16) that trains within {gib:g} GiB, by prediction:")
    print(f"{'filters':>8}" + "".join(f"{f'batch {batch}':>10}" for batch in batches))
    for filters, sides in table.items():
        print(f"{filters:8}" + "".join(f"{side or '-':>10}" for side in sides))
    print(
        f"{config['kernel_size']}^3 kernels, {config['downsampling']} downsampling, {config['precision']}, "
        f"{config['optimizer']}; the whole process with TensorFlow in it. Leave some room: see the study for the error."
    )


def save_files(out_dir: Path, write) -> list[Path]:
    """Let `write(folder)` write files aside, then move them: an interruption leaves no half-written file."""
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out_dir) as aside:
        write(Path(aside))
        written = [out_dir / path.name for path in sorted(Path(aside).iterdir())]
        for path in written:
            os.replace(Path(aside) / path.name, path)
    return written


def run_analysis(args: argparse.Namespace, config: dict) -> str:
    """Account for one network, measure one training step, simulate a training, and log all of it."""
    measured = in_fresh_process(config)  # first, while nothing else of ours takes memory or processor
    import keras

    keras.utils.set_random_seed(args.seed)
    model = make_model(config)
    costs = layer_costs(model, args.batch_size)
    memory = training_memory(model, args.batch_size, args.optimizer)
    curves = simulate(args.steps, args.seed)
    simulation = {"what": "SIMULATED: no network was trained", "seed": args.seed, "formula": SIMULATION, **curves}

    def write(folder: Path) -> None:
        (folder / "simulation.json").write_text(json.dumps(simulation, indent=1))
        write_table(costs, folder / "layers.csv")
        plot_simulation(curves, folder / "simulated_curves.png")
        plot_tradeoffs(config, folder / "tradeoffs.png")

    settings = {**vars(args), "out_dir": str(args.out_dir), "parameters": model.count_params()}
    description = (
        f"SIMULATED loss and Dice: what is under `simulated/` comes from a formula (seed {args.seed}), no network was "
        f"trained. Formula: `{SIMULATION}`. Under `measured/`: training steps of this network on noise, in a process "
        "of their own. Under `predicted/`: its memory and arithmetic, from the layers alone."
    )
    tags = {"metrics.source": "simulated"}
    with tracking.tracked_run(
        EXPERIMENT,
        run_name=args.run_name or describe_config(config),
        params=settings,
        tags=tags,
        description=description,
    ) as run:
        run.text(model.to_json(indent=1), "model/architecture.json")
        for i, step in enumerate(curves["step"]):
            run.metrics({key: curves[key][i] for key in ("simulated/loss", "simulated/dice")}, step=step)
        run.metrics({f"measured/{name}": value for name, value in measured.items()})
        run.metrics({"measured/parameters": model.count_params()})
        run.metrics({f"predicted/{name}_mib": value for name, value in memory.items()})
        run.metrics({"predicted/multiply_adds": sum(row["multiply_adds"] for row in costs)})
        written = save_files(args.out_dir, write)
        for path in written:
            run.artifact(path)

    print(format_costs(costs))
    print(
        f"\nMemory of a training step, beside the {measured['process_mib']:.0f} MiB of TensorFlow itself: "
        f"predicted {memory['total']:.0f} MiB, measured {measured['peak_mib']:.0f} MiB."
        f"\nMeasured: build {measured['build_seconds']:.2f} s, forward {measured['forward_seconds']:.3f} s, "
        f"training step {measured['step_seconds']:.3f} s."
        f"\nSIMULATED, not trained: loss {curves['simulated/loss'][-1]:.3f}, Dice {curves['simulated/dice'][-1]:.3f} "
        f"after {args.steps} steps."
        f"\n\nFiles: {args.out_dir}. MLflow run: {run.run_id}, to see it: {tracking.how_to_view()}"
    )
    return run.run_id


def run_study(args: argparse.Namespace) -> str:
    """Predict and measure the grid, one child run each, and log table and figure to their parent run."""
    import keras  # noqa: F401  so that the provenance names it

    grid, rows = study_grid(), []
    description = (
        "Predicted against MEASURED peak memory of training steps, each configuration in a process of its own. "
        "Nothing here is simulated."
    )
    started = time.perf_counter()
    with tracking.tracked_run(
        EXPERIMENT,
        run_name=args.run_name or "memory study",
        params={"num_configurations": len(grid), "runtime_mib": RUNTIME_MIB},
        tags={"metrics.source": "measured"},
        description=description,
    ) as parent:
        for i, config in enumerate(grid, 1):
            name = describe_config(config)
            with tracking.tracked_run(
                EXPERIMENT,
                run_name=name,
                params=config,
                parent_run_id=parent.run_id,
                tags={"metrics.source": "measured"},
            ) as run:
                row = study_row(config)
                run.tags({"status": row["status"]})
                numbers = {key: value for key, value in row.items() if key.startswith(("predicted_", "measured_"))}
                run.metrics({key.replace("_", "/", 1): value for key, value in numbers.items()})
                run.metrics({key: row[key] for key in ("parameters", "multiply_adds", "error") if key in row})
            rows.append(row)
            print(f"{i:3}/{len(grid)} {name:53} {describe_row(row)}", flush=True)
        summary = {**summarize(rows), "seconds": time.perf_counter() - started}
        result = {
            "command": "python conv3d_analysis.py --study",
            "summary": summary,
            "provenance": tracking.provenance(),
        }

        def write(folder: Path) -> None:
            (folder / "conv3d_study.json").write_text(json.dumps({**result, "rows": rows}, indent=1))
            write_table(rows, folder / "conv3d_study.csv")
            plot_study(rows, folder / "conv3d_study.png")

        for path in save_files(args.out_dir, write):
            parent.artifact(path)
        parent.metrics({f"study/{name}": value for name, value in summary.items()})
    print(
        f"\n{summary['num_measured']} configurations in {summary['seconds']:.0f} s: median absolute error "
        f"{summary['median_error']:.1%}, largest {summary['largest_error']:.1%}, Spearman {summary['spearman']:.3f}."
        f"\nFiles: {args.out_dir}. MLflow run: {parent.run_id}, to see it: {tracking.how_to_view()}"
    )
    return parent.run_id


def describe_config(config: dict) -> str:
    """A run's name: MLflow's own come from Python's random numbers, so that a fixed seed gives every run the same."""
    sides = "x".join(map(str, config["input_shape"][:3]))
    return (
        f"{sides}, {config['filters']} filters, kernel {config['kernel_size']}, {config['downsampling']}, "
        f"{config['precision'].removeprefix('mixed_')}"
    )


def describe_row(row: dict) -> str:
    """One line of progress."""
    predicted = f"predicted {row['predicted_total_mib']:6.0f} MiB"
    if row["status"] != "measured":
        return f"{predicted}, {row['status']}: not run" if row["status"] == "would not fit" else f"{predicted}, died"
    return (
        f"{predicted}, measured {row['measured_peak_mib']:6.0f} MiB, {row['error']:+4.0%}, "
        f"{row['measured_step_seconds']:.2f} s a step"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted: no file was changed.", file=sys.stderr)
        sys.exit(130)
