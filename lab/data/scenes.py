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

# What `draw_scenes` can vary, in the order of the work: shapes, surfaces, light, lens, sensor, file. For each setting:
# the value that leaves the image as it is, the least and the greatest allowed, and the range in the mixture VARIED.
LOOKS = {
    "elongation": (1, 1, 4, (1.0, 3.0)),  # longest over shortest axis of an ellipse turned at random; for each object
    "roughness": (0, 0, 0.5, (0.0, 0.3)),  # how far outlines are dented, as a share of the radius; for each object
    # An object's brightness above the background is this times `contrast`, but at least FAINTEST and the noise's
    # standard deviation, because invisible objects must not be labelled; for each object. Values above 1 are saturated.
    "own_contrast": (1, 0.01, 100, (0.3, 1.5)),
    "touching": (0, 0, 1, (0.0, 1.0)),  # probability that an object is moved to touch or overlap the one before it
    # Number of nearly straight borders across the background, brighter by up to 0.15 on one side; they are in no mask.
    "borders": (0, 0, 1000, (0, 4)),
    "dust": (0, 0, 1000, (0, 10)),  # number of specks and fibres, 1 to 3 pixels wide, dark or bright, in no mask
    "highlights": (0, 0, 1000, (0, 6)),  # number of saturated spots, reflections of 1 to 4 pixels; they change no mask
    # Standard deviation of the surfaces' own pattern, in grey values: noise smoothed over 1 to 8 pixels, another one
    # inside the objects than outside.
    "texture": (0, 0, math.inf, (0.0, 0.15)),
    "illumination": (0, 0, 1, (0.0, 0.9)),  # share of the light that comes from one side
    "blur": (0, 0, math.inf, (0.0, 3.0)),  # standard deviation of the lens's blur, in pixels; the mask stays sharp
    "inverted": (0, 0, 1, 0.5),  # probability that an image is turned into its negative, dark objects on bright
    "gamma": (1, 0.1, 10, (0.6, 1.6)),  # exponent of the sensor's response to light, image ** gamma
    # Standard deviation of the light's own noise at brightness 1, in grey values; it grows with the square root of the
    # brightness.
    "shot": (0, 0, math.inf, (0.0, 0.12)),
    "jpeg": (0, 0, 95, (0, 70)),  # losses of a JPEG file, 100 minus its quality; below 1 nothing is lost
}

# A mixture for photographs: each image, or each object, draws its own value from each range.
VARIED: dict = {
    **{"num_circles": (0, 8), "contrast": (0.1, 0.6), "noise": (0.0, 0.1), "margin": 16},
    **{name: mixture for name, (*_, mixture) in LOOKS.items()},
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
    margin: int = 0,
    **looks: Range,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes of round objects with their masks; without `looks`, bright circles on a noisy background.

    If a setting is a range (smallest, largest), each image, or each object where `LOOKS` says so, draws its value from
    it. If the least value changes nothing, the square of a uniform number is drawn, so that most pictures have little
    of it; otherwise it is uniform.

    Args:
        num_images, size, seed, num_circles, radius, contrast, noise, margin: as for `data_synth.make_circles`; the
            objects of a seed lie where its circles lie, unless `touching` moves them. If an object is no circle, no
            part of it is farther from its centre than its radius.
        looks: settings of `LOOKS`, within their limits.

    Returns:
        images (N, H, W, 1), float32 in [0, 1], and masks (N, H, W, 1), float32, exactly 0 or 1.

    Raises:
        ValueError: if an argument lies outside its range.
        TypeError: for a setting that is not in `LOOKS`.
    """
    if looks.keys() - LOOKS.keys():
        raise TypeError(f"draw_scenes can vary {', '.join(LOOKS)}; got {', '.join(looks)}.")
    ends = {
        name: check_range(name, looks.get(name, neutral), least, greatest)
        for name, (neutral, least, greatest, _) in LOOKS.items()
    }
    ends |= {"contrast": check_contrast(contrast), "noise": check_range("noise", noise)}
    num, shape = check_integer("the number of images", num_images, low=1), check_size(size, 2)
    generator = generators(seed)
    balls = place_balls(generator(0), num, shape, "num_circles", num_circles, radius, margin)
    images = np.empty((num, *shape, 1), np.float32)
    masks = np.zeros((num, *shape, 1), np.float32)
    for i, ball in enumerate(zip(*balls, strict=True)):  # streams 1 and 2 are those of `make_circles`
        _draw_scene(images[i, ..., 0], masks[i, ..., 0], *ball, margin, ends, generator(3, i))
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
    neutral, least, *_ = LOOKS.get(name, (None, 0))
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
