"""Midpoint of several visits, and noise that belongs to its places."""

import nibabel as nib
import numpy as np
import pytest
from conftest import build_phantom
from heads import turned
from scipy import ndimage

from bids_lesionfill.images import midpoint
from bids_lesionfill.lesions import fill, noise, settings, texture

TURNS = [turned(degrees, (1, 1, 1), shift) for degrees, shift in
         (((0, 0, 0), (0, 0, 0)), ((6, -3, 9), (4, -20, 7)), ((-2, 8, 1), (-60, 0, 3)))]  # fmt: skip
GRIDS = {
    'coarse and flipped': turned((0, 0, 0), (-1.0, 1.0, 3.0), (17, -21, -13)),
    'oblique': turned((12, -20, 33), (0.9, -1.0, 1.2), (17, -21, -13)),
}


def same_place(seed=1, to_subject=None, cell_mm=0.5):
    return noise.SubjectNoise(seed, np.eye(4) if to_subject is None else to_subject, cell_mm)


# Midpoint


def test_midpoint_of_two_is_half_the_way_from_both():
    first, second = midpoint.to_midpoint([np.eye(4), TURNS[1]])
    np.testing.assert_allclose(first @ second, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(np.linalg.inv(first) @ second, TURNS[1], atol=1e-9)
    np.testing.assert_allclose(first[:3, :3] @ first[:3, :3].T, np.eye(3), atol=1e-9)


@pytest.mark.parametrize('reference', [0, 1, 2])
def test_midpoint_is_the_same_whichever_visit_is_the_reference_and_in_any_order(reference):
    expected = midpoint.to_midpoint(TURNS)
    of_other = [np.linalg.inv(TURNS[reference]) @ each for each in TURNS]
    found = midpoint.to_midpoint(of_other[::-1])[::-1]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


# Noise


@pytest.mark.parametrize('affine', GRIDS.values(), ids=list(GRIDS))
def test_noise_is_white_on_any_grid(affine):
    found = same_place(cell_mm=noise.cell_size(nib.affines.voxel_sizes(affine))).on_grid((40, 36, 30), affine)
    assert found.std() == pytest.approx(1, abs=0.07)
    assert found.mean() == pytest.approx(0, abs=0.02)
    for axis in range(3):
        ahead, behind = np.delete(found, 0, axis), np.delete(found, -1, axis)
        assert abs((ahead * behind).mean()) < 0.1


def test_noise_of_a_place_is_the_same_seen_from_two_visits_in_any_box():
    shape, affine = (20, 18, 16), GRIDS['oblique']
    found = same_place().on_grid(shape, affine)
    moved = same_place(to_subject=TURNS[1]).on_grid(shape, np.linalg.inv(TURNS[1]) @ affine)
    np.testing.assert_allclose(moved, found, atol=1e-4)
    part = same_place().on_grid((5, 6, 7), affine @ turned((0, 0, 0), (1, 1, 1), (3, 2, 4)))
    np.testing.assert_allclose(part, found[3:8, 2:8, 4:11], atol=1e-4)
    assert abs(np.corrcoef(found.ravel(), same_place(2).on_grid(shape, affine).ravel())[0, 1]) < 0.06


@pytest.mark.parametrize('shift', [(0.5, 0, 0), (0.24, 0.36, 0.63)])
def test_noise_is_the_same_between_voxels_that_lie_elsewhere(shift):
    found = same_place().on_grid((36, 36, 36), np.eye(4))
    other = same_place().on_grid((36, 36, 36), turned((0, 0, 0), (1, 1, 1), shift))
    inner = (slice(8, -8),) * 3
    back = ndimage.shift(other, shift, order=5)
    assert np.corrcoef(found[inner].ravel(), back[inner].ravel())[0, 1] > 0.9
    assert np.corrcoef(found[inner].ravel(), other[inner].ravel())[0, 1] < 0.7  # else it would be smooth


def test_small_voxels_take_a_finer_lattice():
    assert noise.cell_size((0.3, 0.3, 3)) < noise.cell_size((0.8, 0.8, 0.8)) < noise.cell_size((1, 1, 3)) == 0.5


def test_field_of_places_does_not_depend_on_the_box_it_is_drawn_in():
    covariance = np.zeros((13, 13, 13))
    covariance[6, 6, 6] = 1
    for axis in range(3):
        for lag in (5, 7):
            covariance[tuple(lag if other == axis else 6 for other in range(3))] = 0.15

    def of_places(shape, start):
        return same_place().on_grid(shape, turned((0, 0, 0), (1, 1, 1), start))

    whole = texture.gaussian_field(covariance, (24, 22, 20), of_places)
    part = texture.gaussian_field(covariance, (9, 8, 7), texture.shifted(of_places, (6, 5, 4)))
    np.testing.assert_allclose(part, whole[6:15, 5:13, 4:11], atol=0.01)
    assert whole.std() == pytest.approx(1, abs=0.05)


# Filling


def filled_in(head, t1w, with_noise, seed=0):
    """A phantom, filled from white matter that is given, smoothly but for the texture."""
    sampling = settings.Sampling(seed=seed, noise=same_place() if with_noise else None)
    lesions = settings.Lesions(head.lesion_mask_img)
    filling = fill.fill_alone(
        head.img(t1w), lesions, 'biharmonic', wm_mask_img=head.wm_mask_img, growth=settings.Growth(dilate=0),
        sampling=sampling,
    )  # fmt: skip
    return filling.filled_img.get_fdata()


def test_place_is_filled_alike_in_two_visits_though_their_noise_and_seeds_differ():
    first, second = (build_phantom(seed=seed, noise=20.0) for seed in (1, 2))
    core = first.lesion_mask
    alike = {}
    for with_noise in (False, True):
        one, other = (filled_in(head, head.t1w, with_noise, seed) for seed, head in enumerate((first, second)))
        alike[with_noise] = np.corrcoef(one[core], other[core])[0, 1]
    assert alike[True] > 0.7
    assert alike[True] > alike[False] + 0.3


def test_texture_of_a_place_does_not_depend_on_how_the_image_is_stored(phantom):
    flipped_img = phantom.t1w_img.as_reoriented(nib.orientations.axcodes2ornt('PSL'))
    turn = nib.orientations.axcodes2ornt('PSL')
    imgs = [phantom.t1w_img, flipped_img]
    masks = [phantom.lesion_mask_img, phantom.lesion_mask_img.as_reoriented(turn)]
    sampling = settings.Sampling(noise=same_place())
    filled = [
        fill.fill_alone(img, settings.Lesions(mask_img), 'biharmonic', wm_mask_img=phantom.wm_mask_img,
                        sampling=sampling).filled_img
        for img, mask_img in zip(imgs, masks)
    ]  # fmt: skip
    one, other = (nib.as_closest_canonical(img).get_fdata() for img in filled)
    assert (one != nib.as_closest_canonical(phantom.t1w_img).get_fdata()).any()
    np.testing.assert_allclose(one, other, atol=0.5)
