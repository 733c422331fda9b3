"""Dice, IoU and Dice loss, for one class and for several: the only place where they are defined.

    import metrics
    model.compile(loss=metrics.DiceLoss(), metrics=[metrics.DiceCoefficient(), metrics.IoU(threshold=0.5)])

With A the true mask, B the prediction, |.| the sum over pixels and A.B the elementwise product:

    Dice D = 2 |A.B| / (|A| + |B|)           Dice 1945, Sorensen 1948
    IoU  J = |A.B| / (|A| + |B| - |A.B|)     Jaccard 1912
    D = 2J / (1 + J),  J = D / (2 - D),  J <= D

A constant `smooth` in numerator and denominator decides the score of empty masks: 1 if both are empty,
0 if one is (up to `smooth`). "Soft" scores take B as probabilities, "hard" ones as B >= threshold.
"Pooled" (average="global") sums over all pixels of all images before it divides, so that large objects
weigh more; "per image" (average="image") is the mean of the images' own scores. Each has its own name,
because the same predictions get different numbers.

One class has masks and probabilities of one channel; -1 in a mask marks a pixel that is not labelled. K > 1 classes
have K + 1 channels, (N, ..., K + 1), background first; a pixel whose channels are all 0 in the mask is not labelled.
For several classes the metrics and the loss
- sum over the sides of an image, not over its channels, and leave the background out;
- predict the class of the highest probability (the first of equal ones) where the score is hard, at any threshold;
- count a pair of image and class if the class is there or predicted, by at least one pixel: a class that is absent
  and not predicted would score 1, and hide a bad score of a rare class;
- give a class the mean over the images that count, and the set the mean over the classes that counted.
What is not labelled changes no score, no loss and no gradient. (torchmetrics and MONAI differ: MONAI's DiceMetric
leaves out a class that is absent but predicted, so that a false alarm costs nothing there; torchmetrics' DiceScore
counts the background too.)

Everything is written in `keras.ops`, so that it runs on every Keras backend. Importing this module registers the
classes: after `import metrics`, a compiled model that uses them loads without `custom_objects`.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

WHOLE = 256.0  # a sum is stored as a multiple of this, and a rest
MOST_CLASSES = 32  # beside the background

_ARGS = """
    Args:
        y_true: masks of any shape, such as (N, H, W, 1) or (N, D, H, W, 1), exactly 0 or 1; -1 is not labelled.
        y_pred: probabilities in [0, 1] or masks, of the same shape.
        smooth: >= 0, added to numerator and denominator; decides the score of empty masks.
        axis: axes to sum over. `None` pools everything into one scalar; (1, 2, 3) gives one value per
            image, (1, 2, 3, 4) one per volume, as in `keras.losses.dice`.

    Returns:
        A float32 tensor in [0, 1]: a scalar for `axis=None`, else of the shape that is left.

    Raises:
        ValueError: if the shapes differ, or if NumPy input holds values out of range (a mask of 0 and
            255, logits, NaN). The values of tensors are not checked: that would stall an accelerator.
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

    def __init__(self, threshold, average, smooth, name, dtype, class_names):
        super().__init__(name=name, dtype=dtype)
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold must be None (soft score) or in (0, 1], such as 0.5; got {threshold!r}.")
        if average not in ("global", "image"):
            raise ValueError(f"average must be 'global' (pooled) or 'image' (mean over images); got {average!r}.")
        self.threshold, self.average, self.smooth = threshold, average, _check_smooth(smooth)
        self.class_names = None if class_names is None else list(class_names)
        # Rows, for each class: |A.B|, |A|, |B|; or the sum of the scores. The last row counts the images.
        # float32 has no number between 2^24 and 2^24 + 2. A total is WHOLE * wholes + rest: exact up to 2^39 pixels.
        shape = (4 if average == "global" else 2, MOST_CLASSES)
        self._wholes = self.add_variable(shape, "zeros", dtype="int32", name="wholes")
        self._rest = self.add_variable(shape, "zeros", dtype="float32", name="rest")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch of masks and predictions, both (N, ..., 1), or (N, ..., K + 1) of K classes."""
        if sample_weight is not None:
            raise ValueError(f"{self.name} takes no sample_weight; weight the loss instead.")
        per_image = self.average == "image"
        (wholes, rest), counts = _class_sums(y_true, y_pred, self.threshold, per_image)
        if per_image:
            rest = ops.sum(self._score(*_joined(wholes, rest), self.smooth) * counts, axis=0)[None]
            wholes, counts = ops.zeros_like(rest), ops.sum(counts, axis=0)
        zeros = ((0, 0), (0, MOST_CLASSES - rest.shape[-1]))
        rest = ops.pad(ops.concatenate([rest, counts[None]]), zeros)
        wholes = ops.pad(wholes, ((0, 1), zeros[1]))
        wholes, rest = _carried(wholes, self._rest + rest)
        self._wholes.assign_add(ops.cast(wholes, "int32"))
        self._rest.assign(rest)

    def result(self):
        """The score of everything added since the last reset, a float32 scalar; 1 if nothing was added.

        With `class_names` a dict: the metric's name -> this score, and NAME/CLASS -> the score of each class.
        """
        scores, counts = self._of_classes()
        counted = ops.cast(counts > 0, "float32")
        mean = _ratio(ops.sum(scores * counted), ops.sum(counted))
        if not self.class_names:
            return mean
        return {self.name: mean} | {f"{self.name}/{name}": scores[k] for k, name in enumerate(self.class_names)}

    def of_classes(self, num_classes: int = 1):
        """Two float32 tensors (num_classes,): the score of each class, 0 where no image counted, and how many did.

        With `average="global"` the second one only tells whether the class was there or predicted: it is above 0 then.
        """
        return tuple(values[:num_classes] for values in self._of_classes())

    def _of_classes(self):
        *sums, counts = _joined(ops.cast(self._wholes, "float32"), ops.convert_to_tensor(self._rest))
        if self.average == "image":
            return sums[0] / ops.maximum(counts, 1.0), counts
        return self._score(*sums, self.smooth) * ops.cast(counts > 0, "float32"), counts

    def get_config(self):
        settings = {"threshold": self.threshold, "average": self.average, "smooth": self.smooth}
        return {**super().get_config(), **settings, "class_names": self.class_names}


_METRIC_ARGS = """
    Args:
        threshold: `None` for the soft score on probabilities; t in (0, 1] for the hard score on y_pred >= t, of
            several classes on the class of the highest probability.
        average: "global" pools the pixels of the whole data set; "image" is the mean of its images' scores.
        smooth: >= 0, decides the score of empty masks.
        name: the name in logs and histories.
        class_names: names of several classes; logs and histories then hold the score of each too, as NAME/CLASS.

    Raises:
        ValueError: for settings out of range, unequal shapes, a rank below 2 per image, or sample weights.
    """


@keras.saving.register_keras_serializable(package="segmentation_lab")
class DiceCoefficient(_OverlapMetric):
    """Dice coefficient over a data set, 2 |A.B| / (|A| + |B|), exact for any size of batches and data set.

    Example: A = [[1, 1, 0, 0]], B = [[1, 0, 0, 0]] gives 2/3.
    """

    _score = staticmethod(lambda *sums: dice_of_sums(*sums))

    def __init__(self, threshold=None, average="global", smooth=1e-6, name="dice_coeff", dtype=None, class_names=None):
        super().__init__(threshold, average, smooth, name, dtype, class_names)


@keras.saving.register_keras_serializable(package="segmentation_lab")
class IoU(_OverlapMetric):
    """Intersection over union over a data set, |A.B| / (|A| + |B| - |A.B|), exact for any size of batches and set.

    Example: A = [[1, 1, 0, 0]], B = [[1, 0, 0, 0]] gives 1/2.
    """

    _score = staticmethod(lambda *sums: _iou(*sums))

    def __init__(self, threshold=None, average="global", smooth=1e-6, name="iou_metric", dtype=None, class_names=None):
        super().__init__(threshold, average, smooth, name, dtype, class_names)


for _class in (DiceCoefficient, IoU):
    _class.__doc__ += _METRIC_ARGS


@keras.saving.register_keras_serializable(package="segmentation_lab")
class DiceLoss(keras.losses.Loss):
    """Dice loss, one value per image: 1 - (2 |A.B| + smooth) / (|A| + |B| + smooth); of several classes the mean.

    Per image, not pooled over the batch: every image weighs the same, however small its object, and a
    distribution strategy scales the values rightly.

    Args:
        smooth: > 0. On an empty mask the gradient with respect to a pixel is smooth / (|B| + smooth)^2,
            almost 0 at 1e-6: with the default of 1 it is large enough to clear the last false positives. The
            minimum is at B = A for every value.
        reduction: "sum_over_batch_size" (mean over images), "sum" or "none", as in every Keras loss.
        absent: whether each of several classes counts in images that do not hold it. There the loss only asks for no
            pixels: a small class may be unlearned in the many images without it. With False the mean is over the
            classes that are there, and 0 if none is; another loss, such as cross-entropy, must clear false positives.

    Raises:
        ValueError: if the shapes differ or the rank is below 2.

    Example: A = [[1, 1, 0, 0]], B = [[0.5, 0.5, 0, 0]], smooth = 1e-6 gives 1/3.
    """

    def __init__(self, smooth=1.0, reduction="sum_over_batch_size", name="dice_loss", dtype=None, absent=True):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.smooth, self.absent = _check_smooth(smooth), absent

    def __call__(self, y_true, y_pred, sample_weight=None):
        _check(y_true, y_pred)  # before Keras squeezes or expands one of them to the other's rank
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        if not _several_classes(y_pred):
            return dice_loss(y_true, y_pred, self.smooth, _image_axes(y_pred))
        true, pred, _ = _foreground(y_true, y_pred)
        axes = _image_axes(y_pred)[:-1]
        losses = dice_loss(true, pred, self.smooth, axes)
        if self.absent:
            return ops.mean(losses, axis=-1)
        there = ops.cast(ops.max(true, axis=axes) > 0, "float32")
        return ops.sum(losses * there, axis=-1) / ops.maximum(ops.sum(there, axis=-1), 1.0)

    def get_config(self):
        return {**super().get_config(), "smooth": self.smooth, "absent": self.absent}


def _sums(y_true, y_pred, axis=None) -> tuple[Any, Any, Any]:
    """|A.B|, |A| and |B| over `axis`, in float32 for input of any type."""
    return _joined(*_exact_sums(y_true, y_pred, axis))


def _exact_sums(y_true, y_pred, axis=None, threshold=None):
    """|A.B|, |A| and |B| over `axis`, stacked, as (wholes, rest): each is WHOLE * wholes + rest.

    Exact for masks of up to 2^32 pixels with sides up to 2^16, because no float32 ever holds more than 2^24. Summed
    from the last axis to the first, with a carry after each: all but the first sums are over small arrays.
    """
    _check(y_true, y_pred)
    # A cast, not convert_to_tensor(dtype=...), which TensorFlow refuses for a tensor of another type.
    y_true, y_pred = (ops.cast(ops.convert_to_tensor(y), "float32") for y in (y_true, y_pred))
    y_true, y_pred = ops.maximum(y_true, 0.0), ops.where(y_true < 0, 0.0, y_pred)  # -1: not labelled
    if threshold is not None:
        y_pred = ops.cast(y_pred >= threshold, "float32")
    ndim = len(y_pred.shape)
    axes = range(ndim) if axis is None else np.atleast_1d(axis)
    first, *axes = sorted((int(a) % ndim for a in axes), reverse=True)
    if first == ndim - 1 and first - 1 in axes:  # width and channels at once
        first = (axes.pop(0), first)
    rest = ops.stack([ops.sum(y, axis=first) for y in (y_true * y_pred, y_true, y_pred)])  # (3, N, ...)
    wholes, rest = _carried(ops.zeros_like(rest), rest)
    for a in axes:
        wholes, rest = _carried(ops.sum(wholes, axis=a + 1), ops.sum(rest, axis=a + 1))
    return wholes, rest


def _several_classes(y) -> bool:
    """Whether the last axis holds the channels of several classes: (N, ..., K + 1)."""
    shape = ops.shape(y)
    return len(shape) > 2 and shape[-1] > 1


def _foreground(y_true, y_pred):
    """Masks, probabilities and the hard prediction of K classes, (N, ..., K) each, 0 where nothing is labelled."""
    _check(y_true, y_pred)
    y_true, y_pred = (ops.cast(ops.convert_to_tensor(y), "float32") for y in (y_true, y_pred))
    labelled = ops.sum(y_true, axis=-1, keepdims=True)
    hard = ops.one_hot(ops.argmax(y_pred, axis=-1), y_pred.shape[-1], dtype="float32")
    return tuple(y[..., 1:] for y in (y_true, y_pred * labelled, hard * labelled))


def _class_sums(y_true, y_pred, threshold, per_image: bool):
    """|A.B|, |A| and |B| of each class, (3, N, K) or, over all images, (3, K), as (wholes, rest); and which count.

    Of one class every image counts as 1. Of several a class counts if it is there or predicted.
    """
    axes = _image_axes(y_pred)
    if not _several_classes(y_pred):
        sums = _exact_sums(y_true, y_pred, axes if per_image else None, threshold)
        sums = tuple(part[..., None] for part in sums)
        counts = ops.ones_like(sums[1][0])
        return sums, counts if per_image else counts * ops.cast(ops.shape(y_pred)[0], "float32")
    if y_pred.shape[-1] > MOST_CLASSES + 1:
        raise ValueError(f"at most {MOST_CLASSES} classes and the background can be scored; got {y_pred.shape}.")
    true, soft, hard = _foreground(y_true, y_pred)
    axes = axes[:-1] if per_image else (0, *axes[:-1])
    there = ops.sum(true, axis=axes) + ops.sum(hard, axis=axes)
    sums = _exact_sums(true, soft if threshold is None else hard, axes)
    return sums, ops.cast(there > 0, "float32")


def _carried(wholes, rest):
    """The same sum, with a rest in [0, WHOLE)."""
    carry = ops.floor(rest / WHOLE)
    return wholes + carry, rest - WHOLE * carry


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
    """All axes but the first: a sum over them is one value per image."""
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
            "Both are (N, H, W, 1) or (N, D, H, W, 1): add a missing channel axis with mask[..., None]; of K classes "
            "(N, ..., K + 1)."
        )
    for name, values in (("y_true", y_true), ("y_pred", y_pred)):
        if not isinstance(values, (np.ndarray, list, tuple)):
            continue
        values = np.asarray(values)
        if name == "y_true":
            good = (values == 0) | (values == 1) | (values == -1)
            wanted = "exactly 0 or 1 (or -1, not labelled); divide a mask of 0 and 255 by 255"
        else:
            good, wanted = (values >= 0) & (values <= 1), "in [0, 1]; apply a sigmoid to logits, look for NaN"
        if not good.all():
            raise ValueError(f"{name} must be {wanted}. Found {values[~good].flat[0]} among its values.")
