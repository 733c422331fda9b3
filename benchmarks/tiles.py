"""Measure predict.py: start-up to the first mask, pixels per second beside model.predict, memory for a huge picture.

    python -m benchmarks.tiles outputs/unet/model.keras     # 2 minutes, Linux or macOS

The huge picture has 16,000 x 16,000 pixels and is predicted by a network of one 1x1 convolution, because the U-Net
would take half an hour; what the U-Net itself needs for a tile is measured apart and comes on top.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._common import ROOT, busy, in_turns, ratio, write
from lab.data import grey_values
from lab.model import model_file, prediction
from lab.system import backend

SCRIPT, SIDE = "predict.py", 16_000


def run(*arguments) -> tuple[float, float, float]:
    """Run predict.py in a fresh process: (seconds, seconds of processor time, its peak memory in GiB)."""
    code = (
        f"import resource, sys, {Path(SCRIPT).stem} as script; code = script.main(); "
        "used = resource.getrusage(resource.RUSAGE_SELF); "
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr)
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
    processor, peak = done.stdout.split()[-2:]
    return seconds, float(processor), int(peak) * unit / 2**30


def save_cheap_model(path: Path) -> None:
    """A network that finds what is brighter than 0.5: a single 1x1 convolution."""
    keras = backend.import_keras()

    inputs = keras.Input((None, None, 1))
    layer = keras.layers.Conv2D(1, 1, activation="sigmoid")
    network = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.full((1, 1, 1, 1), 200.0), np.array([-100.0])])
    seen = np.random.default_rng(0).random((4, 128, 128, 1))
    model_file.save_model(network, path, grey_values.describe_training(seen, grey_values.ABSOLUTE))


def throughput(path: Path, rounds: int = 5) -> dict:
    """Megapixels per second of predict.py's tiles on a 1500 x 2000 picture, and of model.predict on as many pixels."""
    models = prediction.load_models([path])
    network, preprocessing = models[0]
    picture = np.random.default_rng(0).integers(0, 255, (1500, 2000, 1), np.uint8)
    side = preprocessing["size"][0]
    num = picture.size // side**2
    crops = (picture.ravel()[: num * side**2] / np.float32(255)).reshape(num, side, side, 1)
    pixels = {"tiles": picture.size, "model.predict": crops.size}
    prepare = prediction.prepare_pictures(models, picture)
    sides = {
        "tiles": lambda: list(prediction.probabilities(models, picture, prepare)),
        "model.predict": lambda: network.predict(crops, batch_size=16, verbose=0),
    }
    times = in_turns(sides, rounds)
    speeds = {name: [pixels[name] / 1e6 / seconds for seconds in times[name]] for name in sides}
    result = {f"{name}_megapixels_per_second": float(np.median(speed)) for name, speed in speeds.items()}
    return {**result, "tiles_to_model_predict": ratio(speeds["tiles"], speeds["model.predict"])}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a .keras file that unet_segmentation.py wrote")
    path = parser.parse_args(argv).model.resolve()
    others = busy()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        noise = np.random.default_rng(0)
        for name, side in (("small", 300), ("tile", prediction.LIMITS[2][0]), ("huge", SIDE)):
            picture = np.tile(noise.integers(0, 255, (100, side), np.uint8), (side // 100 + 1, 1))[:side]
            Image.fromarray(picture).save(folder / f"{name}.png", compress_level=1)
        del picture
        save_cheap_model(folder / "cheap.keras")
        first_mask, processor, small = run(path, folder / "small.png", "--out-dir", folder / "out")
        _, _, tile = run(path, folder / "tile.png", "--out-dir", folder / "out")
        seconds, _, huge = run(
            folder / "cheap.keras", folder / "huge.png", "--out-dir", folder / "out", "--probabilities"
        )
    result = {
        "first_mask_seconds": first_mask,
        "first_mask_processor_seconds": processor,
        "first_mask_gib": small,
        "one_tile_gib": tile,
        "huge_gib": huge,
        "huge_seconds": seconds,
        **throughput(path),
    }
    for name, value in result.items():
        print(f"{name:36} {value:.3g}")
    write("tiles", result, others)


if __name__ == "__main__":
    main()
