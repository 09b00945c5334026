import numpy as np
import pytest
from scipy import ndimage

from modules.geometry.nearest_pixel import nearest_pixel


@pytest.mark.parametrize("share", [0.5, 0.01, 0.0002])
def test_every_pixel_gets_a_known_one_that_is_about_the_nearest(share: float):
    known = np.random.default_rng(0).random((150, 90)) < share
    known[70, 40] = True
    found = nearest_pixel(known)
    assert known[found].all()
    own = np.indices(known.shape)
    np.testing.assert_array_equal(np.stack(found)[:, known], own[:, known])
    distance = np.hypot(*(np.stack(found) - own))
    exact = ndimage.distance_transform_edt(~known)
    assert (distance <= 1.06 * exact + 1e-9).all()


def test_one_known_pixel_is_everywhere():
    known = np.zeros((40, 40), dtype=bool)
    known[3, 31] = True
    row, column = nearest_pixel(known)
    assert (row == 3).all()
    assert (column == 31).all()
