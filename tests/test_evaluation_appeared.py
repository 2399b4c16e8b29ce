import numpy as np
import pytest
from conftest import ellipsoid

from bids_lesionfill.evaluate import appeared as evaluate_appeared

SHAPE = (40, 40, 30)
VOXEL_MM = (1.0, 1.0, 1.0)
LESIONS = {'new': (12, 12, 15), 'grown': (28, 12, 15), 'gone': (12, 28, 15), 'noise': (28, 28, 15)}


@pytest.fixture
def visits():
    """FLAIR of two visits (SD 10, another scale at the first), and four changes; a map of what was there."""
    rng = np.random.default_rng(5)
    masks = {name: ellipsoid(SHAPE, centre, (3, 3, 3)) for name, centre in LESIONS.items()}
    structure = 20 * np.sin(np.indices(SHAPE)[0] / 3)  # of the anatomy: the same at both visits
    first = structure + 300 + 10 * rng.standard_normal(SHAPE) + 40 * masks['grown'] + 80 * masks['gone']
    second = structure + 300 + 10 * rng.standard_normal(SHAPE) + 80 * masks['grown'] + 80 * masks['new']
    changed = np.any(list(masks.values()), axis=0)
    return first, second, changed, masks, structure


def test_changes_are_judged(visits):
    first, second, changed, masks, _ = visits
    white = np.ones(SHAPE, dtype=bool)
    labels, changes = evaluate_appeared.find_changes(first, second, changed, white, VOXEL_MM)
    by_number = {change.number: change for change in changes}
    verdicts = {name: by_number[labels[LESIONS[name]]].verdict for name in masks}
    assert verdicts == {'new': 'appeared', 'grown': 'grew', 'gone': 'vanished', 'noise': 'unclear'}
    new = by_number[labels[LESIONS['new']]]
    assert new.volume_ml == masks['new'].sum() / 1000
    assert new.voxel == LESIONS['new']
    assert new.contrast_second - new.contrast_first == pytest.approx(80 / 17.5, rel=0.25)  # SD of structure and noise


@pytest.mark.parametrize(
    ('first', 'second', 'verdict'),
    [(0, 2, 'appeared'), (1.5, 3, 'grew'), (3, 0, 'vanished'), (0, 0.9, 'unclear'), (-2, 0, 'grew')],
)
def test_verdicts_by_hand(first, second, verdict):
    assert evaluate_appeared.judge(first, second) == verdict


def test_small_changes_and_lonely_ones_are_left_out(visits):
    first, second, changed, _, _ = visits
    white = np.ones(SHAPE, dtype=bool)
    crumb = np.zeros(SHAPE, dtype=bool)
    crumb[20, 20, 15] = True
    labels, changes = evaluate_appeared.find_changes(first, second, changed | crumb, white, VOXEL_MM)
    assert [change.number for change in changes] == [1, 2, 4, 5]  # the crumb is the third and keeps its number
    assert labels[20, 20, 15] == 3
    assert evaluate_appeared.find_changes(first, second, changed, ~white, VOXEL_MM)[1] == []


def test_matching_undoes_a_change_of_scale(rng):
    reference = np.cumsum(rng.standard_normal((20, 20, 20)), axis=0)
    mask = np.ones(reference.shape, dtype=bool)
    np.testing.assert_allclose(evaluate_appeared.match(3 * reference + 50, reference, mask), reference, atol=1e-9)


def test_perfect_fill_has_the_error_of_a_second_scan(visits):
    """Noise of both scans has SD 10: the RMS difference is 14.1 in the lesion and around it, the ratio 1."""
    first, second, changed, masks, structure = visits
    white = np.ones(SHAPE, dtype=bool)
    perfect = np.where(masks['new'], second - 80, second)
    flat = np.where(masks['new'], structure + 300, second)
    arguments = (second, masks['new'], changed, white, VOXEL_MM)
    for scale in (1, 2.5):  # another scanner's units
        scores = evaluate_appeared.score(scale * first + 7, perfect, *arguments)
        assert scores['ratio'] == pytest.approx(1, abs=0.15)
        assert scores['bias'] == pytest.approx(0, abs=0.15)
        assert scores['error_unfilled'] > 3 * scores['error']
    mean = evaluate_appeared.score(first, flat, *arguments)
    assert mean['ratio'] == pytest.approx(1 / np.sqrt(2), abs=0.1)  # a perfect mean has the noise of one scan alone
    assert evaluate_appeared.score(first, perfect + 20 * masks['new'], *arguments)['bias'] > 0.8


def test_without_tissue_around_nothing_is_said(visits):
    first, second, changed, masks, _ = visits
    nothing = np.zeros(SHAPE, dtype=bool)
    scores = evaluate_appeared.score(first, second, second, masks['new'], changed, nothing, VOXEL_MM)
    assert np.isnan(list(scores.values())).all()
