"""A reference that knows the object's shape: the maximum-likelihood circle, or sphere, in images that hold one.

    balls = fit_balls(images, noise=0.25)                         # 512 images of 128x128 in about a minute
    masks = draw_balls(balls, images.shape[1:-1])

The fit knows everything except centre and radius: that there is one ball, wholly inside the image, its contrast, the
background, the noise and the clipping. The U-Net knows none of this. Only the noise causes the errors of the fit.
"""

from collections.abc import Iterator

import numpy as np

from data_synth import BACKGROUND
from lab.evaluate import sample_scores

STEPS = 0.5 * 0.7 ** np.arange(12)  # of the centre, in pixels; steps that halve sometimes miss the best circle
CANDIDATES = 2  # best places of the coarse search, where the fine search starts
REACH = {2: 2, 3: 1}  # steps that the centre may move by along each axis, at a time, in 2 and in 3 dimensions


def log_likelihood_ratio(images: np.ndarray, contrast: float, noise: float) -> np.ndarray:
    """log p(pixel | ball) - log p(pixel | background), of the shape of `images`.

    A pixel clipped to 0 or 1 had that value or one beyond it: there the ratio is one of probabilities.
    """
    from scipy.special import log_ndtr

    inside, outside = BACKGROUND + contrast, BACKGROUND
    images = images.astype(float)
    ratio = contrast * (images - (inside + outside) / 2) / noise**2
    ratio[images <= 0] = log_ndtr(-inside / noise) - log_ndtr(-outside / noise)
    ratio[images >= 1] = log_ndtr((inside - 1) / noise) - log_ndtr((outside - 1) / noise)
    return ratio


def ball_sums(ratio: np.ndarray, radii: np.ndarray) -> Iterator[np.ndarray]:
    """For each radius the sums of `ratio` (*sides) over the ball around each pixel, wrapped around the edges."""
    distance2 = sum(at**2 for at in np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in ratio.shape), indexing="ij"))
    spectrum = np.fft.rfftn(ratio)
    for r in radii:  # a ball is symmetric: convolution is correlation
        yield np.fft.irfftn(spectrum * np.fft.rfftn(distance2 <= r**2), ratio.shape, range(ratio.ndim))


def draw_balls(balls: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Masks (N, *shape, 1), float32, of balls (N, axes + 1): the centre along each axis, then the radius, in pixels."""
    rest = balls[:, -1].reshape(-1, *[1] * len(shape)) ** 2
    for axis, side in enumerate(shape):
        offset = np.arange(side) - balls[:, axis, None]
        rest = rest - (offset**2).reshape(-1, *(side if a == axis else 1 for a in range(len(shape))))
    return (rest >= 0).astype(np.float32)[..., None]


def fit_balls(
    images: np.ndarray, noise: float, *, contrast: float = 0.5, radius: tuple[float, float] = (8, 25)
) -> np.ndarray:
    """The most likely circle of each image, or sphere of each volume.

    The likelihood of a ball is the sum of the log-likelihood ratio over its pixels. A coarse search tries whole
    pixels as centres and radii half a pixel apart; a fine one moves the centre by ever smaller steps, for each place
    with the best of all radii.

    Args:
        images: (N, H, W, 1) or (N, D, H, W, 1), as `data_synth` draws them with one circle or sphere.
        noise: standard deviation of the noise, above 0; for noise-free images any small number.
        contrast: brightness of the ball above the background.
        radius: (smallest, largest) radius in pixels.

    Returns:
        Balls (N, axes + 1): the centre along each axis, then the radius, in pixels.
    """
    radii = np.arange(radius[0], radius[1] + 0.25, 0.5)
    margin = int(np.ceil(radius[1])) + 4  # the centre moves by less than 2 * sum(STEPS) = 4 pixels
    balls = []
    for ratio in log_likelihood_ratio(images[..., 0], contrast, noise):
        padded = np.pad(ratio, margin)  # the padding is never counted, because the ball lies inside
        climbs = []
        for place in _coarse(ratio, radii):
            window = padded[tuple(slice(at, at + 2 * margin + 1) for at in place)].ravel()
            climbs.append(_climb(window, place, ratio.shape, radius, margin))
        balls.append(max(climbs)[1:])
    return np.array(balls)


def references(test: list, looks: dict) -> dict[str, dict]:
    """The scores of the fit on samples that hold one sphere each; `looks` are radius, contrast and noise."""
    images = np.stack([sample.image for sample in test])
    spheres = draw_balls(fit_balls(images, **looks), images.shape[1:-1])
    return {"likeliest sphere": sample_scores.score_samples(test, spheres)[0]}


def _coarse(ratio, radii):
    """The CANDIDATES best centres on whole pixels, of different radii."""
    candidates = []
    for r, sums in zip(radii, ball_sums(ratio, radii), strict=True):
        low = int(np.ceil(r))
        inside = sums[tuple(slice(low, side - low) for side in ratio.shape)]  # whole balls: nothing wraps around
        if inside.size:
            place = np.unravel_index(np.argmax(inside), inside.shape)
            candidates.append((inside[place], *(at + low for at in place)))
    return [place for _, *place in sorted(candidates, reverse=True)[:CANDIDATES]]


def _climb(window, place, shape, radius, margin):
    """Move the centre around `place` by ever smaller steps: (log likelihood, *centre, radius)."""
    ndim = len(shape)
    pixels = np.indices((2 * margin + 1,) * ndim).reshape(ndim, -1) - margin
    moves = np.indices((2 * REACH[ndim] + 1,) * ndim).reshape(ndim, -1).T - REACH[ndim]
    best = (-np.inf, *(0.0 for _ in shape), 0.0)
    for step in STEPS:
        centres = np.array(best[1:-1]) + step * moves
        distance = np.sqrt(sum((along - at[:, None]) ** 2 for along, at in zip(pixels, centres.T, strict=True)))
        order = np.argsort(distance, axis=1)
        distance = np.take_along_axis(distance, order, axis=1)
        likelihood = np.cumsum(window[order], axis=1)[:, :-1]  # of the ball up to the k-th pixel
        room = np.minimum(centres + place, np.array(shape) - 1 - centres - place).min(axis=1)
        largest = np.minimum(radius[1], room)[:, None]
        inner, outer = distance[:, :-1], distance[:, 1:]  # the radii between them give the same pixels
        likelihood[(outer <= np.maximum(inner, radius[0])) | (inner > largest) | (largest < radius[0])] = -np.inf
        i, k = np.unravel_index(np.argmax(likelihood), likelihood.shape)
        r = (max(inner[i, k], radius[0]) + min(outer[i, k], largest[i, 0])) / 2
        best = max(best, (likelihood[i, k], *centres[i], r))
    return (best[0], *(at + start for at, start in zip(best[1:-1], place, strict=True)), best[-1])
