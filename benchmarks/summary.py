"""Print the README's table of comparisons from what is recorded in benchmarks/results.

python -m benchmarks.summary
"""

import json

from benchmarks._common import RESULTS, table


def comparisons() -> str:
    """One line per comparison, in Markdown: what, figure, bound or partner; day and commit."""
    of = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    lines = []

    def add(name: str, what: str, measured: str) -> None:
        commit = of[name]["provenance"]["mlflow.source.git.commit"]
        lines.append([what, measured, f"{of[name]['date']}, {commit[:7]}"])

    steps = {(r["precision"], r["batch"], r["side"]): r for r in of["train_step"]["rows"]}
    for precision in ("float32", "mixed_bfloat16"):
        for batch in (4, 8):
            lab, torch = (steps[precision, batch, side] for side in ("Keras, TensorFlow", "PyTorch"))
            add(
                "train_step",
                f"training step, {precision}, batch {batch}",
                f"{lab['images_per_second']:.1f} images/s, {lab['share_of_matrix_product']:.0%} of a large "
                f"matrix product's rate; {torch['lab_against_it']:.2f} times PyTorch, channels last",
            )
    jax, keras_torch = (steps["float32", 8, side]["lab_against_it"] for side in ("Keras, JAX", "Keras, PyTorch"))
    others = f"{jax:.1f} times Keras on JAX, {keras_torch:.1f} times Keras on PyTorch"
    add("train_step", "the same, other backends", others)
    made = of["generator"]["rows"]
    ratios = [row["lab_against_noise"] for row in made]
    memory = [row["memory_against_noise"] for row in made]
    monai = [1 / row["monai_against_lab"] for row in made]
    pixel = [row["nanoseconds_per_pixel"] for row in made]
    add(
        "generator",
        f"generator, {len(made)} sizes and numbers",
        f"{min(ratios):.2f} to {max(ratios):.2f} times its noise alone (touching as much new memory: "
        f"{min(memory):.2f} to {max(memory):.2f}), "
        f"{min(pixel):.0f} to {max(pixel):.0f} ns per pixel; "
        f"{min(monai):.1f} to {max(monai):.1f} times the time of MONAI's `create_test_image_2d`",
    )
    scores = {(row["score"], row["side"]): row["it_against_lab_tensors"] for row in of["metrics_speed"]["rows"]}
    for score in ("Dice", "IoU"):
        add(
            "metrics_speed",
            f"{score} of 1,000 masks",
            f"MONAI takes {scores[score, 'MONAI']:.1f} and torchmetrics {scores[score, 'torchmetrics']:.1f} times "
            f"as long as tensors here, NumPy arrays with their checks {scores[score, 'lab, NumPy arrays']:.1f}",
        )
    for row in of["prediction"]["rows"]:
        if row["side"] == "saved and loaded":
            add(
                "prediction",
                f"prediction by a loaded model, {row['precision']}",
                f"{row['images_per_second']:.0f} images/s, {row['against_in_memory']:.2f} of the model in memory",
            )
    first, *_, last = of["memory"]["rows"]
    add(
        "memory",
        f"peak memory, {first['images']} to {last['images']:,} images",
        f"new images every epoch {first['new_every_epoch_mib']:.0f} to {last['new_every_epoch_mib']:.0f} MiB, "
        f"fixed ones {first['fixed_mib']:.0f} to {last['fixed_mib']:.0f}",
    )
    return table(["", "measured", "day, commit"], lines)


if __name__ == "__main__":
    print(comparisons())
