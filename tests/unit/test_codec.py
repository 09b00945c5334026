"""Images of a sample: exact to the last bit, plain PNGs for everyone else, and damage is seen."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from data_pipeline.codec import decode_views, encode_views
from data_pipeline.png import read_png, write_png

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda vhw: st.sampled_from([vhw, (*vhw, 3), (*vhw, 4)])
)
VIEWS = st.sampled_from([np.uint8, np.uint16]).flatmap(lambda dtype: npst.arrays(dtype, SHAPES))


def smooth_views(channels: int, dtype: type) -> np.ndarray:
    """Return two views of a ramp with steps in it."""
    y, x = np.mgrid[:32, :24]
    top = np.iinfo(dtype).max
    ramp = np.stack([(x * 7 + y * 3 * (c + 1)) * (top // 255) for c in range(channels)], axis=-1)
    return np.stack([ramp, ramp[::-1]]).astype(dtype)


def as_opencv_sees(png: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


@given(VIEWS)
def test_every_array_comes_back_bit_for_bit(views):
    decoded = decode_views(encode_views(views), len(views))
    assert decoded.dtype == views.dtype
    np.testing.assert_array_equal(decoded, views)


@given(VIEWS)
def test_opencv_reads_the_same_pixels_stacked_top_to_bottom(views):
    png = encode_views(views)
    assert read_png(png, len(views)) is not None  # it is the fast way that is compared
    strip = views.reshape(-1, *views.shape[2:])
    np.testing.assert_array_equal(as_opencv_sees(png), strip)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_of_another_writer_is_read_too(channels, dtype):
    views = smooth_views(channels, dtype)
    views = views[..., 0] if channels == 1 else views
    strip = views.reshape(-1, *views.shape[2:])
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    png = cv2.imencode(".png", cv2.cvtColor(strip, codes[channels]) if channels > 1 else strip)[1]
    assert read_png(png.tobytes(), 2) is None
    np.testing.assert_array_equal(decode_views(png.tobytes(), 2), views)


def test_equal_views_give_equal_bytes_whatever_their_memory_layout():
    views = smooth_views(3, np.uint16)
    turned = np.asfortranarray(views)
    assert encode_views(views) == encode_views(turned) == encode_views(views[:, ::-1][:, ::-1])


def test_smooth_views_take_less_than_opencv_makes_of_them():
    views = smooth_views(3, np.uint16)
    theirs = cv2.imencode(".png", views.reshape(-1, *views.shape[2:]))[1]
    assert len(encode_views(views)) < len(theirs)


def test_a_flipped_bit_anywhere_in_the_pixels_is_refused():
    views = smooth_views(3, np.uint16)
    png = encode_views(views)
    for position in range(41, len(png) - 16, 7):
        damaged = bytearray(png)
        damaged[position] ^= 4
        with pytest.raises(ValueError, match="damaged"):
            decode_views(bytes(damaged), 2)


@pytest.mark.parametrize(
    "content", [b"", b"no picture", encode_views(smooth_views(3, np.uint8))[:90]]
)
def test_what_is_no_png_is_refused(content):
    with pytest.raises(ValueError, match="PNG"):
        decode_views(content, 2)


def test_a_strip_that_does_not_hold_that_many_views_is_refused():
    with pytest.raises(ValueError, match="does not hold 5 views"):
        decode_views(encode_views(smooth_views(1, np.uint8)[..., 0]), 5)


@pytest.mark.parametrize(
    ("views", "said"),
    [
        (np.zeros((2, 4, 4, 2), np.uint8), "no stack of grey"),
        (np.zeros((0, 4, 4, 1), np.uint8), "no stack of grey"),
        (np.zeros((2, 4, 4, 3), np.float32), "float32"),
    ],
)
def test_what_no_png_can_hold_is_refused_by_name(views, said):
    with pytest.raises(ValueError, match=said):
        write_png(views)
