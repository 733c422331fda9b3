"""Losses by name, optimizer and schedule, and the fit itself."""

import argparse
import math

import numpy as np

PREDICT_BATCH = 16  # images at a time where nothing is trained


def choose_loss(name: str):
    """The loss of a name: one value per image, except for the report's, which pools the batch."""
    import keras

    import metrics

    dice, bce = metrics.DiceLoss(), keras.losses.BinaryCrossentropy()
    per_image = (1, 2, 3)

    def dice_and_bce(masks, probs):
        return metrics.dice_loss(masks, probs, dice.smooth, per_image) + keras.ops.mean(
            keras.losses.binary_crossentropy(masks, probs), axis=(1, 2)
        )

    return {"dice": dice, "bce": bce, "dice+bce": dice_and_bce, "pooled-dice": metrics.dice_loss}[name]


def choose_optimizer(args: argparse.Namespace):
    """The optimizer with its learning rate, constant or a cosine with warm-up over the whole training."""
    import keras

    from lab.muon import Muon

    rate = args.learning_rate
    steps = args.epochs * math.ceil(args.train_images / args.batch_size)
    if args.schedule == "cosine":
        warmup = max(1, steps // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            rate / warmup, max(1, steps - warmup), warmup_target=rate, warmup_steps=warmup
        )
    return Muon(rate) if args.optimizer == "muon" else keras.optimizers.Adam(rate)


def feed(batches, side: int, validation: tuple):
    """What `fit` reads: on TensorFlow two tf.data pipelines without autotuning, else the arguments as they are.

    `batches` gives training images of side `side`.

    The thread that autotunes a pipeline sleeps for ever longer spells, and `fit` waits for it after the last step:
    seen to take 7 s on top of 13 s.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return batches(), validation
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    images, masks = (tf.TensorSpec((None, side, side, array.shape[-1]), tf.float32) for array in validation)
    training = tf.data.Dataset.from_generator(batches, output_signature=(images, masks)).prefetch(2)
    validation = tf.data.Dataset.from_tensor_slices(validation).batch(PREDICT_BATCH)
    return training.with_options(options), validation.with_options(options)


def predict(model, images) -> np.ndarray:
    """Probabilities for images (N, H, W, C), in batches: (N, H, W, 1), float32."""
    starts = range(0, len(images), PREDICT_BATCH)
    return np.concatenate([model.predict_on_batch(images[start : start + PREDICT_BATCH]) for start in starts])
