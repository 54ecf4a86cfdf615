"""Digital: contrast, elastic deformation, pixels, JPEG."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from fastres.evaluation.corruptions.draws import Draws
from fastres.evaluation.corruptions.sampling import bilinear, gaussian
from fastres.evaluation.corruptions.values import Pixels, to_bytes, to_unit


def contrast(images: Pixels, factor: float, draws: Draws) -> Pixels:
    """The distance of each value from its channel's mean is multiplied by `factor`."""
    values = to_unit(images)
    means = values.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return to_bytes((values - means) * np.float32(factor) + means)


def elastic_transform(images: Pixels, constants: tuple[float, float, float], draws: Draws) -> Pixels:
    """An affine map, then displacements that a Gaussian filter has smoothed (Simard et al. 2003); (displacement, sigma,
    corner) in shares of the shorter side.

    The affine map moves three corners of a square, of two thirds of the side, around the middle by up to `corner` on
    either axis. Displacements are up to `displacement` before they are smoothed. Both look at the image by bilinear
    interpolation, and beyond its border at its mirror image.
    """
    height, width = images.shape[1:3]
    side = min(height, width)
    displacement, sigma, corner = (side * fraction for fraction in constants)
    half = side // 3
    middle = np.array([width // 2, height // 2])
    corners = middle + half * np.array([(1, 1), (1, -1), (-1, -1)])
    moved = corners + draws.between(-corner, corner, (3, 2), concern=0).astype(np.float64)
    # Rows (x, y, 1) of the corners times the map's transpose are the moved corners; the result looks back.
    forward = np.linalg.inv(np.column_stack([corners, np.ones(3)])) @ moved
    back = np.linalg.inv(np.concatenate([forward, np.broadcast_to([[0.0], [0], [1]], (len(images), 3, 1))], axis=2))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    terms = [back[:, :, axis, None, None] for axis in (0, 1)]
    columns, rows = ((x * term[:, 0] + y * term[:, 1] + term[:, 2]).astype(np.float32) for term in terms)
    values = bilinear(to_unit(images), rows, columns, edge_twice=False)
    if displacement == 0:
        return to_bytes(values)
    noise = draws.between(-1, 1, (height, width, 2), concern=1)
    shift = np.float32(displacement) * gaussian(noise, sigma, truncate=3, border="mirror")
    y, x = y.astype(np.float32), x.astype(np.float32)
    return to_bytes(bilinear(values, y + shift[..., 0], x + shift[..., 1], edge_twice=True))


def pixelate(images: Pixels, fraction: float, draws: Draws) -> Pixels:
    """Each side is reduced to `fraction` of its pixels and enlarged again, by Pillow's box filter."""
    height, width = images.shape[1:3]
    small = int(width * fraction), int(height * fraction)

    def coarse(picture: Image.Image) -> Image.Image:
        box = Image.Resampling.BOX
        return picture.resize(small, box).resize((width, height), box)

    return _each(images, coarse)


def jpeg_compression(images: Pixels, quality: int, draws: Draws) -> Pixels:
    """JPEG of the given quality, by Pillow and back."""

    def compressed(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(images, compressed)


def _each(images: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])
