"""Bring the tables and figures of README.md and benchmarks/README.md up to date with benchmarks/results.

    python -m benchmarks.summary            # says which page does not say what is recorded
    python -m benchmarks.summary --write    # mends it

A line `<!-- NAME -->` in a page says what follows it, up to the next empty line: what PIECES[NAME] makes of the
records; `<!-- origin RECORD -->` is where and when a record was made.
"""

import argparse
import re

from benchmarks import noise, photographs, scores, time_to_score
from benchmarks._common import ROOT, read, rows, table

PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
STUDY = [  # what is shown of the memory study: side, filters, kernel, downsampling, precision
    (64, 16, 3, "late", "float32"),
    (64, 16, 5, "late", "float32"),
    (64, 16, 7, "late", "float32"),
    (64, 8, 3, "late", "float32"),
    (64, 32, 3, "late", "float32"),
    (32, 16, 3, "late", "float32"),
    (48, 16, 3, "late", "float32"),
    (96, 16, 3, "late", "float32"),
    (64, 16, 3, "early", "float32"),
    (64, 32, 3, "early", "float32"),
    (64, 16, 3, "late", "mixed_bfloat16"),
    (96, 32, 3, "late", "float32"),
    (96, 32, 3, "late", "mixed_bfloat16"),
    (256, 32, 3, "late", "float32"),
]


def comparisons() -> str:
    """One line per comparison, in Markdown: what, figure, bound or partner; day and commit."""
    describe = {
        "train_step": lambda found: steps(found, "images"),
        "train_step_3d": lambda found: steps(found, "volumes"),
        "generator": generator,
        "metrics_speed": metrics_speed,
        "prediction": prediction,
        "tiles": tiles,
        "memory": memory,
        "gpu": gpu,
    }
    lines = []
    for name, lines_of in describe.items():
        found = read(name)
        if found:
            commit = found["provenance"]["mlflow.source.git.commit"]
            lines += [[what, measured, f"{found['date']}, {commit[:7]}"] for what, measured in lines_of(found)]
    return table(["", "measured", "day, commit"], lines)


def origin(name: str) -> str:
    """When, where and at which commit benchmarks/results/NAME.json was recorded, in one sentence."""
    found = read(name)
    parts = [found, *found.get("rows", [])]
    provenances = [part["provenance"] for part in parts if "provenance" in part]
    commits = [p["mlflow.source.git.commit"] for p in provenances] + [p["commit"] for p in parts if "commit" in p]
    devices = {provenance["device"] for provenance in provenances}
    flags = {" ".join(part["machine"]["flags"]) for part in parts if "machine" in part}
    dates = sorted({part["date"] for part in parts if "date" in part})
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "an unknown day"
    where = ", ".join(sorted(devices)) + "".join(f" ({flag})" for flag in sorted(flags))
    return f"Recorded: {when}, {where}, commit {', '.join(sorted({commit[:7] for commit in commits}))}."


def steps(found: dict, things: str):
    """Training step and prediction beside PyTorch's, and Keras's other backends."""
    rows = {(r.get("call", "train"), r["precision"], r["batch"], r["side"]): r for r in found["rows"]}
    verbs = {"train": f"training step, {things}", "predict": f"prediction, {things}"}
    for call, precision, batch in dict.fromkeys(key[:3] for key in rows):
        lab, *others = (row for key, row in rows.items() if key[:3] == (call, precision, batch))
        torch = [(r["lab_against_it"], r["side"]) for r in others if r["side"].startswith("PyTorch")]
        layouts = {"PyTorch": "PyTorch, channels last", "PyTorch, channels first": "channels first"}
        yield (
            f"{verbs[call]}, {precision}, batch {batch}",
            f"{lab['images_per_second']:.1f} {things}/s, {lab['share_of_matrix_product']:.0%} of a large matrix "
            "product's rate; " + ", ".join(f"{ratio:.2f} times {layouts[side]}" for ratio, side in torch),
        )
    others = [r for key, r in rows.items() if key[:2] == ("train", "float32") and key[3].startswith("Keras, ")]
    last = max(r["batch"] for r in others)
    shown = [r for r in others if r["batch"] == last][1:]
    yield (
        f"training step, {things}, other backends",
        ", ".join(f"{r['lab_against_it']:.1f} times {r['side'].replace(', ', ' on ')}" for r in shown),
    )


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
    for score in ("Dice", "IoU"):
        yield (
            f"{score} of 1,000 masks",
            f"MONAI takes {taken[score, 'MONAI']:.1f} and torchmetrics {taken[score, 'torchmetrics']:.1f} times "
            f"as long as tensors here, NumPy arrays with their checks {taken[score, 'lab, NumPy arrays']:.1f}",
        )


def prediction(found: dict):
    """A model from disk."""
    for row in found["rows"]:
        if row["side"] == "saved and loaded":
            yield (
                f"prediction by a loaded model, {row['precision']}",
                f"{row['images_per_second']:.0f} images/s, {row['against_in_memory']:.2f} of the model in memory",
            )


def tiles(found: dict):
    """The script that predicts pictures of any size."""
    yield "`predict.py`, a fresh process to its first mask", f"{found['first_mask_seconds']:.0f} s"
    yield (
        "`predict.py`, large pictures",
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


def gpu(found: dict):
    """A graphics card."""
    for row in found["rows"]:
        if row["side"] == "PyTorch" and row["call"] == "train":
            (lab,) = (
                other
                for other in found["rows"]
                if other["side"] != "PyTorch" and (other["call"], other["shape"]) == ("train", row["shape"])
            )
            size = "x".join(map(str, row["shape"][:-1]))
            yield (
                f"{found['card']}: training step, {size}, {row['precision']}, batch {row['batch']}",
                f"{lab['values_per_second'] / 1e6:.0f} million pixels/s, {lab['share_of_matrix_product']:.0%} of a "
                f"large matrix product's rate; {row['lab_against_it']:.2f} times PyTorch, channels last, compiled",
            )


def study(found: dict) -> str:
    """Rows of the memory study: what was predicted, and what was measured."""
    of = {
        (r["input_shape"][0], r["filters"], r["kernel_size"], r["downsampling"], r["precision"]): r
        for r in found["rows"]
    }
    lines = []
    for key in STUDY:
        row, (side, filters, kernel, downsampling, precision) = of[key], key
        sizes = [f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e9:.1f}", f"{row['predicted_total_mib']:.0f}"]
        outcome = [f"{row['status']}, not run", ""]
        if row["status"] == "measured":
            outcome = [f"{row['measured_peak_mib']:.0f}", f"{row['error']:+.0%}"]
        network = [f"{side}^3", filters, f"{kernel}^3", downsampling, precision.removeprefix("mixed_")]
        lines.append([*network, *sizes, *outcome])
    titles = ["voxels", "filters", "kernel", "downsampling", "precision", "parameters", "multiply-adds (10^9)"]
    return table([*titles, "predicted MiB", "measured MiB", "error"], lines)


def study_errors(found: dict) -> str:
    """How good the predictions of memory are, in one sentence."""
    errors = [row["error"] for row in found["rows"] if row["status"] == "measured"]
    summary = found["summary"]
    return (
        f"Of {len(errors)} networks measured, the median absolute error is {summary['median_error']:.1%}, the largest "
        f"{summary['largest_error']:.1%}; {sum(abs(error) <= 0.15 for error in errors)} lie within 15%; on average the "
        f"prediction is off by {sum(errors) / len(errors):+.1%}; Spearman {summary['spearman']:.3f}."
    )


def seeds_of_photographs(found: dict) -> str:
    """How far the scores on photographs differ by seed, in one sentence."""
    of = found["dice_of_varied_by_seed"]
    told = " and ".join(f"{min(values):.3f} to {max(values):.3f} on the {name}" for name, values in of.items())
    return f"Over {len(of['coins'])} seeds the varied circles give {told}; the other rows are one seed."


PIECES = {
    "main_table": lambda: scores.main_table(rows("scores")),
    "ablation_table": lambda: scores.ablation_table(rows("scores")),
    "short_sentence": lambda: scores.short_sentence(rows("scores")),
    "time_to_score": lambda: time_to_score.scores_table(rows("time_to_score")),
    "noise": lambda: noise.scores_table(rows("noise")),
    "comparisons": comparisons,
    "study": lambda: study(read("conv3d_study")),
    "study_errors": lambda: study_errors(read("conv3d_study")),
    "photographs": lambda: photographs.scores_table(read("photographs")),
    "seeds_of_photographs": lambda: seeds_of_photographs(read("photographs")),
    "origin": origin,
}


def fill(page: str) -> str:
    """A page whose marked pieces are those of the records.

    Raises:
        ValueError: for a mark that PIECES does not know.
    """

    def replace(mark):
        name, *arguments = mark[1].split()
        if name not in PIECES:
            raise ValueError(f"<!-- {mark[1]} --> is no piece that is known: {', '.join(PIECES)}.")
        return f"<!-- {mark[1]} -->\n{PIECES[name](*arguments)}"

    return re.sub(r"<!-- ([^\n]+?) -->(\n[^\n]+)*", replace, page)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="mend the pages")
    args = parser.parse_args(argv)
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if fill(page) != page:
            print(f"{path.relative_to(ROOT)} does not say what is recorded{': mended' if args.write else ''}.")
            if args.write:
                path.write_text(fill(page), encoding="utf-8")


if __name__ == "__main__":
    main()
