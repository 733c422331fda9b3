"""The model that MLflow serves: a picture as it is on disk -> the mask that predict.py gives.

lab/track/registry.py logs this file, the package and the model file; nothing is pickled. MLflow runs it, such as by:

    PATH=.venv/bin:$PATH mlflow models serve -m runs:/RUN_ID/model --env-manager local
    echo '{"inputs": "'$(base64 -w0 photo.png)'"}' |
        curl -s -H 'Content-Type: application/json' -d @- http://127.0.0.1:5000/invocations

MLflow starts `uvicorn` by its bare name: PATH must lead to the environment's programs, as in the first line.

The input is a picture file in base64: PNG, JPEG, TIFF or BMP, as predict.py reads them. The answer then holds `mask`
and `probability` as PNG files in base64 (0 and 255; 65535 is 1) and `remark`. Or the input is an array, grey (H, W),
colour (H, W, 3), several of one size (N, H, W, C), and the answer holds arrays: uint8, 0 and 255, and float32. JSON has
no types of arrays: whole numbers up to 255 mean 8 bits, larger ones 16; post a dark picture of 16 bits as a file.
A model of volumes takes arrays, (D, H, W), with the voxels as far apart as those that it was trained on.

A model of several classes gives the mask with the values of the masks that it was trained on: for a file as predict.py
writes it, for an array as numbers. `values` names the value of each class, and `figures` its share and its number of
objects. `probability` is a PNG file for each class, or an array whose last axis is the background and the classes.
"""

import base64
import importlib.util
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import tifffile
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import Image

from lab.data import grey_values, pictures, scans
from lab.evaluate import label_pictures
from lab.model import model_file, prediction
from lab.system import backend


class BadInput(MlflowException):
    """A mistake of the client, status 400. MLflow's server would put the whole upload before the message."""

    def __init__(self, cause: str):
        super().__init__(cause, error_code=INVALID_PARAMETER_VALUE)

    def serialize_as_json(self) -> str:
        self.message = str(self)  # the cause alone, as it was raised
        return super().serialize_as_json()


class ServedModel(mlflow.pyfunc.PythonModel):
    """The model of this file, as MLflow calls it."""

    def load_context(self, context):
        """Load the model file, with all the checks that predict.py makes."""
        if "keras" not in sys.modules:  # a model file runs on every backend; take an installed one
            installed = filter(importlib.util.find_spec, ("tensorflow", "jax", "torch"))
            os.environ.setdefault("KERAS_BACKEND", next(installed, "tensorflow"))
        backend.import_keras()
        self.models = prediction.load_models([Path(context.artifacts["model"])])
        self.known = model_file.classes_of(self.models[0].preprocessing)

    def predict(self, context, model_input: np.ndarray, params=None):
        """The answer for an array, or for a file as an array of one text; `params` may hold `threshold`."""
        threshold = (params or {}).get("threshold", 0.5)
        try:
            if model_input.size == 1 and isinstance(model_input.item(), str | bytes):
                return self.answer_file(model_input.item(), threshold)
            return self.answer_array(as_stored(model_input), threshold)
        except ValueError as error:
            raise BadInput(str(error)) from None

    def answer_file(self, text: str | bytes, threshold: float) -> dict:
        """The answer for a picture file in base64; it holds files too."""
        if self.models[0].preprocessing["ndim"] == 3:
            raise ValueError("this model takes volumes: post an array (D, H, W), or use predict.py on the scan.")
        try:
            content = base64.b64decode(text, validate=True)
        except ValueError:
            raise ValueError("neither numbers nor a picture file in base64 were posted.") from None
        image, loss = self.read(lambda path: path.write_bytes(content))
        labels, probs, remark = self.find(image, threshold)
        pngs = [as_png(Image.fromarray(channel)) for channel in np.moveaxis(probs, -1, 0)]
        return {
            "mask": as_png(label_pictures.picture(labels, self.known)),
            "probability": pngs[0] if self.known.num == 1 else dict(zip(self.known.names, pngs[1:], strict=True)),
            "remark": " ".join(filter(None, (remark, loss))),
            **self.describe_classes(labels),
        }

    def answer_array(self, array: np.ndarray, threshold: float) -> dict:
        """The answer for an array, of a picture, several of one size or a volume; it holds arrays too."""
        ndim = self.models[0].preprocessing["ndim"]
        if not ndim <= array.ndim <= ndim + 2 or not array.size:
            sides = "(H, W), (H, W, C) or (N, H, W, C)" if ndim == 2 else "(D, H, W), (D, H, W, 1) or (N, D, H, W, 1)"
            raise ValueError(f"an array {sides} was expected; got one of shape {array.shape}.")
        if array.ndim == ndim + 2:
            answers = [self.answer_array(image, threshold) for image in array]
            whole = {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}
            return whole | {name: answers[0][name] for name in ("values",) if name in whole}
        if ndim == 2:  # as a file, so that it is read as predict.py reads it
            image, _ = self.read(lambda path: write_picture(array, path))
        else:
            image = array.reshape(*array.shape[:3], -1)
            if image.shape[-1] != 1 or min(image.shape[:3]) < 2:
                raise ValueError(f"one channel, and not a single slice, was expected; got shape {array.shape}.")
            scans.look_through(scans.Scan(Path("the volume"), image[..., 0], None, None, None))
        labels, probs, remark = self.find(image, threshold)
        one, probability = self.known.num == 1, probs / np.float32(2**16 - 1)
        return {
            "mask": labels * np.uint8(255) if one else self.known.to_values(labels),
            "probability": probability[..., 0] if one else probability,
            "remark": remark,
            **self.describe_classes(labels),
        }

    def describe_classes(self, labels: np.ndarray) -> dict:
        """The value of each of several classes, its share of the pixels and its number of objects; {} for one class."""
        if self.known.num == 1:
            return {}
        names = self.known.names
        row = prediction.measure_objects(labels, names)
        figures = {name: {key: float(row[f"{key}/{name}"]) for key in ("foreground", "objects")} for name in names}
        return {"values": dict(zip(names, self.known.values[1:], strict=True)), "figures": figures}

    def read(self, write: Callable[[Path], object]) -> tuple[np.ndarray, str | None]:
        """The picture (H, W, C) that `write` writes to a file, with the model's channels, and what got lost.

        Errors do not hold the name of the file.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture"
            write(path)
            try:
                image = pictures.read_picture(path, self.models[0].preprocessing["channels"])
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), "the picture")) from None
            return image, pictures.describe_loss(path, image)

    def find(self, image: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, str]:
        """Labels, probabilities (*sides, C) in 16 bits, and a remark if something is strange; as in predict.py."""
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], such as 0.5; got {threshold}.")
        if threshold != 0.5 and self.known.num > 1:
            raise ValueError("a threshold is for models of one class; of several, the most probable one is taken.")
        few = image if image.ndim == 3 else grey_values.few_slices(image)
        prepare = prediction.prepare_pictures(self.models, few)
        if image.ndim == 3:
            slabs, _ = prediction.picture_probabilities(self.models, image, prepare)
        else:
            slabs = prediction.probabilities(self.models, image, prepare)
        labels, figures, probs, _ = prediction.segment(slabs, image.shape[:-1], threshold, keep=True)
        seen = prepare[0](grey_values.thin_out(few))
        strange = grey_values.describe_strangeness(seen, self.models[0].preprocessing["seen"])
        return labels, probs, " ".join(filter(None, (figures["remark"], strange)))


def as_stored(values: np.ndarray) -> np.ndarray:
    """Values as a file would store them: uint8, uint16 or float32."""
    try:
        array = np.array(values.tolist()) if values.dtype == object else values
    except ValueError:
        raise ValueError("rows of different lengths were posted.") from None
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype.kind not in "iuf":
        raise ValueError(f"numbers, or a picture file in base64, were expected; got {array.dtype}.")
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() < 2**16:
        return array.astype(np.uint8 if array.max() < 2**8 else np.uint16)
    with np.errstate(over="ignore"):  # values that are too large become infinite, and are refused
        return array.astype(np.float32)


def write_picture(array: np.ndarray, path: Path) -> None:
    """Write an array (H, W) or (H, W, C) as a TIFF file, with its values."""
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[-1] not in (3, 4):
        raise ValueError(f"colours are 3 or 4 channels, the fourth transparency; got an array of shape {array.shape}.")
    tifffile.imwrite(path, array, photometric="minisblack" if array.ndim == 2 else "rgb")


def as_png(image) -> str:
    """Pillow's image as a PNG file in base64."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


mlflow.models.set_model(ServedModel())
