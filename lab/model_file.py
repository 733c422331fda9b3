"""A .keras file with its preprocessing inside: written, read, checked."""

import json
import os
import tempfile
import zipfile
from pathlib import Path

from lab.pictures import ABSOLUTE

MEMBER = "preprocessing.json"  # in the model file, which is a zip archive


def save_model(model, path: Path, preprocessing: dict) -> None:
    """Save a Keras model with its preprocessing inside; whatever happens, `path` is never half-written."""
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=Path(path).parent) as aside:
        file = Path(aside) / "model.keras"
        model.save(file)
        with zipfile.ZipFile(file, "a") as archive:  # Keras reads the members it knows and leaves the others alone
            archive.writestr(MEMBER, json.dumps(preprocessing, indent=1))
        os.replace(file, path)


def read_preprocessing(path: Path) -> dict:
    """The preprocessing inside a model file.

    Raises:
        ValueError: if the file is no Keras model, is damaged, or holds no preprocessing that is understood here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            text = archive.read(MEMBER) if MEMBER in names else None
    except FileNotFoundError:
        raise ValueError(f"the model {path} does not exist.") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no Keras model, or a damaged one ({error}); a .keras file is expected.") from None
    if "config.json" not in names:
        raise ValueError(f"{path} is a zip archive, but no Keras model; a .keras file is expected.")
    if text is None:
        raise ValueError(
            f"{path} does not say how pictures must be prepared for it; train with unet_segmentation.py, or save "
            "the model with model_file.save_model(model, path, pictures.describe_training(images, pictures.ABSOLUTE))."
        )
    try:
        found = json.loads(text)
        if found["version"] == ABSOLUTE["version"] and {"stretch", "size", "seen"} <= set(found):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"the preprocessing inside {path} is damaged or of another version of this program.")
