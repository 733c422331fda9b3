"""Drawn scenes, to train for photographs: round objects of many kinds, as a camera sees them, with exact masks.

    from lab.data import scenes
    images, masks = scenes.draw_scenes(256, size=128, seed=0, **scenes.VARIED)    # 2 ms each, (256, 128, 128, 1)

`VARIED` is the mixture for photographs: objects of many shapes and brightnesses, which may touch each other, under many
kinds of light, with blur, noise and compression of a camera. `data_synth.py` draws plain circles.
"""

import io
import math

import numpy as np

from data_synth import (
    BACKGROUND,
    Range,
    Seed,
    Size,
    check_contrast,
    check_integer,
    check_range,
    check_size,
    generators,
    place_balls,
)

FAINTEST = 0.04  # least contrast of an object, in grey values; it is also at least the noise

# What `draw_scenes` can vary: the value that leaves the image as it is, the least and the greatest allowed.
LOOKS = {
    "elongation": (1, 1, 4),
    "roughness": (0, 0, 0.5),
    "own_contrast": (1, 0.01, 100),
    "touching": (0, 0, 1),
    "borders": (0, 0, 1000),
    "dust": (0, 0, 1000),
    "highlights": (0, 0, 1000),
    "texture": (0, 0, math.inf),
    "illumination": (0, 0, 1),
    "blur": (0, 0, math.inf),
    "inverted": (0, 0, 1),
    "gamma": (1, 0.1, 10),
    "shot": (0, 0, math.inf),
    "jpeg": (0, 0, 95),
}

# A mixture for photographs: each image, or each object, draws its own value from each range.
VARIED = {
    "num_circles": (0, 8),
    "contrast": (0.1, 0.6),
    "noise": (0.0, 0.1),
    "elongation": (1.0, 3.0),
    "roughness": (0.0, 0.3),
    "own_contrast": (0.3, 1.5),
    "touching": (0.0, 1.0),
    "borders": (0, 4),
    "dust": (0, 10),
    "highlights": (0, 6),
    "texture": (0.0, 0.15),
    "illumination": (0.0, 0.9),
    "blur": (0.0, 3.0),
    "inverted": 0.5,
    "gamma": (0.6, 1.6),
    "shot": (0.0, 0.12),
    "jpeg": (0, 70),
    "margin": 16,
}


def draw_scenes(
    num_images: int,
    size: Size = 128,
    *,
    seed: Seed = 0,
    num_circles: tuple[int, int] = (1, 1),
    radius: tuple[float, float] = (8, 25),
    contrast: Range = 0.5,
    noise: Range = 0.25,
    elongation: Range = 1.0,
    roughness: Range = 0.0,
    own_contrast: Range = 1.0,
    touching: Range = 0.0,
    borders: Range = 0,
    dust: Range = 0,
    highlights: Range = 0,
    texture: Range = 0.0,
    illumination: Range = 0.0,
    blur: Range = 0.0,
    inverted: float = 0.0,
    gamma: Range = 1.0,
    shot: Range = 0.0,
    jpeg: Range = 0,
    margin: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes of round objects with their masks; without further settings, bright circles on a noisy background.

    The order of the settings is: shapes, surfaces, light, lens, sensor, file. If a setting is a range (smallest,
    largest), each image, or each object where the list says so, draws its value from it. If the least value changes
    nothing, the square of a uniform number is drawn, so that most pictures have little of it; otherwise it is uniform.

    Args:
        num_images, size, seed, num_circles, noise: as for `data_synth.make_circles`; the objects of a seed lie where
            its circles lie, unless `touching` moves them.
        radius: (smallest, largest) radius in pixels, at least 1; uniform in between. If an object is no circle,
            no part of it is farther from its centre.
        contrast: brightness of an object above the background 0.25, in (0, 0.75].
        elongation: longest over shortest axis of an object, an ellipse turned at random, in [1, 4]; for each object.
        roughness: how far a blob's outline is dented, as a share of its radius, in [0, 0.5]; for each object.
        own_contrast: an object's brightness above the background is this times `contrast`, in [0.01, 100], but at least
            0.04 and the noise's standard deviation, because invisible objects must not be labelled; for each object.
            Values above 1 are saturated.
        touching: probability that an object is moved until it touches or overlaps the one before it, in [0, 1].
        borders: number of nearly straight borders across the background, which is brighter by up to 0.15 on one side;
            they are in no mask, >= 0.
        dust: number of specks and fibres, 1 to 3 pixels wide, dark or bright, that are in no mask, >= 0.
        highlights: number of saturated spots, reflections of 1 to 4 pixels; they change no mask, >= 0.
        texture: standard deviation of the surfaces' own pattern, in grey values, >= 0: noise smoothed over 1 to 8
            pixels, another one inside the objects than outside.
        illumination: share of the light that comes from one side, in [0, 1].
        blur: standard deviation of the lens's blur, in pixels, >= 0; the mask stays sharp.
        inverted: probability that an image is turned into its negative, dark objects on bright, in [0, 1].
        gamma: exponent of the sensor's response to light, image ** gamma, in [0.1, 10].
        shot: standard deviation of the light's own noise at brightness 1, in grey values, >= 0; it grows with the
            square root of the brightness.
        jpeg: losses of a JPEG file, 100 minus its quality, in [0, 95]; below 1 nothing is lost.
        margin: pixels by which an object may reach over the border, >= 0, but at most up to its centre.

    Returns:
        images (N, H, W, 1), float32 in [0, 1], and masks (N, H, W, 1), float32, exactly 0 or 1.

    Raises:
        ValueError: if an argument lies outside its range.
    """
    given = locals()
    looks = {name: check_range(name, given[name], *ends) for name, (_, *ends) in LOOKS.items()}
    looks |= {"contrast": check_contrast(contrast), "noise": check_range("noise", noise)}
    num, shape = check_integer("the number of images", num_images, low=1), check_size(size, 2)
    generator = generators(seed)
    balls = place_balls(generator(0), num, shape, "num_circles", num_circles, radius, margin)
    images = np.empty((num, *shape, 1), np.float32)
    masks = np.zeros((num, *shape, 1), np.float32)
    for i, ball in enumerate(zip(*balls, strict=True)):  # streams 1 and 2 are those of `make_circles`
        _draw_scene(images[i, ..., 0], masks[i, ..., 0], *ball, margin, looks, generator(3, i))
    return images, masks


def _draw_scene(image, mask, count, radii, centres, margin, looks, rng):
    """Draw an image and its mask (H, W), which is empty before: objects and dust, then light, lens, sensor and file."""
    from scipy.ndimage import gaussian_filter

    at = {name: _between(name, ends, rng) for name, ends in looks.items()}
    light = _light(image.shape, at["illumination"], rng)
    scale = 8 ** rng.random()
    inside, outside = (at["texture"] * _pattern(image.shape, scale, rng) for _ in range(2))
    ground = _ground(image.shape, round(at["borders"]), rng)
    scene = ground + outside
    visible = max(FAINTEST, math.hypot(at["noise"], at["shot"], at["texture"]))
    for j, radius in enumerate(radii[: int(count)]):
        if j > 0 and rng.random() < at["touching"]:
            turn, distance = 2 * math.pi * rng.random(), (radii[j - 1] + radius) * rng.uniform(0.6, 1)
            edge = radius - min(margin, radius)
            beside = centres[j - 1] + distance * np.array([math.sin(turn), math.cos(turn)])
            centres[j] = np.clip(beside, edge, np.array(image.shape) - 1 - edge)
        elongation, roughness = (_between(name, looks[name], rng) for name in ("elongation", "roughness"))
        window, blob = _blob(image.shape, centres[j], radius, elongation, roughness, rng)
        here = max(0.05, light[tuple(centres[j].round().astype(int))])
        height = max(at["contrast"] * _between("own_contrast", looks["own_contrast"], rng), visible / here)
        mask[window][blob] = 1
        scene[window][blob] = ground[window][blob].max() + height + inside[window][blob]
    _add_specks(scene, round(at["dust"]), round(at["highlights"]), rng)

    if at["blur"]:
        scene = gaussian_filter(scene, at["blur"], truncate=3)
    scene *= light
    if rng.random() < at["inverted"]:
        scene = 1 - scene
    np.clip(scene, 0, 1, out=scene)
    scene += np.sqrt(at["noise"] ** 2 + at["shot"] ** 2 * scene) * rng.standard_normal(scene.shape, np.float32)
    np.clip(scene, 0, 1, out=scene)
    scene **= at["gamma"]
    image[...] = _through_jpeg(scene, round(at["jpeg"])) if at["jpeg"] >= 1 else scene


def _between(name, ends, rng):
    """A value between two ends; small values are more frequent if the least value changes nothing."""
    low, high = ends
    neutral, least, _ = LOOKS.get(name, (None, 0, 0))
    return low + (high - low) * rng.random() ** (2 if neutral == least else 1)


def _light(shape, share, rng):
    """Factors (H, W) from 1 - share to 1 + share, between two opposite corners or sides."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in shape), indexing="ij", sparse=True)
    direction = rng.uniform(-1, 1, 2).astype(np.float32)
    return 1 + np.float32(share) * sum(d * axis for d, axis in zip(direction, axes, strict=True)) / abs(direction).sum()


def _ground(shape, num_borders, rng):
    """The background (H, W): 0.25, and up to 0.15 more within `num_borders` discs that are wider than the image."""
    ground = np.full(shape, BACKGROUND, np.float32)
    for _ in range(num_borders):
        radius, turn = max(shape) * 10 ** rng.random(), 2 * math.pi * rng.random()
        point = rng.random(2) * shape  # where the outline passes
        centre = point + radius * np.array([math.sin(turn), math.cos(turn)])
        rows, columns = (np.arange(side) - c for side, c in zip(shape, centre, strict=True))
        within = rows[:, None] ** 2 + columns**2 <= radius**2
        np.maximum(ground, BACKGROUND + 0.15 * rng.random(), out=ground, where=within)  # not the sum where two overlap
    return ground


def _pattern(shape, scale, rng):
    """Normal noise (H, W) smoothed over `scale` pixels, of standard deviation 1."""
    from scipy.fft import irfft2

    rows, columns = (
        np.exp(-2 * (math.pi * scale * frequencies) ** 2).astype(np.float32)
        for frequencies in (np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]))
    )
    waves = rng.standard_normal((len(rows), len(columns), 2), np.float32).view(np.complex64)[..., 0]
    field = irfft2(waves * rows[:, None] * columns, shape)
    return field / max(field.std(), 1e-6)


def _blob(shape, centre, radius, elongation, roughness, rng):
    """The pixels of an object: a window (two slices), and in it where the object is (h, w), bool.

    An ellipse whose outline is dented by waves that run round it 2 to 5 times. It reaches `radius` pixels from the
    centre at most, and holds at least the pixel that is nearest to it.
    """
    window = tuple(
        slice(max(0, math.ceil(c - radius)), min(side, math.floor(c + radius) + 1))
        for c, side in zip(centre, shape, strict=True)
    )
    rows, columns = (np.arange(w.start, w.stop) - c for w, c in zip(window, centre, strict=True))
    turn, waves, phases = math.pi * rng.random(), rng.random(4), rng.random(4)
    along = math.sin(turn) * rows[:, None] + math.cos(turn) * columns
    across = math.cos(turn) * rows[:, None] - math.sin(turn) * columns
    limit = radius
    if roughness:
        # A wave that runs round k times is the real part of the k-th power of the direction.
        direction = (along + 1j * across) / np.maximum(np.hypot(along, across), 1e-9)
        dents = np.polyval([*(waves / waves.sum() * np.exp(2j * math.pi * phases)), 0, 0], direction).real
        limit = radius * (1 - roughness * (1 + dents) / 2)
    blob = along**2 + (elongation * across) ** 2 <= limit**2
    blob[abs(rows).argmin(), abs(columns).argmin()] = True
    return window, blob


def _add_specks(scene, num_dust, num_highlights, rng):
    """Put specks and fibres and saturated spots on a scene (H, W), in place."""
    for is_dust in [True] * num_dust + [False] * num_highlights:
        centre = rng.random(2) * (np.array(scene.shape) - 1)
        width = rng.uniform(0.5, 1.5)
        length = width * (12 ** rng.random() if is_dust else rng.uniform(1, 1.5))
        window, speck = _blob(scene.shape, centre, length, length / width, 0, rng)
        if is_dust:
            scene[window][speck] += rng.choice([-1, 1]) * rng.uniform(0.1, 0.5)
        else:
            scene[window][speck] = 5  # in the weakest light still more than 1


def _through_jpeg(image, losses):
    """An image (H, W) in [0, 1], after it was saved as a JPEG file of this quality."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.round(255 * image).astype(np.uint8)).save(file, "JPEG", quality=100 - losses)
    return np.asarray(Image.open(file), np.float32) / 255
