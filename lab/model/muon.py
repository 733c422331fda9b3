"""Muon: momentum, orthogonalised, for the kernels of a convolutional network; Adam for everything else.

    model.compile(optimizer=Muon(2e-3), loss=...)

A convolution kernel is a matrix of (height * width * channels in) rows and (channels out) columns: a linear map from a
patch to the output channels. Adam scales each entry alone. Muon takes the momentum G of the whole matrix, G = U S V^T,
and steps along U V^T: every direction of the gradient is learned at one speed, the rare ones too.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale of the step, which lets Adam
and Muon share one learning rate, is that of Liu et al. 2025 (arXiv 2502.16982). Keras's own `keras.optimizers.Muon`
leaves every kernel that is not two-dimensional to Adam.
"""

import math

import keras
from keras import ops

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic of Jordan et al.: a x + b x^3 + c x^5


@keras.saving.register_keras_serializable(package="segmentation_lab")
class Muon(keras.optimizers.Adam):
    """Muon for convolution kernels; Adam for biases and for maps to or from a single number.

    Args:
        learning_rate: step size, or a `LearningRateSchedule`; the root mean square of a kernel's update is
            0.2 * learning_rate, about that of Adam.
        momentum: decay of the gradient's running mean, in [0, 1).
        **kwargs: passed on to `keras.optimizers.Adam`, for its share of the variables.
    """

    def __init__(self, learning_rate=2e-3, momentum=0.9, name="muon", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum

    def update_step(self, gradient, variable, learning_rate):
        columns = variable.shape[-1] if len(variable.shape) > 2 else 1
        rows = math.prod(variable.shape) // columns
        if min(rows, columns) == 1:
            return super().update_step(gradient, variable, learning_rate)
        gradient = ops.cast(gradient, variable.dtype)
        mean = self._momentums[self._get_variable_index(variable)]  # up to a factor, which changes no direction
        self.assign(mean, self.momentum * mean + gradient)
        look_ahead = ops.reshape(self.momentum * mean + gradient, (rows, columns))  # Nesterov's
        scale = ops.cast(learning_rate, variable.dtype) * (0.2 * math.sqrt(max(rows, columns)))
        step = orthogonalize(look_ahead, scale, rounded_products(variable.dtype))
        self.assign_sub(variable, ops.reshape(step, variable.shape))

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


def rounded_products(dtype: str) -> str | None:
    """What rounds the factors of a product of `dtype`: the network's "bfloat16", "device" (TF32 on a GPU), or None."""
    if "bfloat16" in (dtype, keras.config.dtype_policy().compute_dtype):
        return "bfloat16"
    return None if all(device.startswith("cpu") for device in keras.distribution.list_devices()) else "device"


def orthogonalize(matrix, scale=1.0, rounded: str | None = "device"):
    """About U V^T for a matrix U S V^T, by Newton-Schulz iterations: products only, no decomposition.

    X becomes X p(G) five times, with G = X^T X and p(G) = a + b G + c G^2. Each p(G) is a polynomial of the first G, so
    they commute, and G becomes p(G)^2 G: most products are those of a square matrix of the smaller side, and X is
    multiplied once, by all p(G) together. Where factors are rounded to fewer bits, X and G are also computed before the
    third and the fifth iteration: rounding may put an eigenvalue of G below 0, and it grows about 12-fold with each
    iteration. Where one singular value is far above the others, three iterations without that are too many.

    Args:
        matrix: (rows, columns), float; not all zeros, or the result is zero.
        scale: a factor for the result.
        rounded: see `rounded_products`.

    Returns:
        A tensor of the same shape and type; singular values above 0.002 of the Frobenius norm become values in
        [0.68, 1.21] times `scale`, which is enough for the optimizer.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix.shape[0] < matrix.shape[1]
    x = ops.transpose(matrix) if wide else matrix
    x = ops.cast(x, "bfloat16") if rounded == "bfloat16" else x
    gram = ops.matmul(ops.transpose(x), x)
    norm = ops.sqrt(ops.trace(ops.cast(gram, matrix.dtype))) + 1e-7  # the Frobenius norm: no singular value is above it
    gram, factor = gram / ops.cast(norm**2, x.dtype), None
    identity = ops.eye(gram.shape[0], dtype=x.dtype)
    for iteration in range(5):
        if rounded and iteration in (2, 4):
            x = ops.matmul(x, factor)
            gram, factor = ops.matmul(ops.transpose(x), x) / ops.cast(norm**2, x.dtype), None
        polynomial = a * identity + ops.matmul(gram, b * identity + c * gram)
        factor = polynomial if factor is None else ops.matmul(polynomial, factor)
        gram = ops.matmul(polynomial, ops.matmul(polynomial, gram))
    # Scaled here, where numbers are few.
    x = ops.matmul(x, ops.cast(ops.cast(factor, matrix.dtype) * (scale / norm), x.dtype))
    x = ops.cast(x, matrix.dtype)
    return ops.transpose(x) if wide else x
