"""Synthetic images with exact masks: circles (2D) and spheres (3D) on Gaussian noise.

    from data_synth import make_circles
    images, masks = make_circles(256, size=128, seed=0)    # 0.07 s on 2 cores, (256, 128, 128, 1) each

With the defaults, one circle at contrast / noise = 2, no global threshold can find the circle
(mean Dice about 0.51); whoever knows that it is a circle and fits one reaches about 0.9986.
`make_circles(256, **VARIED)` draws what carries over to photographs: many kinds of light, contrast and surface.
"""

import math
import operator
from collections.abc import Sequence

import numpy as np

BACKGROUND = 0.25  # grey value outside the objects
BLOCK_VOXELS = 2**15  # pixels worked on at a time: 128 KiB of float32 stays in the cache

Size = int | Sequence[int]
Seed = int | Sequence[int]
Range = float | tuple[float, float]

# A mixture for photographs: each image draws its own value from each range.
VARIED = {
    "num_circles": (0, 6),
    "contrast": (0.1, 0.6),
    "noise": (0.0, 0.2),
    "illumination": (0.0, 0.8),
    "texture": (0.0, 0.15),
    "blur": (0.0, 2.0),
    "inverted": 0.5,
    "margin": 16,
}


def make_circles(
    num_images: int,
    size: Size = 128,
    *,
    seed: Seed = 0,
    num_circles: tuple[int, int] = (1, 1),
    radius: tuple[float, float] = (8, 25),
    contrast: Range = 0.5,
    noise: Range = 0.25,
    illumination: Range = 0.0,
    texture: Range = 0.0,
    blur: Range = 0.0,
    inverted: float = 0.0,
    margin: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of bright circles on a noisy background, with their masks.

    image = clip(0.25 + contrast * mask + noise * n, 0, 1) with n standard normal. A pixel belongs
    to the mask if the distance of its centre to a circle's centre is at most the radius. Every
    circle lies inside the image as a whole; circles that overlap are one region.

    Surface, light and lens come before the noise: (1 + illumination * ramp) * blurred(0.25 + contrast * mask +
    texture * t), where ramp goes from -1 to 1 across the image in a random direction, and t is standard normal noise
    smoothed over 1 to 8 pixels, another one inside the circles than outside. A range (smallest, largest) in place of a
    number is drawn from for each image.

    Args:
        num_images: number of images N, at least 1.
        size: side in pixels, or (height, width).
        seed: an integer >= 0, or (seed, stream, ...) for independent streams of one seed, such as
            (0, 1) and (0, 2) for two sets that share nothing. Image `i` depends on `seed` and `i`
            alone (and on the settings), so a longer set begins with the shorter one. Circles and
            noise are drawn separately: with another `noise` the circles stay where they are.
        num_circles: (fewest, most) circles in an image, both included; (0, k) gives empty masks too.
        radius: (smallest, largest) radius in pixels, at least 1; uniform in between.
        contrast: brightness of a circle above the background 0.25, in (0, 0.75].
        noise: standard deviation of the noise, in grey values, >= 0.
        illumination: share of the light that comes from one side, in [0, 1].
        texture: standard deviation of the surfaces' own pattern, in grey values, >= 0.
        blur: standard deviation of the lens's blur, in pixels, >= 0; the mask stays sharp.
        inverted: probability that an image is turned into its negative, dark circles on bright, in [0, 1].
        margin: pixels by which a circle may reach over the border, >= 0; more than 0 gives cut circles too.

    Returns:
        images (N, H, W, 1), float32 in [0, 1], and masks (N, H, W, 1), float32, exactly 0 or 1.

    Raises:
        ValueError: if an argument lies outside its range.
    """
    looks = (
        _check_look("illumination", illumination, high=1),
        _check_look("texture", texture),
        _check_look("blur", blur),
    )
    inverted = _number("inverted", inverted, low=0, high=1)
    margin = _integer("margin", margin, low=0)
    return _make_balls(
        num_images, size, 2, seed, "num_circles", num_circles, radius, contrast, noise, looks, inverted, margin
    )


def make_spheres(
    num_volumes: int,
    size: Size = 32,
    *,
    seed: Seed = 0,
    num_spheres: tuple[int, int] = (1, 1),
    radius: tuple[float, float] = (4, 10),
    contrast: float = 0.5,
    noise: float = 0.25,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw volumes of bright spheres on a noisy background: `make_circles` in three dimensions.

    Arguments, ranges and guarantees are those of `make_circles`, with `size` in voxels, one side
    or (depth, height, width).

    Returns:
        volumes (N, D, H, W, 1), float32 in [0, 1], and masks (N, D, H, W, 1), float32, exactly 0 or 1.

    Raises:
        ValueError: if an argument lies outside its range.
    """
    return _make_balls(num_volumes, size, 3, seed, "num_spheres", num_spheres, radius, contrast, noise)


def _make_balls(num, size, ndim, seed, count_name, count, radius, contrast, noise, looks=(), inverted=0, margin=0):
    num = _integer("the number of images", num, low=1)
    shape = _check_size(size, ndim)
    entropy, *stream = _check_seed(seed)
    fewest, most = _check_range(count_name, [_integer(count_name, c, low=0) for c in count])
    smallest, largest = _check_range("radius", [_number("radius", r, low=1) for r in radius])
    if 2 * largest > min(shape) - 1 + 2 * margin:
        raise ValueError(
            f"radius={tuple(radius)} does not fit into size={shape}: the whole object must lie inside, so the "
            f"largest radius here is {(min(shape) - 1) / 2 + margin:g}. Take a smaller radius or a larger size."
        )
    contrast = _check_look("contrast", contrast, high=1 - BACKGROUND)
    if contrast[0] <= 0:
        raise ValueError(f"contrast={contrast[0]:g} must be above 0: objects nobody can see must not be labelled.")
    noise = _check_look("noise", noise)
    varied = inverted > 0 or any(high > 0 for _, high in looks)

    # Streams for objects, noise, looks and textures, each drawn in the order of the images: hence the prefix property.
    # SFC64 draws normal numbers a quarter faster than NumPy's default generator.
    objects_rng, noise_rng, looks_rng, texture_rng = (
        np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy, spawn_key=(*stream, part))))
        for part in range(4)
    )
    images = np.empty((num, *shape, 1), np.float32)
    masks = np.empty((num, *shape, 1), np.float32)
    block = max(1, BLOCK_VOXELS // math.prod(shape))
    scratch = np.empty_like(images[:block])
    for start in range(0, num, block):
        image, mask = images[start : start + block], masks[start : start + block]
        draws = objects_rng.random((len(image), 1 + most * (1 + ndim)))
        _draw_masks(mask[..., 0], draws, fewest, most, smallest, largest, margin)
        places = looks_rng.random((len(image), 7 + ndim), np.float32)
        clean = np.multiply(mask, _each(contrast, places[:, 0], ndim), out=scratch[: len(mask)])
        clean += np.float32(BACKGROUND)
        if varied:
            _add_looks(clean[..., 0], mask[..., 0], looks, inverted, places[:, 2:], texture_rng)
        noise_rng.standard_normal(dtype=np.float32, out=image)
        image *= _each(noise, places[:, 1], ndim)
        image += clean
        np.clip(image, 0, 1, out=image)
    return images, masks


def _each(ends, places, ndim):
    """A value per image: `places` in [0, 1) between the `ends`, (N, 1, ..., 1)."""
    low, high = np.float32(ends)
    return (low + places * (high - low)).reshape(-1, *[1] * (ndim + 1))


def _add_looks(scenes, masks, looks, inverted, places, rng):
    """Apply texture, blur, illumination and inversion to scenes (N, *shape), in place; `places` (N, 5 + ndim)."""
    from scipy.ndimage import gaussian_filter

    shape = scenes.shape[1:]
    axes = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in shape), indexing="ij")
    for scene, mask, place in zip(scenes, masks, places, strict=True):
        light, texture, blur = (low + at * (high - low) for (low, high), at in zip(looks, place[:3], strict=True))
        fields = [gaussian_filter(rng.standard_normal(shape, np.float32), 8 ** place[3]) for _ in range(2)]
        inside, outside = (field / field.std() for field in fields)
        scene += texture * np.where(mask, inside, outside)
        if blur:
            scene[...] = gaussian_filter(scene, blur)
        direction = 2 * place[5:] - 1
        ramp = sum(part * axis for part, axis in zip(direction, axes, strict=True)) / np.abs(direction).sum()
        scene *= 1 + light * ramp
        if place[4] < inverted:
            scene[...] = 1 - scene


def _draw_masks(masks, draws, fewest, most, smallest, largest, margin):
    """Fill masks (N, *shape) from uniform numbers (N, 1 + most * (1 + ndim)): the count, then radius and centre."""
    num, *shape = masks.shape
    counts = fewest + np.floor(draws[:, 0] * (most - fewest + 1))
    balls = draws[:, 1:].reshape(num, most, 1 + len(shape))
    radii = smallest + balls[..., 0] * (largest - smallest)
    inside = np.zeros(masks.shape, bool)
    for j in range(most):
        # x is inside if (x - cx)^2 <= r^2 - (y - cy)^2: (N, 1, W) against (N, H, 1), one comparison per pixel.
        r = radii[:, j]
        rest = np.where(j < counts, r**2, -1.0).reshape(num, *(1 for _ in shape))  # negative: no such object
        for axis, side in enumerate(shape):
            centre = r - margin + balls[:, j, 1 + axis] * (side - 1 - 2 * (r - margin))
            offset2 = (np.arange(side) - centre[:, None]) ** 2
            offset2 = offset2.reshape([num] + [side if a == axis else 1 for a in range(len(shape))])
            if axis < len(shape) - 1:
                rest = rest - offset2
            else:
                inside |= offset2 <= rest
    masks[...] = inside


def _integer(name, value, low):
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, at least {low}; got {value!r}.") from None
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value}.")
    return value


def _number(name, value, low=-math.inf, high=math.inf):
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number; got {value!r}.") from None
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be a finite number in [{low:g}, {high:g}]; got {value:g}.")
    return value


def _check_look(name, ends, high=math.inf):
    """(smallest, largest), also of a single number."""
    ends = [ends] * 2 if np.ndim(ends) == 0 else list(ends)
    return _check_range(name, [_number(name, end, low=0, high=high) for end in ends])


def _check_range(name, ends):
    if len(ends) != 2 or ends[0] > ends[1]:
        raise ValueError(f"{name} must be two numbers (smallest, largest), in this order; got {tuple(ends)}.")
    return ends


def _check_size(size, ndim):
    sides = [size] * ndim if np.ndim(size) == 0 else list(size)
    if len(sides) != ndim:
        raise ValueError(f"size must be one integer or {ndim} of them; got {size!r}.")
    return tuple(_integer("size", side, low=1) for side in sides)


def _check_seed(seed):
    parts = [seed] if np.ndim(seed) == 0 else list(seed)
    if not parts:
        raise ValueError("seed must be an integer or (seed, stream, ...); got an empty sequence.")
    return [_integer("seed", part, low=0) for part in parts]
