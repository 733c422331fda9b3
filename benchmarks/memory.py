"""Peak memory of a training as its images grow in number: flat when they are made anew, growing when they are kept.

    python -m benchmarks.memory        # about 3 minutes; not on Windows

Each point is `unet_segmentation.py` in a process of its own, one epoch on 128x128 images, with a network of 2 channels
in the first block: the images are what is looked at, not the network.
"""

import argparse
import os
import subprocess
import sys
import tempfile

from benchmarks import _common

COUNTS = (128, 1024, 8192)
SMALL = "--train-size 128 --epochs 1 --filters 2 --batch-size 8 --val-images 8 --test-images 8"


def peak_mib(num_images: int, fixed: bool, folder: str) -> float:
    """Peak resident memory in MiB of one training, which writes to `folder`."""
    flags = [*SMALL.split(), "--train-images", str(num_images), *(["--fixed-images"] if fixed else [])]
    command = [sys.executable, "unet_segmentation.py", *flags, "--out-dir", folder]
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    process = subprocess.Popen(command, cwd=_common.ROOT, env={**os.environ, **store}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed.")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB


def main(argv=None) -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for num in COUNTS:
            new, fixed = (peak_mib(num, fixed, folder) for fixed in (False, True))
            arrays = num * 128 * 128 * 2 * 4 / 2**20  # images and masks, float32
            rows.append({"images": num, "new_every_epoch_mib": new, "fixed_mib": fixed, "arrays_mib": arrays})
            print(rows[-1], flush=True)
    titles = ["training images", "new every epoch, MiB", "the same, MiB", "images and masks, MiB"]
    print(_common.table(titles, [[f"{value:,.0f}" for value in row.values()] for row in rows]))
    _common.write("memory", {"flags": SMALL, "rows": rows})


if __name__ == "__main__":
    main()
