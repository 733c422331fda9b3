"""Known limits of the libraries below Keras, and functions that stay within them."""

import numpy as np

# The least number of images in one call of a network, by their number of axes. On processors with AVX2 and without
# AVX-512, oneDNN (3.7, in TensorFlow 2.21) convolves a single picture by `x64:gemm:jit`, whose buffer has a limit
# that depends on the processor. If a layer needs more, oneDNN takes `ref:any`, which is hundreds of times slower. On
# AMD's Zen 3 this begins at 128 channels to 64 on 512 x 512 pixels, and the lab's U-Net needs minutes for 1024 x 1024
# pixels. Two pictures get `brg_conv_fwd:avx2`, and so does a single volume.
LEAST_IMAGES = {2: 2, 3: 1}


def fill_batch(images: np.ndarray) -> np.ndarray:
    """The images (N, *sides, C), followed by copies of the last one if they are fewer than LEAST_IMAGES."""
    missing = LEAST_IMAGES[images.ndim - 2] - len(images)
    return np.concatenate([images, *[images[-1:]] * missing]) if missing > 0 else images


def predict_batch(network, images: np.ndarray) -> np.ndarray:
    """The output (N, *sides, K) of a Keras network for images (N, *sides, C), in one call of at least LEAST_IMAGES."""
    return network.predict_on_batch(fill_batch(images))[: len(images)]
