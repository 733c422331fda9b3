"""Build a small Conv3D network, account for its memory and arithmetic before any training, and log it to MLflow.

    python conv3d_analysis.py                              # one run in the experiment 3D_Volumetric_Analysis
    python conv3d_analysis.py --input-shape 64 64 64 1     # patches of 64^3 voxels

7 s on 2 cores; expect a predicted memory within about 15% of the measured one. Nothing is trained here
(volume_segmentation.py does that): loss and Dice by step are SIMULATED, and named so everywhere. Results of training
steps on noise, in a second process, are named `measured/`; results that follow from the layers alone are named
`predicted/`. Files go to outputs/conv3d. `python -m benchmarks.memory_study` measures 68 such networks.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from lab import command_line
from lab.evaluate import page, plots
from lab.model import memory
from lab.model.memory import layer_costs
from lab.model.network_limits import check_network
from lab.system import backend, output_files
from lab.system.fresh_process import FreshProcess
from lab.track import tracking
from unet_segmentation import build_unet

# Keras and Matplotlib take seconds to import: the functions that need them import them, so that --help answers at once.
EXPERIMENT = "3D_Volumetric_Analysis"
SIMULATION = (
    "loss = 0.05 + 0.65 exp(-step / 8) + 0.01 n1; dice = 0.97 - 0.87 exp(-step / 8) + 0.01 n2; n1, n2 ~ N(0, 1)"
)
FILES = ("layers.csv", "simulation.json", "simulated_curves.png", "index.html")


# The network


def build_conv3d(
    input_shape: tuple = (32, 32, 32, 1), filters: int = 8, kernel_size: int = 3, downsampling: str = "late"
):
    """Build a small 3D U-Net (Cicek et al. 2016): two poolings, concatenated skips, sigmoid mask.

    Blocks of filters and 2 filters, a bottleneck of 4 filters, and back. It is `build_unet` of depth 2, and has its
    arguments and errors.

    Returns:
        An uncompiled `keras.Model`: volumes (N, D, H, W, C) -> probabilities (N, D, H, W, 1), float32.
    """
    if len(input_shape) != 4:
        raise ValueError(f"the input shape must be (depth, height, width, channels); got {input_shape}.")
    return build_unet(input_shape, filters, 2, kernel_size=kernel_size, downsampling=downsampling, name="conv3d")


def make_model(config: dict):
    """The network of one configuration, in its precision; the global precision is left as it was."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config["precision"])
    try:
        return build_conv3d(*(config[key] for key in ("input_shape", "filters", "kernel_size", "downsampling")))
    finally:
        keras.config.set_dtype_policy(before)


# Memory and time: predicted and measured


def examine(config: dict, go_ahead) -> dict:
    """Build a network, predict its memory and arithmetic, and measure training steps if they fit; in a new process.

    Args:
        config: `input_shape`, `filters`, `kernel_size`, `downsampling`, `precision`, `batch_size`, `optimizer`.
        go_ahead: called before the steps are measured.

    Returns:
        `architecture` (JSON), `parameters`, `layers` (see `layer_costs`), `predicted` (see `training_memory`), `caveat`
        (why the prediction does not hold here, or None), and `measured` (None if the free memory is too small).
    """
    keras = backend.import_keras()
    keras.ops.ones(1)  # starts the backend
    process = memory.resident_memory()
    started = time.perf_counter()
    model = make_model(config)
    measured = {"build_seconds": time.perf_counter() - started, "process_mib": process / memory.MIB}
    predicted = memory.training_memory(model, config["batch_size"], config["optimizer"], backend.processor())
    fits = memory.MARGIN * predicted["total"] < memory.free_memory() / memory.MIB
    analysis = {
        "architecture": model.to_json(indent=1),
        "parameters": model.count_params(),
        "layers": layer_costs(model, config["batch_size"]),
        "predicted": predicted,
        "caveat": memory.caveat(),
        "measured": None,
    }
    go_ahead()
    if fits:
        model.compile(optimizer=config["optimizer"], loss="binary_crossentropy")
        analysis["measured"] = measured | measure_steps(model, config["batch_size"], process)
    return analysis


def measure_steps(model, batch_size: int, process: int, num_steps: int = 3) -> dict[str, float]:
    """Train a compiled model for some steps on noise, and measure their time and memory.

    Returns:
        `step_seconds` (the fastest, so without the compilation in the first), `forward_seconds` and `peak_mib` (the
        peak of the process over all steps, minus the `process` bytes that it held before).
    """
    volumes = np.random.default_rng(0).random((batch_size, *model.input_shape[1:]), np.float32)
    masks = (volumes[..., :1] > 0.5).astype(np.float32)
    step_seconds = min(timed(lambda: model.train_on_batch(volumes, masks)) for _ in range(num_steps))
    peak = memory.peak_memory() - process
    forward_seconds = min(timed(lambda: model.predict_on_batch(volumes)) for _ in range(2))
    return {"step_seconds": step_seconds, "forward_seconds": forward_seconds, "peak_mib": peak / memory.MIB}


def timed(call) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# What is simulated


def simulate(num_steps: int, seed: int) -> dict[str, list[float]]:
    """SIMULATED loss and Dice by step, from the formula SIMULATION and not from any training; Dice within [0, 1]."""
    step = np.arange(1, num_steps + 1)
    noise = 0.01 * np.random.default_rng(seed).standard_normal((2, num_steps))
    decay = np.exp(-step / 8)
    loss = np.maximum(0.05 + 0.65 * decay + noise[0], 0)
    dice = np.clip(0.97 - 0.87 * decay + noise[1], 0, 1)
    return {"step": step.tolist(), "simulated/loss": loss.tolist(), "simulated/dice": dice.tolist()}


def draw_simulation(curves: dict):
    """A figure of loss and Dice by step; its title says that they are simulated."""
    figure = plots.new_figure(7, 3.6)
    axes = figure.subplots()
    for name, color, style in (("simulated/loss", plots.ORANGE, "-"), ("simulated/dice", plots.BLUE, "--")):
        axes.plot(curves["step"], curves[name], style, color=color, label=name)
    axes.set(xlabel="simulated step", ylabel="value", ylim=(0, 1))
    axes.set_title("SIMULATED by a formula: no network was trained")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


# For the console


def describe_config(config: dict) -> str:
    """A run's name. (MLflow draws names from Python's random numbers: a fixed seed would give all runs the same.)"""
    sides = "x".join(map(str, config["input_shape"][:3]))
    return (
        f"{sides}, {config['filters']} filters, kernel {config['kernel_size']}, {config['downsampling']}, "
        f"{config['precision'].removeprefix('mixed_')}"
    )


def describe(analysis: dict, curves: dict) -> str:
    """The table of the layers, with a line of sums, and the predicted, measured and simulated values."""
    lines = [f"{'layer':18}{'type':17}{'output shape':24}{'parameters':>11}{'10^6 multiply-adds':>20}{'MiB':>8}"]
    total = {"name": "all", "type": "", "output_shape": ""}
    for key in ("parameters", "multiply_adds", "activation_bytes"):
        total[key] = sum(row[key] for row in analysis["layers"])
    for row in (*analysis["layers"], total):
        lines.append(
            f"{row['name']:18}{row['type']:17}{row['output_shape']!s:24}{row['parameters']:11,}"
            f"{row['multiply_adds'] / 1e6:20,.1f}{row['activation_bytes'] / memory.MIB:8.2f}"
        )
    measured = analysis["measured"]
    lines += [
        f"\nMemory of a training step, beside the {measured['process_mib']:.0f} MiB of the process before it: "
        f"predicted {analysis['predicted']['total']:.0f} MiB, measured {measured['peak_mib']:.0f} MiB.",
        *filter(None, [analysis["caveat"]]),
        f"Measured: build {measured['build_seconds']:.2f} s, forward {measured['forward_seconds']:.3f} s, "
        f"training step {measured['step_seconds']:.3f} s.",
        f"SIMULATED, not trained: loss {curves['simulated/loss'][-1]:.3f}, Dice {curves['simulated/dice'][-1]:.3f} "
        f"after {len(curves['step'])} steps.",
    ]
    return "\n".join(lines)


def describe_refusal(analysis: dict) -> str:
    """Why a network is not measured."""
    gib, free = memory.MARGIN * analysis["predicted"]["total"] / 1024, memory.free_memory() / memory.GIB
    return (
        f"a training step of this network may take {gib:,.1f} GiB of memory, of which {free:.1f} GiB are free. Take "
        f"fewer voxels, filters or volumes. {analysis['caveat'] or ''}"
    ).strip()


# Command line


def parse_args(argv=None) -> argparse.Namespace:
    """Read and check the command line; a bad one ends in one sentence and exit code 2."""
    parser = command_line.make_parser(__doc__)
    net = parser.add_argument_group("network").add_argument
    sides = "depth, height, width, channels; sides divisible by 4, by 8 with early downsampling"
    net("--input-shape", type=int, nargs=4, default=(32, 32, 32, 1), metavar=tuple("DHWC"), help=sides)
    net("--filters", type=int, default=8, metavar="N", help="channels of the first block, 1 to 4096")
    net("--kernel-size", type=int, default=3, metavar="N", help="side of the kernels, odd, 1 to 31")
    net("--downsampling", choices=("late", "early"), default="late", help="early: a first convolution of stride 2")
    step = parser.add_argument_group("training step").add_argument
    step("--batch-size", type=int, default=1, metavar="N", help="volumes per step")
    step("--optimizer", choices=("adam", "sgd"), default="adam", help="adam keeps two more copies of the weights")
    step("--precision", choices=("float32", "mixed_bfloat16"), default="float32", help="of activations and arithmetic")
    step("--steps", type=int, default=40, metavar="N", help="simulated steps, 1 to 10000; nothing is trained")
    step("--seed", type=int, default=0, metavar="N", help="of the simulation, 0 to 2^32 - 1")
    out = parser.add_argument_group("output").add_argument
    out("--out-dir", type=Path, default=Path("outputs/conv3d"), metavar="DIR", help="where all files go")
    out("--run-name", metavar="NAME", help="of the MLflow run; the network if none is given")
    return command_line.parse(parser, check_args, argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for settings that cannot work, before anything slow begins.

    `examine` checks whether a training step fits into memory; here a network is refused that cannot even be built.
    """
    backend.refuse_torch()
    check_network(args.input_shape, args.filters, 2, args.kernel_size, args.downsampling)
    limits = {"kernel_size": (1, 31), "batch_size": (1, 10**6), "steps": (1, 10**4), "seed": (0, 2**32 - 1)}
    command_line.check_limits(args, limits)
    if not all(1 <= number <= 4096 for number in args.input_shape):
        raise ValueError(f"--input-shape takes four numbers, 1 to 4096; got {tuple(args.input_shape)}.")
    weights = 4 * args.kernel_size**3 * 46 * args.filters**2  # bytes; the blocks are 1 + 2 + 4 + 8 + 16 + 8 + 4 + 2 + 1
    voxels = args.batch_size * np.prod(args.input_shape[:3], dtype=float) / (8 if args.downsampling == "early" else 1)
    # Weights, gradients, what adam keeps; one tensor of bfloat16.
    memory.check_room(4 * weights + 2 * voxels * args.filters, "a training step of this network")


# From end to end


def write_page(path: Path, config: dict, analysis: dict) -> None:
    """The page of an analysis: network, what was measured and predicted, the simulated curves, the layers."""
    page.write(
        path,
        f"Conv3D network: {describe_config(config)}",
        warning="The curves are simulated by a formula: no network was trained.",
        tables=[page.table_of("Layers", analysis["layers"])],
        pictures=[page.picture(path.with_name("simulated_curves.png"), "Simulated loss and Dice by step")],
        facts={"Settings": config, "Measured": analysis["measured"], "Predicted, MiB": analysis["predicted"]},
    )


def log(args: argparse.Namespace, config: dict, analysis: dict, curves: dict, folder: Path) -> str:
    """Log everything to an MLflow run, simulated values under names that say so; return the run's id."""
    description = (
        f"SIMULATED loss and Dice: values under `simulated/` come from a formula (seed {args.seed}), no network was "
        f"trained. Formula: `{SIMULATION}`. Under `measured/`: training steps of this network on noise, in a second "
        "process. Under `predicted/`: its memory and arithmetic, from the layers alone."
    )
    with tracking.tracked_run(
        EXPERIMENT,
        run_name=args.run_name or describe_config(config),
        params={**vars(args), **config, "parameters": analysis["parameters"]},
        tags={**backend.provenance(), "metrics.source": "simulated"},
        description=description,
        folder=args.out_dir,
    ) as run:
        run.text(analysis["architecture"], "model/architecture.json")
        for i, step in enumerate(curves["step"]):
            run.metrics({key: curves[key][i] for key in ("simulated/loss", "simulated/dice")}, step=step)
        measured = {**analysis["measured"], "parameters": analysis["parameters"]}
        run.metrics({f"measured/{name}": value for name, value in measured.items()})
        predicted = {f"predicted/{name}_mib": value for name, value in analysis["predicted"].items()}
        run.metrics({**predicted, "predicted/multiply_adds": sum(row["multiply_adds"] for row in analysis["layers"])})
        for name in FILES:
            run.artifact(folder / name)
    return run.run_id


@command_line.script
def main(argv=None) -> str:
    """Analyse one network and log it; return the MLflow run's id."""
    args = parse_args(argv)
    keys = ("input_shape", "filters", "kernel_size", "downsampling", "precision", "batch_size", "optimizer")
    config = {key: getattr(args, key) for key in keys} | {"input_shape": tuple(args.input_shape)}
    with output_files.output_folder(args.out_dir) as out, FreshProcess(examine, config) as child:
        print("A second process starts TensorFlow and builds the network; this one opens the MLflow store.", flush=True)
        tracking.open_store(EXPERIMENT, out)  # MLflow is imported here while TensorFlow is imported there, once
        curves = simulate(args.steps, args.seed)
        figure = draw_simulation(curves)
        print("The second process measures training steps; this one waits.", flush=True)
        analysis = child.result()
        if analysis["measured"] is None:
            raise ValueError(describe_refusal(analysis))
        print("Writing the files and the MLflow run.\n", flush=True)
        with output_files.written_aside(out, FILES) as aside:
            output_files.write_table(analysis["layers"], aside / "layers.csv")
            about = {"what": "SIMULATED: no network was trained", "seed": args.seed, "formula": SIMULATION}
            output_files.write_json(aside / "simulation.json", about | curves)
            figure.savefig(aside / "simulated_curves.png", dpi=150)
            write_page(aside / "index.html", config, analysis)
        run_id = log(args, config, analysis, curves, aside if aside.exists() else out)
    print(describe(analysis, curves))
    print(f"\nFiles: {args.out_dir}. MLflow run: {run_id}, to see it: {tracking.how_to_view()}")
    return run_id


if __name__ == "__main__":
    main()
