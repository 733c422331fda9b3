"""Distances between the surfaces of two masks, in any number of dimensions, in voxels or millimetres.

    mean, hausdorff95 = surface_distances(true, found, spacing=(3.0, 1.0, 1.0))

The surface S of a mask is its voxels with a neighbour along an axis outside it, or outside the image; d(x, S) is the
Euclidean distance of voxel centres from x to the nearest voxel of S.
"""

import numpy as np


def surface_distances(true, found, spacing=1.0) -> tuple[float, float] | None:
    """Mean surface distance and 95% Hausdorff distance of two masks.

        mean surface distance = (sum over x in S1 of d(x, S2) + sum over x in S2 of d(x, S1)) / (|S1| + |S2|)
        95% Hausdorff distance = max(95th percentile of d(x, S2) on S1, 95th percentile of d(x, S1) on S2)

    (Heimann et al. 2009; Huttenlocher et al. 1993.) Two masks shifted against each other by one voxel along an axis are
    less than 1 apart.

    Args:
        true, found: masks of one shape, (H, W), (D, H, W), or of any other number of axes.
        spacing: of the voxels, one number or one per axis: the unit of the distances; 1 for voxels. For axes that are
            not at right angles a matrix, whose columns are the steps along the axes.

    Returns:
        Both distances; None if a mask is empty.

    Raises:
        ValueError: if the shapes differ.
    """
    ways = _both_ways(true, found, spacing)
    if ways is None:
        return None
    return float(np.concatenate(ways).mean()), float(max(np.percentile(way, 95) for way in ways))


def surface_dice(true, found, tolerance: float, spacing=1.0) -> float | None:
    """The share of both surfaces that lies within `tolerance` of the other one, in [0, 1] (Nikolov et al. 2021).

        (|{x in S1: d(x, S2) <= tolerance}| + |{x in S2: d(x, S1) <= tolerance}|) / (|S1| + |S2|)

    Arguments and None as in `surface_distances`; the tolerance has the unit of the spacing. Voxels count, not areas.
    """
    ways = _both_ways(true, found, spacing)
    return None if ways is None else float((np.concatenate(ways) <= tolerance).mean())


def _both_ways(true, found, spacing):
    """d(x, S2) for each x of S1, and d(x, S1) for each x of S2; None if a mask is empty."""
    from scipy import ndimage, spatial

    true, found = np.asarray(true, bool), np.asarray(found, bool)
    if true.shape != found.shape:
        raise ValueError(f"the masks must have the same shape; got {true.shape} and {found.shape}.")
    if not (true.any() and found.any()):
        return None
    (box,) = ndimage.find_objects((true | found).view(np.uint8))  # outside of it there is no surface
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (true, found)]
    if np.ndim(spacing) == 2:
        points = [np.argwhere(surface) @ np.transpose(spacing) for surface in surfaces]
        return tuple(spatial.KDTree(there).query(here)[0] for here, there in (points, points[::-1]))
    to_true, to_found = (ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return to_found[surfaces[0]], to_true[surfaces[1]]
