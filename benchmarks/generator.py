"""Time the generator beside the noise that it draws and beside MONAI's test images, and show how its cost grows.

    python -m benchmarks.generator     # under a minute

`lab / noise` is what circles, masks and clipping cost on top of N * H * W float32 normal numbers from NumPy's default
generator; `memory / noise` what it costs to touch as much new memory as images and masks fill, which on a virtual
machine can be dear. MONAI's `create_test_image_2d` is called image by image, for one circle of 8 to 25 pixels and no
noise.
"""

import argparse
import statistics

import numpy as np

from benchmarks import _common

ROUNDS = 5
PIXELS = 2**24  # of every point where the size grows: 64 MiB of images
COUNTS = [(64, 128), (256, 128), (1024, 128), (4096, 128)]
SIZES = [(PIXELS // size**2, size) for size in (64, 128, 256, 512)]
MONAI_IMAGES = 64  # at most, for each call takes as long as the last


def measure(num: int, size: int) -> dict:
    """Time one number of images of one size."""
    from monai.data import create_test_image_2d

    from data_synth import make_circles

    few = min(num, MONAI_IMAGES)

    def monai():
        state = np.random.RandomState(0)
        for _ in range(few):
            create_test_image_2d(size, size, 1, rad_max=25, rad_min=8, num_seg_classes=1, random_state=state)

    def noise():
        np.random.default_rng(0).standard_normal((num, size, size, 1), dtype=np.float32)

    def lab():
        make_circles(num, size, seed=0)

    def memory():
        for array in [np.empty((num, size, size, 1), np.float32) for _ in range(2)]:
            array.fill(0)

    repeats = max(1, 2**22 // (num * size**2))  # of small sets, which are over too soon to be timed
    calls = {"lab": lab, "noise": noise, "memory": memory, "monai": monai}
    sides = {name: lambda call=call: [call() for _ in range(repeats)] for name, call in calls.items()}
    times = {name: [t / repeats for t in taken] for name, taken in _common.in_turns(sides, ROUNDS).items()}
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "images": num,
        "size": size,
        "microseconds_per_image": 1e6 * median["lab"] / num,
        "nanoseconds_per_pixel": 1e9 * median["lab"] / (num * size**2),
        "lab_against_noise": _common.ratio(times["lab"], times["noise"]),
        "memory_against_noise": _common.ratio(times["memory"], times["noise"]),
        "monai_against_lab": _common.ratio([t / few for t in times["monai"]], [t / num for t in times["lab"]]),
    }


def main(argv=None) -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(argv)
    others = _common.busy()
    rows = [measure(num, size) for num, size in dict.fromkeys(COUNTS + SIZES)]
    titles = ["images", "size", "us per image", "ns per pixel", "lab / noise", "memory / noise", "MONAI / lab"]
    print(_common.table(titles, [list(row.values()) for row in rows]))
    _common.write("generator", {"rounds": ROUNDS, "rows": rows}, others)


if __name__ == "__main__":
    main()
