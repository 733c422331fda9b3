"""A reference that knows the shapes: the maximum-likelihood places in images that hold one shape of each class.

    labels = fit_shapes(images, noise=0.25)    # 0.2 s an image of 128x128
    labels = fit_shapes(volumes, 0.25, shapes=("ball", "cube", "octahedron"), radius=(5, 8))    # 2 s a volume of 48^3

The fit knows everything except places, sizes and turns: the outlines, that there is one of each class, the contrast,
the background, the noise and the clipping. The network knows none of this.
"""

from collections.abc import Sequence

import numpy as np

from data_synth import SHAPES, fill_shape, radius_at, random_turns
from lab.data.sample import to_masks
from lab.evaluate import scoring
from lab.evaluate.ball_fit import ball_sums, log_likelihood_ratio

ROUND = {2: "disc", 3: "ball"}
NUM_FITTED = {2: 64, 3: 8}  # test images and volumes to fit: each takes a quarter of a second, or 2 seconds
NUM_TURNS = {2: 48, 3: 128}  # random turns of a shape at the start of a climb, in 2 and in 3 dimensions
NUM_MOVES = {2: 32, 3: 64}  # random moves of the best so far, at each step
NUM_STARTS = 2  # climbs, each from the best of other random turns
FIRST_STEP, LAST_STEP = 0.7, 0.015  # how far a move goes along each axis at most, in pixels
LEAST_GAIN = 0.1  # of the log likelihood; after a smaller gain the steps get smaller
BIN = 0.02  # resolution of the radii, in pixels


def fit_shapes(
    images: np.ndarray,
    noise: float,
    *,
    contrast: float = 0.5,
    shapes: Sequence[str] = ("disc", "square", "triangle"),
    radius: tuple[float, float] = (9, 16),
) -> np.ndarray:
    """The most likely labels of images that hold one shape of each class.

    The likelihood of a shape is the sum of the log-likelihood ratio over its pixels. Fits of discs, or balls, give the
    K places. At each of them every shape is fitted. Then each place gets one shape, with the greatest sum of all.

    Args:
        images: (N, H, W, 1) or (N, D, H, W, 1), as `data_synth.make_shapes` and `make_bodies` draw them.
        noise: standard deviation of the noise, above 0; for noise-free images any small number.
        contrast: brightness of the shapes above the background.
        shapes: the classes 1 to K.
        radius: (smallest, largest) radius in pixels, of the disc or ball of the same area or volume.

    Returns:
        labels (N, H, W) or (N, D, H, W), uint8: 0 is background, k the k-th of `shapes`.
    """
    from scipy.optimize import linear_sum_assignment

    ratios = log_likelihood_ratio(images[..., 0], contrast, noise)
    labels = np.zeros(ratios.shape, np.uint8)
    for ratio, label in zip(ratios, labels, strict=True):
        rng = np.random.default_rng(0)  # the same for each image, so that others do not change its labels
        discs = _find_discs(ratio, shapes, radius)
        discs = [_climb(ratio, disc[0], disc[1], ROUND[ratio.ndim], radius, rng)[1:3] for disc in discs]
        fits = [[_fit(ratio, *disc, name, radius, rng) for name in shapes] for disc in discs]
        likelihoods = [[likelihood for likelihood, *_ in row] for row in fits]
        for i, k in zip(*linear_sum_assignment(likelihoods, maximize=True), strict=True):
            fill_shape(label, k + 1, shapes[k], *fits[i][k][1:])
    return labels


def references(test, shapes: Sequence[str], looks: dict) -> dict[str, dict]:
    """The scores of two references for a test set: (images, masks) of shapes, or samples of bodies.

    They are the highest Dice of any rule per pixel, 1 / K, because all shapes have one grey value and equal areas; and
    the fit, with `looks` (radius, contrast, noise) for its arguments, on the first NUM_FITTED images.
    """
    if isinstance(test, tuple):
        images, masks = (array[: NUM_FITTED[2]] for array in test)
        pixel, title = "pixel", f"likeliest shapes, {len(images)} images"
    else:
        images = np.stack([sample.image for sample in test[: NUM_FITTED[3]]])
        masks = to_masks(np.stack([sample.labels for sample in test[: NUM_FITTED[3]]]), len(shapes))
        pixel, title = "voxel", f"likeliest bodies, {len(images)} volumes"
    fitted = to_masks(fit_shapes(images, shapes=shapes, **looks), len(shapes))
    bound = {f"any rule per {pixel}, at most": {"image_dice": 1 / len(shapes)}}
    return {**bound, title: scoring.score(masks, fitted, shapes)[0]}


def _find_discs(ratio, shapes, radius):
    """The most likely discs or balls, one for each shape, apart from each other: [(radius, centre), ...], in pixels."""
    sides, reach = ratio.shape, max(SHAPES[name][1] for name in shapes)
    radii = np.arange(radius[0], radius[1] + 0.5)
    sums = np.array([*ball_sums(ratio, radii)])
    pixels, edge = np.indices(sides), int(reach * radius[0]) - 1
    free = np.zeros(sides, bool)
    free[tuple(slice(edge, side - edge) for side in sides)] = True
    discs = []
    for _ in shapes:
        i, *centre = np.unravel_index(np.argmax(np.where(free, sums, -np.inf)), sums.shape)
        discs.append((radii[i], np.array(centre)))
        free &= sum((along - at) ** 2 for along, at in zip(pixels, centre, strict=True)) > (2 * reach * radius[0]) ** 2
    return discs


def _fit(*problem):
    """The best of several climbs: (log likelihood, radius, centre, turn)."""
    return max((_climb(*problem) for _ in range(NUM_STARTS)), key=lambda fit: fit[0])


def _climb(ratio, size, centre, name, radius, rng):
    """The best shape of one class near a disc, moved by ever smaller steps: (log likelihood, radius, centre, turn)."""
    ndim, (normals, reach) = ratio.ndim, SHAPES[name]
    smallest, largest = max(radius[0], 0.8 * size), min(radius[1], 1.25 * size)
    half = int(np.ceil(reach * largest)) + 3  # 3 pixels for the centre to move by
    first = np.maximum(0, np.round(centre).astype(int) - half)
    window = ratio[tuple(slice(a, a + 2 * half + 1) for a in first)]
    pixels = (np.indices(window.shape).reshape(ndim, -1) + first[:, None]).astype(np.float32)  # for speed
    distances = np.linalg.norm(pixels - centre[:, None], axis=0)
    near = distances <= half
    nearby, pixels, distances = window.ravel()[near], pixels[:, near], distances[near]
    # First random turns, with sizes near the disc's.
    nearest, farthest = distances / reach, distances * np.linalg.norm(normals, axis=1).max(initial=1)
    centres, turns = np.tile(centre, (NUM_TURNS[ndim], 1)), random_turns(rng, NUM_TURNS[ndim], ndim)
    best = _best(nearby, pixels, name, centres, turns, nearest, farthest, smallest, largest)
    step = FIRST_STEP
    while step > LAST_STEP:
        _, size, centre, turn = best
        centres = centre + step * rng.uniform(-1, 1, (NUM_MOVES[ndim], ndim))
        turns = turn @ _small_turns(rng, step / radius[1], NUM_MOVES[ndim], ndim)
        radii = radius_at(name, turn.astype(np.float32), pixels - centre[:, None].astype(np.float32))
        nearest, farthest = radii - 4 * step, radii + 4 * step
        smallest, largest = max(radius[0], size - step), min(radius[1], size + step)
        moved = _best(nearby, pixels, name, centres, turns, nearest, farthest, smallest, largest)
        if moved[0] > best[0] + LEAST_GAIN:
            best = moved
        else:
            step *= 0.8
    return best


def _best(ratio, pixels, name, centres, turns, nearest, farthest, smallest, largest):
    """The best of M shapes, of all sizes from `smallest` to `largest`: (log likelihood, radius, centre, turn).

    Each shape reaches a pixel at a radius from `nearest` to `farthest` (P): most pixels are clearly inside or outside.
    """
    inside, doubtful = farthest <= smallest, (farthest > smallest) & (nearest <= largest)
    radii = radius_at(name, turns.astype(np.float32), pixels[:, doubtful] - centres[..., None].astype(np.float32))
    sizes = np.arange(smallest, largest + BIN, BIN).clip(max=largest)
    bins = np.ceil((radii - smallest) / BIN).clip(0, len(sizes)).astype(int)  # the last bin: outside all sizes
    bins += np.arange(len(centres))[:, None] * (len(sizes) + 1)
    sums = np.bincount(bins.ravel(), np.tile(ratio[doubtful], len(centres)), len(centres) * (len(sizes) + 1))
    likelihoods = ratio[inside].sum() + np.cumsum(sums.reshape(len(centres), -1), axis=1)[:, :-1]
    i, j = np.unravel_index(np.argmax(likelihoods), likelihoods.shape)
    return likelihoods[i, j], sizes[j], centres[i], turns[i]


def _small_turns(rng, angle, num, ndim):
    """Random rotations (num, axes, axes) by up to about `angle`: Cayley's (1 - S)^-1 (1 + S) of skew S."""
    skew = np.triu(rng.uniform(-angle / 2, angle / 2, (num, ndim, ndim)), 1)
    skew = skew - np.swapaxes(skew, 1, 2)
    return np.linalg.solve(np.eye(ndim) - skew, np.eye(ndim) + skew)
