"""Models in MLflow: logged with the code that predicts a picture file, registered, and fetched again.

model_id = registry.log_model(client, run_id, Path("outputs/unet/model.keras"), digest)
with registry.files(["models:/circles@champion"]) as (path,): ...        # a file, to be opened as any other
"""

import contextlib
import importlib.metadata
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from lab.model import model_file
from lab.system import backend
from lab.track import store
from lab.track.dead_runs import fail_half_models, models_of
from lab.track.store import TrackingError

FILE = "artifacts/model.keras"  # in a logged model
SCHEMES = ("runs:/", "models:/")
REQUIREMENTS = ("keras", "numpy", "pillow", "scipy", "tifffile")  # and a backend; MLflow adds itself


def log_model(client, run_id: str, file: Path, digest: str) -> str:
    """Log a model file to a run, under the name "model"; return the model's id.

    `digest` is the file's SHA-256: a run that holds that file already does not get it again. Models that an earlier
    attempt did not finish are marked FAILED.
    `mlflow.pyfunc.load_model`, and `mlflow models serve`, give the masks of predict.py (see lab/track/served_model.py).
    `mlflow.keras.load_model` gives the bare network, from the same file.
    """
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    run = client.get_run(run_id)
    fail_half_models(client, run_id)
    for model in models_of(client, run_id):
        if model.status == "READY" and model.tags.get("sha256") == digest:
            return model.model_id
    keras = backend.import_keras()
    preprocessing = model_file.read_preprocessing(file)
    known, sides = model_file.classes_of(preprocessing), (-1,) * preprocessing["ndim"]
    several = known.num > 1
    mask = TensorSpec(np.min_scalar_type(max(known.values) if several else 255), sides, "mask")
    channels = (known.num + 1,) if several else ()
    signature = ModelSignature(
        # MLflow's only type that lets 8 and 16 bits, grey and colour pass unchanged.
        Schema([TensorSpec(np.dtype(object), (-1,))]),
        Schema([mask, TensorSpec(np.dtype("float32"), (*sides, *channels), "probability")]),
        ParamSchema([ParamSpec("threshold", "double", 0.5)]),
    )
    installed = {keras.backend.backend(): sys.modules[keras.backend.backend()].__version__}
    installed |= {name: importlib.metadata.version(name) for name in REQUIREMENTS}
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("mlflow.source")}
    # Model.log itself would create the model in the experiment of the active run only.
    model_id = client.create_logged_model(
        run.info.experiment_id, "model", run_id, tags={"sha256": digest, **tags}, params=run.data.params
    ).model_id
    with store.as_default(client.tracking_uri), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing example of an input: MLflow would predict it
        copy = shutil.copy(file, Path(folder) / "model.keras")  # MLflow does not find a path with % in it
        Model.log(
            artifact_path=None,
            model_id=model_id,
            run_id=run_id,
            flavor=ServedAndKeras,
            flavor_name="mlflow.pyfunc",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"model": str(copy)},
            code_paths=[str(Path(__file__).parents[1])],  # the package `lab`
            pip_requirements=[f"{name}=={version}" for name, version in installed.items()],
            signature=signature,
        )
    return model_id


class ServedAndKeras:
    """MLflow's flavour for models from code, together with the one for Keras, which reads the same file."""

    @staticmethod
    def save_model(path, mlflow_model, **options):
        import keras
        import mlflow.pyfunc

        folder = str(Path(FILE).parent)
        about = {"keras_version": keras.__version__, "keras_backend": keras.backend.backend()}
        mlflow_model.add_flavor("keras", data=folder, save_exported_model=False, **about)
        mlflow.pyfunc.save_model(path, mlflow_model=mlflow_model, **options)


def register(client, model_id: str, run_id: str, name: str) -> str:
    """Make a logged model the newest version of `models:/NAME`, unless it is a version already; return the version."""
    from mlflow import MlflowException

    source = f"models:/{model_id}"
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.source == source:
            return str(version.version)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.create_model_version(name, source, run_id, model_id=model_id).version)


# Fetching


@contextlib.contextmanager
def files(names: list[str]) -> Iterator[list[Path]]:
    """The file of each model: the path itself, or for `runs:/RUN_ID/model`, `models:/NAME@ALIAS` and `models:/NAME/3`
    a copy in a temporary folder. Only that file is downloaded; errors of the block name the model as it was given.

    Raises:
        TrackingError: if the store cannot be reached, or does not hold the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            _fetch(name, Path(folder) / str(i)) if name.startswith(SCHEMES) else Path(name)
            for i, name in enumerate(names)
        ]
        try:
            yield paths
        except ValueError as error:
            text = str(error)
            for name, path in zip(names, paths, strict=True):
                text = text.replace(str(path), name)
            raise ValueError(text) from None


def _fetch(name: str, folder: Path) -> Path:
    client, uri = store.open_existing()
    import mlflow.artifacts

    try:
        file = f"{_location(client, name)}/{FILE}"
        return Path(mlflow.artifacts.download_artifacts(file, dst_path=str(folder), tracking_uri=uri))
    except Exception as error:  # of the many kinds of artifact stores
        raise TrackingError(
            f"The MLflow store {uri} does not hold the model {name}, or not its file {FILE} ({store.first_line(error)})"
            "; give runs:/RUN_ID/model, models:/NAME/VERSION or models:/NAME@ALIAS of a training of the lab, or set "
            "MLFLOW_TRACKING_URI to the store that holds it."
        ) from None


def _location(client, name: str) -> str:
    """The place of a model's files; of a run, a half-logged model does not count. Raises an error if there is none."""
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    if name.startswith("runs:/"):
        run_id, _, wanted = name.removeprefix("runs:/").partition("/")
        ready = [model for model in models_of(client, run_id) if model.name == wanted and model.status == "READY"]
        if not ready:
            raise LookupError(f"the run has no finished model {wanted!r}")
        return max(ready, key=lambda model: model.creation_timestamp).artifact_location
    version = get_model_name_and_version(client, name)
    if len(version) == 1:
        return client.get_logged_model(version[0]).artifact_location
    return client.get_model_version_download_uri(*version)
