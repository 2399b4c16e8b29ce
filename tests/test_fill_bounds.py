"""A filling does not go beyond the lesion that it replaces: interpolation overshoots beside the slope of a wall."""

import numpy as np
import pytest

from bids_lesionfill.lesions import fill

SHAPE = (24, 24, 24)
HOLE = np.zeros(SHAPE, dtype=bool)
HOLE[8:16, 8:16, 8:16] = True
WM = ~HOLE
MIDDLE = np.s_[3:5, 3:5, 3:5]


def bound(lesion, filling, sign):
    """Fill a lesion of one level in white matter at 100 (noise 4) with another level; return the middle."""
    image = 100 + np.random.default_rng(0).normal(0, 4, SHAPE)
    image[HOLE] = lesion
    values = np.full((2, HOLE.sum()), float(filling))
    done = fill.within_lesion(values, image, HOLE, WM, sign)
    assert done.shape == values.shape
    return done.reshape(2, 8, 8, 8)[(slice(None), *MIDDLE)]


@pytest.mark.parametrize(('lesion', 'filling', 'sign'), [
    (80, 98, -1), (80, 85, -1), (80, 130, -1), (130, 104, 1), (130, 60, 1), (90, 91, -1),
])  # fmt: skip
def test_a_filling_on_the_healthy_side_of_the_lesion_stays(lesion, filling, sign):
    assert np.allclose(bound(lesion, filling, sign), filling)


@pytest.mark.parametrize(('lesion', 'filling', 'sign'), [(80, 50, -1), (130, 170, 1)])
def test_a_filling_beyond_the_lesion_is_brought_back_to_it(lesion, filling, sign):
    assert np.allclose(bound(lesion, filling, sign), lesion, atol=0.6 * 4)


@pytest.mark.parametrize(('lesion', 'sign'), [(150, -1), (50, 1)])
def test_of_what_is_no_lesion_of_its_kind_white_matter_is_the_bound(lesion, sign):
    """An enhancing lesion, a vessel: it is filled as white matter, not kept."""
    beyond = 100 + sign * 60
    assert np.allclose(bound(lesion, 100, sign), 100)
    assert np.allclose(bound(lesion, beyond, sign), 100, atol=0.8 * 4)
