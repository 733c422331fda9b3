"""Time prediction with the network in memory and with the same network saved and loaded again.

    python -m benchmarks.prediction    # under a minute

The numbers must be the same bit for bit, and so should be the speed.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import _common
from lab.system import backend

NUM_IMAGES, SIZE, ROUNDS = 32, 128, 5


def compare(precision: str) -> list[dict]:
    """Rows of one precision: in memory, loaded."""
    keras = backend.import_keras()

    from data_synth import make_circles
    from lab.model.training import predict
    from unet_segmentation import build_unet

    keras.config.set_dtype_policy(precision)
    images, _ = make_circles(NUM_IMAGES, SIZE)
    models = {"in memory": build_unet((SIZE, SIZE, 1))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        models["in memory"].save(path)
        keras.config.set_dtype_policy("float32")  # the file remembers its own
        models["saved and loaded"] = keras.models.load_model(path, compile=False)
    first, second = (predict(model, images) for model in models.values())
    if not np.array_equal(first, second):
        raise ValueError(f"the loaded network predicts otherwise: by {np.abs(first - second).max()}.")
    sides = {name: lambda model=model: predict(model, images) for name, model in models.items()}
    times = _common.in_turns(sides, ROUNDS)
    return [
        {
            "precision": precision,
            "side": name,
            "images_per_second": NUM_IMAGES / statistics.median(values),
            "against_in_memory": _common.ratio(times["in memory"], values),
        }
        for name, values in times.items()
    ]


def main(argv=None) -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(argv)
    others = _common.busy()
    rows = compare("float32") + compare("mixed_bfloat16")
    print(_common.table(["precision", "network", "images/s", "/ in memory"], [list(row.values()) for row in rows]))
    _common.write("prediction", {"images": NUM_IMAGES, "size": SIZE, "rounds": ROUNDS, "rows": rows}, others)


if __name__ == "__main__":
    main()
