"""A .keras file with its preprocessing inside: written, read, checked.

    model_file.save_model(network, "model.keras", grey_values.describe_training(images, grey_values.STRETCHED))
    network, preprocessing = model_file.load_model("model.keras")

A model file may come from anywhere. Nothing in it is run, the sizes and names that it states are not trusted, and a
damaged file becomes one sentence.
"""

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab.data.classes import MOST, ONE, Classes, check_names
from lab.system.errors import first_line
from lab.system.output_files import replaced

MEMBER = "preprocessing.json"  # in the model file, which is a zip archive
VERSION = 3  # of the preprocessing; version 2 has no `beyond`, `surroundings` and `classes`, and loads too
# Layers and functions that run code of the file, or read other files.
CODE = {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}


class Model(NamedTuple):
    """A network and how images must be prepared for it."""

    network: Any  # Keras model, (N, *sides, channels) -> probabilities (N, *sides, 1), of K classes K + 1
    preprocessing: dict


def save_model(model, path: Path, preprocessing: dict) -> None:
    """Save a Keras model with its preprocessing inside; `path` is never half-written.

    `ndim`, `channels` and `divisor` (of the sides; null if they are fixed) are read from the network unless
    `preprocessing` names them.

    Raises:
        ValueError: if the network's output is not as large as its input.
    """
    network = {"channels": model.input_shape[-1], "ndim": len(model.input_shape) - 2}
    if "divisor" not in preprocessing:
        network["divisor"] = find_divisor(model)
    text = json.dumps({"version": VERSION, **network, **preprocessing}, indent=1)
    with replaced(Path(path)) as aside:
        model.save(aside)
        with zipfile.ZipFile(aside, "a") as archive:  # Keras reads the members it knows and leaves the others alone
            archive.writestr(MEMBER, text)


def find_divisor(model) -> int | None:
    """The number that divides the sides of images, such as 2^depth of a U-Net; None if the sides are fixed."""
    sides = model.input_shape[1:-1]
    if None not in sides:
        return None
    for divisor in range(1, 257):
        wanted = (7 * divisor,) * len(sides)  # 7 is odd: with too small a divisor, halving leaves a rest
        try:
            shape = model.compute_output_shape((1, *wanted, model.input_shape[-1]))
        except ValueError:  # the sides are too small, or their tensors cannot be concatenated
            continue
        if shape[1:-1] == wanted:
            return divisor
    raise ValueError(f"the network {model.name} gives masks of other sides than its images.")


def read_preprocessing(path: Path) -> dict:
    """The preprocessing inside a model file; ValueError if it is no Keras model, damaged, or of an unknown version."""
    return _read(path)[0]


def classes_of(preprocessing: dict) -> Classes:
    """The classes of a model's channels, from its preprocessing."""
    stored = preprocessing.get("classes", {})
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
    return Classes(**fields)  # without fields it is ONE


def load_model(path: Path) -> Model:
    """Load a model file in safe mode.

    Raises:
        ValueError: if it is no Keras model, damaged, without preprocessing, with code in it (a Lambda layer or a class
            that is not Keras's), of other shapes than its preprocessing says, or with weights that are no numbers.
    """
    preprocessing, config = _read(path)
    _refuse_code(path, config)
    import keras

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # many lines on a damaged file, before the error
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        takes, gives, weights = model.input_shape, model.output_shape, model.get_weights()
    except Exception as error:
        raise ValueError(f"the model {path} is damaged ({first_line(error)[:200]}); copy or train it again.") from None
    _check_shapes(path, preprocessing, takes, gives)
    if not all(np.isfinite(array).all() for array in weights):
        raise ValueError(f"the model {path} has weights that are NaN or infinite: its training failed; train it again.")
    return Model(model, preprocessing)


def to_float32(network):
    """The network itself if it computes in float32, else a copy that does."""
    import keras

    if all(layer.compute_dtype == "float32" for layer in network.layers):
        return network

    def convert(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copy = keras.models.clone_model(network, clone_function=convert, recursive=True)
    copy.set_weights([array.astype("float32") for array in network.get_weights()])
    return copy


def _read(path: Path) -> tuple[dict, dict]:
    """The preprocessing and Keras's description of the network, checked as far as possible before it is built."""
    if not Path(path).exists():
        raise ValueError(f"the model {path} does not exist.")
    try:
        if not Path(path).is_file():  # reading a pipe would wait
            raise ValueError("not a file")
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size > max(2**24, 20 * member.compress_size):  # Keras compresses nothing
                    raise ValueError(f"its member {member.filename} would unpack to {member.file_size:,} bytes")
            config = json.loads(archive.read("config.json"))["config"]
            text = archive.read(MEMBER) if MEMBER in archive.namelist() else None
    except Exception as error:  # foreign bytes may raise any error
        reason = first_line(error)[:200]
        raise ValueError(
            f"{path} is no Keras model, or a damaged one ({reason}); give a .keras file, or copy the file again."
        ) from None
    if text is None:
        raise ValueError(f"{path} does not say how to prepare pictures; save it with lab.model.model_file.save_model.")
    return _check_preprocessing(path, text), config


def _check_preprocessing(path: Path, text: bytes) -> dict:
    """The preprocessing, if the entries can be true on which arrays, tiles and the names of files depend."""
    try:
        about = json.loads(text)
        if about["version"] == 2:
            about = {**about, "version": VERSION, "beyond": "clip", "surroundings": None}
        known = classes_of(about)
        check_names(known.names)
        counts = [about["channels"], *about["size"], 1 if about["divisor"] is None else about["divisor"]]
        is_sound = (
            about["version"] == VERSION
            and about["ndim"] in (2, 3)
            and len(about["size"]) == about["ndim"]
            and all(type(count) is int and count > 0 for count in counts)
            and {"stretch", "seen"} <= about.keys()
            and about["beyond"] in ("log", "clip")
            and len(known.values) == known.num + 1 <= MOST + 1
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_sound = False
    if not is_sound:
        raise ValueError(f"the preprocessing inside {path} is damaged or of another version of this program.")
    return about


def _check_shapes(path: Path, preprocessing: dict, takes, gives) -> None:
    """Raise ValueError unless the network has the axes, sides, channels and classes that its preprocessing says."""
    num_classes = classes_of(preprocessing).num
    ndim, channels = preprocessing["ndim"], preprocessing["channels"]
    letters = ", ".join("NDHW"[:1] + "NDHW"[-ndim:])
    for verb, shape, last in (("takes", takes, channels), ("gives", gives, num_classes + (num_classes > 1))):
        if not isinstance(shape, tuple) or len(shape) != ndim + 2 or shape[-1] != last:
            raise ValueError(f"the model {path} {verb} arrays of shape {shape}; ({letters}, {last}) was expected.")
    if gives[1:-1] != takes[1:-1]:
        raise ValueError(f"the model {path} makes {gives} of {takes}, not of equal sides.")
    size = tuple(preprocessing["size"])
    if any(side not in (None, trained) for side, trained in zip(takes[1:-1], size, strict=True)):
        raise ValueError(f"the model {path} takes arrays of shape {takes}, but says that it was trained on {size}.")
    if preprocessing["divisor"] is None and None in takes[1:-1]:
        raise ValueError(f"the model {path} does not say what the sides of its images must be divisible by.")


def _refuse_code(path: Path, config) -> None:
    """Raise ValueError if a description of layers names classes that are not Keras's, or layers that run code."""
    if isinstance(config, dict):
        module = config.get("module")
        foreign = isinstance(module, str) and module != "builtins" and module.split(".")[0] != "keras"
        registered = ">" in str(config.get("registered_name"))  # "package>class", by the author of the file
        if foreign or registered or str(config.get("class_name")) in CODE:
            raise ValueError(f"the model {path} has code in it (a Lambda layer or a class); it is not run.")
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            _refuse_code(path, part)


def copy_weights(path: Path, model, known: Classes = ONE) -> str | None:
    """Give `model`, of the classes `known`, the weights of a model file of the same network.

    If that file has other classes, by number or name, the last layer keeps its weights; the sentence returned says so.

    Raises:
        ValueError: as `load_model` does, or if it is another network; the sentence names the first weights that differ.
    """
    network, preprocessing = load_model(path)
    former = classes_of(preprocessing)
    others = former.num != known.num or known.num > 1 and former.names != known.names
    taken = [one.layers[:-1] if others else one.layers for one in (network, model)]
    theirs, ours = ([variable for layer in layers for variable in layer.weights] for layers in taken)
    shapes = [[tuple(variable.shape) for variable in variables] for variables in (theirs, ours)]
    if shapes[0] != shapes[1]:
        there, here = next((pair for pair in zip(*shapes, strict=False) if pair[0] != pair[1]), map(len, shapes))
        raise ValueError(
            f"--start-from {path} holds another network, with weights of shape {there} for {here}; give its --filters "
            "and --skips."
        )
    for variable, value in zip(ours, theirs, strict=True):
        variable.assign(value)
    if others:
        return (
            f"{path} knows other classes ({', '.join(former.names)}): its weights are taken, except for those of the "
            f"last layer, {model.layers[-1].name}, which starts with new weights."
        )
    return None
