"""Bring the tables and figures of README.md and benchmarks/README.md up to date with benchmarks/results.

    python -m benchmarks.summary            # says which page does not say what is recorded
    python -m benchmarks.summary --write    # mends it
    python -m benchmarks.summary --code     # says which records are older than a change of the code that made them

A line `<!-- NAME -->` in a page says what follows it, up to the next empty line: what PIECES[NAME] makes of its record.
"""

import argparse
import re
import statistics

from benchmarks import (
    ablation,
    classes,
    commands,
    deep_structures,
    faults,
    grey_values,
    machines,
    noise,
    object_sizes,
    own_data,
    photographs,
    scores,
    time_to_score,
)
from benchmarks import gpu as card_benchmark
from benchmarks import processors as processors_benchmark
from benchmarks._common import ROOT, changed_code, code_of, read, table
from lab.evaluate import scoring

QUESTIONS = {  # what each benchmark asks, by its record
    "scores": "how good are the recipes?",
    "commands": "how long do the README's commands take, and what does the 3D one reach?",
    "ablation": "what is each ingredient of the lab's recipe for?",
    "time_to_score": "how soon is the score of the lab report reached?",
    "noise": "how far is the network from a fit that knows the shape?",
    "train_step": "how fast are training and prediction beside PyTorch's?",
    "train_step_3d": "the same on volumes (`train_step --ndim 3`)",
    "gpu": "how fast are they on a graphics card?",
    "machines": "what do commands, training and prediction take on each kind of processor?",
    "generator": "what do images cost beside their noise?",
    "metrics_speed": "what do scores cost beside others'?",
    "prediction": "is a loaded model as fast, and the same?",
    "tiles": "how fast and how large are the pictures of `predict.py`?",
    "memory": "what memory do more training images take?",
    "conv3d_study": "is the memory of 3D networks what was predicted (`memory_study`)?",
    "processors": "are trainings and memory the same on another processor?",
    "photographs": "does a network that has seen circles find coins?",
    "object_sizes": "and objects of other sizes than those that it has seen?",
    "own_data": "eight labelled crops of a real picture: what helps, and what do MONAI's networks reach?",
    "grey_values": "are small bright objects told from clutter that is less bright, and tissue from tissue?",
    "classes": "are several classes told apart by shape, rare ones too, and by which loss?",
    "deep_structures": "does a 3D U-Net find five structures deep in a brain, beside MONAI's networks?",
    "faults": "what of kills, signals, dead servers, full disks and bad input is survived?",
    "shared_server": "is everything there when four scripts at once write to one server?",
    "same_bits": "does the code of now give the bits of the record?",
}
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
STUDY = [  # what is shown of the memory study: side, filters, kernel, downsampling, precision
    (64, 16, 3, "late", "float32"),
    (64, 16, 7, "late", "float32"),
    (64, 16, 3, "early", "float32"),
    (256, 32, 3, "late", "float32"),
]


def index() -> str:
    """What each benchmark asks, and when, where and at which commit it was recorded, in Markdown."""
    lines = []
    for name, question in QUESTIONS.items():
        lines.append([f"`{name}`", question, *(origin(name) if read(name) else ["not yet", "", ""])])
    return table(["record", "asks", "day", "machine", "commit"], lines)


def origin(name: str, rows: list | None = None) -> list[str]:
    """Days, machines and commits of a record, or of some of its rows."""
    found = read(name) if rows is None else {"rows": rows}
    parts = [found, *found.get("rows", [])]
    flags = {" ".join(part["machine"]["flags"]) for part in parts if "machine" in part}
    devices = {part.get("card") or part["provenance"]["device"] for part in parts if "provenance" in part}
    machine = ", ".join(sorted(devices))
    days = sorted({part["date"] for part in parts if "date" in part})
    days = days[:1] + [day[5:] for day in days[1:]]  # the year once
    return [
        ", ".join(days),
        f"{machine} ({', '.join(sorted(flags))})" if flags else machine,
        ", ".join(sorted(commit[:7] for commit in commits_of(parts))),
    ]


def commits_of(parts: list[dict]) -> set[str]:
    """The commits that made the parts of a record."""
    provenances = [part["provenance"] for part in parts if "provenance" in part]
    return {p["mlflow.source.git.commit"] for p in provenances} | {p["commit"] for p in parts if "commit" in p}


def changes_since() -> dict[str, set[str]]:
    """The files that do another thing here than where a record was made, by record; none without git."""
    own = {"conv3d_study": "memory_study"}
    changed = {}
    for name in QUESTIONS:
        found = read(name)
        code = code_of(f"benchmarks/{own.get(name, name.removesuffix('_3d'))}.py")
        commits = commits_of([found, *found.get("rows", [])])
        changed[name] = {file for commit in commits for file in changed_code(commit, code)}
    return {name: files for name, files in changed.items() if files}


def comparisons() -> str:
    """One line per comparison, in Markdown: what, figure, bound or partner."""
    describe = {
        "train_step": lambda found: steps(found, "images"),
        "train_step_3d": lambda found: steps(found, "volumes"),
        "generator": generator,
        "metrics_speed": metrics_speed,
        "prediction": prediction,
        "tiles": tiles,
        "memory": memory,
    }
    lines = [line for name, lines_of in describe.items() if read(name) for line in lines_of(read(name))]
    return table(["", "measured"], lines)


def steps(found: dict, things: str):
    """Training step and prediction beside PyTorch's, with the largest batch; Keras's other backends."""
    names = {"PyTorch": "PyTorch, channels last", "PyTorch, channels first": "channels first"}
    verbs = {"train": "training step", "predict": "prediction"}
    batch = max(row["batch"] for row in found["rows"])
    of = {}
    for row in found["rows"]:
        if row["batch"] == batch:
            of.setdefault((row.get("call", "train"), row["precision"]), []).append(row)
    told = {}
    for (call, precision), (lab, *others) in of.items():
        beside = [
            f"{row['lab_against_it']:.2f} times {names.get(row['side'], row['side'].replace(', ', ' on '))}"
            for row in others
        ]
        told.setdefault(precision, []).append(
            f"{verbs[call]} {lab['images_per_second']:.1f} {things}/s, {lab['share_of_matrix_product']:.0%} of a large "
            f"matrix product's rate; {', '.join(beside)}"
        )
    for precision, calls in told.items():
        yield f"{things}, {precision}, batch {batch}", ". ".join(calls)


def generator(found: dict):
    """Cost of the images beside that of their noise."""

    def ends(values, form):
        return f"{min(values):{form}} to {max(values):{form}}"

    rows = found["rows"]
    yield (
        f"generator, {len(rows)} sizes and numbers",
        f"{ends([row['lab_against_noise'] for row in rows], '.2f')} times its noise alone (touching as much new "
        f"memory: {ends([row['memory_against_noise'] for row in rows], '.2f')}), "
        f"{ends([row['nanoseconds_per_pixel'] for row in rows], '.0f')} ns per pixel; "
        f"{ends([1 / row['monai_against_lab'] for row in rows], '.1f')} times the time of MONAI's "
        "`create_test_image_2d`",
    )


def metrics_speed(found: dict):
    """Scores of 1,000 masks."""
    taken = {(row["score"], row["side"]): row["it_against_lab_tensors"] for row in found["rows"]}
    monai, torchmetrics, arrays = (
        " and ".join(f"{taken[score, side]:.1f}" for score in ("Dice", "IoU"))
        for side in ("MONAI", "torchmetrics", "lab, NumPy arrays")
    )
    yield (
        "Dice and IoU of 1,000 masks",
        f"MONAI takes {monai} times as long as tensors here, torchmetrics {torchmetrics}, NumPy arrays with their "
        f"checks {arrays}",
    )


def prediction(found: dict):
    """A model from disk."""
    told = [
        f"{row['precision']} {row['images_per_second']:.0f} images/s, {row['against_in_memory']:.2f}"
        for row in found["rows"]
        if row["side"] == "saved and loaded"
    ]
    yield "prediction by a loaded model, times the model in memory", "; ".join(told)


def tiles(found: dict):
    """The script that predicts pictures of any size."""
    yield (
        "`predict.py`, a fresh process",
        f"{found['first_mask_seconds']:.0f} s to its first mask; of large pictures "
        f"{found['tiles_megapixels_per_second']:.2f} megapixels/s in tiles, "
        f"{found['tiles_to_model_predict']:.2f} times those of `model.predict`",
    )
    yield (
        "`predict.py`, 16,000 x 16,000 pixels, a network of one layer",
        f"{found['huge_gib']:.1f} GiB; the U-Net's own tile adds {found['one_tile_gib'] - found['first_mask_gib']:.1f}",
    )


def memory(found: dict):
    """What more images cost."""
    first, *_, last = found["rows"]
    yield (
        f"peak memory, {first['images']} to {last['images']:,} images",
        f"new images every epoch {first['new_every_epoch_mib']:.0f} to {last['new_every_epoch_mib']:.0f} MiB, "
        f"fixed ones {first['fixed_mib']:.0f} to {last['fixed_mib']:.0f}",
    )


def gpu(found: dict) -> str:
    """Training step and prediction on a graphics card, by size, in Markdown."""
    of = {}
    steps = [row for row in found["rows"] if row["what"] == "step"]
    for lab, torch in zip(steps[::2], steps[1::2], strict=True):
        size = ("x".join(map(str, lab["shape"][:-1])), lab["batch"])
        speed = f"{lab['values_per_second'] / 1e6:.0f}"
        of.setdefault(size, {})[lab["call"]] = [
            speed, f"{lab['images_per_second']:,.0f}", f"{torch['lab_against_it']:.2f}"
        ]  # fmt: skip
    lines = [[*size, *calls.get("train", [""] * 3), *calls.get("predict", [""] * 3)] for size, calls in of.items()]
    each = ["million pixels or voxels/s", "images/s", "times PyTorch"]
    return table(["size", "batch", *(f"{call}: {name}" for call in ("training", "prediction") for name in each)], lines)


def gpu_training(found: dict) -> str:
    """What was compared on a graphics card, and how soon the script has the report's score there, in sentences."""
    runs = [row for row in found["rows"] if row["what"] == "training"]
    reached = len({tuple(row["shape"]) for row in found["rows"] if row["what"] == "step"})
    wanted = sum(map(len, card_benchmark.CARD["sides"].values()))
    first, *later = [f"{row['reached_after']:.0f}" for row in runs]
    ends = [(row["epochs"][0]["seconds"], row["epochs"][-1]["seconds"]) for row in runs]
    epochs = [f"{f(last - first for first, last in ends):.1f}" for f in (min, max)]
    return (
        f"On a graphics card, {runs[0]['card']}, `unet_segmentation.py` on JAX, in bfloat16, has a validation Dice of "
        f"{time_to_score.TARGET} after {first} s, with nothing compiled, and after {' and '.join(later)} s with the "
        f"next seeds. The {len(runs[0]['epochs']) - 1} epochs after the first take {' to '.join(epochs)} s; start, "
        "compiling and the first one take the rest. The same network in PyTorch, channels last and compiled, is beside "
        "it below: PyTorch's batches lie on the card, Keras's come from memory each time and its masks go back there. "
        f"{reached} of {wanted} sizes are recorded:"
    )


def study(found: dict) -> str:
    """Rows of the memory study: what was predicted, and what was measured."""
    lines = []
    for row, (side, filters, kernel, downsampling, precision) in zip(rows_of_study(found), STUDY, strict=True):
        sizes = [f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e9:.1f}", f"{row['predicted_total_mib']:.0f}"]
        outcome = [f"{row['status']}, not run", ""]
        if row["status"] == "measured":
            outcome = [f"{row['measured_peak_mib']:.0f}", f"{row['error']:+.0%}"]
        network = [f"{side}^3", filters, f"{kernel}^3", downsampling, precision.removeprefix("mixed_")]
        lines.append([*network, *sizes, *outcome])
    titles = ["voxels", "filters", "kernel", "downsampling", "precision", "parameters", "multiply-adds (10^9)"]
    return table([*titles, "predicted MiB", "measured MiB", "error"], lines)


def rows_of_study(found: dict) -> list[dict]:
    """The rows of the study that STUDY names."""
    of = {
        (r["input_shape"][0], r["filters"], r["kernel_size"], r["downsampling"], r["precision"]): r
        for r in found["rows"]
    }
    return [of[key] for key in STUDY]


def study_errors(found: dict) -> str:
    """How good the predictions of memory are, in a few sentences."""
    errors = measured_errors(found["rows"])
    text = (
        f"Of {len(errors)} networks measured, the median absolute error is {found['summary']['median_error']:.1%}, the "
        f"largest {found['summary']['largest_error']:.1%}; {sum(abs(error) <= 0.15 for error in errors)} lie within "
        f"15%; on average the prediction is off by {statistics.mean(errors):+.1%}; Spearman "
        f"{found['summary']['spearman']:.3f}."
    )
    small, large = rows_of_study(found)[:2]  # they differ in the kernel
    grown = {name: large[name] / small[name] for name in ("multiply_adds", "predicted_total_mib")}
    text += (
        " With same padding the kernel changes weights and arithmetic, not activations: from "
        f"{small['kernel_size']}^3 to {large['kernel_size']}^3 (64^3 voxels, 16 filters) the multiply-adds grow "
        f"{grown['multiply_adds']:.1f}-fold, the predicted memory {grown['predicted_total_mib']:.2f}-fold."
    )
    if "unet" in found:
        errors = measured_errors(found["unet"])
        text += f" Of {len(errors)} U-Nets on volumes the largest absolute error is {max(map(abs, errors)):.1%}."
    if "without_onednn" in found:
        times = [row["measured_peak_mib"] / row["predicted_total_mib"] for row in found["without_onednn"]]
        text += f" Without oneDNN a step takes {min(times):.1f} to {max(times):.1f} times what is predicted."
    return f"{text} {processors(read('processors'))}" if read("processors") else text


def processors(found: dict) -> str:
    """How memory and trainings on another processor compare with those recorded first, in some sentences."""
    told = processors_benchmark.compared(found)
    study, full, same = told["memory"], told["full"], told["same"]
    wide, short = study["float32"], study["bfloat16"]
    again = "twice the same" if full["repeated"] else "not twice the same"
    return (
        f"On another processor, {told['there']}, which has AMX, {wide['num_measured']} networks in float32 give a "
        f"median absolute error of {wide['median_error']:.1%} and a largest of {wide['largest_error']:.1%}; in "
        f"bfloat16 the error of {short['num_measured']} is {short['mean_error']:+.0%} on average and "
        f"{short['largest_error']:.0%} at most. There a step takes at most {study['largest_factor']:.2f} times what is "
        f"predicted; the scripts keep a factor of {study['margin']:g} free. Of the report's short trainings "
        f"{same['k']} of {same['n']} end with the bits of {told['here']}; the default one with `--deterministic`, "
        f"{again} there, has a test Dice of {full['there']:.5f} instead of {full['here']:.5f}."
    )


def measured_errors(rows: list[dict]) -> list[float]:
    """(predicted - measured) / measured of the rows that were measured."""
    return [row["error"] for row in rows if row["status"] == "measured"]


def seeds_of_photographs(found: dict) -> str:
    """How far the scores on photographs differ by seed, in one sentence."""
    of = found["dice_of_varied_by_seed"]
    told = ", ".join(f"{min(values):.3f} to {max(values):.3f} on the {name}" for name, values in of.items())
    return f"Over {len(of['coins'])} seeds the varied circles give {told}; other rows of one network are one seed."


def several_classes(found: dict) -> str:
    """What is told of several classes in sentences."""
    told = (classes.shapes_sentence(found["rows"]), classes.rare_sentence(found["rows"]))
    return " ".join(filter(None, told))


def shared_server(found: dict) -> str:
    """What a server held after several scripts had written to it at once, in a sentence."""
    held = ", ".join(f"{held:,} of {wanted:,} {name}" for name, (held, wanted) in found["held"].items())
    return (
        f"Of {found['rounds']} rounds of four scripts at once, on one MLflow server with PostgreSQL, the server holds "
        f"{held}; {found['runs_without_an_end']} runs are without an end."
    )


def example(found: dict) -> str:
    """What the console shows at the end of the default training with seed 0."""
    row = next(row for row in found["rows"] if row["row"] == "lab" and row["seed"] == 0)
    shown = scoring.format_table({**row["baselines"], "U-Net": row["test"]})
    return "\n".join(f"    {line}" for line in ["Test set, 512 images:", *shown.splitlines()])


def command_times(found: dict) -> str:
    """Seconds of the README's commands, on the processor of the record and on each kind."""
    return machines.times_table((read("machines") or {"rows": []})["rows"], found["rows"])


PIECES = {  # name: the record that must be there, and what the page says of it
    "main_table": ("scores", lambda found: scores.main_table(found["rows"])),
    "example": ("scores", example),
    "shapes": ("classes", lambda found: classes.shapes_sentence(found["rows"])),
    "command_times": ("commands", command_times),
    "volumes": ("commands", lambda found: commands.volumes(found["rows"])),
    "index": (None, lambda found: index()),
    "ablation": ("ablation", lambda found: ablation.scores_table(found["rows"])),
    "time_to_score": ("time_to_score", lambda found: time_to_score.scores_table(found["rows"])),
    "noise": ("noise", lambda found: noise.scores_table(found["rows"])),
    "comparisons": (None, lambda found: comparisons()),
    "gpu": ("gpu", gpu),
    "gpu_training": ("gpu", gpu_training),
    "machines": ("machines", lambda found: machines.machines_table(found["rows"])),
    "study": ("conv3d_study", study),
    "study_errors": ("conv3d_study", study_errors),
    "photographs": ("photographs", photographs.scores_table),
    "seeds_of_photographs": ("photographs", seeds_of_photographs),
    "object_sizes": ("object_sizes", object_sizes.describe),
    "grey_values": ("grey_values", lambda found: grey_values.scores_table(found["rows"])),
    "own_data": ("own_data", lambda found: own_data.scores_table(found["rows"])),
    "classes": ("classes", several_classes),
    "losses": ("classes", lambda found: classes.losses_table(found["rows"])),
    "deep_structures": ("deep_structures", lambda found: deep_structures.scores_table(found["rows"])),
    "faults": ("faults", lambda found: faults.scores_table(found["rows"])),
    "shared_server": ("shared_server", shared_server),
}


def piece(name: str) -> str:
    """What a page says after `<!-- NAME -->`.

    Raises:
        ValueError: for a name that PIECES does not know.
    """
    if name not in PIECES:
        raise ValueError(f"<!-- {name} --> is no piece that is known: {', '.join(PIECES)}.")
    record, write = PIECES[name]
    text = write(read(record) if record else {}) if record is None or read(record) else ""
    return text or "Not recorded yet."


def fill(page: str) -> str:
    """A page whose marked pieces are those of the records."""
    return re.sub(r"<!-- ([^\n]+?) -->(\n[^\n]+)*", lambda mark: f"<!-- {mark[1]} -->\n{piece(mark[1])}", page)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="mend the pages")
    parser.add_argument("--code", action="store_true", help="say where the code has changed since a record was made")
    args = parser.parse_args(argv)
    if args.code:
        for name, files in changes_since().items():
            print(f"{name}: {', '.join(sorted(files))}")
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if fill(page) != page:
            print(f"{path.relative_to(ROOT)} does not say what is recorded{': mended' if args.write else ''}.")
            if args.write:
                path.write_text(fill(page), encoding="utf-8")


if __name__ == "__main__":
    main()
