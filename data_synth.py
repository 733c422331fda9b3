"""Synthetic images with exact masks: circles (2D) and spheres (3D) on Gaussian noise, and shapes of several classes.

    from data_synth import make_circles, make_shapes
    images, masks = make_circles(256, size=128, seed=0)    # 0.07 s on 2 cores, (256, 128, 128, 1) each
    images, labels = make_shapes(256, size=128, seed=0)    # 0.2 s, labels (256, 128, 128)

With the defaults, one circle at contrast / noise = 2, no global threshold can find the circle (mean Dice about 0.51);
a fit of a circle reaches about 0.9986. Discs, squares and triangles share one grey value and one distribution of areas,
so that no rule per pixel tells them apart. Scenes for photographs are drawn by `lab/data/scenes.py`.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BACKGROUND = 0.25  # grey value outside the objects
BLOCK_VOXELS = 2**15  # pixels worked on at a time: 128 KiB of float32 stays in the cache
GAP = 2  # least distance between two shapes, in pixels
THROWS = 10**5  # tries to place the largest shapes apart before that counts as impossible

Size = int | Sequence[int]
Seed = int | Sequence[int]
Range = float | tuple[float, float]


def make_circles(
    num_images: int,
    size: Size = 128,
    *,
    seed: Seed = 0,
    num_circles: tuple[int, int] = (1, 1),
    radius: tuple[float, float] = (8, 25),
    contrast: Range = 0.5,
    noise: Range = 0.25,
    margin: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of bright circles on a noisy background, with their masks.

    image = clip(0.25 + contrast * mask + noise * n, 0, 1) with n standard normal. A pixel belongs
    to the mask if the distance of its centre to a circle's centre is at most the radius. Every
    circle lies inside the image as a whole, unless `margin` says otherwise; circles that overlap
    are one region. With a range (smallest, largest) each image gets its own value, uniform in between.

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
        margin: pixels by which a circle may reach over the border, >= 0, but at most up to its centre.

    Returns:
        images (N, H, W, 1), float32 in [0, 1], and masks (N, H, W, 1), float32, exactly 0 or 1.

    Raises:
        ValueError: if an argument lies outside its range.
    """
    return _make_balls(num_images, size, 2, seed, "num_circles", num_circles, radius, contrast, noise, margin)


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


def make_shapes(
    num_images: int,
    size: Size = 128,
    *,
    seed: Seed = 0,
    shapes: Sequence[str] = ("disc", "square", "triangle"),
    radius: tuple[float, float] = (9, 16),
    contrast: Range = 0.5,
    noise: Range = 0.25,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of one shape of each class, all of one grey value, on a noisy background, with their labels.

    The image model is that of `make_circles`. Every shape lies inside the image as a whole, at least 2 pixels from the
    others, turned by a uniform angle. Only its outline tells its class: grey values, areas and places are alike.

    Args:
        num_images, size, seed, contrast, noise: as for `make_circles`.
        shapes: the classes 1 to K, some of "disc", "square" and "triangle", each once.
        radius: (smallest, largest) radius in pixels, at least 2, of the disc of the same area; uniform in between,
            drawn for each shape.

    Returns:
        images (N, H, W, 1), float32 in [0, 1], and labels (N, H, W), uint8: 0 is background, k the k-th of `shapes`.

    Raises:
        ValueError: if an argument lies outside its range, or the largest shapes have no room apart from each other.
    """
    return _make_shapes(num_images, size, 2, seed, "shapes", shapes, radius, contrast, noise)


def make_bodies(
    num_volumes: int,
    size: Size = 48,
    *,
    seed: Seed = 0,
    bodies: Sequence[str] = ("ball", "cube", "octahedron"),
    radius: tuple[float, float] = (5, 8),
    contrast: Range = 0.5,
    noise: Range = 0.25,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw volumes of one body of each class on a noisy background: `make_shapes` in three dimensions.

    Arguments, ranges and guarantees are those of `make_shapes`; `bodies` are some of "ball", "cube" and "octahedron",
    turned by a uniform rotation, and `radius` is that of the ball of the same volume.

    Returns:
        volumes (N, D, H, W, 1), float32 in [0, 1], and labels (N, D, H, W), uint8.
    """
    return _make_shapes(num_volumes, size, 3, seed, "bodies", bodies, radius, contrast, noise)


def _make_balls(num, size, ndim, seed, count_name, count, radius, contrast, noise, margin=0):
    num, shape = check_integer("the number of images", num, low=1), check_size(size, ndim)
    generator = generators(seed)
    contrast, noise = check_contrast(contrast), check_range("noise", noise)
    balls = place_balls(generator(0), num, shape, count_name, count, radius, margin)
    masks = np.empty((num, *shape, 1), np.float32)
    for part in _blocks(masks):
        _fill_balls(masks[part][..., 0], *(values[part] for values in balls))
    return _add_noise(masks, contrast, noise, generator), masks


def _make_shapes(num, size, ndim, seed, names_name, names, radius, contrast, noise):
    num, shape = check_integer("the number of images", num, low=1), check_size(size, ndim)
    names = _check_names(names_name, names, ndim)
    contrast, noise = check_contrast(contrast), check_range("noise", noise)
    smallest, largest = check_range("radius", radius, low=2)
    generator = generators(seed)
    reach = max(SHAPES[name][1] for name in names)  # the same for all: a shape's place says nothing of its class
    widest = np.full(len(names), reach * largest)
    if _place_apart(generator(3), shape, widest, THROWS) is None:  # before any image is drawn
        raise ValueError(
            f"{names_name}={names} of radius={largest:g} have no room in size={shape}, each inside as a whole and "
            f"{GAP} pixels from the others. Take a smaller radius, a larger size or fewer of them."
        )
    labels = np.zeros((num, *shape), np.uint8)
    for i in range(num):
        rng = generator(0, i)
        radii = rng.uniform(smallest, largest, len(names))
        centres = _place_apart(rng, shape, reach * radii, 10 * THROWS)
        turns = random_turns(rng, len(names), ndim)
        for k, (name, *where) in enumerate(zip(names, radii, centres, turns, strict=True), 1):
            fill_shape(labels[i], k, name, *where)
    return _add_noise((labels > 0)[..., None], contrast, noise, generator), labels


def _blocks(images):
    """Slices of images (N, ...), each of BLOCK_VOXELS pixels or of one image."""
    step = max(1, BLOCK_VOXELS // math.prod(images.shape[1:]))
    return [slice(start, start + step) for start in range(0, len(images), step)]


def _add_noise(masks, contrast, noise, generator):
    """Images (N, ..., 1) of masks, drawn in the order of the images: hence the prefix property."""
    noise_rng, looks_rng = generator(1), generator(2)  # the objects have stream 0
    images = np.empty(masks.shape, np.float32)
    for part in _blocks(masks):
        image, mask = images[part], masks[part]
        places = looks_rng.random((len(image), 2), np.float32)
        clean = mask * _each(contrast, places[:, 0], mask.ndim - 2)
        clean += np.float32(BACKGROUND)
        noise_rng.standard_normal(dtype=np.float32, out=image)
        image *= _each(noise, places[:, 1], mask.ndim - 2)
        image += clean
        np.clip(image, 0, 1, out=image)
    return images


def _each(ends, places, ndim):
    """A value per image: `places` in [0, 1) between the `ends`, (N, 1, ..., 1)."""
    low, high = np.asarray(ends, np.float32)
    return (low + places * (high - low)).reshape(-1, *[1] * (ndim + 1))


def generators(seed: Seed) -> Callable[..., np.random.Generator]:
    """The random streams of a seed: called with the numbers of a stream, it gives that stream's generator."""
    entropy, *stream = _check_seed(seed)

    def generator(*part):  # SFC64 draws normal numbers a quarter faster than NumPy's default generator
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy, spawn_key=(*stream, *part))))

    return generator


def place_balls(
    rng: np.random.Generator, num: int, shape: tuple[int, ...], count_name: str, count, radius, margin: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place discs or balls in `num` images of `shape`; ValueError, with the name `count_name`, where they do not fit.

    Returns:
        For each image the number of its balls (N), and radii (N, most) and centres (N, most, ndim); an image uses the
        first of them.
    """
    ends = count if np.ndim(count) else [count]  # `check_range` refuses a single number
    fewest, most = map(int, check_range(count_name, [check_integer(count_name, number, low=0) for number in ends]))
    smallest, largest = check_range("radius", radius, low=1)
    margin = check_integer("margin", margin, low=0)
    if 2 * largest > min(shape) - 1 + 2 * margin:
        raise ValueError(
            f"radius=({smallest:g}, {largest:g}) does not fit into size={shape}: the whole object must lie inside, so "
            f"the largest radius here is {(min(shape) - 1) / 2 + margin:g}. Take a smaller radius or a larger size."
        )
    draws = rng.random((num, 1 + most * (1 + len(shape))))
    counts = fewest + np.floor(draws[:, 0] * (most - fewest + 1))
    balls = draws[:, 1:].reshape(num, most, 1 + len(shape))
    radii = smallest + balls[..., 0] * (largest - smallest)
    edge = (radii - np.minimum(margin, radii))[..., None]  # the centre, and with it a pixel, always lies inside
    return counts, radii, edge + balls[..., 1:] * (np.array(shape) - 1 - 2 * edge)


def _fill_balls(masks, counts, radii, centres):
    """Fill masks (N, *shape) with discs or balls."""
    num, *shape = masks.shape
    inside = np.zeros(masks.shape, bool)
    for j in range(radii.shape[1]):
        # x is inside if (x - cx)^2 <= r^2 - (y - cy)^2: (N, 1, W) against (N, H, 1), one comparison per pixel.
        r = radii[:, j]
        rest = np.where(j < counts, r**2, -1.0).reshape(num, *(1 for _ in shape))  # negative: no such object
        for axis, side in enumerate(shape):
            offset2 = (np.arange(side) - centres[:, j, axis, None]) ** 2
            offset2 = offset2.reshape([num] + [side if a == axis else 1 for a in range(len(shape))])
            if axis < len(shape) - 1:
                rest = rest - offset2
            else:
                inside |= offset2 <= rest
    masks[...] = inside


# Shapes of several classes


def _polygon(num_sides):
    turns, half = 2 * math.pi * np.arange(num_sides) / num_sides, math.pi / num_sides
    inner = math.sqrt(math.pi / (num_sides * math.tan(half)))  # distance of a side from the centre, at area pi
    return np.stack([np.sin(turns), np.cos(turns)], 1) / inner, inner / math.cos(half)


_HALF = (math.pi / 6) ** (1 / 3)  # half the side of a cube of volume 4/3 pi
SHAPES = {  # name: normals of the sides (sides, axes), distance of the corners from the centre
    # At radius r a shape is as large as the disc or ball of radius r, and holds the points x with normal . x <= r for
    # all sides. A disc or ball has none, and holds the points with |x| <= r.
    "disc": (np.empty((0, 2)), 1),
    "square": _polygon(4),
    "triangle": _polygon(3),
    "ball": (np.empty((0, 3)), 1),
    "cube": (np.vstack([np.eye(3), -np.eye(3)]) / _HALF, math.sqrt(3) * _HALF),
    "octahedron": ((1 - 2 * np.indices((2, 2, 2)).reshape(3, 8).T) / math.pi ** (1 / 3), math.pi ** (1 / 3)),
}


def radius_at(name: str, turns: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Radius (..., P) at which a turned shape reaches a point: turns (..., axes, axes), offsets (..., axes, P)."""
    normals = SHAPES[name][0].astype(np.result_type(offsets, np.float32))
    if not len(normals):
        return np.sqrt(np.sum(offsets**2, axis=-2))
    return np.max(normals @ np.swapaxes(turns, -1, -2) @ offsets, axis=-2)


def random_turns(rng: np.random.Generator, num: int, ndim: int) -> np.ndarray:
    """Uniform random rotations (num, ndim, ndim), half of them mirrored: these shapes are their own mirror images."""
    turns, triangles = np.linalg.qr(rng.standard_normal((num, ndim, ndim)))
    return turns * np.sign(np.diagonal(triangles, axis1=1, axis2=2))[:, None]


def fill_shape(labels: np.ndarray, k: int, name: str, radius: float, centre: np.ndarray, turn: np.ndarray) -> None:
    """Set the pixels of one shape to `k` in `labels`, the labels of one image."""
    reach = SHAPES[name][1] * radius
    first, last = np.maximum(0, np.ceil(centre - reach)).astype(int), np.floor(centre + reach).astype(int)
    window = labels[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
    offsets = np.indices(window.shape).reshape(len(first), -1) + (first - centre)[:, None]
    window[(radius_at(name, turn, offsets) <= radius).reshape(window.shape)] = k


def _place_apart(rng, shape, reaches, throws):
    """Centres (K, axes) of circles of radii `reaches` inside, GAP pixels apart; None if no throw finds them."""
    edge, room = reaches[:, None], np.array(shape) - 1 - 2 * reaches[:, None]
    i, j = np.triu_indices(len(reaches), 1)
    # All are thrown at once: one after another, the last ones would be pushed into the corners.
    for _ in range(throws // 64 if room.min() >= 0 else 0):
        centres = edge + rng.random((64, *room.shape)) * room
        distances2 = np.sum((centres[:, i] - centres[:, j]) ** 2, axis=-1)
        apart = np.all(distances2 >= (reaches[i] + reaches[j] + GAP) ** 2, axis=1)
        if apart.any():
            return centres[np.argmax(apart)]
    return None


# Checks


def _check_names(names_name, names, ndim):
    known = [name for name, (normals, _) in SHAPES.items() if normals.shape[1] == ndim]
    names = tuple(names)
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise ValueError(f"{names_name} must be some of {', '.join(known)}, each once; got {names}.")
    return names


def check_integer(name: str, value, low: int) -> int:
    """The value as an integer; ValueError if it is none, or below `low`."""
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, at least {low}; got {value!r}.") from None
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value}.")
    return value


def _check_number(name, value, low, high):
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number; got {value!r}.") from None
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be a finite number in [{low:g}, {high:g}]; got {value:g}.")
    return value


def check_range(name: str, ends: Any, low: float = 0, high: float = math.inf) -> list[float]:
    """[smallest, largest], also of a single number; ValueError unless both lie in [low, high], in this order."""
    ends = [ends] * 2 if np.ndim(ends) == 0 else list(ends)
    ends = [_check_number(name, end, low, high) for end in ends]
    if len(ends) != 2 or ends[0] > ends[1]:
        shown = ", ".join(f"{end:g}" for end in ends)
        raise ValueError(f"{name} must be two numbers (smallest, largest), in this order; got ({shown}).")
    return ends


def check_contrast(contrast: Range) -> list[float]:
    """[smallest, largest] contrast; ValueError unless both lie in (0, 0.75]."""
    smallest, largest = check_range("contrast", contrast, high=1 - BACKGROUND)
    if smallest <= 0:
        raise ValueError(f"contrast={smallest:g} must be above 0: invisible objects must not be labelled.")
    return [smallest, largest]


def check_size(size: Any, ndim: int) -> tuple[int, ...]:
    """The sides of an image, from one for all axes or one for each; ValueError for another number of them."""
    sides = [size] * ndim if np.ndim(size) == 0 else list(size)
    if len(sides) != ndim:
        raise ValueError(f"size must be one integer or {ndim} of them; got {size!r}.")
    return tuple(check_integer("size", side, low=1) for side in sides)


def _check_seed(seed: Any) -> list[int]:
    """The parts of a seed: [seed, stream, ...]; ValueError if one is no integer >= 0, or there is none."""
    parts = [seed] if np.ndim(seed) == 0 else list(seed)
    if not parts:
        raise ValueError("seed must be an integer or (seed, stream, ...); got an empty sequence.")
    return [check_integer("seed", part, low=0) for part in parts]
