"""Surface distances against a search over all pairs of voxels, against arithmetic, and against MONAI."""

import numpy as np
import pytest

from lab.evaluate.surfaces import surface_dice, surface_distances

SHAPES = [((12, 15), 1.0), ((12, 15), (0.5, 2.0)), ((7, 9, 8), 1.0), ((7, 9, 8), (3.0, 1.0, 0.5))]


def blobs(shape, seed):
    """Two masks that overlap in part."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(seed).standard_normal((2, *shape)), (0, *[1.5] * len(shape)))
    both = field[0], field[0] + 0.7 * field[1]
    return [mask > np.quantile(mask, 0.7) for mask in both]


def surface_of(mask):
    """Voxels with one of their neighbours along an axis outside, one by one."""
    padded = np.pad(mask, 1)
    inside = np.ones_like(mask)
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            inside &= np.roll(padded, shift, axis)[(slice(1, -1),) * mask.ndim]
    return np.argwhere(mask & ~inside)


@pytest.mark.parametrize("shape, spacing", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_a_search_over_all_pairs(shape, spacing, seed):
    true, found = blobs(shape, seed)
    one, other = (surface_of(mask) * np.array(spacing) for mask in (true, found))
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    ways = distances.min(axis=1), distances.min(axis=0)
    mean, hausdorff95 = surface_distances(true, found, spacing)
    assert mean == pytest.approx(np.concatenate(ways).mean())
    assert hausdorff95 == pytest.approx(max(np.percentile(way, 95) for way in ways))
    assert surface_dice(true, found, 1.0, spacing) == pytest.approx((np.concatenate(ways) <= 1).mean())


def test_distances_along_sheared_axes_equal_a_search_over_all_pairs():
    true, found = blobs((7, 9, 8), 0)
    steps = np.array([[2.0, 0, 0], [0.7, 1, 0], [0, 0.2, 0.5]])  # a column for each axis
    one, other = (surface_of(mask) @ steps.T for mask in (true, found))
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    ways = distances.min(axis=1), distances.min(axis=0)
    assert surface_distances(true, found, steps)[0] == pytest.approx(np.concatenate(ways).mean())
    straight = surface_distances(true, found, np.diag([3.0, 1.0, 0.5]))
    assert straight == pytest.approx(surface_distances(true, found, (3.0, 1.0, 0.5)))


@pytest.mark.parametrize("shape, spacing", SHAPES)
def test_distances_equal_monais(shape, spacing):
    metrics = pytest.importorskip("monai.metrics")
    import torch

    true, found = blobs(shape, 0)
    # MONAI pads where an object touches the image's border; ours counts the border as outside: the same, away from it
    border = np.pad(np.ones([side - 2 for side in shape], bool), 1)
    true, found = true & border, found & border
    one, other = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (true, found))
    options = {"include_background": True, "spacing": list(np.broadcast_to(spacing, len(shape)))}
    mean, hausdorff95 = surface_distances(true, found, spacing)
    assert mean == pytest.approx(
        float(metrics.compute_average_surface_distance(other, one, symmetric=True, **options)), rel=1e-5
    )
    assert hausdorff95 == pytest.approx(
        float(metrics.compute_hausdorff_distance(other, one, percentile=95, **options)), rel=1e-5
    )
    dice = metrics.compute_surface_dice(other, one, class_thresholds=[1.0], **options)
    assert surface_dice(true, found, 1.0, spacing) == pytest.approx(float(dice), rel=1e-5)


def test_a_cube_shifted_by_two_voxels_of_three_millimetres():
    true = np.zeros((20, 20, 20), bool)
    true[5:10, 5:10, 5:10] = True
    found = np.roll(true, 2, axis=0)
    mean, hausdorff95 = surface_distances(true, found, (3.0, 1.0, 1.0))
    assert hausdorff95 == 6.0
    assert 0 < mean < 6.0
    assert surface_distances(true, true) == (0.0, 0.0)
    assert surface_dice(true, true, 0.0) == 1.0
    assert surface_dice(true, found, 6.0, (3.0, 1.0, 1.0)) == 1.0


def test_of_an_empty_mask_there_is_no_distance():
    mask = np.zeros((5, 5, 5), bool)
    full = ~mask
    for pair in ((mask, full), (full, mask), (mask, mask)):
        assert surface_distances(*pair) is None
        assert surface_dice(*pair, 1.0) is None


def test_the_images_border_counts_as_outside():
    full = np.ones((5, 6), bool)
    inner = np.pad(np.ones((3, 4), bool), 1)
    assert surface_distances(full, inner)[0] == pytest.approx((4 * np.sqrt(2) + 14 + 10) / 28)


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"same shape.*\(2, 3\) and \(3, 2\)"):
        surface_distances(np.ones((2, 3)), np.ones((3, 2)))
