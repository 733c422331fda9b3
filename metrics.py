"""Dice, IoU and Dice loss for binary masks: the only place where they are defined.

    import metrics
    model.compile(loss=metrics.DiceLoss(), metrics=[metrics.DiceCoefficient(), metrics.IoU(threshold=0.5)])

With A the true mask, B the prediction, |.| the sum over pixels and A.B the elementwise product:

    Dice D = 2 |A.B| / (|A| + |B|)           Dice 1945, Sorensen 1948
    IoU  J = |A.B| / (|A| + |B| - |A.B|)     Jaccard 1912
    D = 2J / (1 + J),  J = D / (2 - D),  J <= D

A constant `smooth` in numerator and denominator decides the empty masks: both empty scores 1, one
empty scores 0 (up to `smooth`). "Soft" scores take B as probabilities, "hard" ones as B >= threshold.
"Pooled" (average="global") sums over all pixels of all images before it divides, so that large objects
weigh more; "per image" (average="image") is the mean of the images' own scores. One name each, because
the same predictions get different numbers. Everything is written in `keras.ops`, so that it runs on
every Keras backend. Importing this module registers the classes: after `import metrics`, a compiled
model that uses them loads without `custom_objects`.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

WHOLE = 256.0  # sums are kept as so many of these, and a rest

_ARGS = """
    Args:
        y_true: masks of any shape, such as (N, H, W, 1) or (N, D, H, W, 1), exactly 0 or 1.
        y_pred: probabilities in [0, 1] or masks, of the same shape.
        smooth: >= 0, added to numerator and denominator; decides the score of empty masks.
        axis: axes to sum over. `None` pools everything into one scalar; (1, 2, 3) gives one value per
            image, (1, 2, 3, 4) one per volume, as in `keras.losses.dice`.

    Returns:
        A float32 tensor in [0, 1]: a scalar for `axis=None`, else of the shape that is left.

    Raises:
        ValueError: if the shapes differ, or if NumPy input holds values out of range (a mask of 0 and
            255, logits, NaN). Tensors are not read for that: it would stall an accelerator.
    """


def dice_coeff(y_true, y_pred, smooth: float = 1e-6, axis=None):
    """Dice coefficient, (2 |A.B| + smooth) / (|A| + |B| + smooth). (Dice 1945)

    Example: A = [1, 1, 0, 0], B = [1, 0, 0, 0] gives 2 * 1 / (2 + 1) = 2/3.
    """
    return dice_of_sums(*_sums(y_true, y_pred, axis), _check_smooth(smooth))


def iou_metric(y_true, y_pred, smooth: float = 1e-6, axis=None):
    """Intersection over union, (|A.B| + smooth) / (|A| + |B| - |A.B| + smooth). (Jaccard 1912)

    Example: A = [1, 1, 0, 0], B = [1, 0, 0, 0] gives 1 / (2 + 1 - 1) = 1/2.
    """
    return _iou(*_sums(y_true, y_pred, axis), _check_smooth(smooth))


def dice_loss(y_true, y_pred, smooth: float = 1e-6, axis=None):
    """Dice loss, 1 - dice_coeff. (Milletari et al. 2016, there with squares in the denominator)

    Example: A = [1, 1, 0, 0], B = [0.5, 0.5, 0, 0] gives 1 - 2 * 1 / (2 + 1) = 1/3.
    """
    return 1.0 - dice_coeff(y_true, y_pred, smooth=smooth, axis=axis)


for _function in (dice_coeff, iou_metric, dice_loss):
    _function.__doc__ += _ARGS


def dice_of_sums(intersection, true, pred, smooth: float = 1e-6):
    """Dice of |A.B|, |A| and |B| that are counted already, (2 |A.B| + smooth) / (|A| + |B| + smooth), in their shape.

    Example: 1, 2 and 1 give 2 * 1 / (2 + 1) = 2/3.
    """
    return _ratio(2.0 * intersection + smooth, true + pred + smooth)


class _OverlapMetric(keras.metrics.Metric):
    """The common part of `DiceCoefficient` and `IoU`: sums over a data set that do not depend on its batches."""

    def __init__(self, threshold, average, smooth, name, dtype):
        super().__init__(name=name, dtype=dtype)
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold must be None (soft score) or in (0, 1], such as 0.5; got {threshold!r}.")
        if average not in ("global", "image"):
            raise ValueError(f"average must be 'global' (pooled) or 'image' (mean over images); got {average!r}.")
        self.threshold, self.average, self.smooth = threshold, average, _check_smooth(smooth)
        num = 3 if average == "global" else 2  # |A.B|, |A|, |B|; or the sum of the scores and the number of images
        # float32 has no number between 2^24 and 2^24 + 2. A total is WHOLE * wholes + rest: exact up to 2^39 pixels.
        self._wholes = self.add_variable((num,), "zeros", dtype="int32", name="wholes")
        self._rest = self.add_variable((num,), "zeros", dtype="float32", name="rest")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch of masks and predictions, both (N, ..., 1)."""
        if sample_weight is not None:
            raise ValueError(f"{self.name} takes no sample_weight; weight the loss instead.")
        axis = None if self.average == "global" else _image_axes(y_pred)
        wholes, rest = _exact_sums(y_true, y_pred, axis, self.threshold)
        if self.average == "image":
            scores = self._score(*_joined(wholes, rest), self.smooth)
            rest = ops.stack([ops.sum(scores), ops.cast(ops.size(scores), "float32")])
            wholes = ops.zeros_like(rest)
        wholes, rest = _carried(wholes, self._rest + rest)
        self._wholes.assign_add(ops.cast(wholes, "int32"))
        self._rest.assign(rest)

    def result(self):
        """The score of everything added since the last reset, a float32 scalar; 1 if nothing was."""
        totals = _joined(ops.cast(self._wholes, "float32"), ops.convert_to_tensor(self._rest))
        return _ratio(*totals) if self.average == "image" else self._score(*totals, self.smooth)

    def get_config(self):
        own = {"threshold": self.threshold, "average": self.average, "smooth": self.smooth}
        return {**super().get_config(), **own}


_METRIC_ARGS = """
    Args:
        threshold: `None` for the soft score on probabilities; t in (0, 1] for the hard score on y_pred >= t.
        average: "global" pools the pixels of the whole data set; "image" is the mean of its images' scores.
        smooth: >= 0, decides the score of empty masks.
        name: the name in logs and histories.

    Raises:
        ValueError: for settings out of range, unequal shapes, a rank below 2 per image, or sample weights.
    """


@keras.saving.register_keras_serializable(package="segmentation_lab")
class DiceCoefficient(_OverlapMetric):
    """Dice coefficient over a data set, 2 |A.B| / (|A| + |B|), exact whatever the size of batches and data set.

    Example: A = [[1, 1, 0, 0]], B = [[1, 0, 0, 0]] gives 2/3.
    """

    _score = staticmethod(lambda *sums: dice_of_sums(*sums))

    def __init__(self, threshold=None, average="global", smooth=1e-6, name="dice_coeff", dtype=None):
        super().__init__(threshold, average, smooth, name, dtype)


@keras.saving.register_keras_serializable(package="segmentation_lab")
class IoU(_OverlapMetric):
    """Intersection over union over a data set, |A.B| / (|A| + |B| - |A.B|), exact whatever the size of batches and set.

    Example: A = [[1, 1, 0, 0]], B = [[1, 0, 0, 0]] gives 1/2.
    """

    _score = staticmethod(lambda *sums: _iou(*sums))

    def __init__(self, threshold=None, average="global", smooth=1e-6, name="iou_metric", dtype=None):
        super().__init__(threshold, average, smooth, name, dtype)


for _class in (DiceCoefficient, IoU):
    _class.__doc__ += _METRIC_ARGS


@keras.saving.register_keras_serializable(package="segmentation_lab")
class DiceLoss(keras.losses.Loss):
    """Dice loss, one value per image: 1 - (2 |A.B| + smooth) / (|A| + |B| + smooth).

    Per image, not pooled over the batch: every image weighs the same, however small its object, and a
    distribution strategy scales the values rightly.

    Args:
        smooth: > 0. On an empty mask the gradient with respect to a pixel is smooth / (|B| + smooth)^2,
            nothing at 1e-6: the default of 1 keeps one that clears the last false positives. The minimum stays
            at B = A whatever the value.
        reduction: "sum_over_batch_size" (mean over images), "sum" or "none", as in every Keras loss.

    Raises:
        ValueError: if the shapes differ or the rank is below 2.

    Example: A = [[1, 1, 0, 0]], B = [[0.5, 0.5, 0, 0]], smooth = 1e-6 gives 1/3.
    """

    def __init__(self, smooth=1.0, reduction="sum_over_batch_size", name="dice_loss", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.smooth = _check_smooth(smooth)

    def __call__(self, y_true, y_pred, sample_weight=None):
        _check(y_true, y_pred)  # before Keras squeezes or expands one of them to the other's rank
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        return dice_loss(y_true, y_pred, self.smooth, _image_axes(y_pred))

    def get_config(self):
        return {**super().get_config(), "smooth": self.smooth}


def _sums(y_true, y_pred, axis=None) -> tuple[Any, Any, Any]:
    """|A.B|, |A| and |B| over `axis`, in float32 whatever comes in."""
    return _joined(*_exact_sums(y_true, y_pred, axis))


def _exact_sums(y_true, y_pred, axis=None, threshold=None):
    """|A.B|, |A| and |B| over `axis`, stacked, as (wholes, rest): each is WHOLE * wholes + rest.

    Exact for masks of up to 2^32 pixels with sides up to 2^16, because no float32 ever holds more than 2^24. Summed
    from the last axis to the first, with a carry after each: all but the first sums are over small arrays.
    """
    _check(y_true, y_pred)
    # A cast, not convert_to_tensor(dtype=...), which TensorFlow refuses for a tensor of another type.
    y_true, y_pred = (ops.cast(ops.convert_to_tensor(y), "float32") for y in (y_true, y_pred))
    if threshold is not None:
        y_pred = ops.cast(y_pred >= threshold, "float32")
    ndim = len(y_pred.shape)
    axes = range(ndim) if axis is None else np.atleast_1d(axis)
    first, *axes = sorted((int(a) % ndim for a in axes), reverse=True)
    if first - 1 in axes:  # width and channels at once
        first = (axes.pop(0), first)
    rest = ops.stack([ops.sum(y, axis=first) for y in (y_true * y_pred, y_true, y_pred)])  # (3, N, ...)
    wholes, rest = _carried(ops.zeros_like(rest), rest)
    for a in axes:
        wholes, rest = _carried(ops.sum(wholes, axis=a + 1), ops.sum(rest, axis=a + 1))
    return wholes, rest


def _carried(wholes, rest):
    """The same sum, with a rest in [0, WHOLE)."""
    more = ops.floor(rest / WHOLE)
    return wholes + more, rest - WHOLE * more


def _joined(wholes, rest):
    """The sums as one tensor each, rounded to float32."""
    return tuple(ops.unstack(WHOLE * wholes + rest))


def _iou(intersection, true, pred, smooth):
    return _ratio(intersection + smooth, true + pred - intersection + smooth)


def _ratio(numerator, denominator):
    """numerator / denominator, and 1 for 0 / 0: with smooth = 0, two empty masks still agree."""
    empty = denominator == 0
    return ops.where(empty, 1.0, numerator) / ops.where(empty, 1.0, denominator)


def _image_axes(y):
    """All axes but the first: what is summed over for one value per image."""
    ndim = len(ops.shape(y))
    if ndim < 2:
        raise ValueError(f"a batch of images has rank 2 or more, such as (N, H, W, 1); got rank {ndim}.")
    return tuple(range(1, ndim))


def _check_smooth(smooth):
    if not 0 <= smooth < float("inf"):
        raise ValueError(f"smooth must be finite and >= 0, such as 1e-6; got {smooth!r}.")
    return float(smooth)


def _check(y_true, y_pred):
    """Refuse unequal shapes, NumPy masks other than 0 and 1, and NumPy predictions that are no probabilities."""
    true, pred = (tuple(y.shape) if hasattr(y, "shape") else np.shape(y) for y in (y_true, y_pred))
    if len(true) != len(pred) or any(t != p for t, p in zip(true, pred, strict=True) if None not in (t, p)):
        raise ValueError(  # Keras would broadcast (B, H, W) against (B, H, W, 1) without a word.
            f"y_true and y_pred must have the same shape; got {true} and {pred}. "
            "Both are (N, H, W, 1) or (N, D, H, W, 1): add a missing channel axis with mask[..., None]."
        )
    for name, values in (("y_true", y_true), ("y_pred", y_pred)):
        if not isinstance(values, (np.ndarray, list, tuple)):
            continue
        values = np.asarray(values)
        if name == "y_true":
            good, wanted = (values == 0) | (values == 1), "exactly 0 or 1; divide a mask of 0 and 255 by 255"
        else:
            good, wanted = (values >= 0) & (values <= 1), "in [0, 1]; apply a sigmoid to logits, look for NaN"
        if not good.all():
            raise ValueError(f"{name} must be {wanted}. Found {values[~good].flat[0]} among its values.")
