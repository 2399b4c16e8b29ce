"""The close-up of a report shows true voxels, both outlines and another image of the visit."""

import io

import numpy as np
import pytest
from PIL import Image

from bids_lesionfill.report import closeup, page

SHAPE = (48, 44, 40)


def decode(png):
    """Pixels, (height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))


def is_colour(picture, colour):
    return (picture == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2)


@pytest.fixture
def scene(rng):
    """An image of noise, the same with a filled lesion, masks, and its row of the table."""
    before = rng.normal(500, 40, SHAPE)
    given, used = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
    given[20:26, 18:24, 16:22] = True
    used[18:28, 16:26, 14:24] = True
    after = np.where(used, 600, before)
    return before, after, closeup.Masks(used, given), {'label': 3, 'centre_voxel': (23, 21, 19)}


def test_every_voxel_is_a_block_of_pixels(scene):
    figure = closeup.closeup(*scene[:3], (1, 1, 1), scene[3], 'T1w')
    views = decode(figure['before'])
    side = 31 * closeup.PX_PER_MM
    assert views.shape == (side, 3 * side + 2 * closeup.GAP_PX, 3)
    axial = views[:, :side, 0]
    blocks = axial.reshape(31, closeup.PX_PER_MM, 31, closeup.PX_PER_MM)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert len(np.unique(axial)) > 100
    assert figure['is_at_true_voxels']
    assert 'lesion 3' in figure['title']


def test_the_patients_right_and_front_are_on_the_left_and_up_is_up(scene):
    before, after, both, lesion = scene
    marked = np.full(SHAPE, 100.0)
    marked[33, 21, 19] = marked[23, 31, 19] = marked[23, 21, 29] = 900  # to the right, to the front, upwards
    assert tuple(closeup.fullest_place(both, lesion['centre_voxel'], (15, 15, 15))) == (23, 21, 19)
    views = closeup.draw_views(marked, [], (23, 21, 19), (15, 15, 15), (1, 1, 1), (100, 900))[..., 0] > 0
    step = 31 + closeup.GAP_PX
    axial, coronal, sagittal = (views[:, start : start + 31] for start in (0, step, 2 * step))
    assert {tuple(p) for p in np.argwhere(axial)} == {(15, 5), (5, 15)}
    assert {tuple(p) for p in np.argwhere(coronal)} == {(15, 5), (5, 15)}
    assert {tuple(p) for p in np.argwhere(sagittal)} == {(15, 5), (5, 15)}


def test_both_outlines_are_seen_even_where_the_masks_agree(scene):
    before, after, both, lesion = scene
    for masks in (both, closeup.Masks(both.used, both.used)):
        picture = decode(closeup.closeup(before, after, masks, (1, 1, 1), lesion, 'T1w')['mask'])
        assert is_colour(picture, page.OUTLINE_COLOUR).sum() > 300
        assert is_colour(picture, page.GIVEN_COLOUR).sum() > 300
    alone = decode(closeup.closeup(before, after, closeup.Masks(both.used), (1, 1, 1), lesion, 'T1w')['mask'])
    assert not is_colour(alone, page.GIVEN_COLOUR).any()


def test_another_image_is_shown_below_and_said_to_be_filled_or_not(scene):
    before, after, both, lesion = scene
    one = closeup.closeup(before, after, both, (1, 1, 1), lesion, 'T1w')
    beside = closeup.Beside('FLAIR', -before, None)
    two = closeup.closeup(before, after, both, (1, 1, 1), lesion, 'T1w', beside)
    height = decode(one['after']).shape[0]
    pictures = {name: decode(two[name]) for name in ('before', 'mask', 'after')}
    assert {picture.shape[0] for picture in pictures.values()} == {2 * height + closeup.GAP_PX}
    assert (pictures['before'][:height] != pictures['after'][:height]).any()
    assert (pictures['before'][height:] == pictures['after'][height:]).all()
    assert 'it was not filled' in two['caption']
    filled = closeup.closeup(
        before, after, both, (1, 1, 1), lesion, 'T1w', beside._replace(after=after, is_resampled=True)
    )
    assert 'it was not filled' not in filled['caption']
    assert 'on the voxels of the T1w' in filled['caption']


def test_thick_slices_keep_their_proportions(scene):
    before, after, both, lesion = scene
    figure = closeup.closeup(before, after, both, (0.5, 0.5, 3), lesion, 'FLAIR')
    height, width, _ = decode(figure['before']).shape
    assert height == 11 * 18  # coronal and sagittal views are the highest: eleven slices
    assert width == 61 * 3 + closeup.GAP_PX + 61 * 3 + closeup.GAP_PX + 61 * 3
    assert '0.5 × 0.5 × 3 mm' in figure['caption']


def test_the_view_is_where_most_of_a_lesion_is_seen():
    used = np.zeros((60, 40, 40), dtype=bool)
    used[5:50, 20, 20] = True  # long and thin, with a thick end
    used[44:54, 15:25, 15:25] = True
    place = closeup.fullest_place(closeup.Masks(used), (30, 20, 20), (6, 6, 6))
    assert 44 <= place[0] < 54


def test_an_empty_mask_and_a_flat_image_work():
    flat = np.zeros(SHAPE)
    nothing = closeup.Masks(np.zeros(SHAPE, dtype=bool))
    figure = closeup.closeup(flat, flat, nothing, (1, 1, 1), {'label': 1, 'centre_voxel': (0, 99, 5)}, 'T1w')
    assert not decode(figure['before']).any()


def test_pictures_are_small(scene):
    before, after, both, lesion = scene
    figure = closeup.closeup(before, after, both, (1, 1, 1), lesion, 'T1w', closeup.Beside('FLAIR', before, after))
    assert max(len(figure[name]) for name in ('before', 'mask', 'after')) < 60_000
