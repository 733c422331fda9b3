"""Losses by name, optimizer and schedule, the fit itself, and the checkpoints from which it goes on.

    model.compile(choose_optimizer("muon", 4e-3, "cosine", steps), choose_loss("dice+bce"), metrics=make_metrics())
    history = fit(model, batches, epochs=15, steps=32, validation=(images, masks), checkpoint=checkpoint)

Images and volumes alike: masks and probabilities are (N, ..., 1).
"""

import io
import itertools
import json
import math
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from lab import backend, library_limits

PREDICT_BATCH = 16  # images at a time where nothing is trained
KEPT = 2  # checkpoints: should the newest be damaged, the one before it serves


def choose_loss(name: str, smooth: float | None = None):
    """The loss of a name: one value per image, except for "pooled-dice", the lab report's, which pools the batch.

    `smooth` is the constant of the Dice losses; None for the usual one, 1 per image and 1e-6 pooled.
    """
    import keras

    import metrics

    given = {} if smooth is None else {"smooth": smooth}
    dice, bce = metrics.DiceLoss(**given), keras.losses.BinaryCrossentropy()

    def pooled_dice(masks, probs):
        return metrics.dice_loss(masks, probs, **given)

    def dice_and_bce(masks, probs):
        axes = tuple(range(1, len(masks.shape)))
        return metrics.dice_loss(masks, probs, dice.smooth, axes) + keras.ops.mean(
            keras.losses.binary_crossentropy(masks, probs), axis=axes[:-1]
        )

    return {"dice": dice, "bce": bce, "dice+bce": dice_and_bce, "pooled-dice": pooled_dice}[name]


def choose_optimizer(name: str, learning_rate: float, schedule: str, num_steps: int):
    """The optimizer with its learning rate: constant, or a cosine with warm-up over the whole training."""
    import keras

    from lab.muon import Muon

    rate = learning_rate
    if schedule == "cosine":
        warmup = max(1, num_steps // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            rate / warmup, max(1, num_steps - warmup), warmup_target=rate, warmup_steps=warmup
        )
    return Muon(rate) if name == "muon" else keras.optimizers.Adam(rate)


def make_metrics() -> list:
    """Dice and IoU twice: soft and pooled, as in the lab report, and hard and per image, as the field reports."""
    import metrics

    hard = {"threshold": 0.5, "average": "image"}
    return [
        metrics.DiceCoefficient(),
        metrics.IoU(),
        metrics.DiceCoefficient(**hard, name="image_dice"),
        metrics.IoU(**hard, name="image_iou"),
    ]


def start_at_share(model, masks: Iterable, num: int = 16) -> None:
    """Let the output of a new network begin at the objects' share of the pixels, not at one half.

    Spares learning that (Lin et al. 2017); without it, small objects are found much later. The share is that of the
    first `num` batches of masks.
    """
    share = np.mean([batch.mean() for batch in itertools.islice(masks, num)]).clip(1e-3, 0.9)
    model.get_layer("mask").bias.assign([np.log(share / (1 - share))])


def fit(
    model,
    batches: Callable[[int], Iterator],
    *,
    epochs: int,
    steps: int,
    validation: tuple,
    checkpoint: "Checkpoint | None" = None,
    on_epoch_end: Callable[[dict, int, int], None] | None = None,
) -> dict[str, list]:
    """Fit a compiled model, from the epoch where `checkpoint` stands to the last; the weights of the last remain.

    Args:
        model: compiled.
        batches: epoch (from 0) -> the (images, masks) of its `steps` batches; the same epoch, the same batches.
        epochs: passes in all, those that the checkpoint holds included.
        steps: batches in an epoch.
        validation: (images, masks), scored after each epoch.
        checkpoint: where each epoch's state is kept, and the last one comes from.
        on_epoch_end: called with an epoch's logs, its number (from 1) and a time stamp in milliseconds; for epochs that
            the checkpoint holds too, with the time stamps of then.

    Returns:
        The history: for `epoch`, the loss, each metric and its `val_` twin a list with a value per epoch.
    """
    import keras

    model.optimizer.build(model.trainable_variables)  # now: inside the first step, TensorFlow would trace that twice
    history, timestamps = restore(model, backend.from_first_process(checkpoint.state if checkpoint else b""))
    report = on_epoch_end or (lambda logs, epoch, timestamp: None)

    class EpochEnd(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            timestamps.append(int(time.time() * 1000))
            for name, value in {"epoch": epoch + 1, **logs}.items():
                history.setdefault(name, []).append(value)
            if checkpoint and math.isfinite(logs["loss"]):
                checkpoint.save(model, history, timestamps)
            report(logs, epoch + 1, timestamps[-1])

    for i, epoch in enumerate(history["epoch"]):
        report({name: values[i] for name, values in history.items() if name != "epoch"}, epoch, timestamps[i])
    first = len(history["epoch"])
    if first == epochs:
        return history
    training, validation = feed(lambda: _all_batches(batches, first), validation)
    try:
        model.fit(
            training,
            initial_epoch=first,
            epochs=epochs,
            steps_per_epoch=steps,
            validation_data=validation,
            validation_batch_size=backend.local_batch(PREDICT_BATCH),
            callbacks=[keras.callbacks.TerminateOnNaN(), EpochEnd()],
            shuffle=False,  # the batches come as they should
            verbose=1 if sys.stdout.isatty() else 2,  # a progress bar in a pipe is a mess of backspaces
        )
    except BaseException as error:
        lost = backend.lost_process(error)
        if checkpoint and checkpoint.files():
            kept = f"{len(history['epoch'])} of {epochs} epochs are kept in {checkpoint.folder}: --resume."
            (lost or error).add_note(kept)
        if lost:
            raise lost from error
        raise
    return history


def _all_batches(batches: Callable[[int], Iterator], first: int) -> Iterator:
    """The batches of one epoch after the other, without end."""
    return itertools.chain.from_iterable(batches(epoch) for epoch in itertools.count(first))


def feed(batches: Callable[[], Iterator], validation: tuple):
    """What `fit` reads: on TensorFlow two tf.data pipelines without autotuning, else the arguments as they are.

    The thread that autotunes a pipeline sleeps for ever longer spells, and `fit` waits for it after the last step:
    seen to take 7 s on top of 13 s. Where several processes share a batch, each makes all of it and keeps its rows.

    On TensorFlow no batch to validate on is smaller than `library_limits.LEAST_IMAGES`. Where the last one would be,
    all hold a few images more. One picture alone is scored together with its copy: means over images stay, and so do
    ratios of sums, but for their constant `smooth`.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return (backend.own_rows(batch) for batch in batches()), backend.own_rows(validation)
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    open_shapes = [(None,) * (array.ndim - 1) + array.shape[-1:] for array in validation]
    specs = tuple(tf.TensorSpec(shape, tf.float32) for shape in open_shapes)
    training = tf.data.Dataset.from_generator(batches, output_signature=specs).prefetch(2)
    validation = tuple(library_limits.fill_batch(array) for array in validation)
    validation = tf.data.Dataset.from_tensor_slices(validation).batch(validation_batch(validation[0]))
    return training.with_options(options), validation.with_options(options)


def validation_batch(images) -> int:
    """Images at a time: PREDICT_BATCH, or the next number whose last batch is not below the least of one call."""
    num, least = len(images), library_limits.LEAST_IMAGES[images.ndim - 2]
    return next(batch for batch in itertools.count(PREDICT_BATCH) if num % batch == 0 or num % batch >= least)


def predict(model, images) -> np.ndarray:
    """Probabilities for images (N, ..., C), in batches: (N, ..., 1), float32."""
    batches = (images[start : start + PREDICT_BATCH] for start in range(0, len(images), PREDICT_BATCH))
    return np.concatenate([library_limits.predict_batch(model, batch) for batch in batches])


def detach(model):
    """The trained network without optimizer and loss, as a new one on this process's own device.

    Saved, it needs nothing of ours: it loads in any Keras 3 program.
    """
    weights = model.get_weights()
    backend.leave()
    network = type(model).from_config(model.get_config())
    network.set_weights(weights)
    return network


class Checkpoint:
    """The state of a training after each epoch, in `folder`: enough to go on to the same weights, to the bit.

    A file holds the variables of model and optimizer (its step counter, and with it the schedule, is among them), the
    history, and whatever the caller keeps in `notes`, such as the MLflow run. It is a zip archive, which has a checksum
    of each member, written aside, flushed and moved; the newest two are kept. What decides the batches is the epoch.

    Args:
        folder: of the run's output.
        settings: what the training depends on; a checkpoint of other settings is refused.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder
        self.settings = {name: str(value) for name, value in settings.items()}
        self.notes: dict = {}
        self.state = b""  # of the file to go on from; nothing: from the beginning
        self._warned = False

    def files(self) -> list[Path]:
        """The checkpoints in the folder, the newest first."""
        return sorted(self.folder.glob("checkpoint-*.npz"), reverse=True)

    def begin(self, resume: bool, overwrite: bool, scores: Path) -> dict | None:
        """Decide how a run begins where another may have been stopped; return the results of a finished one.

        Args:
            resume: go on with the run that lies in the folder.
            overwrite: delete its checkpoints.
            scores: the file of a finished run's results, which hold its `settings`.

        Raises:
            ValueError: if there is a checkpoint and the user has said neither, if the settings differ, or if the run
                has ended without scores, or with a loss that is no number.
        """
        if self.files() and not resume and not overwrite:
            raise ValueError(
                f"{self.folder} holds the checkpoint of a run that was stopped: go on with it by --resume, or begin "
                "anew by --overwrite."
            )
        if not resume:
            self.delete()
            return None
        if not self.files() and scores.exists():
            finished = json.loads(scores.read_text())
            self._check_settings(scores, finished["settings"])
            if "test" not in finished or finished.get("last_epoch", {}).get("loss", 0) is None:
                reason = finished.get("failure") or "its test scores are missing."
                raise ValueError(f"The run in {self.folder} has ended: {reason} Run it anew, without --resume.")
            print(f"The run in {self.folder} is finished: see {scores}.")
            return finished
        epoch = self.find()
        print(f"Going on after epoch {epoch}." if epoch else f"{self.folder} holds no checkpoint: the run begins anew.")
        return None

    def find(self) -> int:
        """Read the newest sound checkpoint into `state`; return its epoch, 0 if there is none.

        Raises:
            ValueError: if it was made with other settings: those that differ are named.
        """
        for file, state, about in _sound(self.files()):
            self._check_settings(file, about["settings"])
            self.state, self.notes = state, about["notes"]
            return about["history"]["epoch"][-1]
        return 0

    def _check_settings(self, file: Path, former: dict) -> None:
        names = [name for name in {**former, **self.settings} if former.get(name) != self.settings.get(name)]
        if names:
            changes = ", ".join(f"{name} was {former.get(name)}, is {self.settings.get(name)}" for name in names)
            raise ValueError(
                f"{file} was made with other settings: {changes}. Give those of then to go on, or --overwrite to begin "
                "anew."
            )

    def save(self, model, history: dict, timestamps: list[int]) -> None:
        """Write the state after an epoch; what goes wrong is said once, and the training goes on."""
        about = {"settings": self.settings, "notes": self.notes, "history": history, "timestamps": timestamps}
        arrays = {name: np.asarray(variable) for name, variable in _variables(model).items()}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        try:
            self._write(self.folder / f"checkpoint-{history['epoch'][-1]:06}.npz", arrays)
            for old in self.files()[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            if not self._warned:
                print(f"warning: no checkpoint could be written ({error}); the training goes on.", file=sys.stderr)
            self._warned = True

    def _write(self, file: Path, arrays: dict) -> None:
        aside = file.with_name(f".partial-{os.getpid()}-{file.name}")
        try:
            with open(aside, "wb") as stream:
                np.savez(stream, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, file)
        finally:
            aside.unlink(missing_ok=True)

    def delete(self) -> None:
        """Delete all checkpoints: the results stand, or a new run begins."""
        for file in self.files():
            file.unlink(missing_ok=True)


def settings_of_then(folder: Path) -> dict:
    """The settings of the run that lies in a folder, stopped or finished: nothing if there is none."""
    for _, _, about in _sound(Checkpoint(folder, {}).files()):
        return about["settings"]
    scores = folder / "scores.json"
    return json.loads(scores.read_text())["settings"] if scores.exists() else {}


def restore(model, state: bytes) -> tuple[dict, list[int]]:
    """Give a compiled model and its built optimizer a checkpoint's state; return history and time stamps."""
    if not state:
        return {"epoch": []}, []
    about, arrays = _unpack(state)
    for name, variable in _variables(model).items():
        variable.assign(arrays[name])
    return about["history"], about["timestamps"]


def _sound(files: list[Path]) -> Iterator[tuple[Path, bytes, dict]]:
    """Of some checkpoints those that are whole: the file, its content, what it says of itself."""
    for file in files:
        try:
            state = file.read_bytes()
            about, _ = _unpack(state)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"warning: {file} is damaged ({error}); the one before it is taken.", file=sys.stderr)
            continue
        yield file, state, about


def _unpack(state: bytes) -> tuple[dict, dict]:
    """What a checkpoint says of itself, and its arrays."""
    with np.load(io.BytesIO(state), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("about").tobytes()), arrays


def _variables(model) -> dict:
    """The variables of model and optimizer, by names that do not depend on the process."""
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {f"{group}_{i}": variable for group, found in groups.items() for i, variable in enumerate(found)}
