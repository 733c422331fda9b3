"""Losses by name, optimizer and schedule, and the training itself, which goes on from its checkpoints.

    model.compile(choose_optimizer("muon", 4e-3, "cosine", steps), choose_loss("dice+ce"), metrics=make_metrics())
    history = fit(model, batches, epochs=15, steps=32, validation=(images, masks), checkpoint=checkpoint)

Images and volumes alike: masks and probabilities are (N, ..., 1), or of K classes (N, ..., K + 1).
"""

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from lab.model import checkpoints, timing
from lab.system import library_limits, processes

PREDICT_BATCH = 16  # images at a time in validation and test
SHARED = 16  # batches from which the shares of the classes are taken
STEPS = 3  # to time before a training: the first one compiles the network
ENOUGH, MOST = 1.0, 20  # fast steps are timed for ENOUGH seconds, at most MOST of them: a single one is too short


def choose_loss(name: str, smooth: float | None = None, class_weights: Sequence[float] | None = None):
    """The loss of a name: one value per image, except for "pooled-dice", the lab report's, which pools the batch.

    In "dice+ce" the Dice loss is the mean over the classes that an image holds. `smooth` is the constant of the Dice
    losses; None means 1 per image and 1e-6 pooled. `class_weights` of background and classes weight the pixels in
    cross-entropy.
    """
    from keras import ops

    import metrics

    given = {} if smooth is None else {"smooth": smooth}
    dice, dice_of_present = metrics.DiceLoss(**given), metrics.DiceLoss(**given, absent=False)

    def pooled_dice(masks, probs):
        if masks.shape[-1] == 1:
            return metrics.dice_loss(masks, probs, **given)
        labelled = ops.sum(masks, axis=-1, keepdims=True)
        axes = tuple(range(len(masks.shape) - 1))
        return ops.mean(metrics.dice_loss(masks[..., 1:], (probs * labelled)[..., 1:], axis=axes, **given))

    def ce(masks, probs):
        return cross_entropy(masks, probs, class_weights)

    def dice_and_ce(masks, probs):
        axes = tuple(range(1, len(masks.shape)))
        return dice_of_present.call(masks, probs) + ops.mean(ce(masks, probs), axis=axes[:-1])

    return {"dice": dice, "ce": ce, "dice+ce": dice_and_ce, "pooled-dice": pooled_dice}[name]


def cross_entropy(masks, probs, class_weights: Sequence[float] | None = None):
    """Cross-entropy of each pixel, (N, ...): binary of one class, categorical of several.

        -log p(true class), times its weight

    It is scaled: its mean over an image is the (weighted) mean over the labelled pixels; it is 0 for the others.
    """
    import keras
    from keras import ops

    if masks.shape[-1] == 1:
        labelled = ops.cast(masks[..., 0] >= 0, "float32")
        entropy = keras.losses.binary_crossentropy(ops.maximum(masks, 0.0), probs)
    else:
        labelled = ops.sum(masks * ops.convert_to_tensor(class_weights or [1.0] * masks.shape[-1], "float32"), axis=-1)
        entropy = keras.losses.categorical_crossentropy(masks, probs)
    share = ops.mean(labelled, axis=tuple(range(1, len(labelled.shape))), keepdims=True)
    return ops.where(labelled > 0, entropy, 0.0) * (labelled / ops.maximum(share, 1e-9))


def choose_optimizer(name: str, learning_rate: float, schedule: str, num_steps: int):
    """The optimizer with its learning rate: constant, or a cosine with warm-up over the whole training."""
    import keras

    from lab.model.muon import Muon

    rate = learning_rate
    if schedule == "cosine":
        warmup = max(1, num_steps // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            rate / warmup, max(1, num_steps - warmup), warmup_target=rate, warmup_steps=warmup
        )
    return Muon(rate) if name == "muon" else keras.optimizers.Adam(rate)


def make_metrics(class_names: Sequence[str] = ("object",)) -> list:
    """Dice and IoU twice: soft and pooled, as in the lab report, and hard and per image, as the field reports.

    Of several classes the last two come for each class too, as `image_dice/NAME`.
    """
    import metrics

    hard = {"threshold": 0.5, "average": "image", "class_names": class_names if len(class_names) > 1 else None}
    return [
        metrics.DiceCoefficient(),
        metrics.IoU(),
        metrics.DiceCoefficient(**hard, name="image_dice"),
        metrics.IoU(**hard, name="image_iou"),
    ]


def class_shares(masks: Iterable) -> np.ndarray:
    """The share of the labelled pixels that each class has, the background's first, in the first SHARED batches."""
    batches = list(itertools.islice(masks, SHARED))
    if batches[0].shape[-1] == 1:
        share = np.mean([batch.mean(where=batch >= 0) for batch in batches])
        return np.array([1 - share, share])
    totals = np.sum([batch.sum(axis=tuple(range(batch.ndim - 1)), dtype=float) for batch in batches], axis=0)
    return totals / totals.sum()


def start_at_share(model, masks: Iterable) -> None:
    """Let a new network's probabilities begin at the classes' shares of the pixels in batches of masks.

    It need not learn the shares then (Lin et al. 2017); otherwise small objects are found much later.
    """
    shares = class_shares(masks)
    if len(shares) == 2:
        share = shares[1].clip(1e-3, 0.9)
        model.get_layer("mask").bias.assign([np.log(share / (1 - share))])
    else:
        model.get_layer("mask").bias.assign(np.log(shares.clip(1e-4, 1)))


def fit(
    model,
    batches: Callable[[int], Iterator],
    *,
    epochs: int,
    steps: int,
    validation: tuple,
    checkpoint: checkpoints.Checkpoint | None = None,
    on_epoch_end: Callable[[dict, int, int], None] | None = None,
) -> dict[str, list]:
    """Train a compiled model, from the epoch of `checkpoint` to the last one; it keeps the weights of the last.

    Args:
        batches: epoch (from 0) -> the (images, masks) of its `steps` batches; the same epoch, the same batches.
        epochs: passes in all, those that the checkpoint holds included.
        validation: (images, masks), scored after each epoch.
        checkpoint: each epoch's state is written to it; its state is where the training begins.
        on_epoch_end: called with an epoch's logs, its number (from 1) and a time stamp in milliseconds; also for epochs
            that the checkpoint holds, with their former time stamps.

    Returns:
        The history: lists with a value per epoch, of `epoch`, the loss, each metric, and with `val_` of the validation.
    """
    import keras

    model.optimizer.build(model.trainable_variables)  # now: in the first step, TensorFlow would trace it twice
    state = processes.from_first_process(checkpoint.state if checkpoint else b"")
    history, timestamps = checkpoints.restore(model, state)
    report = on_epoch_end or (lambda logs, epoch, timestamp: None)

    class EachEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            done, seconds = epoch - first, time.perf_counter() - started
            if done and seconds / done * (epochs - first) > timing.LONG:
                left = timing.about(seconds / done * (epochs - epoch), " left")
                print(f"epoch {epoch} of {epochs}: {left}", flush=True)

        def on_epoch_end(self, epoch, logs=None):
            timestamps.append(int(time.time() * 1000))
            for name, value in {"epoch": epoch + 1, **logs}.items():
                history.setdefault(name, []).append(value)
            if checkpoint and math.isfinite(logs["loss"]):
                checkpoint.save(model, history, timestamps)
            report(logs, epoch + 1, timestamps[-1])

    class Progress(keras.callbacks.ProgbarLogger):
        """Keras's line of an epoch without the scores of each class: with ten classes it would have 50 numbers."""

        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, without_classes(logs))

        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, without_classes(logs))

    def without_classes(logs):
        return {name: value for name, value in (logs or {}).items() if "/" not in name}

    for i, epoch in enumerate(history["epoch"]):
        report({name: values[i] for name, values in history.items() if name != "epoch"}, epoch, timestamps[i])
    first = len(history["epoch"])
    if first == epochs:
        return history
    try:
        pace = measure(model, batches, validation, first)
        print(timing.describe_training(epochs - first, steps, pace), flush=True)
        started = time.perf_counter()
        training, validation = feed(lambda: _all_batches(batches, first), validation)
        model.fit(
            training,
            initial_epoch=first,
            epochs=epochs,
            steps_per_epoch=steps,
            validation_data=validation,
            validation_batch_size=processes.local_batch(PREDICT_BATCH),
            callbacks=[keras.callbacks.TerminateOnNaN(), EachEpoch(), Progress()],
            shuffle=False,  # the batches are in their order
            verbose=1 if sys.stdout.isatty() else 2,  # no progress bar in a pipe: it would be full of backspaces
        )
    except BaseException as error:
        lost = processes.lost_process(error)
        if checkpoint and checkpoint.files():
            note = f"{len(history['epoch'])} of {epochs} epochs are kept in {checkpoint.folder}: --resume."
            (lost or error).add_note(note)
        if lost:
            raise lost from error
        raise
    return history


def measure(model, batches: Callable[[int], Iterator], validation: tuple, first: int = 0) -> timing.Pace:
    """Time some steps of a compiled model, from the epoch `first` on, and a batch of the validation.

    Keras keeps what it compiles for them: the training does not compile again. The model, its optimizer, its metrics
    and the batches stay as they were.
    """
    import keras

    model.optimizer.build(model.trainable_variables)
    made: list[float] = []  # seconds that each batch took to make
    ends: list[float] = []  # of steps
    training, scored = feed(lambda: timing.timed(_all_batches(batches, first), made), validation)
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))
    size = processes.local_batch(PREDICT_BATCH)
    if isinstance(scored, tuple):
        num = math.ceil(len(scored[0]) / size)
    else:  # on TensorFlow a data set
        scored, num = [scored], len(scored)

    def train(steps):
        ends.clear()
        model.fit(training, steps_per_epoch=steps, callbacks=[watch], shuffle=False, verbose=0)
        # The median: JAX compiles the network again for a shorter last batch.
        return statistics.median_low([after - before for before, after in itertools.pairwise(ends)])

    def score():
        model.evaluate(*scored, batch_size=size, steps=1, verbose=0)
        return time.perf_counter()

    started = time.perf_counter()
    with timing.untouched(model):
        step = train(STEPS)
        if step < ENOUGH / STEPS and not processes.several_processes():  # these must all do the same steps
            step = train(min(MOST, 1 + round(ENOUGH / step)))
        compiled = score()
        seconds = score() - compiled
    # TensorFlow makes the next batches during a step, so the slower of the two sets the pace.
    return timing.Pace(max(step, statistics.median_low(made)), num * seconds, time.perf_counter() - started)


def _all_batches(batches: Callable[[int], Iterator], first: int) -> Iterator:
    """The batches of all epochs from `first` on, without end."""
    return itertools.chain.from_iterable(batches(epoch) for epoch in itertools.count(first))


def feed(batches: Callable[[], Iterator], validation: tuple):
    """The data for Keras's `fit`: on TensorFlow two tf.data pipelines, else the arguments.

    If several processes share a batch, each makes all of it and keeps its rows. On TensorFlow no validation batch is
    smaller than `library_limits.LEAST_IMAGES`: if the last one would be, all batches hold a few images more. A single
    picture is scored together with a copy of it: means over images stay the same, and so do ratios of sums, except for
    their constant `smooth`.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return (processes.own_rows(batch) for batch in batches()), processes.own_rows(validation)
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False  # its thread sleeps longer and longer, and `fit` waits for it: 20 s, not 13
    open_shapes = [(None,) * (array.ndim - 1) + array.shape[-1:] for array in validation]
    specs = tuple(tf.TensorSpec(shape, tf.float32) for shape in open_shapes)
    training = tf.data.Dataset.from_generator(batches, output_signature=specs).prefetch(2)
    validation = tuple(library_limits.fill_batch(array) for array in validation)
    num, least = len(validation[0]), library_limits.LEAST_IMAGES[validation[0].ndim - 2]
    size = next(size for size in itertools.count(PREDICT_BATCH) if num % size == 0 or num % size >= least)
    validation = tf.data.Dataset.from_tensor_slices(validation).batch(size)
    return training.with_options(options), validation.with_options(options)


def predict(model, images) -> np.ndarray:
    """Probabilities for images (N, ..., C), in batches: (N, ..., 1) or (N, ..., K + 1), float32."""
    batches = (images[start : start + PREDICT_BATCH] for start in range(0, len(images), PREDICT_BATCH))
    return np.concatenate([library_limits.predict_batch(model, batch) for batch in batches])


def detach(model):
    """A copy of the trained network without optimizer and loss, on this process's own device.

    Its file needs no code of the lab: it loads in any Keras 3 program.
    """
    weights = model.get_weights()
    processes.leave()
    network = type(model).from_config(model.get_config())
    network.set_weights(weights)
    return network
