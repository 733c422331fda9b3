"""Time the lab's metrics on 1,000 masks beside MONAI's and torchmetrics's, which must give the same numbers.

    python -m benchmarks.metrics_speed     # under a minute

Hard masks (1000, 128, 128), one Dice or IoU per image. Every side gets its own kind of tensor, made beforehand; the
lab is also timed from NumPy arrays, whose values it checks.
"""

import argparse
import statistics

import numpy as np

from benchmarks import _common
from lab.system import backend

NUM_MASKS, SIZE, ROUNDS = 1000, 128, 15
IMAGE = (1, 2, 3)


def main(argv=None) -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(argv)
    others = _common.busy()
    keras = backend.import_keras()

    import monai.metrics
    import torch
    from torchmetrics.functional.segmentation import dice_score, mean_iou

    import data_synth
    from metrics import dice_coeff, iou_metric

    _, true = data_synth.make_circles(NUM_MASKS, SIZE, seed=0)
    pred = np.roll(true, 3, axis=2)  # half right, and nobody's score is exactly 1
    ours = [keras.ops.convert_to_tensor(a) for a in (true, pred)]
    theirs = [torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, 1))) for a in (pred, true)]
    whole = [a.to(torch.int64) for a in theirs]  # what torchmetrics wants

    sides = {
        "Dice": {
            "lab, tensors": lambda: dice_coeff(*ours, axis=IMAGE).numpy(),
            "lab, NumPy arrays": lambda: dice_coeff(true, pred, axis=IMAGE).numpy(),
            "MONAI": lambda: monai.metrics.compute_dice(*theirs).numpy(),
            "torchmetrics": lambda: dice_score(*whole, num_classes=1).numpy(),
        },
        "IoU": {
            "lab, tensors": lambda: iou_metric(*ours, axis=IMAGE).numpy(),
            "lab, NumPy arrays": lambda: iou_metric(true, pred, axis=IMAGE).numpy(),
            "MONAI": lambda: monai.metrics.compute_iou(*theirs).numpy(),
            "torchmetrics": lambda: mean_iou(*whole, num_classes=1, input_format="one-hot").numpy(),
        },
    }
    rows = []
    for score, calls in sides.items():
        values = {name: call().reshape(-1) for name, call in calls.items()}
        difference = max(np.abs(v - values["lab, tensors"]).max() for v in values.values())
        if difference > 1e-5:
            raise ValueError(f"{score}: the sides differ by {difference}.")
        times = _common.in_turns(calls, ROUNDS)
        for name in calls:
            milliseconds = 1e3 * statistics.median(times[name])
            rows.append(
                {
                    "score": score,
                    "side": name,
                    "milliseconds": milliseconds,
                    "it_against_lab_tensors": _common.ratio(times[name], times["lab, tensors"]),
                }
            )
    print(_common.table(["score", "side", "ms for 1,000 masks", "it / lab"], [list(row.values()) for row in rows]))
    _common.write("metrics_speed", {"masks": [NUM_MASKS, SIZE, SIZE, 1], "rounds": ROUNDS, "rows": rows}, others)


if __name__ == "__main__":
    main()
