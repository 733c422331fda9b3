"""Find objects in your own pictures with a model that unet_segmentation.py has trained.

    python predict.py outputs/unet/model.keras photo.png more_photos/

PNG, JPEG, TIFF or BMP, grey or colour, of any size. For NAME.png the output folder gets NAME_mask.png (0 and 255, of
exactly the picture's size) and NAME_overlay.png (what the network saw, with the mask on it); predictions.csv gets a
row per picture. Exit code 0: all is done; 1: something could not be read; 2: nothing could be done.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import model_file, patches, pictures

# Keras takes seconds to import: only the functions that need it import it, so that bad input is told at once.

TILE = 1024  # side of the largest tiles in pixels: about 1 GB of memory in the network
OVERLAP = 32  # pixels that neighbouring tiles share
PIXELS = 2**18  # predicted at a time where tiles are small
COLUMNS = ("picture", "width", "height", "foreground", "objects", "confidence", "seconds", "dice", "iou", "remark")


class Model(NamedTuple):
    """What is needed to predict."""

    network: object  # Keras model, (N, H, W, 1) -> (N, H, W, 1)
    preprocessing: dict  # see pictures.py
    multiples: tuple | None  # what height and width must be divisible by; None: only the size it was trained with


def load_model(path: Path) -> Model:
    """Load a model file in safe mode.

    Raises:
        ValueError: if it is no Keras model, damaged, without preprocessing, with code in it (a Lambda layer or a class
            of one's own), or of another shape than grey pictures (N, H, W, 1) -> probabilities (N, H, W, 1).
    """
    preprocessing = model_file.read_preprocessing(path)
    import keras

    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        if "lambda" in str(error).lower() or "Could not locate" in str(error):
            raise ValueError(f"the model {path} has code in it (a Lambda layer or a class); it is not run.") from None
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise ValueError(f"the model {path} is damaged ({reason}); train it again.") from None
    for verb, shape in (("takes", model.input_shape), ("gives", model.output_shape)):
        if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] != 1:
            raise ValueError(f"the model {path} {verb} arrays of shape {shape}; (N, H, W, 1) was expected.")
    if model.output_shape[1:3] != model.input_shape[1:3]:
        raise ValueError(f"the model {path} makes {model.output_shape} of {model.input_shape}, not of equal sides.")
    return Model(*any_size(model, preprocessing))


def any_size(model, preprocessing: dict) -> tuple:
    """Rebuild the network for sides of every size, so that large tiles waste little on overlaps: the fields of `Model`.

    A network with layers of fixed size, such as Dense, stays as it is.
    """
    import keras

    model = keras.Model(model.inputs[0], model.outputs[0])  # not lists of one, which clone_model tells apart
    try:
        network = keras.models.clone_model(model, input_tensors=keras.Input((None, None, 1)))
        network.set_weights(model.get_weights())
        outputs = [layer.output.shape for layer in model.layers]
        multiples = tuple(
            side // min(shape[axis] for shape in outputs) for axis, side in enumerate(model.input_shape[1:3], 1)
        )
        return network, preprocessing, multiples
    except (ValueError, TypeError, IndexError):
        return model, preprocessing, None


def fit_tile(length: int, least: int, multiple: int) -> int:
    """The side of tiles that cover `length` pixels: few and hardly larger than needed, at most about TILE."""
    num = max(1, -(-(length - OVERLAP) // (TILE - OVERLAP)))
    side = -(-(length + (num - 1) * OVERLAP) // num)
    return max(least, -(-side // multiple) * multiple)


def probabilities(model: Model, picture: np.ndarray) -> Iterator[np.ndarray]:
    """The probabilities of a picture (H, W) as `pictures.read_picture` gives it, in bands (h, W) from top to bottom."""
    tile = model.preprocessing["size"]
    if model.multiples:
        tile = [fit_tile(*axis) for axis in zip(picture.shape, tile, model.multiples, strict=True)]
    low, high = pictures.grey_range(picture, model.preprocessing)

    def predict(tiles):
        return model.network.predict_on_batch(pictures.preprocess(tiles, low, high))

    overlap = min(OVERLAP, min(tile) // 2)
    return patches.predict_tiles(picture, predict, tile, overlap, batch=max(1, PIXELS // (tile[0] * tile[1])))


def segment(model: Model, picture: np.ndarray, threshold: float, keep: bool = False):
    """Predict a picture band by band: a mask of 0 and 1, the prediction's figures, its probabilities in 16 bits."""
    mask = np.empty(picture.shape, np.uint8)
    kept = np.empty(picture.shape, np.uint16) if keep else None
    line, confidence, lowest, highest = 0, 0.0, 1.0, 0.0
    for band in probabilities(model, picture):
        lines = slice(line, line + len(band))
        mask[lines] = band >= threshold
        confidence += np.maximum(band, 1 - band).sum(dtype=float)
        lowest, highest = min(lowest, band.min()), max(highest, band.max())
        if keep:
            kept[lines] = np.round(band * (2**16 - 1))
        line += len(band)
    figures = {"foreground": np.count_nonzero(mask) / mask.size, "confidence": confidence / mask.size}
    return mask, {**figures, "remark": describe_failure(figures["foreground"], lowest, highest)}, kept


def score(true: np.ndarray, mask: np.ndarray) -> dict:
    """Dice and IoU of a mask against the true one, both (H, W), in bands: the metrics work in float32."""
    from metrics import DiceCoefficient, IoU

    scores = {"dice": DiceCoefficient(), "iou": IoU()}
    for first in range(0, len(mask), TILE):
        bands = [a[None, first : first + TILE, :, None].astype(np.float32) for a in (true, mask)]
        for metric in scores.values():
            metric.update_state(*bands)
    return {name: float(metric.result()) for name, metric in scores.items()}


def process(model: Model, path: Path, truth: Path | None, args: argparse.Namespace) -> dict:
    """Predict one picture, write its files, return its row of the table; ValueError if something cannot be read."""
    from scipy.ndimage import label

    started = time.perf_counter()
    picture = pictures.read_picture(path)
    height, width = picture.shape
    true = pictures.read_mask(truth) if truth else None
    if truth and true.shape != picture.shape:
        sizes = f"{true.shape[1]} x {true.shape[0]} pixels, its picture {width} x {height}"
        raise ValueError(f"the mask {truth} is {sizes}.")
    mask, figures, kept = segment(model, picture, args.threshold, args.probabilities)

    low, high = pictures.grey_range(picture, model.preprocessing)
    sample = pictures.preprocess(pictures.thin_out(picture), low, high)
    remarks = figures.pop("remark"), pictures.describe_strangeness(sample, model.preprocessing["seen"])
    row = {"picture": path.name, "width": width, "height": height, **figures}
    row |= {"objects": label(mask, np.ones((3, 3)))[1], "remark": " ".join(filter(None, remarks))}
    if truth:
        row |= score(true, mask)
    step = -(-max(height, width) // 2048)  # an overlay is to look at, not to measure in
    shown = pictures.overlay(pictures.preprocess(picture[::step, ::step], low, high), mask[::step, ::step])
    mask *= 255
    for name, array in (("mask", mask), ("overlay", shown), ("probability", kept)):
        if array is not None:
            write_png(array, args.out_dir / f"{path.stem}_{name}.png")
    return {**row, "seconds": time.perf_counter() - started}


def describe_failure(foreground: float, lowest: float, highest: float) -> str | None:
    """A sentence if a prediction is all background or all foreground, else None."""
    causes = "objects of another size than in training, or another kind of picture"
    if foreground == 0:
        return (
            f"All background (highest probability {highest:.2f}): nothing is there, a --threshold too high, {causes}."
        )
    if foreground == 1:
        return f"All foreground (lowest probability {lowest:.2f}): a --threshold too low, {causes}."
    return None


def write_png(array: np.ndarray, path: Path) -> None:
    """Write aside and move, so that no interruption leaves a half-written file."""
    from PIL import Image

    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as aside:
        file = Path(aside) / path.name
        Image.fromarray(array).save(file, compress_level=1)
        os.replace(file, path)


def write_table(rows: list[dict], path: Path) -> None:
    """Write predictions.csv, aside first."""
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as aside:
        file = Path(aside) / path.name
        with open(file, "w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, COLUMNS)
            table.writeheader()
            table.writerows(rows)
        os.replace(file, path)


def parse_args(argv=None) -> argparse.Namespace:
    """Read and check the command line; a bad one ends in one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        usage="%(prog)s MODEL PICTURE... [options]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a .keras file that unet_segmentation.py wrote")
    add("pictures", type=Path, nargs="+", metavar="PICTURE", help="picture files, or folders of them")
    add("--out-dir", type=Path, default=Path("outputs/predict"), metavar="DIR", help="where all files go")
    add("--threshold", type=float, default=0.5, metavar="T", help="probability from which on a pixel is object, 0 to 1")
    add("--masks", type=Path, metavar="DIR", help="true masks of the same names, for Dice and IoU")
    add("--probabilities", action="store_true", help="write NAME_probability.png too, 16 bits: 65535 is 1")
    args = parser.parse_args(argv)
    try:
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for what cannot work, before Keras is imported; replace folders by the pictures in them."""
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], such as 0.5; got {args.threshold}.")
    model_file.read_preprocessing(args.model)
    args.pictures = [p for path in args.pictures for p in (pictures.find_pictures(path) if path.is_dir() else [path])]
    args.pictures = list(dict.fromkeys(args.pictures))
    args.truths = (
        {pictures.stem_of_mask(path): path for path in pictures.find_pictures(args.masks)} if args.masks else {}
    )
    stems = {}
    for path in args.pictures:
        if path.stem in stems:
            raise ValueError(f"{stems[path.stem]} and {path} would get the same output names; predict them one by one.")
        stems[path.stem] = path
    read = {path.resolve().parent for path in (*args.pictures, *args.truths.values())}
    if args.out_dir.resolve() in read:
        raise ValueError(f"--out-dir {args.out_dir} holds the input; name another folder: nothing is overwritten.")
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out_dir).close()
    except OSError as error:
        raise ValueError(
            f"--out-dir {args.out_dir} cannot be written ({error.strerror}): name another folder."
        ) from None


def main(argv=None) -> int:
    """Predict every picture, write the files and the table; return the exit code."""
    args = parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its notes on drivers that are not there; exceptions stay
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # TensorFlow's own memory pool: 20% faster
    try:
        model = load_model(args.model)
    except ValueError as error:
        print(f"predict.py: error: {error}", file=sys.stderr)
        return 2
    rows, failures = [], 0
    for number, path in enumerate(args.pictures, 1):
        try:
            truth = args.truths.get(path.stem)
            if args.masks and truth is None:
                raise ValueError(f"{path} has no mask in {args.masks}.")
            row = process(model, path, truth, args)
        except ValueError as error:
            print(f"predict.py: error: {error}", file=sys.stderr)
            failures += 1
            continue
        rows.append(row)
        score = f", Dice {row['dice']:.4f}" if truth else ""
        print(
            f"[{number}/{len(args.pictures)}] {path.name}: {row['foreground']:.1%} foreground, "
            f"{row['objects']} objects{score}, {row['seconds']:.1f} s",
            flush=True,
        )
        if row["remark"]:
            print(f"WARNING: {path.name}: {row['remark']}", file=sys.stderr)
    if not rows:
        return 2
    write_table(rows, args.out_dir / "predictions.csv")
    print(f"Files: {args.out_dir}" + (f"; {failures} of {len(args.pictures)} failed" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nInterrupted: the files of finished pictures are complete.", file=sys.stderr)
        sys.exit(130)
