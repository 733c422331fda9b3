"""Predicted against measured memory of training steps: 69 networks of conv3d_analysis.py, each in a process of its own.

    python -m benchmarks.memory_study        # 10 minutes on 2 cores

Then five of the U-Net as volume_segmentation.py trains it, and three without oneDNN, where the account does not hold.
Records benchmarks/results/conv3d_study.json, draws pictures/conv3d_study.png and pictures/tradeoffs.png, and logs each
network of the grid as a child of one run of the experiment 3D_Volumetric_Analysis.
"""

import argparse
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks import _common
from conv3d_analysis import EXPERIMENT, describe_config, examine, make_model, measure_steps
from lab import command_line
from lab.evaluate import plots
from lab.model import memory, training
from lab.system import backend
from lab.system.fresh_process import FreshProcess
from lab.track import tracking
from unet_segmentation import build_unet

NAME = "conv3d_study"
PICTURES = _common.ROOT / "pictures"
BASE = {  # what the trade-offs start from
    "input_shape": (64, 64, 64, 1),
    "filters": 16,
    "kernel_size": 3,
    "downsampling": "late",
    "precision": "float32",
    "batch_size": 1,
    "optimizer": "adam",
}
UNETS = [  # patch, filters, batch size, precision
    (32, 8, 4, "float32"),
    (48, 8, 2, "mixed_bfloat16"),
    (48, 16, 1, "float32"),
    (64, 8, 4, "mixed_bfloat16"),
    (64, 16, 2, "float32"),
]
WITHOUT_ONEDNN = [{"input_shape": (48, 48, 48, 1)}, {}, {"downsampling": "early"}]  # what differs from BASE
UNET_STEPS = 12  # in which the memory of a training has nearly reached its peak


# The study


def study_grid() -> list[dict]:
    """Configurations of the study: the full cross at kernel 3, slices of it at 5 and 7, and one too large for most."""
    both = [(d, p) for d in ("late", "early") for p in ("float32", "mixed_bfloat16")]
    points = [(side, f, 3, d, p) for side in (32, 48, 64, 96) for f in (8, 16, 32) for d, p in both]
    points += [(side, 16, kernel, d, p) for side in (48, 64) for kernel in (5, 7) for d, p in both]
    points += [(32, 32, kernel, "late", p) for kernel in (5, 7) for p in ("float32", "mixed_bfloat16")]
    points += [(256, 32, 3, "late", "float32")]
    keys = ("filters", "kernel_size", "downsampling", "precision")
    return [{**BASE, "input_shape": (side,) * 3 + (1,), **dict(zip(keys, rest, strict=True))} for side, *rest in points]


def examine_unet(config: dict, go_ahead) -> dict:
    """As `examine`, of the U-Net in three dimensions with optimizer, loss and scores of volume_segmentation.py."""
    keras = backend.import_keras()
    keras.ops.ones(1)
    process = memory.resident_memory()
    keras.config.set_dtype_policy(config["precision"])
    model = build_unet(config["input_shape"], config["filters"])
    predicted = memory.training_memory(model, config["batch_size"], "muon", backend.processor())
    model.compile(
        training.choose_optimizer("muon", 4e-3, "cosine", 100),
        training.choose_loss("dice+ce"),
        metrics=training.make_metrics(),
    )
    go_ahead()
    measured = measure_steps(model, config["batch_size"], process, UNET_STEPS)
    costs = memory.layer_costs(model, config["batch_size"])
    return {"parameters": model.count_params(), "layers": costs, "predicted": predicted, "measured": measured}


def unet_rows() -> list[dict]:
    """The U-Nets, one after another."""
    keys = ("filters", "batch_size", "precision")
    configs = [
        {"input_shape": (side,) * 3 + (1,), **dict(zip(keys, rest, strict=True)), "optimizer": "muon"}
        for side, *rest in UNETS
    ]
    return [study_row(config, examine_unet) for config in configs]


def rows_without_onednn() -> list[dict]:
    """Three networks with TensorFlow's own convolutions, which processors without AVX-512 would take by themselves."""
    former = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    try:
        return [study_row({**BASE, **change}) for change in WITHOUT_ONEDNN]
    finally:
        os.environ.pop("TF_ENABLE_ONEDNN_OPTS")
        if former is not None:
            os.environ["TF_ENABLE_ONEDNN_OPTS"] = former


def study_row(config: dict, work=examine) -> dict:
    """Predict one configuration and, if the memory that is free holds it, measure it."""
    with FreshProcess(work, config) as child:
        try:
            found = child.result()
        except MemoryError:
            return {**config, "status": "died"}
    row = {**config, "input_shape": list(config["input_shape"]), "parameters": found["parameters"]}
    row["multiply_adds"] = sum(layer["multiply_adds"] for layer in found["layers"])
    row |= {f"predicted_{name}_mib": value for name, value in found["predicted"].items()}
    if found["measured"] is None:
        return {**row, "status": "would not fit"}
    row |= {f"measured_{name}": value for name, value in found["measured"].items()}
    return {**row, "status": "measured", "error": row["predicted_total_mib"] / row["measured_peak_mib"] - 1}


def summarize(rows: list[dict]) -> dict[str, float]:
    """Mean error (the bias), median and largest absolute error, and Spearman's rank correlation; measured rows only."""
    rows = [row for row in rows if row["status"] == "measured"]
    errors = [row["error"] for row in rows]
    ranks = [np.argsort(np.argsort([row[key] for row in rows])) for key in ("predicted_total_mib", "measured_peak_mib")]
    return {
        "num_measured": len(rows),
        "mean_error": statistics.mean(errors),
        "median_error": statistics.median(map(abs, errors)),
        "largest_error": max(map(abs, errors)),
        "spearman": float(np.corrcoef(*ranks)[0, 1]) if len(rows) > 1 else math.nan,
    }


def describe_row(row: dict) -> str:
    """One line of progress."""
    if row["status"] == "died":
        return "died"
    predicted = f"predicted {row['predicted_total_mib']:6.0f} MiB"
    if row["status"] == "would not fit":
        return f"{predicted}, would not fit: not run"
    return (
        f"{predicted}, measured {row['measured_peak_mib']:6.0f} MiB, {row['error']:+4.0%}, "
        f"{row['measured_step_seconds']:.2f} s a step"
    )


# Pictures


def plot_study(rows: list[dict], path: Path) -> None:
    """Predicted against measured peak memory, with the bands of 15% and 30%."""
    measured = [row for row in rows if row["status"] == "measured"]
    values = [row[key] for row in measured for key in ("measured_peak_mib", "predicted_total_mib")]
    ends = np.array([0.8 * min(values), 1.25 * max(values)])
    figure = plots.new_figure(5.8, 5.6)
    axes = figure.subplots()
    axes.fill_between(ends, 0.85 * ends, 1.15 * ends, color="0.85", label="within 15%", linewidth=0)
    axes.plot(ends, ends, color="0.4", linewidth=0.8)
    for factor in (0.7, 1.3):
        axes.plot(ends, factor * ends, ":", color="0.4", linewidth=0.8, label="30%" if factor < 1 else None)
    for precision, color in (("float32", plots.BLUE), ("mixed_bfloat16", plots.ORANGE)):
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
        plots.plain_ticks(axis, [50, 100, 200, 500, 1000, 2000, 5000])
    axes.set_title(f"{len(measured)} configurations; larger marks: kernels 5 and 7", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


PANELS = {  # of the trade-offs: title, setting, values
    "kernel size": ("kernel_size", [3, 5, 7]),
    "filters of the first block": ("filters", [8, 16, 32]),
    "patch side in voxels": ("input_shape", [32, 48, 64, 96]),
    "downsampling": ("downsampling", ["late", "early"]),
}
LINES = {  # key, color, style
    "predicted peak of training": ("total", plots.BLUE, "o-"),
    "activations, all layers": ("activations", plots.GREEN, "s--"),
    "weights": ("weights", plots.VERMILION, "^:"),
    "multiply-adds": ("multiply_adds", plots.ORANGE, "D-."),
}


def tradeoff(key: str, value) -> dict[str, float]:
    """Memory in MiB and 10^9 multiply-adds of a forward pass, with one setting changed from BASE."""
    model = make_model({**BASE, key: (value, value, value, 1) if key == "input_shape" else value})
    costs = memory.layer_costs(model)
    return {
        "total": memory.training_memory(model, 1, BASE["optimizer"], backend.processor())["total"],
        "activations": sum(row["activation_bytes"] for row in costs) / memory.MIB,
        "weights": model.count_params() * 4 / memory.MIB,
        "multiply_adds": sum(row["multiply_adds"] for row in costs) / 1e9,
    }


def plot_tradeoffs(rows: list[dict], path: Path) -> None:
    """Memory and multiply-adds against kernel size, filters, patch side and downsampling, one at a time.

    Where the study has measured the network, its peak is a cross.
    """
    backend.import_keras()
    figure = plots.new_figure(12, 3.9)
    grid = figure.subplots(1, 4, sharey=True)
    arithmetic = [axes.twinx() for axes in grid]
    for axes, right, (title, (key, values)) in zip(grid, arithmetic, PANELS.items(), strict=True):
        points = [tradeoff(key, value) for value in values]
        handles = [
            (right if name == "multiply_adds" else axes).plot(
                [point[name] for point in points], style, color=color, label=label
            )[0]
            for label, (name, color, style) in LINES.items()
        ]
        for place, value in enumerate(values):
            wanted = {**BASE, key: (value, value, value, 1) if key == "input_shape" else value}
            peaks = [row["measured_peak_mib"] for row in rows if is_measured(row, wanted)]
            cross = axes.plot([place] * len(peaks), peaks, "kx", markersize=8, label="measured peak")[0]
        axes.set(yscale="log", xlabel=title, xticks=range(len(values)), xticklabels=values, ylim=(0.2, 4000))
        axes.set_xlim(-0.4, len(values) - 0.6)
        right.set(yscale="log", ylim=(0.2, 4000))
        for side in (axes, right):
            plots.plain_ticks(side.yaxis, [1, 10, 100, 1000])
        axes.grid(alpha=0.3)
        if right is not arithmetic[-1]:
            right.tick_params(labelright=False)
    grid[0].set_ylabel("memory (MiB)")
    arithmetic[-1].set_ylabel("multiply-adds, forward (10^9)", color="0.2")
    figure.legend(handles=[*handles, cross], loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle("One setting at a time around 64^3 voxels, 16 filters, 3^3 kernels, float32", fontsize=10)
    figure.savefig(path, dpi=130)


def is_measured(row: dict, config: dict) -> bool:
    """Whether a row of the study is a measurement of this configuration."""
    same = all(row[key] == config[key] for key in config if key != "input_shape")
    return row["status"] == "measured" and same and tuple(row["input_shape"]) == config["input_shape"]


# From end to end


@command_line.script
def main(argv=None) -> str:
    """Measure the grid, record and draw it; return the id of the run that holds all others."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--redraw", action="store_true", help="draw the pictures of what is recorded, and end")
    args = parser.parse_args(argv)
    if args.redraw:
        draw(_common.read(NAME)["rows"])
        return ""
    grid, rows, started = study_grid(), [], time.perf_counter()
    tags = {**backend.provenance(), "metrics.source": "measured"}
    description = (
        "Predicted against MEASURED peak memory of training steps, each configuration in a process of its own. "
        "Nothing here is simulated."
    )
    with tracking.tracked_run(
        EXPERIMENT,
        run_name="memory study",
        params={"num_configurations": len(grid), "margin": memory.MARGIN},
        tags=tags,
        description=description,
    ) as parent:
        for i, config in enumerate(grid, 1):
            row = study_row(config)
            log_row(row, config, tags, parent.run_id)
            print(f"{i:3}/{len(grid)} {describe_config(config):53} {describe_row(row)}", flush=True)
            rows += [row] * (row["status"] != "died")
        summary = {**summarize(rows), "seconds": time.perf_counter() - started}
        parent.metrics({f"study/{name}": value for name, value in summary.items()})
        more = {"unet": unet_rows(), "without_onednn": rows_without_onednn()}
        for name, found in more.items():
            print(f"{name}:", *(describe_row(row) for row in found), sep="\n  ", flush=True)
        _common.write(NAME, {"summary": summary, "rows": rows, **more})
        for path in (_common.RESULTS / f"{NAME}.json", *draw(rows)):
            parent.artifact(path)
    print(
        f"\n{summary['num_measured']} configurations in {summary['seconds']:.0f} s: mean error "
        f"{summary['mean_error']:+.1%}, median absolute error {summary['median_error']:.1%}, largest "
        f"{summary['largest_error']:.1%}, Spearman {summary['spearman']:.3f}."
        f"\nMLflow run: {parent.run_id}, to see it: {tracking.how_to_view()}"
    )
    if len(rows) < len(grid):
        raise command_line.Unfinished(f"{len(grid) - len(rows)} processes were killed; their rows are missing.")
    return parent.run_id


def log_row(row: dict, config: dict, tags: dict, parent_run_id: str) -> None:
    """Log one configuration as a child of the study's run."""
    with tracking.tracked_run(
        EXPERIMENT,
        run_name=describe_config(config),
        params=config,
        parent_run_id=parent_run_id,
        tags={**tags, "status": row["status"]},
    ) as run:
        numbers = {key: value for key, value in row.items() if key.startswith(("predicted_", "measured_"))}
        run.metrics({key.replace("_", "/", 1): value for key, value in numbers.items()})
        run.metrics({key: row[key] for key in ("parameters", "multiply_adds", "error") if key in row})


def draw(rows: list[dict]) -> tuple[Path, Path]:
    """Draw both pictures; return where they are."""
    plot_study(rows, PICTURES / "conv3d_study.png")
    plot_tradeoffs(rows, PICTURES / "tradeoffs.png")
    return PICTURES / "conv3d_study.png", PICTURES / "tradeoffs.png"


if __name__ == "__main__":
    main()
