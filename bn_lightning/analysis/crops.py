"""Views of a batch of images: whole, centre, 5, 10 and 144 crops.

Images are `[N, C, H, W]`, every view `[N, C, size, size]`. A crop is a box of the image, read off by bilinear
interpolation at exact places: on 8 × 8 pixels, a corner that is rounded to whole pixels is often the centre. An image
that is to shrink is shrunk with antialiasing first.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from bn_lightning.analysis.names import unknown_name

Views = Callable[[Tensor], Iterable[Tensor]]
"""From a batch of inputs to its views, each a batch of as many."""

# Krizhevsky et al. cut 224 pixels out of 256, Szegedy et al. out of 256, 288, 320 and 352: in units of 32 pixels.
CROP = 7
SCALES = (8, 9, 10, 11)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
CENTRE = (0.5, 0.5)


def whole(inputs: Tensor) -> Iterator[Tensor]:
    """The inputs as they come, of any shape.

    Args:
        inputs: `[N, ...]`.

    Yields:
        The same tensor.
    """
    yield inputs


def centre_crop(images: Tensor, *, size: int | None = None) -> Iterator[Tensor]:
    """The central box of 7/8 of the shorter side, as 224 of 256 pixels.

    Args:
        images: `[N, C, H, W]`.
        size: Side of the view, in pixels; by default the shorter side of the images.

    Yields:
        One view, `[N, C, size, size]`.

    Raises:
        ValueError: If these are no images, or the size is not positive.

    Example:
        >>> [tuple(view.shape) for view in centre_crop(torch.zeros(2, 3, 8, 8))]
        [(2, 3, 8, 8)]
    """
    images, size = _prepared(images, size)
    yield from _cut(_shrunk(images, size, SCALES[0]), size, SCALES[0], [CENTRE], flips=False)


def five_crops(images: Tensor, *, size: int | None = None) -> Iterator[Tensor]:
    """The four corners and the centre.

    Args:
        images: `[N, C, H, W]`.
        size: Side of a view, in pixels; by default the shorter side of the images.

    Yields:
        Five views, `[N, C, size, size]`: top left, top right, bottom left, bottom right, centre.

    Raises:
        ValueError: If these are no images, or the size is not positive.

    Example:
        >>> len(list(five_crops(torch.zeros(2, 3, 8, 8))))
        5
    """
    images, size = _prepared(images, size)
    yield from _cut(_shrunk(images, size, SCALES[0]), size, SCALES[0], [*CORNERS, CENTRE], flips=False)


def ten_crops(images: Tensor, *, size: int | None = None) -> Iterator[Tensor]:
    """The four corners and the centre, each with its mirror image (Krizhevsky et al., 2012, section 4.1).

    A mirrored letter or digit is another sign: there, use `five_crops`.

    Args:
        images: `[N, C, H, W]`.
        size: Side of a view, in pixels; by default the shorter side of the images.

    Yields:
        Ten views, `[N, C, size, size]`, each followed by its mirror image.

    Raises:
        ValueError: If these are no images, or the size is not positive.

    Example:
        >>> len(list(ten_crops(torch.zeros(2, 3, 8, 8))))
        10
    """
    images, size = _prepared(images, size)
    yield from _cut(_shrunk(images, size, SCALES[0]), size, SCALES[0], [*CORNERS, CENTRE], flips=True)


def crops_144(images: Tensor, *, size: int | None = None) -> Iterator[Tensor]:
    """Four scales × three squares × six crops × two mirrorings (Szegedy et al., 2014, "Going deeper", section 7).

    The shorter side is 8/7, 9/7, 10/7 and 11/7 of the view's (256, 288, 320 and 352 pixels for 224). At each scale the
    squares are left, centre and right, in an upright image top, centre and bottom; the crops are the corners, the
    centre and the whole square. In a square image the three squares are one, so that the mean over 144 views is the
    mean over the 48 that differ, and only these are given.

    Args:
        images: `[N, C, H, W]`.
        size: Side of a view, in pixels; by default the shorter side of the images.

    Yields:
        144 views, `[N, C, size, size]`; of square images 48.

    Raises:
        ValueError: If these are no images, or the size is not positive.

    Example:
        >>> len(list(crops_144(torch.zeros(2, 1, 8, 12)))), len(list(crops_144(torch.zeros(2, 1, 8, 8))))
        (144, 48)
    """
    images, size = _prepared(images, size)
    for scale in SCALES:
        shrunk = _shrunk(images, size, scale)
        for square in _squares(shrunk):
            yield from _cut(square, size, scale, [*CORNERS, CENTRE], flips=True)
            yield from _cut(square, size, CROP, [CENTRE], flips=True)


VIEWS: dict[str, Callable[..., Iterator[Tensor]]] = {
    "whole": whole,
    "centre": centre_crop,
    "5-crop": five_crops,
    "10-crop": ten_crops,
    "144-crop": crops_144,
}


def views_of(views: str | Views, *, size: int | None = None) -> Views:
    """The views of a name, or a user's own.

    Args:
        views: "whole", "centre", "5-crop", "10-crop" or "144-crop"; or a function from a batch of inputs to its views.
        size: Side of a view by name, in pixels; by default the shorter side of the images.

    Returns:
        A function from a batch of inputs to its views.

    Raises:
        UnknownNameError: If there are no views of that name.
        ValueError: If a size is given to views that have none.

    Example:
        >>> len(list(views_of("10-crop", size=6)(torch.zeros(2, 1, 8, 8))))
        10
    """
    if isinstance(views, str) and views not in VIEWS:
        raise unknown_name("set of views", views, VIEWS)
    if size is not None and (not isinstance(views, str) or views == "whole"):
        kind = "whole inputs" if isinstance(views, str) else "views of your own"
        raise ValueError(
            f"size={size} (--size) is the side of crops, and these are {kind}, which are taken as they are. Leave it "
            'out, or name crops: views="centre" (--views centre).'
        )
    if not isinstance(views, str):
        return views
    return whole if views == "whole" else partial(VIEWS[views], size=size)


def _prepared(images: Tensor, size: int | None) -> tuple[Tensor, int]:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        found = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"Crops are cut out of images [N, C, H, W] of floating point, but the inputs are {found}. Use the inputs "
            'as they come (views="whole"), or give a function that makes views of them.'
        )
    if size is not None and size < 1:
        raise ValueError(f"A view has a side of one pixel or more, got size={size} (--size).")
    return images, min(images.shape[-2:]) if size is None else size


def _shrunk(images: Tensor, size: int, scale: int) -> Tensor:
    height, width = images.shape[-2:]
    factor = size * scale / CROP / min(height, width)
    if factor >= 1:
        return images  # enlarged where the boxes are read, at exact places
    shape = [max(1, round(height * factor)), max(1, round(width * factor))]
    return F.interpolate(images, shape, mode="bilinear", antialias=True)


def _squares(images: Tensor) -> Iterator[Tensor]:
    height, width = images.shape[-2:]
    side, spare = min(height, width), abs(height - width)
    for start in (0, spare // 2, spare) if spare else (0,):
        yield images[..., :side, start : start + side] if width > height else images[..., start : start + side, :]


def _cut(
    images: Tensor, size: int, scale: int, places: Iterable[tuple[float, float]], *, flips: bool
) -> Iterator[Tensor]:
    """Boxes of CROP/scale of the shorter side; a place is the share of what is left that lies above and to the left."""
    height, width = images.shape[-2:]
    side = min(height, width) * CROP / scale
    for (down, right), mirror in product(places, (1, -1) if flips else (1,)):
        # Centres in the coordinates of grid_sample, whose image reaches from -1 to 1.
        middle = [2 * (share * (full - side) + side / 2) / full - 1 for share, full in ((right, width), (down, height))]
        rows = [[mirror * side / width, 0.0, middle[0]], [0.0, side / height, middle[1]]]
        theta = torch.tensor(rows, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, [*images.shape[:2], size, size], align_corners=False)
        yield F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
