"""Objects larger or smaller than in training: a picture is resized for the prediction, and the result resized back.

    scale = find_scale(image, lambda picture: np.concatenate([*slabs_of(picture)]), [0.25, 0.5, 1, 2])
    probs = at_scale(slabs_of, image, scale)                # (H, W, 1)

`image` is (H, W, C) as read; `slabs_of(picture)` yields its probabilities in slabs (h, W, ...), from the first line to
the last. A scale of 2 shows the network everything twice as wide and high.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

SCALES = (0.25, 0.5, 1.0, 2.0)  # scales to try: a network of radii 8 to 25 then finds radii of 4 to 100
LOOK = 768  # pixels: the scale is found on the middle of a larger picture
AHEAD = 0.02  # by which another scale must be ahead of the picture's own


def resize(image: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, C) to `sides` (height, width), float32: bilinear, over all pixels that become one."""
    from PIL import Image

    channels: Iterable = (Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(image, -1, 0))
    return np.stack([channel.resize(sides[::-1], Image.Resampling.BILINEAR) for channel in channels], axis=-1)


def at_scale(slabs_of: Callable[[np.ndarray], Iterator[np.ndarray]], image: np.ndarray, scale: float) -> np.ndarray:
    """The probabilities (H, W, ...) of an image that is looked at `scale` times as wide and high."""
    height, width = image.shape[:2]
    other = max(1, round(height * scale)), max(1, round(width * scale))
    probs = np.concatenate([*slabs_of(resize(image, other))])
    return resize(probs, (height, width))


def sureness(probs: np.ndarray) -> float:
    """How well the probabilities of one class agree with the mask that they become: their soft Dice.

        2 sum(p m) / (sum(p) + sum(m)), m = p >= 1/2

    It is 1 where every pixel is 0 or 1, and 0 where no object is found.
    """
    mask = probs >= 0.5
    return float(2 * probs[mask].sum(dtype=float) / (probs.sum(dtype=float) + np.count_nonzero(mask) or 1))


def find_scale(image: np.ndarray, slabs_of: Callable, scales: Sequence[float] = SCALES) -> float:
    """The scale at which the network is surest of the objects in the middle of an image (H, W, C).

    Of the scales that are at most AHEAD less sure than the best, the nearest to 1; 1 for an image without objects.
    """
    starts = [max(0, (side - LOOK) // 2) for side in image.shape[:2]]
    middle = image[tuple(slice(start, start + LOOK) for start in starts)]
    sure = {scale: sureness(at_scale(slabs_of, middle, scale)) for scale in scales}
    good = [scale for scale, value in sure.items() if value >= max(sure.values()) - AHEAD]
    return min(good, key=lambda scale: abs(np.log(scale))) if max(sure.values()) > 0 else 1.0
