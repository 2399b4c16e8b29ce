from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from bids_examples import without_place
from fillings import fill_with
from scipy import ndimage

from bids_lesionfill import fill_lesions
from bids_lesionfill.diffusion import forms, models, process
from bids_lesionfill.images import grid, masks, nifti, placement, tissues
from bids_lesionfill.lesions import contrasts, fill, settings, tables


@pytest.fixture(scope='module')
def model(tiny_unet):
    form = forms.Form()
    return models.Model(
        'tiny',
        'abc',
        {'num_inference_steps': 1, 'modality': 'T1w'},
        form,
        (16, 16, 8),
        tiny_unet(form.n_channels),
        process.build_scheduler(prediction_type='v_prediction'),
    )


@pytest.fixture(scope='module')
def flair_model(model):
    return replace(model, plan=model.plan | {'modality': 'FLAIR'})


def with_scaling(phantom, dtype, slope, inter):
    """The phantom's T1w stored with a scaling: as integers, as a scanner writes it, or as floats."""
    stored = (phantom.t1w - inter) / slope
    if np.dtype(dtype).kind != 'f':
        stored = np.clip(np.rint(stored), np.iinfo(dtype).min, np.iinfo(dtype).max)
    stored = stored.astype(dtype)
    img = nib.Nifti1Image(stored, phantom.affine)
    img.header.set_data_dtype(dtype)
    img.header.set_slope_inter(slope, inter)
    img.set_sform(phantom.affine, 2)
    img.set_qform(phantom.affine, 1)
    return nib.Nifti1Image.from_bytes(img.to_bytes())


def images(phantom):
    return {
        'int16 with scaling': with_scaling(phantom, np.int16, 0.37, -20.0),
        'uint8': with_scaling(phantom, np.uint8, 5.0, 0.0),
        'float32': nib.Nifti1Image.from_bytes(phantom.t1w_img.to_bytes()),
        'float32 with scaling': with_scaling(phantom, np.float32, 2.0, 5.0),
    }


@pytest.mark.parametrize('kind', ['int16 with scaling', 'uint8', 'float32', 'float32 with scaling'])
def test_fill_leaves_voxels_outside_mask_untouched(phantom, model, kind):
    img = images(phantom)[kind]
    filling = fill_with(img, phantom.lesion_mask_img, model=model, wm_mask_img=phantom.wm_mask_img)
    written = nib.Nifti1Image.from_bytes(filling.filled_img.to_bytes())
    used_mask = np.asarray(filling.used_mask_img.dataobj) > 0
    before, after = img.dataobj.get_unscaled(), written.dataobj.get_unscaled()
    assert after.dtype == before.dtype
    assert np.array_equal(after[~used_mask].tobytes(), before[~used_mask].tobytes())
    assert (after != before)[used_mask].mean() > 0.5
    assert (written.dataobj.slope, written.dataobj.inter) == (img.dataobj.slope, img.dataobj.inter)
    assert np.array_equal(written.affine, img.affine)
    for field in ('qform_code', 'sform_code', 'xyzt_units', 'pixdim', 'dim', 'datatype', 'srow_x', 'quatern_b'):
        assert np.array_equal(written.header[field], img.header[field]), field


def test_public_function_returns_scaled_values_of_the_same_image(phantom, model):
    img = images(phantom)['int16 with scaling']
    filled = fill_lesions(img, phantom.lesion_mask_img, model=model, wm_mask_img=phantom.wm_mask_img, rim_voxels=0)
    assert filled.shape == img.shape
    grown = masks.dilate_within(phantom.lesion_mask, phantom.wm_mask, 1)
    assert np.array_equal(filled.get_fdata()[~grown], img.get_fdata()[~grown])
    assert 600 < filled.get_fdata()[phantom.lesion_mask].mean() < 900


def test_input_images_are_not_changed(phantom, model):
    img, mask_img = phantom.t1w_img, phantom.lesion_mask_img
    before = img.to_bytes(), mask_img.to_bytes()
    fill_lesions(img, mask_img, model=model, wm_mask_img=phantom.wm_mask_img)
    assert (img.to_bytes(), mask_img.to_bytes()) == before


def test_empty_mask_gives_a_copy_and_says_so(phantom):
    img = images(phantom)['int16 with scaling']
    filling = fill_with(img, phantom.img(np.zeros_like(phantom.lesion_mask)), model='needs no model')
    written = nib.Nifti1Image.from_bytes(filling.filled_img.to_bytes())
    assert np.array_equal(written.dataobj.get_unscaled(), img.dataobj.get_unscaled())
    assert (written.dataobj.slope, written.dataobj.inter) == (img.dataobj.slope, img.dataobj.inter)
    assert 'empty' in filling.warnings[0]


def test_lesion_without_an_anatomy_is_refused_in_a_sentence(phantom, model):
    with pytest.raises(ValueError, match='no anatomy is given'):
        fill.fill(phantom.t1w_img, settings.Lesions(phantom.lesion_mask_img), None, model)


def test_lesion_far_from_white_matter_is_kept_and_named(phantom, model):
    mask = phantom.lesion_mask.copy()
    corner = np.zeros_like(mask)
    corner[1:4, 1:4, 1:4] = True
    filling = fill_with(phantom.t1w_img, phantom.img(mask | corner), model=model, wm_mask_img=phantom.wm_mask_img)
    assert not (np.asarray(filling.used_mask_img.dataobj) > 0)[corner].any()
    assert (filling.record.lesions_dropped, filling.record.lesion_voxels_dropped) == (1, 27)
    assert any('of the mask (1 lesion) touches no white matter' in warning for warning in filling.warnings)


def test_used_mask_grows_into_white_matter_only(phantom, model):
    filling = fill_with(
        phantom.t1w_img, phantom.lesion_mask_img, model=model, wm_mask_img=phantom.wm_mask_img, rims='grown', dilate=2
    )
    used_mask = np.asarray(filling.used_mask_img.dataobj) > 0
    assert used_mask.sum() > 2 * phantom.lesion_mask.sum()
    assert not (used_mask & ~phantom.wm_mask & ~phantom.lesion_mask).any()
    assert filling.record.lesion_voxels_used == used_mask.sum()


@pytest.mark.parametrize('rims', ['unmixed', 'grown'])
def test_dilation_zero_fills_the_mask_and_nothing_else(phantom, model, rims):
    """Neither rims nor soft edges nor fluid: a tight mask leaves the rim of its lesions as it is."""
    tight = ndimage.binary_erosion(phantom.lesion_mask)
    filling = fill_with(
        phantom.t1w_img, phantom.img(tight), model=model, wm_mask_img=phantom.wm_mask_img, rims=rims, dilate=0
    )
    assert np.array_equal(np.asarray(filling.used_mask_img.dataobj) > 0, tight)
    filled = filling.filled_img.get_fdata()
    assert np.array_equal(filled[~tight], phantom.t1w[~tight])
    assert (filled[tight] != phantom.t1w[tight]).all()
    assert (filling.record.dilation, filling.record.rim_voxels) == (0, 0)


def test_mask_on_another_grid_is_resampled(phantom, model):
    fine = grid.conform(phantom.lesion_mask_img, order=0)
    assert fine.shape != phantom.lesion_mask.shape
    on_grid = placement.mask_on_grid(fine, phantom.t1w_img)
    assert on_grid.shape == phantom.lesion_mask.shape
    assert 2 * (on_grid & phantom.lesion_mask).sum() / (on_grid.sum() + phantom.lesion_mask.sum()) > 0.8


def test_flipped_mask_lands_on_the_same_place(phantom):
    flipped = nib.as_closest_canonical(phantom.lesion_mask_img)
    assert not np.array_equal(flipped.affine, phantom.affine)
    assert np.array_equal(placement.mask_on_grid(flipped, phantom.t1w_img), phantom.lesion_mask)


def test_mask_elsewhere_in_space_is_refused(phantom):
    far = phantom.affine.copy()
    far[:3, 3] += 500
    with pytest.raises(ValueError, match='outside the image'):
        placement.mask_on_grid(nib.Nifti1Image(phantom.lesion_mask.astype(np.uint8), far), phantom.t1w_img)


def test_probabilities_are_cut_at_the_threshold(phantom):
    probability = nib.Nifti1Image((phantom.lesion_mask * 0.4).astype(np.float32), phantom.affine)
    assert not placement.mask_on_grid(probability, phantom.t1w_img).any()
    assert np.array_equal(placement.mask_on_grid(probability, phantom.t1w_img, 0.3), phantom.lesion_mask)


def test_labels_above_one_are_lesions(phantom):
    labels = nib.Nifti1Image((phantom.lesion_mask * 7).astype(np.int16), phantom.affine)
    assert np.array_equal(placement.mask_on_grid(labels, phantom.t1w_img), phantom.lesion_mask)


@pytest.mark.parametrize(
    'img',
    [
        nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)),
        nib.Nifti1Image(np.zeros((4, 4), np.float32), np.eye(4)),
        nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)),
        SimpleNamespace(
            shape=(4, 4, 4),
            affine=np.diag([0, 1, 1, 1]),
            get_data_dtype=lambda: np.dtype('f4'),
            get_filename=lambda: None,
        ),
    ],
    ids=['two volumes', '2D', 'complex', 'flat affine'],
)
def test_unusable_image_is_refused_in_a_sentence(img):
    with pytest.raises(ValueError, match='expected|affine'):
        nifti.check_image(img, 'image')


def test_four_dimensions_with_one_volume_stay_four(phantom, model):
    img = nib.Nifti1Image(phantom.t1w[..., None], phantom.affine)
    filled = fill_lesions(img, phantom.lesion_mask_img, model=model, wm_mask_img=phantom.wm_mask_img)
    assert filled.shape == phantom.t1w.shape + (1,)
    assert (filled.get_fdata()[..., 0] != phantom.t1w)[phantom.lesion_mask].mean() > 0.9


@pytest.mark.parametrize('axes', ['RAS', 'LPI', 'ASR', 'SLP'])
def test_orientation_changes_nothing_but_the_order(phantom, model, axes):
    def turned(img):
        ornt = nib.orientations.ornt_transform(nib.io_orientation(img.affine), nib.orientations.axcodes2ornt(axes))
        return img.as_reoriented(ornt)

    reference = fill_lesions(phantom.t1w_img, phantom.lesion_mask_img, model=model, wm_mask_img=phantom.wm_mask_img)
    filled = fill_lesions(
        turned(phantom.t1w_img), turned(phantom.lesion_mask_img), model=model, wm_mask_img=turned(phantom.wm_mask_img)
    )
    assert ''.join(nib.aff2axcodes(filled.affine)) == axes
    difference = filled.get_fdata() - turned(reference).get_fdata()
    assert np.abs(difference).max() < 1


def test_several_samples_give_a_deviation_inside_the_mask_only(phantom, model):
    filling = fill_with(
        phantom.t1w_img, phantom.lesion_mask_img, model=model, wm_mask_img=phantom.wm_mask_img, n_samples=3
    )
    sd = filling.sd_img.get_fdata()
    used_mask = np.asarray(filling.used_mask_img.dataobj) > 0
    assert (sd[used_mask] > 0).mean() > 0.9
    assert not sd[~used_mask].any()
    assert filling.record.num_inference_steps == models.STEPS_FOR_SEVERAL_SAMPLES


def test_nan_in_the_image_survives_outside_and_does_not_spread(phantom, model):
    t1w = phantom.t1w.copy()
    t1w[0, 0, 0] = np.nan
    filled = fill_lesions(phantom.img(t1w), phantom.lesion_mask_img, model=model, wm_mask_img=phantom.wm_mask_img)
    data = filled.get_fdata()
    assert np.isnan(data[0, 0, 0])
    assert np.isnan(data).sum() == 1


def test_table_has_a_row_per_lesion_of_the_given_mask(phantom, model):
    filling = fill_with(phantom.t1w_img, phantom.lesion_mask_img, model=model, wm_mask_img=phantom.wm_mask_img)
    assert [row['label'] for row in filling.lesions] == [1, 2]
    used_mask = np.asarray(filling.used_mask_img.dataobj) > 0
    volume = abs(np.linalg.det(phantom.affine[:3, :3]))
    assert sum(row['volume_mm3'] for row in filling.lesions) == pytest.approx(used_mask.sum() * volume, abs=0.01)
    largest = filling.lesions[0]
    voxel = nib.affines.apply_affine(np.linalg.inv(phantom.affine), [largest[f'{axis}_mm'] for axis in 'xyz'])
    assert used_mask[tuple(np.rint(voxel).astype(int))]
    assert largest['mean_surrounding'] == pytest.approx(800, abs=20)
    assert 540 < largest['mean_before'] < 750  # of voxels that hold lesion: no healthy ones that a grown mask took


def test_hand_made_table():
    before, after = np.full((8, 8, 8), 10.0), np.full((8, 8, 8), 10.0)
    mask = np.zeros((8, 8, 8), bool)
    mask[2:4, 3, 3] = True
    before[mask], after[mask] = 4, 9
    (row,) = tables.describe_lesions(before, after, mask, mask, ~mask, np.diag([2, 1, 1, 1]), -before, 5)
    assert row == {
        'label': 1,
        'volume_mm3': 4.0,
        'given_volume_mm3': 4.0,
        'x_mm': 5.0,
        'y_mm': 3.0,
        'z_mm': 3.0,
        'mean_before': 4.0,
        'mean_after': 9.0,
        'mean_surrounding': 10.0,
        'mean_touching': 10.0,
        'mean_beyond': 10.0,
        'faint_percent': 0.0,
    }


def test_table_tells_white_matter_next_to_a_lesion_from_that_beyond_and_counts_faint_voxels():
    before = np.full((13, 13, 13), 10.0)
    given, used = np.zeros_like(before, dtype=bool), np.zeros_like(before, dtype=bool)
    given[6, 6, 5:8], used[5:8, 5:8, 4:9] = True, True
    touching = ndimage.binary_dilation(used, np.ones((3, 3, 3))) & ~used
    before[touching] = 9
    before[6, 6, 5:7], before[6, 6, 7] = 4, 8.5
    (row,) = tables.describe_lesions(before, before, given, used, ~used, np.eye(4), -before, 2)
    assert (row['mean_touching'], row['mean_beyond']) == (9, 10)
    assert row['faint_percent'] == pytest.approx(100 / 3, abs=1e-3)  # of the voxels of the given mask
    (row,) = tables.describe_lesions(before, before, given, used, np.zeros_like(used), np.eye(4), -before, 2)
    assert all(np.isnan(row[name]) for name in ('mean_surrounding', 'mean_touching', 'mean_beyond', 'faint_percent'))


def test_mixture_finds_white_matter_when_none_is_given(make_phantom, model):
    phantom = make_phantom(shape=(96, 90, 80))
    filling = fill_with(phantom.t1w_img, phantom.lesion_mask_img, model=model)
    assert filling.record.white_matter_median == pytest.approx(800, rel=0.02)
    assert filling.record.skull_stripped is True


# FLAIR


def stored_bytes_outside(img, filling):
    """The stored values outside the used mask, of the image and of what was written."""
    outside = np.asarray(filling.used_mask_img.dataobj) == 0
    written = nib.Nifti1Image.from_bytes(filling.filled_img.to_bytes())
    return [np.asanyarray(image.dataobj)[outside].tobytes() for image in (img, written)]


@pytest.mark.parametrize('other_grid', ['neither', 'T1w', 'FLAIR'])
def test_flair_takes_white_matter_from_the_t1w_and_the_scale_from_itself(phantom, flair_model, other_grid):
    def img(array, name):
        return phantom.thick_slices(array) if name == other_grid else phantom.img(array)

    flair_img, mask_img = img(phantom.flair, 'FLAIR'), img(phantom.lesion_mask, 'FLAIR')
    filling = fill_with(flair_img, mask_img, t1w_img=img(phantom.t1w, 'T1w'), model=flair_model, rim_voxels=0)
    before, after = stored_bytes_outside(flair_img, filling)
    assert before == after
    assert filling.record.white_matter_median == pytest.approx(350, rel=0.03)
    assert 'T1w' in filling.record.white_matter_source
    assert len(filling.lesions) == 2
    for row in filling.lesions:  # bright before; the untrained network adds little to the interpolation
        assert row['mean_before'] > row['mean_surrounding'] + 20
        assert row['mean_after'] == pytest.approx(350, abs=60)


def test_another_order_of_the_axes_of_the_t1w_changes_no_byte(phantom, flair_model):
    flair_img, mask_img = phantom.img(phantom.flair), phantom.lesion_mask_img
    canonical = nib.as_closest_canonical(phantom.t1w_img)
    assert not np.array_equal(canonical.affine, phantom.affine)
    filled = [
        fill_lesions(flair_img, mask_img, t1w_img=t1w_img, model=flair_model).to_bytes()
        for t1w_img in (phantom.t1w_img, canonical, canonical.as_reoriented([[2, 1], [0, -1], [1, 1]]))
    ]
    assert filled[0] == filled[1] == filled[2]


def test_t1w_without_a_place_lies_on_the_voxels_of_the_flair(phantom, flair_model):
    affine = nib.affines.from_matvec(np.eye(3), (9, 0, 5)) @ phantom.affine
    flair_img, mask_img, t1w_img = (
        nib.Nifti1Image(array, affine) for array in (phantom.flair, phantom.lesion_mask.astype(np.uint8), phantom.t1w)
    )
    placeless = without_place(t1w_img)
    assert not np.allclose(placeless.affine, affine)
    filled, expected = (
        fill_lesions(flair_img, mask_img, t1w_img=placed_img, model=flair_model).to_bytes()
        for placed_img in (placeless, t1w_img)
    )
    assert filled == expected


def test_a_lesion_that_no_voxel_of_the_working_grid_meets_is_filled(model):
    affine = np.diag([0.4, 0.4, 0.4, 1])
    wm = np.zeros((60, 60, 60), bool)
    wm[5:55, 5:55, 5:55] = True
    lesion = np.zeros_like(wm)
    for corner in np.ndindex(3, 3, 3):  # whatever lies between the voxels of 1 mm
        lesion[tuple(20 + 9 * np.array(corner))] = True
    t1w = np.where(lesion, 300, 800 * wm).astype(np.float32)
    wm_img, mask_img = (nib.Nifti1Image(mask.astype(np.uint8), affine) for mask in (wm, lesion))
    filling = fill_with(nib.Nifti1Image(t1w, affine), mask_img, model=model, wm_mask_img=wm_img, dilate=0, rim_voxels=0)
    filled = filling.filled_img.get_fdata()
    assert np.array_equal(filled[~lesion], t1w[~lesion])
    assert (filled[lesion] > 650).all()


def test_mask_on_thick_slices_does_not_grow_into_the_next_slices(make_phantom, model):
    """It grew by voxels: on slices of 5 mm the used mask was 5 to 12 times the given one."""
    phantom = make_phantom(shape=(60, 56, 14), affine=np.diag([1, 1, 5.0, 1]))
    tight = fill.ndimage.binary_erosion(phantom.lesion_mask, np.ones((3, 3, 1)))
    tight[:, :, :7] = False
    assert tight.any()
    filling = fill_with(phantom.t1w_img, phantom.img(tight), model=model, wm_mask_img=phantom.wm_mask_img)
    used = np.asarray(filling.used_mask_img.dataobj) > 0
    slices = tight.any(axis=(0, 1))
    assert used[tight].all()
    assert used.sum() > tight.sum()
    assert not used[:, :, ~slices].any()


def test_mask_that_follows_the_qform_of_its_image_lies_on_its_voxels(phantom, model):
    img = phantom.t1w_img
    img.set_qform(nib.affines.from_matvec(np.eye(3), (21, 0, 0)) @ phantom.affine, code=1)
    mask_img = nib.Nifti1Image(phantom.lesion_mask.astype(np.uint8), img.header.get_qform())
    filling = fill_with(img, mask_img, model=model, wm_mask_img=phantom.wm_mask_img)
    assert (np.asarray(filling.used_mask_img.dataobj) > 0)[phantom.lesion_mask].all()
    assert any('lies where the qform puts the image' in warning for warning in filling.warnings)
    elsewhere = nib.Nifti1Image(np.asarray(mask_img.dataobj), np.eye(4))
    assert not placement.follows_qform(elsewhere, img)


def test_dark_ringing_around_the_brain_survives(phantom, flair_model):
    assert (phantom.flair < 0).any()
    filled = fill_lesions(
        phantom.img(phantom.flair), phantom.lesion_mask_img, t1w_img=phantom.t1w_img, model=flair_model
    ).get_fdata()
    assert np.array_equal(filled < 0, phantom.flair < 0)
    assert np.isfinite(filled).all()


def test_flair_without_its_t1w_is_refused_in_a_sentence(phantom, flair_model):
    with pytest.raises(ValueError, match=r'tiny fills FLAIR images: it needs their T1w \(t1w_img\) or wm_mask_img'):
        fill_lesions(phantom.img(phantom.flair), phantom.lesion_mask_img, model=flair_model)


def test_white_matter_mask_stands_in_for_the_t1w(phantom, flair_model):
    filling = fill_with(
        phantom.img(phantom.flair), phantom.lesion_mask_img, model=flair_model, wm_mask_img=phantom.wm_mask_img
    )
    assert filling.record.white_matter_median == pytest.approx(350, rel=0.03)


def test_t1w_elsewhere_in_space_is_refused(phantom, flair_model):
    far = phantom.affine.copy()
    far[:3, 3] += 500
    with pytest.raises(ValueError, match='the T1w lies outside the image'):
        fill_lesions(
            phantom.img(phantom.flair),
            phantom.lesion_mask_img,
            t1w_img=nib.Nifti1Image(phantom.t1w, far),
            model=flair_model,
        )


def test_t1w_with_nothing_in_it_or_of_two_volumes_is_refused(phantom, flair_model):
    for t1w, words in ((0 * phantom.t1w, 'no brain'), (np.stack([phantom.t1w] * 2, -1), 'T1w has shape')):
        with pytest.raises(ValueError, match=words):
            fill_lesions(
                phantom.img(phantom.flair),
                phantom.lesion_mask_img,
                t1w_img=nib.Nifti1Image(t1w, phantom.affine),
                model=flair_model,
            )


def test_missed_rim_is_bright_on_flair_and_dark_on_t1w(make_phantom, model, flair_model):
    phantom = make_phantom(affine=np.eye(4))
    lesion = phantom.lesion_mask
    wide = ndimage.binary_dilation(lesion, masks.FULL_CONNECTIVITY, 2) & phantom.wm_mask
    rim = wide & ~masks.dilate_within(lesion, phantom.wm_mask, 1)

    def share_taken(array, sign, model, rim_voxels):
        array = np.where(wide & ~lesion, array + 200 * sign, array)
        filling = fill_with(phantom.img(array), phantom.lesion_mask_img, model=model, wm_mask_img=phantom.wm_mask_img,
                             dilate=1, rim_voxels=rim_voxels, rims='grown')  # fmt: skip
        assert filling.record.lesion_sign == sign
        return (np.asarray(filling.used_mask_img.dataobj) > 0)[rim].mean()

    for image in ((phantom.flair, 1), (phantom.t1w, -1)):  # measured, whatever the model was made for
        for any_model in (model, flair_model):
            assert share_taken(*image, any_model, 2) > 0.9
            assert share_taken(*image, any_model, 0) == 0


def test_what_the_mask_grows_by_hangs_together_with_it_on_another_grid(make_phantom, model, monkeypatch):
    """What touches the mask by a corner on the working grid may be an island on the image's own: seen at 0.7 mm."""
    phantom = make_phantom(shape=(90, 80, 70), affine=np.diag([0.6, 0.6, 0.6, 1.0]))

    def ragged(image, hole, wm_mask, *_, **options):
        grown = masks.dilate_within(hole, wm_mask, 4)
        return hole | (grown & (np.indices(hole.shape) % 3 == 0).all(axis=0))

    monkeypatch.setattr(contrasts, 'grow_to_rim', ragged)
    options = {'model': model, 'wm_mask_img': phantom.wm_mask_img, 'rims': 'grown', 'dilate': 1}
    filling = fill_with(phantom.t1w_img, phantom.lesion_mask_img, **options)
    used = np.asarray(filling.used_mask_img.dataobj) > 0
    labels, n_parts = masks.label_lesions(used)
    assert set(np.unique(labels[phantom.lesion_mask])) == set(range(1, n_parts + 1))


def test_skull_of_the_image_counts_not_that_of_the_t1w(phantom, flair_model, monkeypatch):
    monkeypatch.setattr(tissues, 'LARGEST_BRAIN_ML', 30)  # the phantom's brain has 19 ml
    full = np.where(phantom.brain_mask, phantom.flair, 100).astype(np.float32)
    filling = fill_with(phantom.img(full), phantom.lesion_mask_img, t1w_img=phantom.t1w_img, model=flair_model)
    assert filling.record.skull_stripped is False
    assert filling.record.brain_mask_source == 'foreground of a skull-stripped image'


def test_cuda_that_is_not_there_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match='no usable GPU'):
        models.choose_device('cuda')
    assert models.choose_device('auto') == 'cpu'


def test_lesion_whose_middle_is_fluid_stays_one_lesion():
    given, used = np.zeros((12, 6, 6), bool), np.zeros((12, 6, 6), bool)
    given[1:8, 2:4, 2:4] = given[10:, 4:, 4:] = True
    used[1:3, 1:5, 1:5] = used[6:9, 2:4, 2:4] = True  # what is between is fluid, the other lesion is dropped
    labels, n_lesions = tables.label_filled(given, used)
    assert n_lesions == 1
    assert np.array_equal(labels == 1, given & (np.arange(12) < 9)[:, None, None])
    assert np.array_equal(tables.number_lesions(given, used), used)
