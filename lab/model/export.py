"""Write a trained network as an ONNX file, which runs without Keras and in other languages.

    python -m lab.model.export outputs/unet/model.keras unet.onnx

The file takes prepared images (N, *sides, C) and gives probabilities (N, *sides, 1) or (N, *sides, K + 1), float32: any
number of images, of all sides that the network takes. Its metadata hold, as JSON:

    preprocessing  how grey values are prepared for the network (lab/data/grey_values.py), and those seen in training
    classes        the names of the classes, and their values in masks (lab/data/classes.py)
    tiles          how images are cut (lab/data/patches.py): the `divisor` of the sides, the `smallest` sides, about the
                   `largest` side, the `overlap`; where the divisor is null, all tiles have the smallest sides

CONTRIBUTING.md shows a program that uses them. A former file is replaced if the new one agrees with the Keras model.
"""

import argparse
import dataclasses
import importlib.util
import json
import sys
import warnings
from pathlib import Path

import numpy as np

from lab.model import model_file, prediction
from lab.system import backend, library_limits
from lab.system.errors import first_line
from lab.system.output_files import replaced
from lab.system.signals import signals_raise

TOLERANCE = 1e-3  # of a probability; rounding makes 1e-6


def export(path: Path, target: Path) -> str:
    """Write the model file `path` as the ONNX file `target`; return a sentence on how well they agree.

    Raises:
        ValueError: if the model, the target's folder or a package is missing, or if the two do not agree.
    """
    settings = model_file.read_preprocessing(path)  # before Keras is imported: errors come at once
    if target.suffix != ".onnx" or target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"a file NAME.onnx in a folder that exists was expected as the target; got {target}.")
    if missing := [name for name in ("tf2onnx", "onnx", "onnxruntime") if not importlib.util.find_spec(name)]:
        raise ValueError(f"{', '.join(missing)} must be installed first: pip install -r requirements-onnx.txt.")
    if (used := backend.import_keras().backend.backend()) != "tensorflow":
        raise ValueError(f"only TensorFlow writes ONNX files, not {used}: unset KERAS_BACKEND. Its models work too.")
    import onnxruntime

    trained = model_file.load_model(path).network
    network, images = model_file.to_float32(trained), draw_images(settings)
    expected, before = ([library_limits.predict_batch(one, batch) for batch in images] for one in (network, trained))
    with replaced(target) as aside:
        try:
            write(network, settings, aside)
            session = onnxruntime.InferenceSession(str(aside), providers=["CPUExecutionProvider"])
            found = [session.run(None, {session.get_inputs()[0].name: batch})[0] for batch in images]
            error = largest_difference(found, expected)
        except Exception as failure:  # a full disk, or layers that the converter does not know
            raise ValueError(f"{path} cannot be written as {target}: {first_line(failure)[:200]}.") from None
        if not error <= TOLERANCE:  # NaN neither
            raise ValueError(
                f"the ONNX file would differ from the Keras model by {error:.1e}, where {TOLERANCE:g} is allowed: "
                "nothing was written. Install the versions that requirements-onnx.txt names."
            )
    sizes = " and ".join(" x ".join(map(str, batch.shape[1:-1])) for batch in images)
    result = f"{target} gives the Keras model's probabilities, up to {error:.1e} (tried on {sizes}), in float32."
    rounding = largest_difference(before, expected)
    return result + f" In the training's precision the model's differ by {rounding:.1e}." * (rounding > TOLERANCE)


def draw_images(settings: dict) -> list[np.ndarray]:
    """One image of blobs and two larger ones, as a network sees them; of one size if the network takes no other."""
    from scipy.ndimage import gaussian_filter

    rng, step, ndim = np.random.default_rng(0), settings["divisor"], settings["ndim"]
    small = [-(-min(side, 64) // step) * step if step else side for side in settings["size"]]
    large = [side + (step or 0) * (axis + 1) for axis, side in enumerate(small)]
    noise = [rng.standard_normal((num, *sides, settings["channels"])) for num, sides in ((1, small), (2, large))]
    blobs = [gaussian_filter(batch, (0, *[3] * ndim, 0)) for batch in noise]
    return [(0.5 + 0.3 * batch / batch.std()).astype(np.float32) for batch in blobs]


def write(network, settings: dict, path: Path) -> None:
    """Write a network that was called before to `path`, with the preprocessing, classes and tiles in its metadata."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on old names of NumPy
        network.export(str(path), format="onnx", verbose=False)
    model = onnx.load(str(path))
    names = ["batch", *["depth", "height", "width"][-settings["ndim"] :]]
    for array in (*model.graph.input, *model.graph.output):
        for name, axis in zip(names, array.type.tensor_type.shape.dim, strict=False):
            if axis.dim_param:  # unk__513; a fixed side has none
                axis.dim_param = name
    largest, overlap = prediction.LIMITS[settings["ndim"]]
    tiles = {"divisor": settings["divisor"], "smallest": settings["size"], "largest": largest, "overlap": overlap}
    classes = dataclasses.asdict(model_file.classes_of(settings))
    about = {"preprocessing": {"window": None, **settings}, "classes": classes, "tiles": tiles}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    onnx.save(model, str(path))


def largest_difference(probs: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest difference of a probability; NaN if one is no number."""
    return float(np.max([np.abs(one - other).max() for one, other in zip(probs, expected, strict=True)]))


def main(argv=None) -> None:
    """Write the file; exit code 2 with one sentence if nothing was written."""
    parser = argparse.ArgumentParser(prog="python -m lab.model.export", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a model file, NAME.keras")
    parser.add_argument("target", type=Path, help="the file to write, NAME.onnx; a former one is replaced")
    args = parser.parse_args(argv)
    try:
        with signals_raise():
            print(export(args.model, args.target))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
