import numpy as np
import pytest

from bids_lesionfill.images import mixture


@pytest.fixture
def brain(rng):
    """Intensities of three tissues and of what lies between them, as partial volume gives it; shuffled."""
    pure = [rng.normal(mean, deviation, n) for mean, deviation, n in ((30, 8, 900), (75, 9, 4500), (110, 6, 3400))]
    between = [rng.uniform(30, 75, 1000), rng.uniform(75, 110, 1200)]
    return rng.permutation(np.concatenate([*pure, *between]))


def start(intensities):
    return np.percentile(intensities, (8, 45, 85))


def test_tissues_are_found(brain):
    shares, means, deviations = mixture.fit(brain, start(brain))
    assert means == pytest.approx([32, 76, 109], abs=5)
    assert shares.sum() == pytest.approx(1)
    assert (deviations > 0).all()
    fluid_to_grey, grey_to_white = mixture.borders(shares, means, deviations)
    assert 40 < fluid_to_grey < 65
    assert 86 < grey_to_white < 102


@pytest.mark.parametrize('unit', [1e-9, 1.5, 1e9])
@pytest.mark.parametrize('offset', [0, -70, 1000])
def test_units_and_offsets_change_nothing(brain, unit, offset):
    """In the unit of the image a border moves by less than a hundredth of a bin."""
    one, other = brain, (brain + offset) * unit
    borders = [np.array(mixture.borders(*mixture.fit(values, start(values)))) for values in (one, other)]
    assert borders[1] / unit - offset == pytest.approx(borders[0], abs=1e-3)


def test_the_end_does_not_depend_on_the_start(brain):
    fits = [mixture.fit(brain, np.percentile(brain, shares)) for shares in ((8, 45, 85), (4, 35, 75), (12, 55, 92))]
    for fit in fits[1:]:
        assert np.allclose(fits[0], fit, atol=1e-3)


def test_the_fit_has_ended(brain, monkeypatch):
    fitted = mixture.fit(brain, start(brain))
    monkeypatch.setattr(mixture, 'TOLERANCE', 1e-12)
    assert np.allclose(fitted, mixture.fit(brain, start(brain)), rtol=1e-5)


def test_tissues_that_overlap_are_not_given_up(rng):
    """Maximum likelihood takes fluid and grey matter of such a brain for one, and halves the white matter."""
    parts = (rng.normal(71, 20, 4000), rng.normal(106, 17, 9400), rng.normal(155, 10, 6600))
    fluid_to_grey, grey_to_white = mixture.borders(*mixture.fit(np.concatenate(parts), start(np.concatenate(parts))))
    assert 75 < fluid_to_grey < 95
    assert 125 < grey_to_white < 142
