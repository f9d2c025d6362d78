import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from bn_lightning.analysis.crops import VIEWS, centre_crop, crops_144, five_crops, ten_crops, views_of, whole
from bn_lightning.errors import UnknownNameError


def images(height, width, channels=2):
    return torch.rand(3, channels, height, width, generator=torch.Generator().manual_seed(0))


def slices(shown, size, *, mirror):
    """By whole pixels, as one would write it down: corners, centre."""
    height, width = shown.shape[-2:]
    down, right = height - size, width - size
    places = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    found = []
    for top, left in places:
        box = shown[..., top : top + size, left : left + size]
        found += [box, box.flip(-1)] if mirror else [box]
    return found


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (20, 16)])
def test_where_pixels_fall_together_crops_are_slices(height, width):
    shown = images(height, width)
    for views, mirror in ((five_crops, False), (ten_crops, True)):
        found = list(views(shown, size=14))
        expected = slices(shown, 14, mirror=mirror)
        assert len(found) == len(expected)
        for view, box in zip(found, expected, strict=True):
            assert_close(view, box)
    (centre,) = centre_crop(shown, size=14)
    assert_close(centre, slices(shown, 14, mirror=False)[-1])


def by_the_paper(shown, size, scale):
    """One scale of the protocol, for images whose resized sides are whole: squares, six crops, mirror images."""
    height, width = shown.shape[-2:]
    short = size * scale // 7
    shape = [short * height // min(height, width), short * width // min(height, width)]
    resized = F.interpolate(shown, shape, mode="bilinear", antialias=True)
    long = max(shape) - short
    for start in (0, long // 2, long):
        wide = width > height
        square = resized[..., start : start + short] if wide else resized[..., start : start + short, :]
        yield from slices(square, size, mirror=True)
        small = F.interpolate(square, [size, size], mode="bilinear")
        yield from (small, small.flip(-1))


@pytest.mark.parametrize(("height", "width"), [(88, 132), (132, 88)])
def test_the_144_crops_are_those_of_the_protocol(height, width):
    # Large enough for every scale to shrink to whole pixels: 32, 36, 40 and 44 for 28.
    shown = images(height, width, channels=1)
    found = list(crops_144(shown, size=28))
    expected = [view for scale in (8, 9, 10, 11) for view in by_the_paper(shown, 28, scale)]
    assert len(found) == len(expected) == 144
    for view, wanted in zip(found, expected, strict=True):
        assert_close(view, wanted)


def test_the_three_squares_of_a_square_image_are_one_and_the_mean_is_the_same():
    shown = images(88, 88, channels=1)
    found = list(crops_144(shown, size=28))
    expected = [view for scale in (8, 9, 10, 11) for view in by_the_paper(shown, 28, scale)]
    assert (len(found), len(expected)) == (48, 144)
    assert_close(torch.stack(found).double().mean(0), torch.stack(expected).double().mean(0))


# The whole square of an image that is not shrunk is the same view at all four scales, twice with its mirror image.
@pytest.mark.parametrize(("name", "distinct"), [("centre", 1), ("5-crop", 5), ("10-crop", 10), ("144-crop", 48 - 6)])
def test_views_of_small_images_have_their_side_and_differ(name, distinct):
    shown = images(8, 8)
    found = list(views_of(name)(shown))
    assert {tuple(view.shape) for view in found} == {(3, 2, 8, 8)}
    seen = []
    for view in found:
        if not any(torch.allclose(view, other) for other in seen):
            seen.append(view)
    assert len(seen) == distinct


def test_places_between_pixels_are_exact():
    """On a ramp, bilinear interpolation gives the coordinate itself away from the border."""
    ramp = torch.arange(8, dtype=torch.float64).expand(1, 1, 8, 8)
    boxes = {"left": 0.0, "right": 1.0, "centre": 0.5}
    views = dict(zip(["left", "right", "centre"], [list(five_crops(ramp))[place] for place in (0, 1, 4)], strict=True))
    for name, share in boxes.items():
        expected = share * (8 - 7) + (torch.arange(8, dtype=torch.float64) + 0.5) * 7 / 8 - 0.5
        assert_close(views[name][0, 0, 0], expected.clamp(0, 7))


def test_large_images_are_shrunk_without_aliasing():
    stripes = (torch.arange(256) % 2).float().expand(1, 1, 256, 256)
    for view in five_crops(stripes, size=14):
        assert view[..., 1:-1, 1:-1].sub(0.5).abs().max() < 0.05


def test_whole_inputs_are_left_alone_whatever_their_shape():
    for inputs in (torch.zeros(3, 64), torch.zeros(2, 5, 7, dtype=torch.int64)):
        (view,) = views_of("whole")(inputs)
        assert view is inputs
    assert list(VIEWS) == ["whole", "centre", "5-crop", "10-crop", "144-crop"]
    assert views_of("whole") is whole


def test_a_users_own_views():
    def own(inputs):
        return [inputs, -inputs]

    assert views_of(own) is own


def test_an_unknown_name_and_sizes_that_mean_nothing():
    with pytest.raises(UnknownNameError, match=r"no set of views '12-crop'. Did you mean '10-crop'"):
        views_of("12-crop")
    with pytest.raises(ValueError, match=r"size=8 \(--size\) is the side of crops, and these are whole inputs"):
        views_of("whole", size=8)
    with pytest.raises(ValueError, match="these are views of your own"):
        views_of(whole, size=8)
    with pytest.raises(ValueError, match=r"side of one pixel or more, got size=0"):
        list(views_of("centre", size=0)(images(8, 8)))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(3, 64), r"the inputs are torch.float32 \[3, 64\]"),
        (torch.zeros(3, 1, 8, 8, dtype=torch.uint8), r"torch.uint8 \[3, 1, 8, 8\]"),
        ([1, 2], "the inputs are list"),
    ],
)
@pytest.mark.parametrize("name", ["centre", "5-crop", "10-crop", "144-crop"])
def test_what_are_no_images(inputs, words, name):
    with pytest.raises(ValueError, match=words):
        list(views_of(name)(inputs))
