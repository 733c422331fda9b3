"""The best that knows the answer's shape: the maximum-likelihood circle in an image of one circle on noise.

    masks = draw_circles(fit_circles(images, noise=0.25), images.shape[1:3])    # 512 images in about a minute

It knows everything but centre and radius: that there is one circle, wholly inside the image, its contrast, the
background, the noise and the clipping. The U-Net is told none of this. What the fit leaves wrong is the noise's doing.
"""

import numpy as np
from scipy.special import log_ndtr

from data_synth import BACKGROUND

STEPS = 0.5 * 0.7 ** np.arange(12)  # of the centre, in pixels; when they halve, the best circle is missed at times
CANDIDATES = 2  # best places of the coarse search that are followed up


def log_likelihood_ratio(images: np.ndarray, contrast: float, noise: float) -> np.ndarray:
    """log p(pixel | circle) - log p(pixel | background), of the shape of `images`.

    Of a pixel clipped to 0 or 1 it is known only that it lay at or beyond: there the ratio is one of probabilities.
    """
    inside, outside = BACKGROUND + contrast, BACKGROUND
    images = images.astype(float)
    ratio = contrast * (images - (inside + outside) / 2) / noise**2
    ratio[images <= 0] = log_ndtr(-inside / noise) - log_ndtr(-outside / noise)
    ratio[images >= 1] = log_ndtr((inside - 1) / noise) - log_ndtr((outside - 1) / noise)
    return ratio


def draw_circles(circles: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Masks (N, H, W, 1) of circles (N, 3): row and column of the centre, radius, in pixels."""
    row, column, radius = (circles[:, i, None, None] for i in range(3))
    distance2 = (np.arange(shape[0])[:, None] - row) ** 2 + (np.arange(shape[1]) - column) ** 2
    return (distance2 <= radius**2).astype(np.float32)[..., None]


def fit_circles(
    images: np.ndarray, noise: float, *, contrast: float = 0.5, radius: tuple[float, float] = (8, 25)
) -> np.ndarray:
    """The most likely circle of each image.

    The likelihood of a circle is the sum of the log-likelihood ratio over its pixels. A coarse search tries whole
    pixels as centres and radii half a pixel apart; a fine one moves the centre by ever smaller steps, for each place
    with the best of all radii.

    Args:
        images: (N, H, W, 1), as `make_circles` draws them with one circle.
        noise: standard deviation of the noise, above 0; for noise-free images any small number.
        contrast: brightness of the circle above the background.
        radius: (smallest, largest) radius in pixels.

    Returns:
        Circles (N, 3): row and column of the centre, radius, in pixels.
    """
    ratios = log_likelihood_ratio(images[..., 0], contrast, noise)
    radii = np.arange(radius[0], radius[1] + 0.25, 0.5)
    height, width = ratios.shape[1:]
    corner = np.hypot(*np.meshgrid(np.fft.fftfreq(height, 1 / height), np.fft.fftfreq(width, 1 / width), indexing="ij"))
    discs = [(r, np.fft.rfft2(corner <= r)) for r in radii]  # around pixel (0, 0), wrapped around the edges
    return np.array([_refine(ratio, _coarse(ratio, discs), radius) for ratio in ratios])


def _coarse(ratio, discs):
    """The CANDIDATES best centres (row, column) on whole pixels, of different radii."""
    shape = ratio.shape
    spectrum = np.fft.rfft2(ratio)
    found = []
    for r, disc in discs:
        sums = np.fft.irfft2(spectrum * disc, shape)  # a disc is symmetric: convolution is correlation
        low = int(np.ceil(r))
        inside = sums[low : shape[0] - low, low : shape[1] - low]  # whole circles inside: nothing wraps around
        if inside.size:
            row, column = np.unravel_index(np.argmax(inside), inside.shape)
            found.append((inside[row, column], row + low, column + low))
    return [place for _, *place in sorted(found, reverse=True)[:CANDIDATES]]


def _refine(ratio, places, radius):
    """The best circle around the best of some places (row, column)."""
    margin = int(np.ceil(radius[1])) + 4  # the centre moves by less than 2 * sum(STEPS) = 4 pixels
    padded = np.pad(ratio, margin)  # the padding is never counted, for the circle lies inside
    found = []
    for row, column in places:
        window = padded[row : row + 2 * margin + 1, column : column + 2 * margin + 1].ravel()
        found.append(_climb(window, (row, column), ratio.shape, radius, margin))
    return max(found)[1:]


def _climb(window, place, shape, radius, margin):
    """Move the centre around `place` by ever smaller steps: (log likelihood, row, column, radius)."""
    rows, columns = (axis.ravel() - margin for axis in np.indices((2 * margin + 1,) * 2))
    grid = np.indices((5, 5)).reshape(2, -1).T - 2
    best = (-np.inf, 0.0, 0.0, 0.0)
    for step in STEPS:
        centres = np.array(best[1:3]) + step * grid
        distance = np.hypot(rows - centres[:, :1], columns - centres[:, 1:])
        order = np.argsort(distance, axis=1)
        distance = np.take_along_axis(distance, order, axis=1)
        likelihood = np.cumsum(window[order], axis=1)[:, :-1]  # of the circle up to the k-th pixel
        room = np.minimum(centres + place, np.array(shape) - 1 - centres - place).min(axis=1)
        largest = np.minimum(radius[1], room)[:, None]
        inner, outer = distance[:, :-1], distance[:, 1:]  # the radii between them give the same pixels
        likelihood[(outer <= np.maximum(inner, radius[0])) | (inner > largest) | (largest < radius[0])] = -np.inf
        i, k = np.unravel_index(np.argmax(likelihood), likelihood.shape)
        r = (max(inner[i, k], radius[0]) + min(outer[i, k], largest[i, 0])) / 2
        best = max(best, (likelihood[i, k], *centres[i], r))
    return best[0], best[1] + place[0], best[2] + place[1], best[3]
