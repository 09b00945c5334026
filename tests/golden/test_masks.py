"""Alpha, hit and background."""

import cv2
import numpy as np
import pytest
from golden.scenes import WRITERS, panel_pixels

pytestmark = pytest.mark.blender

ortho6 = pytest.mark.parametrize("samples", ["ortho6"], indirect=True)


@pytest.mark.parametrize("uid", list(WRITERS))
def test_the_background_of_normal_and_coord_is_mid_grey(samples, uid):
    sample = samples[uid]
    assert np.abs(sample.coord[~sample.hit]).max() < 1e-4
    assert (sample.rgb[sample.rgb[..., 3] == 0] == 0).all()


@pytest.mark.parametrize("uid", ["cube", "sphere", "skewed"])
def test_alpha_and_hit_differ_at_silhouettes_only(samples, uid):
    sample = samples[uid]
    alpha = sample.rgb[..., 3]
    assert (alpha[sample.hit] > 0).all()  # the centre is one of the anti-aliasing samples
    assert sample.hit[alpha == 255].all()
    partial = (alpha > 0) & (alpha < 255)
    kernel = np.ones((3, 3), np.uint8)
    for edge, hit in zip(partial, sample.hit.astype(np.uint8), strict=True):
        silhouette = cv2.dilate(hit, kernel) != cv2.erode(hit, kernel)
        assert not (edge & ~silhouette).any()
    assert partial.any()


@ortho6
def test_clear_texels_of_a_mask_are_no_surface(samples):
    sample = samples["panels"]
    view, rows, columns = panel_pixels(sample)["mask"]
    width = columns.stop - columns.start
    left_half = slice(columns.start - 2 * width, columns.start - width)
    assert not sample.hit[view, rows, left_half].any()
    assert (sample.rgb[view, rows, left_half, 3] == 0).all()
